"""The second-order loss change against Jacobians written out, and against the divergence it predicts."""

import threading
from functools import partial

import pytest
import torch

from mixqvit.criteria import loss_change, shared
from mixqvit.criteria.loss_change import loss_change_steps, mean_loss_changes
from mixqvit.network.bits import FULL_PRECISION, tied_bits
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate, layer_operations
from mixqvit.quantization.model import quantize
from tests.tiny_models import tiny_images, tiny_model

at_two_and_four_bits = partial(tied_bits, bit_widths=(2, 4))
at_four_bits = partial(tied_bits, bit_widths=(4,))
at_eight_bits = partial(tied_bits, bit_widths=(8,))


def separate_bits(layer):
    """Both operands, the weights alone and the activations alone."""
    if layer.is_matmul:
        return ((2, 2), (4, 2))
    return ((2, 8 if layer.kind == "patch_embed" else 2), (2, FULL_PRECISION), (FULL_PRECISION, 8))


def written_out(calibration, layer, choices, pixels):
    """Return ½ Δᵀ Jᵀ (diag p - p pᵀ) J Δ by bits, mean over images, with the whole Jacobian J."""
    graph = calibration.graph
    harms = dict.fromkeys(choices, 0.0)
    for image in pixels.split(1):
        ((_, values),) = graph.walk(image, [layer.node])
        operands = graph.operands(layer, values)
        output = torch.matmul(*operands) if layer.is_matmul else graph.operation(layer)(*operands)

        def logits(output, values=values):
            return graph.resume(values, layer.node, {layer.node: lambda *_: output})[0]

        jacobian = torch.autograd.functional.jacobian(logits, output).flatten(1)
        p = logits(output).softmax(dim=0)
        middle = torch.diag(p) - torch.outer(p, p)
        for bits in choices:
            change = (layer_operations(calibration, layer, bits)[layer.node](*operands) - output).flatten()
            harms[bits] += float(0.5 * change @ jacobian.T @ middle @ jacobian @ change) / len(pixels)
    return harms


def test_harms_are_those_of_jacobians_written_out(calibration):
    pixels = tiny_images(3)
    found = mean_loss_changes(loss_change_steps(calibration, pixels, separate_bits))
    assert list(found) == [layer.name for layer in calibration.graph.layers]
    for layer in calibration.graph.layers:
        expected = written_out(calibration, layer, separate_bits(layer), pixels)
        assert list(found[layer.name]) == list(expected)
        assert found[layer.name] == pytest.approx(expected, rel=1e-9)


def test_random_signs_come_close_where_there_are_many_classes(vit, monkeypatch):
    exact = mean_loss_changes(loss_change_steps(vit, tiny_images(2), at_four_bits))
    monkeypatch.setattr(loss_change, "EXACT_CLASSES", 4)
    monkeypatch.setattr(loss_change, "PROBES", 400)
    estimated = mean_loss_changes(loss_change_steps(vit, tiny_images(2), at_four_bits))
    for layer, harms in exact.items():
        for bits, harm in harms.items():
            assert estimated[layer][bits] == pytest.approx(harm, rel=0.3)
            assert estimated[layer][bits] != harm


def test_small_changes_cost_the_divergence_they_predict(calibration):
    """To second order it is KL(full precision ‖ quantized), so that at 8 bits the two are nearly equal."""
    graph, pixels = calibration.graph, tiny_images(4)
    found = mean_loss_changes(loss_change_steps(calibration, pixels, at_eight_bits))
    reference = graph(pixels)
    for layer in graph.layers:
        logits = quantize(calibration, {layer.name: 8}, compensation=None)(pixels)
        assert found[layer.name][8, 8] == pytest.approx(float(graph.task.divergence(reference, logits).mean()), rel=0.2)


def test_full_precision_costs_nothing(vit):
    (batch,) = loss_change_steps(vit, tiny_images(2), lambda layer: ((FULL_PRECISION, FULL_PRECISION),))
    assert all(harms == {(FULL_PRECISION, FULL_PRECISION): 0.0} for harms in batch.harms.values())


def test_batches_can_be_done_one_at_a_time_and_merge_to_the_whole(vit, monkeypatch):
    pixels = tiny_images(3)
    (whole,) = loss_change_steps(vit, pixels, at_two_and_four_bits)
    monkeypatch.setattr(shared, "MEMORY_BYTES", 1)
    state = torch.get_rng_state()
    with torch.no_grad():
        single = list(loss_change_steps(vit, pixels, at_two_and_four_bits))
        assert not torch.is_grad_enabled()
    assert [(batch.start, batch.images) for batch in single] == [(0, 1), (1, 1), (2, 1)]
    rest = loss_change_steps(vit, pixels, at_two_and_four_bits, finished=[0, 2])
    assert list(rest) == single[1:2]
    merged = mean_loss_changes(reversed(single))
    for layer, harms in mean_loss_changes([whole]).items():
        assert merged[layer] == pytest.approx(harms, rel=1e-9)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in vit.graph.module.parameters())


def test_each_batch_has_signs_of_its_own_from_the_seed(vit, monkeypatch):
    monkeypatch.setattr(loss_change, "EXACT_CLASSES", 4)
    monkeypatch.setattr(shared, "MEMORY_BYTES", 1)
    pixels = tiny_images(1).repeat(2, 1, 1, 1)
    first, second = loss_change_steps(vit, pixels, at_four_bits)
    assert first.harms != second.harms
    assert list(loss_change_steps(vit, pixels, at_four_bits)) == [first, second]
    assert list(loss_change_steps(vit, pixels, at_four_bits, seed=1)) != [first, second]


def test_threads_do_not_disturb_each_other_and_single_precision_serves(vit):
    expected = mean_loss_changes(loss_change_steps(vit, tiny_images(3), at_eight_bits))
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    single = calibrate(graph, tiny_images(4, torch.float32), bit_widths=(8,))
    found = {}

    def work(index):
        found[index] = mean_loss_changes(loss_change_steps(vit, tiny_images(3), at_eight_bits))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    pixels = tiny_images(3, torch.float32)
    harms = mean_loss_changes(loss_change_steps(single, pixels, at_eight_bits))
    for thread in threads:
        thread.join()
    assert found == {0: expected, 1: expected}
    for layer, by_bits in harms.items():
        assert by_bits[8, 8] == pytest.approx(expected[layer][8, 8], rel=0.2)

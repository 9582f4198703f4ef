"""Every stage that runs images in batches goes on with smaller ones when memory runs out, and says so at one image."""

from itertools import chain

import numpy as np
import pytest
import torch

from mixqvit.criteria.hessian import hessian_trace_steps
from mixqvit.criteria.indicators import indicator_steps
from mixqvit.criteria.loss_change import loss_change_steps
from mixqvit.criteria.pairwise import all_pairs, pair_steps
from mixqvit.criteria.perturbation import squared_perturbations
from mixqvit.criteria.sensitivity.sweep import sensitivity_steps
from mixqvit.errors import MixQViTError
from mixqvit.network import devices
from mixqvit.network.bits import tied_bits
from mixqvit.network.devices import halving, images_at_once, in_parts, is_out_of_memory
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.evaluation import evaluate_steps
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.model import quantize
from mixqvit.relevance.attribution import transformer_attribution
from mixqvit.relevance.captum_methods import LAYER_METHODS, layer_attribution_steps
from mixqvit.relevance.propagation import propagate
from mixqvit.relevance.quality import attribution_quality
from mixqvit.relevance.result import merge
from tests.device import limited_memory
from tests.tiny_models import tiny_images, tiny_model

IMAGES = 8
CPU = torch.device("cpu")


def more_than_there_is():
    torch.empty(2**50)


def more_than_the_gpu_has():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def more_than_the_apple_gpu_has():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 8 MB, max allowed: 9 GB)")


def more_than_python_gets():
    bytearray(2**62)


RAISES = (more_than_there_is, more_than_the_gpu_has, more_than_the_apple_gpu_has, more_than_python_gets)


@pytest.mark.parametrize("raised", RAISES)
def test_a_batch_that_does_not_fit_is_halved(raised):
    sizes = []

    def run(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raised()
        return list(range(part.start, part.stop))

    assert list(chain(*in_parts(run, 10, 8, CPU, "test"))) == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("raised", RAISES)
def test_what_does_not_fit_one_by_one_is_an_error_that_says_what_to_do(raised):
    with pytest.raises(MixQViTError, match=r"the sweep, even one image at a time \(.* GB free now\)\. Close"):
        list(in_parts(lambda part: raised(), 10, 8, CPU, "sweep"))


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ZeroDivisionError):
        list(in_parts(lambda part: 1 / 0, 4, 2, CPU, "test"))


def test_what_was_yielded_is_not_yielded_again():
    done = []

    def steps(at_once):
        for number in range(6):
            if number not in done:
                if number == 3 and at_once > 2:
                    more_than_there_is()
                yield number, at_once

    found = []
    for number, at_once in halving(steps, 8, CPU, "test"):
        done.append(number)
        found.append((number, at_once))
    assert found == [(0, 8), (1, 8), (2, 8), (3, 2), (4, 2), (5, 2)]


def test_tensors_of_the_failed_attempt_are_free_before_the_next_one():
    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    seen = []

    def run(part):
        seen.append(Held.alive)
        held = Held()
        if part.stop - part.start > 1:
            more_than_there_is()
        return id(held)

    list(in_parts(run, 2, 4, CPU, "test"))
    assert seen == [0, 0, 0]


@pytest.fixture(scope="module", params=["vit", "swin"])
def parts(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    pixels = tiny_images(IMAGES)
    calibration = calibrate(graph, pixels, bit_widths=(3, 8))
    return graph, calibration, pixels


def sweep(graph, calibration, pixels):
    cells = sensitivity_steps(calibration, pixels, bit_widths=(3, 8))
    return {(cell.layer, cell.bits): list(cell.effect["kl"]) for cell in cells}


def evaluation(graph, calibration, pixels):
    quantized = quantize(calibration, 3, compensation=None)
    *_, last = evaluate_steps(quantized.graph.task, quantized, pixels, None, torch.ones(IMAGES, 5))
    return list(last.image_kl)


def perturbations(graph, calibration, pixels):
    found = squared_perturbations(calibration, pixels, (3, 8))
    return {piece.layer: [piece.weight, *piece.operands] for piece in found}


def pairs(graph, calibration, pixels):
    return {
        (found.first, found.second): dict(found.values)
        for found in pair_steps(calibration, pixels, all_pairs(graph.layers[:4]), (3, 8))
    }


def traces(graph, calibration, pixels):
    return [[batch.start, batch.images, batch.weights, batch.operands] for batch in hessian_trace_steps(graph, pixels)]


def loss_changes(graph, calibration, pixels):
    steps = loss_change_steps(calibration, pixels, lambda layer: tied_bits(layer, (3, 8)))
    return [[batch.start, batch.images, batch.harms] for batch in steps]


def indicators(graph, calibration, pixels):
    (state,) = indicator_steps(graph, pixels, passes=1)
    return {name: [found.weight or {}, *found.operands] for name, found in state.indicators.items()}


def fisher(graph, calibration, pixels):
    return {name: [o.tolist() for o in found.operands] for name, found in fisher_diagonals(graph, pixels).items()}


def relevance(graph, calibration, pixels):
    found = propagate(graph, pixels, rules="attnlrp")
    return [found.importance, found.pixels.tolist()]


def attribution(graph, calibration, pixels):
    return transformer_attribution(graph, pixels).tolist()


def quality(graph, calibration, pixels):
    found = attribution_quality(graph, pixels[:1], method="attnlrp")
    return [found.infidelity.tolist(), found.max_sensitivity.tolist()]


def layer_method(method):
    def run(graph, calibration, pixels):
        return merge(list(layer_attribution_steps(graph, pixels[:2], method=method))).importance

    return run


STAGES = {
    "sweep": sweep,
    "evaluation": evaluation,
    "measurement of perturbations": perturbations,
    "measurement of pairs": pairs,
    "estimate of Hessian traces": traces,
    "prediction of loss changes": loss_changes,
    "training of the importance indicators": indicators,
    "calibration": fisher,
    "relevance propagation": relevance,
    "relevance propagation (attribution)": attribution,
    "measurement of attribution quality": quality,
} | {method: layer_method(method) for method in LAYER_METHODS}


def flat(value):
    if isinstance(value, dict):
        return [number for key, part in value.items() for number in (hash(key) % 1000, *flat(part))]
    if isinstance(value, (list, tuple)) or hasattr(value, "items"):
        return [number for part in (value.items() if hasattr(value, "items") else value) for number in flat(part)]
    return [] if value is None or isinstance(value, str) else [float(value)]


def skip_what_does_not_apply(stage, parts):
    if "attribution)" in stage and any(layer.kind == "reduction" for layer in parts[0].layers):
        pytest.skip("Swin has no class token whose attention could be followed")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if "quality" not in stage])
def test_results_do_not_depend_on_how_many_images_fit(parts, stage):
    skip_what_does_not_apply(stage, parts)
    expected = flat(STAGES[stage](*parts))
    with limited_memory(
        2 if stage == "conductance" else 1 if stage in LAYER_METHODS else 3, more_than_there_is
    ) as limit:
        found = flat(STAGES[stage](*parts))
    assert limit.times > 0
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_where_not_even_one_image_fits_the_stage_is_named(parts, stage):
    skip_what_does_not_apply(stage, parts)
    named = stage.partition(" (")[0]
    if stage == "gradient x relevance":
        named = "relevance propagation"
    with pytest.raises(MixQViTError, match=f"the {named}.*even one image"), limited_memory(0, more_than_there_is):
        STAGES[stage](*parts)


def test_what_needs_all_images_at_once_says_so(parts):
    graph, calibration, pixels = parts
    with limited_memory(IMAGES - 1, more_than_there_is):
        with pytest.raises(MixQViTError, match="the calibration, which needs all 8 images at once"):
            calibrate(graph, pixels)
        with pytest.raises(MixQViTError, match="the error compensation, which needs all 8 calibration images at once"):
            quantize(calibration, 3)


def test_images_at_once_are_as_many_as_fit_a_quarter_of_the_free_memory(parts, monkeypatch):
    graph, *_ = parts
    monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * 1000)
    assert images_at_once(graph, 64, 10) == 64
    assert images_at_once(graph, 7, 100) == 7
    assert images_at_once(graph, 64, 100) == 8
    assert images_at_once(graph, 64, 10**6) == 1
    monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * 3 * 20 * graph.live_bytes)
    assert images_at_once(graph, 64) == 16


def test_the_largest_values_of_a_layer_are_alive_together(parts):
    graph, *_ = parts
    sizes = [np.prod(layer.input_shape) + np.prod(layer.output_shape) for layer in graph.layers]
    assert 8 * max(sizes) <= graph.live_bytes <= graph.layer_bytes

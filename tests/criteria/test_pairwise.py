"""Pairwise terms against plain runs with two layers quantized."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixqvit.criteria import pairwise
from mixqvit.criteria.pairwise import all_pairs, block_pairs, pair_cost, pair_steps
from mixqvit.network.bits import tied_bits
from mixqvit.quantization.model import quantize
from tests.tiny_models import tiny_images


def spread(pairs):
    """Return pairs over the whole network, some of which share their first layer."""
    return (*pairs[:3], *pairs[len(pairs) // 2 :: len(pairs) // 12], *pairs[-2:])


@pytest.mark.parametrize("at_once", [1, 6, 1000])
def test_terms_are_what_plain_runs_measure(calibration, at_once, monkeypatch):
    monkeypatch.setattr(pairwise, "IMAGES_AT_ONCE", at_once)
    graph, images = calibration.graph, tiny_images(3)
    reference = graph(images)

    def divergence(bits):
        return float(
            calibration.graph.task.divergence(reference, quantize(calibration, bits, compensation=None)(images)).mean()
        )

    pairs = spread(all_pairs(graph.layers))
    found = list(pair_steps(calibration, images, pairs, (2, 4, 8)))
    assert [(piece.first, piece.second) for piece in found] == list(dict.fromkeys(pairs))
    for piece in found:
        first, second = (tied_bits(graph.by_name[name], (2, 4, 8)) for name in (piece.first, piece.second))
        assert list(piece.values) == [(one, other) for one in first for other in second]
        for (one, other), value in piece.values.items():
            if 8 in (one[0], other[0]) and one[0] != 2:
                continue  # enough are compared
            expected = (
                divergence({piece.first: one, piece.second: other})
                - divergence({piece.first: one})
                - divergence({piece.second: other})
            )
            assert value == pytest.approx(expected, rel=1e-10, abs=1e-13)
    assert max(abs(value) for piece in found for value in piece.values.values()) > 1e-3


def test_finished_pairs_are_not_measured_again(vit):
    images, pairs = tiny_images(2), block_pairs(vit.graph.layers)
    whole = list(pair_steps(vit, images, pairs, (2, 4)))
    steps = pair_steps(vit, images, pairs, (2, 4), finished=pairs[:-4])
    first = next(steps)
    assert torch.is_grad_enabled()
    assert [first, *steps] == whole[-4:]
    assert list(pair_steps(vit, images, pairs, (2, 4), finished=pairs)) == []


def test_pairs_come_in_network_order_whatever_the_request(vit):
    names = [layer.name for layer in vit.graph.layers]
    pairs = [(names[5], names[6]), (names[1], names[9]), (names[1], names[3]), (names[1], names[9])]
    found = [(piece.first, piece.second) for piece in pair_steps(vit, tiny_images(2), pairs, (4,))]
    assert found == [(names[1], names[3]), (names[1], names[9]), (names[5], names[6])]


def test_which_pairs_there_are(calibration):
    layers = calibration.graph.layers
    every, within = all_pairs(layers), block_pairs(layers)
    assert len(every) == len(layers) * (len(layers) - 1) // 2 == len(set(every))
    assert set(within) < set(every)
    blocks = {layer.name: layer.block for layer in layers}
    for one, other in every:
        same = blocks[one] is not None and blocks[one] == blocks[other]
        assert ((one, other) in within) == same


@pytest.mark.slow
@pytest.mark.parametrize("choose", [all_pairs, block_pairs])
def test_the_estimated_cost_is_what_runs(calibration, choose):
    graph, images = calibration.graph, tiny_images(2)
    pairs = choose(graph.layers)

    def operations(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    one = operations(lambda: graph(images[:1]))
    run = operations(lambda: list(pair_steps(calibration, images, pairs, (2, 4))))
    assert pair_cost(graph, pairs, 2, len(images)) == pytest.approx(run / one, rel=0.05)
    assert pair_cost(graph, (), 2, len(images)) == 0

"""Statistical weight quantization against its formula, and which weights annealing leaves free."""

import pytest
import torch

from mixqvit.training.statistics import BOUNDARY_RANGE, StatisticalStep, near_threshold, statistical_quantizer


def literal(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """α · (round(clip(w / α, -1, 1) · 2^(b-1) - ½) + ½) / 2^(b-1), α = 2 · mean|w| of the output channel."""
    found = torch.empty_like(weight)
    half = 2 ** (bits - 1)
    for channel, row in enumerate(weight):
        scale = 2 * sum(abs(value) for value in row.tolist()) / len(row)
        for place, value in enumerate(row.tolist()):
            clipped = min(max(value / scale, -1.0), 1.0 - 1e-9)
            found[channel, place] = scale * (round(clipped * half - 0.5) + 0.5) / half
    return found


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_values_are_those_of_the_formula_and_gradients_go_straight_through(bits):
    weight = torch.randn(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)).requires_grad_()
    quantizer = StatisticalStep(weight.detach(), bits)
    found = quantizer(weight)
    torch.testing.assert_close(found.detach(), literal(weight.detach(), bits), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quantizer.values(weight), literal(weight.detach(), bits), rtol=1e-12, atol=1e-12)
    pulls = torch.randn(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found.backward(pulls)
    assert torch.equal(weight.grad, pulls)
    for row in found.detach():
        assert len(row.unique()) <= 2**bits and not (row == 0).any()


def test_the_scale_follows_the_weight():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    quantizer = StatisticalStep(weight, 4)
    torch.testing.assert_close(quantizer.values(3 * weight), 3 * quantizer.values(weight))
    torch.testing.assert_close(quantizer.first, statistical_quantizer(weight, 4).scale)


def test_annealing_leaves_exactly_the_weights_near_a_threshold_free():
    bits, step = 2, 0.5
    # With α = 1 (two values of ½ in a channel) the thresholds of two bits are -½, 0 and ½; beyond them nothing changes.
    near = 0.9 * BOUNDARY_RANGE * step
    far = 1.1 * BOUNDARY_RANGE * step
    pairs = [(0.5, True), (0.5 + near, True), (0.5 - far, False), (0.0, True), (far, False), (-0.5 - near, True)]
    pairs += [(0.9, False), (1.0, False), (-1.0, False), (-0.25, False)]
    for value, is_free in pairs:
        scale = statistical_quantizer(torch.tensor([[0.5, 0.5]], dtype=torch.float64), bits)
        assert near_threshold(torch.tensor([[value]], dtype=torch.float64), scale).item() is is_free, value


def test_the_free_weights_are_those_that_a_small_move_rounds_otherwise():
    weight = torch.randn(20, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    quantizer = statistical_quantizer(weight, 3)
    reach = BOUNDARY_RANGE * quantizer.scale
    moved = [quantizer_values(weight + sign * reach * 1.0001, quantizer) for sign in (-1, 1)]
    assert torch.equal(near_threshold(weight, quantizer), moved[0] != moved[1])


def quantizer_values(weight, quantizer):
    return (weight / quantizer.scale + quantizer.zero_point).round().clamp(0, 2**quantizer.bits - 1)

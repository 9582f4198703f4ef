"""Learned step sizes against the paper's formulas, written out value by value in float64."""

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.step_sizes import LearnedStep, fitted_step, gradient_scale, learned_step, paper_step


def literal(value: float, step: float, negative: int, positive: int) -> tuple[float, float, float]:
    """LSQ, equations 1, 2, 3 and 5 for one value: v̂, ∂v̂/∂v, ∂v̂/∂s."""
    scaled = value / step
    if scaled <= -negative:
        return -negative * step, 0.0, float(-negative)
    if scaled >= positive:
        return positive * step, 0.0, float(positive)
    return round(scaled) * step, 1.0, -scaled + round(scaled)


@given(
    st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.integers(2, 8),
    st.data(),
)
def test_forward_and_all_gradients_are_those_of_the_paper(values, step, bits, data):
    negative = data.draw(st.sampled_from([0, 1, 2 ** (bits - 1)]))
    positive = 2**bits - 1 - negative
    tensor = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    size = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-1, 2, len(values), dtype=torch.float64)
    found = learned_step(tensor, size, -negative, positive, scale=0.25)
    (found * weights).sum().backward()
    expected = [literal(value, step, negative, positive) for value in values]
    torch.testing.assert_close(found.detach(), torch.tensor([v for v, _, _ in expected], dtype=torch.float64))
    torch.testing.assert_close(tensor.grad, weights * torch.tensor([d for _, d, _ in expected], dtype=torch.float64))
    of_step = 0.25 * sum(w * d for w, (_, _, d) in zip(weights.tolist(), expected, strict=True))
    assert float(size.grad) == pytest.approx(of_step, abs=1e-9)


def test_outside_the_limits_the_gradients_are_finite_differences():
    values = torch.tensor([-9.0, -5.0, 5.0, 40.0], dtype=torch.float64)
    step, difference = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), 1e-6
    learned_step(values, step, -4, 3, 1.0).sum().backward()
    nearby = [learned_step(values, step.detach() + d, -4, 3, 1.0).sum() for d in (-difference, difference)]
    assert float(step.grad) == pytest.approx(float(nearby[1] - nearby[0]) / (2 * difference))
    assert float(step.grad) == -4 - 4 + 3 + 3


def test_between_two_codes_the_step_gradient_is_that_of_the_rounded_code_less_the_value():
    """With the code fixed, v̂ = s·code; the paper adds -v/s because the rounding counts as the identity."""
    values, step = torch.tensor([0.3, 1.2, -1.9], dtype=torch.float64), torch.tensor(1.0, requires_grad=True).double()
    step.retain_grad()
    learned_step(values, step, -4, 3, 1.0).sum().backward()
    codes, difference = values.round(), 1e-6

    def straight_through(size: float) -> float:
        return float(((codes - values / 1.0 + values / size) * size).sum())

    numeric = (straight_through(1 + difference) - straight_through(1 - difference)) / (2 * difference)
    assert float(step.grad) == pytest.approx(numeric, abs=1e-6)


def test_each_channel_of_a_weight_has_its_own_step_and_gradient():
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    quantizer = LearnedStep.of_weight(weight, 3)
    quantizer(weight).square().sum().backward()
    for channel in range(5):
        alone = LearnedStep.of_weight(weight[channel : channel + 1], 3)
        alone(weight[channel : channel + 1]).square().sum().backward()
        torch.testing.assert_close(quantizer.ratio.grad[channel], alone.ratio.grad[0])
    assert quantizer.zero_point == 4 and quantizer.low == -4 and quantizer.high == 3


def test_gradient_scale_and_first_step_are_the_papers():
    values = torch.tensor([1.0, -3.0, 2.0])
    assert gradient_scale(400, 3) == 1 / sqrt(1200)
    assert float(paper_step(values, 3, per_channel=False)) == pytest.approx(2 * 2 / sqrt(3))
    assert paper_step(values.view(3, 1), 3, per_channel=True).flatten().tolist() == pytest.approx(
        [2 / sqrt(3), 6 / sqrt(3), 4 / sqrt(3)]
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_fitted_step_errs_no_more_than_the_papers(bits):
    generator = torch.Generator().manual_seed(bits)
    for values in (
        torch.randn(40, 60, generator=generator),
        torch.rand(40, 60, generator=generator),
        torch.nn.functional.gelu(2 * torch.randn(40, 60, generator=generator)),
    ):
        for per_channel in (False, True):
            step, zero_point = fitted_step(values, bits, per_channel)
            fitted = UniformQuantizer(step, torch.full_like(step, zero_point), bits)
            other = paper_step(values, 2**bits - 1 - zero_point, per_channel)
            paper = UniformQuantizer(other, torch.full_like(other, zero_point), bits)
            assert (fitted(values) - values).square().sum() <= (paper(values) - values).square().sum() * 1.0001
    assert fitted_step(torch.rand(50, 2), bits, False)[1] == 0  # nothing negative, no code for it


def test_a_channel_of_zeros_stays_zero():
    weight = torch.cat([torch.zeros(1, 6), torch.randn(2, 6, generator=torch.Generator().manual_seed(1))])
    quantizer = LearnedStep.of_weight(weight, 2)
    assert torch.isfinite(quantizer.step).all()
    assert torch.equal(quantizer(weight)[0], torch.zeros(6))


def test_the_quantizer_without_gradients_is_the_same_function():
    values = torch.randn(64, generator=torch.Generator().manual_seed(3))
    quantizer = LearnedStep.of_activation(values, 4, images=1)
    with torch.no_grad():
        quantizer.ratio.mul_(1.37)
    assert torch.equal(quantizer.quantizer()(values), quantizer(values))
    with torch.no_grad():
        quantizer.ratio.mul_(-1)  # a large learning rate may push a step beyond zero
    assert quantizer.quantizer().scale > 0
    assert torch.equal(quantizer.quantizer()(values), quantizer(values))

import pytest
import torch
from torch import Tensor, nn

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.network.graph import Graph
from mixqvit.network.tracing import trace
from mixqvit.relevance.methods import METHODS
from mixqvit.relevance.propagation import propagate
from mixqvit.relevance.quality import (
    REMOVALS,
    SHIFT_RADIUS,
    SHIFTS,
    _perturbations,
    attribution_quality,
    attribution_quality_steps,
    pixel_attribution,
)

PIXEL_METHODS = [name for name, method in METHODS.items() if method.explains_pixels]


def _linear(scale: float = 1.0) -> tuple[nn.Linear, Graph, Tensor]:
    """A model whose class scores are linear in the pixels, so that pixel times gradient is exact."""
    linear = nn.Linear(2 * 8 * 8, 3).double()
    linear.weight.data *= scale
    pixels = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    return linear, trace(nn.Sequential(nn.Flatten(), linear), pixels), pixels


@pytest.mark.parametrize("method", ["gradient x activation", "integrated gradients"])
def test_an_exact_attribution_has_no_infidelity(method: str) -> None:
    linear, graph, pixels = _linear()
    found = attribution_quality(graph, pixels, 1, method=method).infidelity
    squares, _ = _perturbations(graph.input_shape, 0)
    contributions = (pixels * linear.weight[1].reshape(2, 8, 8)).detach()
    losses = (contributions[:, None] * squares).flatten(2).sum(2)
    assert found.abs().max() <= 1e-6 * losses.pow(2).mean(1).min()  # quadrature weights in single precision


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_infidelity_is_the_mean_squared_error_after_the_best_scaling(build, method: str) -> None:
    _, graph, pixels = build("vit")
    targets = torch.tensor([4, 0, 2])
    squares, _ = _perturbations(graph.input_shape, 0)
    attribution = pixel_attribution(graph, pixels, targets, method=method)
    expected = []
    for image, target, contributions in zip(pixels, targets, attribution, strict=True):
        with_, without = graph(image[None])[0, target], graph(image * (1 - squares.double()))[:, target]
        losses, said = with_ - without, (contributions * squares).flatten(1).sum(1)
        best = torch.linalg.lstsq(said[:, None], losses[:, None]).solution[0, 0]
        expected.append((best * said - losses).pow(2).mean())
    found = attribution_quality(graph, pixels, targets, method=method).infidelity
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=0)


def test_max_sensitivity_is_the_largest_relative_change_of_the_attribution() -> None:
    linear, graph, pixels = _linear()
    _, shifts = _perturbations(graph.input_shape, 0)
    weight = linear.weight[1].detach().reshape(2, 8, 8)
    changes = (shifts * weight).flatten(1).norm(dim=1).max() / (pixels * weight).flatten(1).norm(dim=1)
    found = attribution_quality(graph, pixels, 1, method="gradient x activation").max_sensitivity
    torch.testing.assert_close(found, changes, rtol=1e-9, atol=0)


def test_a_constant_attribution_has_no_sensitivity() -> None:
    _, graph, pixels = _linear(scale=0.0)
    assert attribution_quality(graph, pixels, method="gradient x activation").max_sensitivity.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_images_and_the_callers_random_state_do_not_matter(build, method: str) -> None:
    _, graph, pixels = build("vit_gray")
    pixels = pixels[:2]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    together = attribution_quality(graph, pixels, method=method)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    steps = attribution_quality_steps(graph, pixels, graph(pixels).argmax(1), method=method)
    for index, alone in enumerate(steps):
        assert torch.equal(alone.infidelity, together.infidelity[index : index + 1])
        assert torch.equal(alone.max_sensitivity, together.max_sensitivity[index : index + 1])
    other = attribution_quality(graph, pixels, method=method, seed=1)
    assert (other.infidelity != together.infidelity).all()
    assert (other.max_sensitivity != together.max_sensitivity).all()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_the_attribution_of_the_pixels_is_complete(build, name: str) -> None:
    _, graph, pixels = build(name)
    targets = graph(pixels).argmax(1)
    for rules in ("chefer", "attnlrp"):
        found = pixel_attribution(graph, pixels, targets, method=rules)
        assert found.shape == pixels.shape
        torch.testing.assert_close(found.sum(1), propagate(graph, pixels, targets, rules=rules).pixels)
    change = (graph(0.05 * pixels) - graph(0 * pixels)).gather(1, targets[:, None])[:, 0]
    found = pixel_attribution(graph, 0.05 * pixels, targets, method="integrated gradients")
    torch.testing.assert_close(found.flatten(1).sum(1), change, rtol=0.02, atol=0)


def test_perturbations_are_squares_and_small_shifts_within_the_image() -> None:
    squares, shifts = _perturbations((3, 16, 16), seed=0)
    assert squares.shape == (REMOVALS, 1, 16, 16) and shifts.shape == (SHIFTS, 3, 16, 16)
    sides = set()
    for square in squares[:, 0]:
        rows, columns = square.any(1).nonzero()[:, 0], square.any(0).nonzero()[:, 0]
        side = len(rows)
        assert len(columns) == side and square.sum() == side**2
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
        sides.add(side)
    assert sides == set(range(2, 9))
    assert SHIFT_RADIUS / 2 < shifts.abs().max() <= SHIFT_RADIUS


def test_unfit_arguments_are_refused_before_any_work(build) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(MixQViTError, match=r"'conductance' attributes to layers only; of pixels there are chefer"):
        attribution_quality_steps(graph, pixels, method="conductance")
    with pytest.raises(MixQViTError, match="no importance method"):
        attribution_quality_steps(graph, pixels, method="lime")
    with pytest.raises(MixQViTError, match="no image"):
        attribution_quality_steps(graph, pixels[:0], method="chefer")
    with pytest.raises(MixQViTError, match="numbered 0 to 4"):
        attribution_quality_steps(graph, pixels, 5, method="chefer")
    with pytest.raises(ImageError):
        attribution_quality_steps(graph, pixels[..., 1:], method="chefer")

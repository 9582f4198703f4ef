"""LIMPQ's importance indicators against the training written out, and what a study makes of them."""

from math import cos, pi

import pytest
import torch
from torch.nn import functional

import mixqvit
from mixqvit.allocation.costs import uniform_bitops
from mixqvit.criteria.indicators import Indicators, LearnedSteps, indicator_steps
from mixqvit.criteria.limpq import indicator_harms
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.tracing import trace
from mixqvit.stages import runner
from mixqvit.study.study import Study
from tests.small import SMALL
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
RATES = {"step": 0.03, "weight": 2e-4}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def graph(request):
    return trace(tiny_model(request.param), tiny_images(1))


def last(steps):
    *_, found = steps
    return found


def first_step(values, high):
    return 2 * values.abs().mean() / high**0.5


def straight_through(values, step, low, high, scale):
    """Round in the forward pass only, and scale the gradient of the step only (LSQ, appendix)."""
    step = step * scale + (step - step * scale).detach()
    clipped = (values / step).clamp(low, high)
    return (clipped + (clipped.round() - clipped).detach()) * step


def written_out(graph, pixels, passes):
    """Return the steps by layer, operand and bits after training with automatic differentiation and Adam by hand."""
    module = graph.copied(graph.device)
    for parameter in module.module.parameters():
        parameter.requires_grad_(True)
    learned, limits = {}, {}
    images = len(pixels)
    for layer in graph.layers:
        ((_, values),) = graph.walk(pixels, [layer.node])
        operands = {str(i): own for i, own in enumerate(graph.operands(layer, values))}
        if not layer.is_matmul:
            operands["weight"] = graph.weight(layer)
        for name, own in operands.items():
            elements = own.numel() if name == "weight" else own.numel() // images
            for bits in (8,) if layer.kind == "patch_embed" and name != "weight" else BIT_WIDTHS:
                low = 0 if own.min() >= 0 else -(2 ** (bits - 1))
                high = 2**bits - 1 + low
                key = (layer.name, name, bits)
                learned[key] = first_step(own, high).detach().log().requires_grad_()
                limits[key] = (low, high, (elements * high) ** -0.5)
    parameters = [*learned.values(), *module.module.parameters()]
    rates = [RATES["step"]] * len(learned) + [RATES["weight"]] * (len(parameters) - len(learned))
    moments = [[torch.zeros_like(parameter), torch.zeros_like(parameter)] for parameter in parameters]

    def operation(layer, bits):
        def quantized(name, values):
            key = (layer.name, name, 8 if layer.kind == "patch_embed" and name != "weight" else bits)
            return straight_through(values, learned[key].exp(), *limits[key])

        def run(*operands):
            values = [quantized(str(i), own) for i, own in enumerate(operands)]
            if layer.is_matmul:
                return values[0] @ values[1]
            own = module.operation(layer)
            weight = quantized("weight", own.weight)
            if layer.kind == "patch_embed":
                return functional.conv2d(*values, weight, own.bias, own.stride)
            return functional.linear(*values, weight, own.bias)

        return run

    wanted = graph(pixels)
    for number in range(passes):
        random = torch.Generator().manual_seed(number)
        order = torch.randperm(images, generator=random)
        drawn = torch.randint(len(BIT_WIDTHS), (len(graph.layers),), generator=random)
        every = [[bits] * len(graph.layers) for bits in BIT_WIDTHS] + [[BIT_WIDTHS[index] for index in drawn]]
        loss = 0.0
        for bits in every:
            operations = {layer.node: operation(layer, own) for layer, own in zip(graph.layers, bits, strict=True)}
            logits = module.run(pixels[order], operations)[0]
            loss = loss + graph.task.distillation_loss(logits, wanted[order]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        rate = 0.5 * (1 + cos(pi * number / passes))
        for parameter, own_rate, gradient, moment in zip(parameters, rates, gradients, moments, strict=True):
            for index, power in enumerate((1, 2)):
                moment[index] = BETAS[index] * moment[index] + (1 - BETAS[index]) * gradient**power
            mean, square = (moment[index] / (1 - BETAS[index] ** (number + 1)) for index in (0, 1))
            parameter.data -= own_rate * rate * mean / (square.sqrt() + EPSILON)
    return {key: float(step.detach().exp()) for key, step in learned.items()}


def by_key(graph, indicators):
    found = {}
    for layer in graph.layers:
        own = indicators[layer.name]
        operands = {str(i): steps for i, steps in enumerate(own.operands)}
        if own.weight is not None:
            operands["weight"] = own.weight
        found |= {(layer.name, name, b): step for name, steps in operands.items() for b, step in steps.items()}
    return found


def test_indicators_are_those_of_the_training_written_out(graph):
    pixels = tiny_images(8)
    expected = written_out(graph, pixels, passes=3)
    found = by_key(graph, last(indicator_steps(graph, pixels, passes=3)).indicators)
    assert found == pytest.approx(expected, rel=1e-9)
    start = by_key(graph, last(indicator_steps(graph, pixels, passes=1)).indicators)
    moved = [abs(found[key] / start[key] - 1) for key in found]
    assert sum(change > 1e-3 for change in moved) > 0.9 * len(moved)  # what is compared is not where it began


def test_training_leaves_the_model_the_random_state_and_the_gradient_mode_alone(graph):
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        found = last(indicator_steps(graph, tiny_images(4), passes=1))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    after = graph.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in graph.module.parameters())
    trained = {name.removeprefix("model/"): value for name, value in found.tensors.items() if "model/" in name}
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())  # the copy's weights move


def test_a_seed_gives_the_same_numbers_and_another_one_others():
    graph = trace(tiny_model("vit"), tiny_images(1))
    pixels = tiny_images(12)
    first, again, other = (last(indicator_steps(graph, pixels, passes=1, seed=seed)).indicators for seed in (0, 0, 1))
    assert first == again != other


def test_an_interrupted_training_goes_on_to_the_same_numbers():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    pixels = tiny_images(12, torch.float32)
    whole = list(indicator_steps(graph, pixels))
    assert [state.passes for state in whole] == [1, 2, 3]
    rest = list(indicator_steps(graph, pixels, state=whole[0]))
    assert [state.passes for state in rest] == [2, 3]
    for found, expected in zip(rest, whole[1:], strict=True):
        assert found.indicators == expected.indicators
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_harms_add_steps_up_with_weights_counted_by_alpha():
    indicators = {
        "fc": Indicators({2: 0.5, 3: 0.25}, ({2: 0.75, 3: 1.0},)),
        "product": Indicators(None, ({2: 0.5, 3: 0.25}, {2: 1.0, 3: 0.125})),
        "patch": Indicators({2: 0.5, 3: 0.25}, ({8: 0.0625},)),
    }
    assert indicator_harms(indicators, 2.0) == {
        # Fewer bits with the smaller step count as if the step doubled.
        "fc": {(2, 2): 3.0, (2, 3): 2.0, (3, 2): 2.5, (3, 3): 1.5},
        "product": {(2, 2): 1.5, (3, 3): 0.375},
        "patch": {(2, 8): 1.0625, (3, 8): 0.5625},
    }


@pytest.fixture(scope="module")
def study(first_results, tmp_path_factory):
    store = mixqvit.Store(tmp_path_factory.mktemp("store"))
    return Study("digits_swin", settings=SMALL(), store=first_results.put("digits_swin", store))


@pytest.mark.parametrize("tied", [True, False])
def test_the_strategy_solves_every_budget_without_evaluation_images(study, tied, monkeypatch):
    class Untouched:
        def __getattribute__(self, name):
            pytest.fail(f"evaluation images were asked for {name}")

    monkeypatch.setattr(study, "evaluation_images", Untouched())
    list(study.score_steps("limpq", tied=tied))
    assert study.scores.seconds("limpq", tied=tied) > 0
    for average_bits in (2.0, 3.0, 4.5):
        found = study.allocate(average_bits=average_bits, strategy="limpq", tied=tied)
        assert found.cost.average_bits <= average_bits + 1e-12
        assert found.cost.bitops <= uniform_bitops(study.layers, average_bits)
    layers = {layer.name: layer for layer in study.layers}
    assert all(w == a for name, (w, a) in found.bits.items() if layers[name].is_matmul)
    inner = [pair for name, pair in found.bits.items() if layers[name].kind != "patch_embed"]
    assert any(w != a for w, a in inner) != tied
    assert all(FULL_PRECISION not in pair for pair in inner)


def test_a_study_saves_every_pass_and_goes_on_from_it(study, tmp_path, monkeypatch):
    expected = last(runner.steps(study, LearnedSteps())).result
    again = Study("digits_swin", settings=study.settings, store=mixqvit.Store(tmp_path))
    step = next(runner.steps(again, LearnedSteps()))  # closed here, as when a person stops it
    assert (step.done, step.total) == (1, 3)
    begun = []

    def watched(*arguments, state, **keywords):
        begun.append(state and state.passes)
        return indicator_steps(*arguments, state=state, **keywords)

    monkeypatch.setattr("mixqvit.criteria.indicators.indicator_steps", watched)
    later = Study("digits_swin", settings=study.settings, store=mixqvit.Store(tmp_path))
    assert last(runner.steps(later, LearnedSteps())).result == expected
    assert begun == [1]
    monkeypatch.setattr("mixqvit.criteria.indicators.indicator_steps", lambda *_, **__: pytest.fail("computed again"))
    finished = Study("digits_swin", settings=study.settings, store=mixqvit.Store(tmp_path))
    assert last(runner.steps(finished, LearnedSteps())).result == expected

"""Every rule against a slow, literal version: the contribution of each input to each output as a number."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mixqvit.relevance.rules.chefer import CHEFER
from mixqvit.relevance.step import CLASS_TOKEN, PADDING, POSITION_EMBEDDING, ZERO_OUTPUT, fan_out
from tests.relevance.steps import Binary, Function, random, send, step_of


def _ratio(numerator: float, denominator: float, stabilizer: float) -> float:
    return 0.0 if denominator == 0 else numerator / (denominator + stabilizer)


@pytest.mark.parametrize("stabilizer", [0.0, 0.1])
def test_linear_shares_in_proportion_to_positive_products(stabilizer: float) -> None:
    layer, x, relevance = nn.Linear(4, 3).double(), random(2, 5, 4), random(2, 5, 3, seed=1)
    sent, _ = send(Function(lambda self, x: self.layer(x), layer=layer), {"x": x}, "Linear", relevance, stabilizer)
    expected = torch.zeros_like(x)
    for image, token, output in product(range(2), range(5), range(3)):
        weight = layer.weight[output].detach()
        contributions = [max(0.0, float(x[image, token, i] * weight[i])) for i in range(4)]
        for i, contribution in enumerate(contributions):
            share = _ratio(contribution, sum(contributions), stabilizer)
            expected[image, token, i] += share * relevance[image, token, output]
    torch.testing.assert_close(sent["x"], expected, rtol=1e-12, atol=1e-12)


def test_linear_outputs_without_a_positive_product_are_a_stated_exit() -> None:
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x, relevance = torch.ones(3, 2, dtype=torch.float64), random(3, 2)
    sent, where = send(Function(lambda self, x: self.layer(x), layer=layer), {"x": x}, "Linear", relevance)
    torch.testing.assert_close(where.exits[ZERO_OUTPUT], relevance[:, 1])
    torch.testing.assert_close(sent["x"].sum(1), relevance[:, 0])


@pytest.mark.parametrize(("channels", "padding", "stride"), [(3, 0, 2), (1, 0, 2), (3, 1, 1)])
def test_patch_embedding_follows_the_box_rule_with_each_images_own_box(
    channels: int, padding: int, stride: int
) -> None:
    layer = nn.Conv2d(channels, 2, 2, stride, padding).double()
    x = random(2, channels, 4, 4) * torch.tensor([1.0, 10.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    size = (4 + 2 * padding - 2) // stride + 1
    relevance = random(2, 2, size, size, seed=1)
    sent, _ = send(Function(lambda self, x: self.layer(x), layer=layer), {"x": x}, "Conv2d", relevance)
    expected = torch.zeros_like(x)
    for image, output, row, column in product(range(2), range(2), range(size), range(size)):
        low, high = float(x[image].min()), float(x[image].max())
        contributions = {}
        for channel, i, j in product(range(channels), range(2), range(2)):
            place = (channel, row * stride + i - padding, column * stride + j - padding)
            if min(place[1:]) >= 0 and max(place[1:]) < 4:
                w = float(layer.weight[output, channel, i, j].detach())
                contributions[place] = float(x[image][place]) * w - low * max(w, 0) - high * min(w, 0)
        whole = sum(contributions.values())
        for place, contribution in contributions.items():
            expected[image][place] += contribution / whole * relevance[image, output, row, column]
    torch.testing.assert_close(sent["x"], expected, rtol=1e-10, atol=1e-12)


def test_inner_convolution_shares_in_proportion_to_positive_products() -> None:
    layer = nn.Conv2d(2, 2, 2).double()
    x, relevance = random(2, 2, 3, 3), random(2, 2, 2, 2, seed=1)
    module = Function(lambda self, x: self.layer(torch.roll(x, 0, 1)), layer=layer)
    sent, _ = send(module, {"x": x}, "Conv2d", relevance)
    expected = torch.zeros_like(x)
    for image, output, row, column in product(range(2), repeat=4):
        window = x[image, :, row : row + 2, column : column + 2]
        contributions = (window * layer.weight[output].detach()).clamp(min=0)
        if contributions.sum() > 0:
            share = contributions / contributions.sum() * relevance[image, output, row, column]
            expected[image, :, row : row + 2, column : column + 2] += share
    torch.testing.assert_close(sent["roll"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stabilizer", [0.0, 0.1])
def test_matmul_shares_in_proportion_to_products_and_halves(stabilizer: float) -> None:
    a, b, relevance = random(2, 3, 4), random(2, 4, 5, seed=1), random(2, 3, 5, seed=2)
    sent, _ = send(Binary(torch.matmul), {"x": a, "y": b}, "matmul", relevance, stabilizer)
    for_a, for_b = torch.zeros_like(a), torch.zeros_like(b)
    for image, i, j in product(range(2), range(3), range(5)):
        z = sum(float(a[image, i, k] * b[image, k, j]) for k in range(4))
        for k in range(4):
            share = _ratio(float(a[image, i, k] * b[image, k, j]), z, stabilizer) * relevance[image, i, j] / 2
            for_a[image, i, k] += share
            for_b[image, k, j] += share
    torch.testing.assert_close(sent["x"], for_a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sent["y"], for_b, rtol=1e-10, atol=1e-12)


def test_matmul_with_a_constant_gives_all_to_the_activation() -> None:
    x, query, relevance = random(2, 4, 3), nn.Parameter(random(1, 4, seed=1)), random(2, 1, 3, seed=2)
    module = Function(lambda self, x: torch.matmul(self.query, x), query=query)
    sent, where = send(module, {"x": x}, "matmul", relevance)
    both, _ = send(Binary(torch.matmul), {"x": query.detach().expand(2, 1, 4), "y": x}, "matmul", relevance)
    torch.testing.assert_close(sent["x"], 2 * both["y"])
    torch.testing.assert_close(sent["x"].sum((1, 2)), relevance.sum((1, 2)))
    assert sent.keys() == {"x"}
    assert not where.exits


def test_matmul_looks_through_the_attention_scale() -> None:
    q, k, relevance = random(2, 3, 4), random(2, 4, 3, seed=1), random(2, 3, 3, seed=2)
    scaled, _ = send(Binary(lambda x, y: torch.matmul(x * 0.5, y)), {"x": q, "y": k}, "matmul", relevance, 0.1)
    plain, _ = send(Binary(torch.matmul), {"x": q, "y": k}, "matmul", relevance, 0.1)
    assert scaled.keys() == {"x", "y"}
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize("stabilizer", [0.0, 0.1])
def test_residual_add_rescales_both_branches_per_image(stabilizer: float) -> None:
    x, y, relevance = random(3, 4, 2), random(3, 4, 2, seed=1), random(3, 4, 2, seed=2)
    sent, _ = send(Binary(lambda x, y: x + y), {"x": x, "y": y}, "add", relevance, stabilizer)
    for image in range(3):
        branches = []
        for branch in (x, y):
            share = torch.zeros(4, 2, dtype=torch.float64)
            for t, c in product(range(4), range(2)):
                whole = float(x[image, t, c] + y[image, t, c])
                share[t, c] = _ratio(float(branch[image, t, c]), whole, stabilizer) * relevance[image, t, c]
            branches.append(share)
        magnitude = sum(abs(float(share.sum())) for share in branches)
        for name, share in zip(("x", "y"), branches, strict=True):
            portion = _ratio(abs(float(share.sum())), magnitude, stabilizer) * float(relevance[image].sum())
            expected = share * _ratio(portion, float(share.sum()), stabilizer)
            torch.testing.assert_close(sent[name][image], expected, rtol=1e-10, atol=1e-12)


def test_a_class_token_that_joins_by_a_sum_leaves_under_its_own_name() -> None:
    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(random(1, 1, 2, seed=1))

        def forward(self, x: Tensor) -> Tensor:
            return self.cls_token.expand(3, -1, -1) + x

    relevance = random(3, 1, 2, seed=2)
    sent, where = send(ClassToken(), {"x": random(3, 1, 2)}, "add", relevance)
    assert where.exits.keys() == {CLASS_TOKEN}
    torch.testing.assert_close(where.exits[CLASS_TOKEN] + sent["x"].sum((1, 2)), relevance.sum((1, 2)))


def test_position_embedding_takes_its_share_out() -> None:
    embedding = nn.Parameter(random(1, 4, 2, seed=1))
    x, relevance = random(3, 4, 2), random(3, 4, 2, seed=2)
    module = Function(lambda self, x: x + self.embedding, embedding=embedding)
    sent, where = send(module, {"x": x}, "add", relevance)
    both, _ = send(Binary(lambda x, y: x + y), {"x": x, "y": embedding.detach().expand(3, 4, 2)}, "add", relevance)
    torch.testing.assert_close(sent["x"], both["x"])
    torch.testing.assert_close(where.exits[POSITION_EMBEDDING], both["y"].sum((1, 2)))


def test_bias_of_attention_logits_gets_nothing() -> None:
    bias, relevance = nn.Parameter(random(4)), random(3, 4, seed=1)
    module = Function(lambda self, x: (x + self.bias).reshape(3, 4).softmax(-1), bias=bias)
    sent, where = send(module, {"x": random(3, 4)}, "add", relevance)
    assert torch.equal(sent["x"], relevance)
    assert not where.exits


def test_average_pooling_shares_in_proportion_to_the_averaged_values() -> None:
    x, relevance = random(2, 3, 4), random(2, 4, seed=1)
    sent, _ = send(Function(lambda self, x: x.mean(1)), {"x": x}, "mean", relevance)
    expected = torch.stack([x[:, token] / x.sum(1) * relevance for token in range(3)], dim=1)
    torch.testing.assert_close(sent["x"], expected)


def test_token_selection_divides_with_the_stabilizer() -> None:
    x, relevance = random(2, 3, 4), random(2, 4, seed=1)
    sent, _ = send(Function(lambda self, x: x[:, 1]), {"x": x}, "getitem", relevance, 0.1)
    expected = torch.zeros_like(x)
    expected[:, 1] = x[:, 1] / (x[:, 1] + 0.1) * relevance
    torch.testing.assert_close(sent["x"], expected)


@pytest.mark.parametrize(
    "operation",
    [
        ("roll", lambda self, x: torch.roll(x, (1, -1), (1, 2))),
        ("permute", lambda self, x: x.permute(0, 2, 1)),
        ("getitem", lambda self, x: x[:, 1:, :2]),
        ("reshape", lambda self, x: x.reshape(-1, 6)),
        ("pad", lambda self, x: nn.functional.pad(x, (0, 1, 2, 0))),
    ],
    ids=lambda operation: operation[0],
)
def test_layout_is_undone_exactly(operation: tuple[str, Callable[..., Tensor]]) -> None:
    name, function = operation
    x = random(2, 3, 4)
    moved = function(None, torch.arange(1.0, 25.0).reshape(2, 3, 4))  # every element under a number of its own
    relevance = random(*moved.shape, seed=1)
    sent, where = send(Function(function), {"x": x}, name, relevance)
    expected = torch.zeros(24, dtype=torch.float64)
    lost = torch.zeros(2, dtype=torch.float64)
    for place in product(*(range(size) for size in moved.shape)):
        if moved[place] == 0:
            lost[place[0]] += relevance[place]
        else:
            expected[int(moved[place]) - 1] += relevance[place]
    assert torch.equal(sent["x"].flatten(), expected)
    torch.testing.assert_close(where.exits.get(PADDING, torch.zeros(2, dtype=torch.float64)), lost)


def test_concatenation_lets_the_class_token_leave() -> None:
    token, relevance = nn.Parameter(random(1, 1, 4)), random(2, 4, 4, seed=1)
    module = Function(lambda self, x: torch.cat([self.token.expand(2, -1, -1), x], dim=1), token=token)
    sent, where = send(module, {"x": random(2, 3, 4)}, "cat", relevance)
    assert torch.equal(sent["x"], relevance[:, 1:])
    torch.testing.assert_close(where.exits[CLASS_TOKEN], relevance[:, 0].sum(1))


def test_a_value_read_twice_collects_with_the_stabilizer() -> None:
    x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    step = step_of(Function(lambda self, x: x.softmax(-1)), {"x": x}, "softmax", 0.5)
    total, exits = fan_out(step, x, [torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 1.0]])])
    torch.testing.assert_close(total, torch.tensor([[2 * 3 / 2.5, 0.0]], dtype=torch.float64))
    assert exits[ZERO_OUTPUT].tolist() == [5.0]


@pytest.mark.parametrize(
    ("operation", "module", "because"),
    [
        ("truediv", Function(lambda self, x: 1 / x), "by an activation"),
        ("truediv", Binary(lambda x, y: x / y), "by an activation"),
        ("matmul", Binary(lambda x, y: torch.matmul(x, y, out=None)), "out"),
        ("add", Binary(lambda x, y: torch.add(x, y, alpha=2)), "alpha"),
        ("cat", Binary(lambda x, y: torch.cat([x, y])), "first dimension"),
        ("Conv2d", Function(lambda self, x: self.c(x), c=nn.Conv2d(1, 1, 1, padding_mode="circular")), "circular"),
    ],
)
def test_uses_that_a_rule_does_not_cover_are_refused(operation: str, module: nn.Module, because: str) -> None:
    x = random(2, 1, 4, 4)
    inputs = {"x": x, "y": x} if isinstance(module, Binary) else {"x": x}
    step = step_of(module, inputs, operation)
    assert because in CHEFER[operation].refusal(step.graph, step.node, step.image_nodes)


def test_identities_pass_relevance_on() -> None:
    x, relevance = random(2, 4), random(2, 4, seed=1)
    scale = nn.Parameter(random(4))
    for operation, module in {
        "LayerNorm": Function(lambda self, x: self.norm(x), norm=nn.LayerNorm(4)),
        "GELU": Function(lambda self, x: self.act(x), act=nn.GELU()),
        "softmax": Function(lambda self, x: x.softmax(-1)),
        "mul": Function(lambda self, x: x * self.scale, scale=scale),
        "truediv": Function(lambda self, x: x / math.pi),
    }.items():
        sent, where = send(module, {"x": x}, operation, relevance)
        assert torch.equal(sent["x"], relevance)
        assert not where.exits

"""AttnLRP's rules against slow, literal versions: the Jacobian as a matrix, every contribution as a number."""

from itertools import product

import pytest
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from mixqvit.relevance.step import ATTENTION_BIAS, BIAS, POSITION_EMBEDDING, SOFTMAX, ZERO_OUTPUT
from tests.relevance.steps import Binary, Function, random, send


def _epsilon_rule(function, x: Tensor, bias: Tensor, relevance: Tensor, epsilon: float) -> tuple[Tensor, float]:
    """R_i = Σ_j x_i J_ji R_j / (z_j + ε sign z_j) with z = J x + bias for one image, and what the bias keeps."""
    matrix = jacobian(function, x).reshape(relevance.numel(), x.numel())
    flat, received, biases = x.flatten(), relevance.flatten(), bias.expand_as(relevance).flatten()
    found, kept = torch.zeros_like(flat), 0.0
    for j in range(len(received)):
        z = float(matrix[j] @ flat + biases[j])
        if z == 0:
            continue
        ratio = float(received[j]) / (z + epsilon * (1 if z > 0 else -1))
        for i in range(len(flat)):
            found[i] += flat[i] * matrix[j, i] * ratio
        kept += float(biases[j]) * ratio
    return found.reshape(x.shape), kept


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_follows_the_epsilon_rule(epsilon: float, bias: bool) -> None:
    layer, x, relevance = nn.Linear(4, 3, bias).double(), random(2, 5, 4), random(2, 5, 3, seed=1)
    module = Function(lambda self, x: self.layer(x), layer=layer)
    sent, where = send(module, {"x": x}, "Linear", relevance, epsilon, "attnlrp")
    constant = layer.bias.detach() if bias else torch.zeros(3, dtype=torch.float64)
    for image in range(2):
        expected, kept = _epsilon_rule(
            lambda v: v @ layer.weight.detach().T, x[image], constant, relevance[image], epsilon
        )
        torch.testing.assert_close(sent["x"][image], expected, rtol=1e-10, atol=1e-12)
        if bias:
            assert float(where.exits[BIAS][image]) == pytest.approx(kept, rel=1e-9)
    assert (BIAS in where.exits) == bias


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_follows_the_epsilon_rule_on_pixels_too(groups: int) -> None:
    layer = nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=groups).double()
    x = random(2, 2, 4, 4)
    relevance = random(2, 4, 3, 3, seed=1)
    sent, where = send(
        Function(lambda self, x: self.layer(x), layer=layer), {"x": x}, "Conv2d", relevance, 0.1, "attnlrp"
    )
    weight, bias = layer.weight.detach(), layer.bias.detach()[:, None, None]
    for image in range(2):
        expected, kept = _epsilon_rule(
            lambda v: nn.functional.conv2d(v[None], weight, None, 2, 1, 1, groups)[0],
            x[image],
            bias,
            relevance[image],
            0.1,
        )
        torch.testing.assert_close(sent["x"][image], expected, rtol=1e-10, atol=1e-12)
        assert float(where.exits[BIAS][image]) == pytest.approx(kept, rel=1e-9)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_the_identity_between_two_epsilon_rules(affine: bool) -> None:
    norm = nn.LayerNorm(4, elementwise_affine=affine).double()
    gamma, beta = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    if affine:
        gamma, beta = random(4, seed=5), random(4, seed=6)
        norm.weight.data, norm.bias.data = gamma, beta
    x, relevance = random(2, 3, 4), random(2, 3, 4, seed=1)
    sent, where = send(
        Function(lambda self, x: self.norm(x), norm=norm), {"x": x}, "LayerNorm", relevance, 0.0, "attnlrp"
    )
    for image, token in product(range(2), range(3)):
        value = x[image, token]
        centred = value - value.mean()
        normalized = centred / (centred.pow(2).mean() + norm.eps).sqrt()
        # γ n + β: the ε-rule; c / √Var: the identity; x − mean: the ε-rule.
        at_normalized, _ = _epsilon_rule(lambda v: v * gamma, normalized, beta, relevance[image, token], 0.0)
        zero = torch.zeros(4, dtype=torch.float64)
        expected, _ = _epsilon_rule(lambda v: v - v.mean(), value, zero, at_normalized, 0.0)
        torch.testing.assert_close(sent["x"][image, token], expected, rtol=1e-8, atol=1e-10)
    assert (BIAS in where.exits) == affine


def test_softmax_follows_the_taylor_rule() -> None:
    x, relevance = random(2, 3, 4), random(2, 3, 4, seed=1)
    sent, where = send(Function(lambda self, x: x.softmax(-1)), {"x": x}, "softmax", relevance, 0.0, "attnlrp")
    for image, row in product(range(2), range(3)):
        value = x[image, row]
        matrix, weights = jacobian(lambda v: v.softmax(-1), value), value.softmax(-1)
        expected = torch.zeros(4, dtype=torch.float64)
        for i, j in product(range(4), repeat=2):
            expected[i] += matrix[j, i] * value[i] * relevance[image, row, j] / weights[j]
        torch.testing.assert_close(sent["x"][image, row], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(where.exits[SOFTMAX], relevance.sum((1, 2)) - sent["x"].sum((1, 2)))


def test_softmax_gives_masked_logits_nothing() -> None:
    x, relevance = random(1, 4), random(1, 4, seed=1)
    x[0, 2], relevance[0, 2] = -torch.inf, 0
    sent, _ = send(
        Function(lambda self, x: nn.functional.softmax(x, dim=-1)), {"x": x}, "softmax", relevance, 0.0, "attnlrp"
    )
    assert sent["x"][0, 2] == 0
    assert sent["x"].isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_attention_products_follow_the_uniform_rule(epsilon: float) -> None:
    a, b, relevance = random(1, 3, 4), random(1, 4, 5, seed=1), random(1, 3, 5, seed=2)
    sent, _ = send(Binary(torch.matmul), {"x": a, "y": b}, "matmul", relevance, epsilon, "attnlrp")
    for_a, for_b = torch.zeros_like(a), torch.zeros_like(b)
    for i, k, j in product(range(3), range(4), range(5)):
        z = float(a[0, i] @ b[0, :, j])
        share = float(a[0, i, k] * b[0, k, j]) * float(relevance[0, i, j]) / (z + epsilon * (1 if z > 0 else -1)) / 2
        for_a[0, i, k] += share
        for_b[0, k, j] += share
    torch.testing.assert_close(sent["x"], for_a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sent["y"], for_b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rules", ["chefer", "attnlrp"])
def test_gates_give_each_factor_half_and_constants_nothing(rules: str) -> None:
    x, y, relevance = random(2, 4), random(2, 4, seed=1), random(2, 4, seed=2)
    sent, where = send(Binary(lambda x, y: x * y), {"x": x, "y": y}, "mul", relevance, 0.0, rules)
    assert torch.equal(sent["x"], relevance / 2)
    assert torch.equal(sent["y"], relevance / 2)
    scaled, _ = send(
        Function(lambda self, x: self.scale * x, scale=nn.Parameter(random(4))), {"x": x}, "mul", relevance, 0.0, rules
    )
    assert torch.equal(scaled["x"], relevance)
    assert not where.exits


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_sums_are_split_element_by_element(epsilon: float) -> None:
    x, y, relevance = random(2, 4), random(2, 4, seed=1), random(2, 4, seed=2)
    sent, where = send(Binary(lambda x, y: x + y), {"x": x, "y": y}, "add", relevance, epsilon, "attnlrp")
    for image, i in product(range(2), range(4)):
        z = float(x[image, i] + y[image, i])
        ratio = float(relevance[image, i]) / (z + epsilon * (1 if z > 0 else -1))
        assert float(sent["x"][image, i]) == pytest.approx(float(x[image, i]) * ratio)
        assert float(sent["y"][image, i]) == pytest.approx(float(y[image, i]) * ratio)
    assert not where.exits


def test_constant_summands_take_their_share_out() -> None:
    constant = nn.Parameter(random(4, seed=1))
    x, relevance = random(2, 4), random(2, 4, seed=2)
    embedded = Function(lambda self, x: x + self.constant, constant=constant)
    masked = Function(lambda self, x: (x + self.constant).softmax(-1), constant=constant)
    for module, reason in ((embedded, POSITION_EMBEDDING), (masked, ATTENTION_BIAS)):
        sent, where = send(module, {"x": x}, "add", relevance, 0.0, "attnlrp")
        torch.testing.assert_close(sent["x"], x / (x + constant.detach()) * relevance)
        torch.testing.assert_close(where.exits[reason], relevance.sum(1) - sent["x"].sum(1))
    sent, where = send(Function(lambda self, x: x + 1.0), {"x": x}, "add", relevance, 0.0, "attnlrp")
    torch.testing.assert_close(sent["x"], x / (x + 1) * relevance)
    assert set(where.exits) == {BIAS}


def test_relevance_of_sums_that_are_zero_is_a_stated_exit() -> None:
    x, relevance = random(2, 3), random(2, 3, seed=1)
    y = random(2, 3, seed=2)
    y[:, 1] = -x[:, 1]
    sent, where = send(Binary(lambda x, y: x + y), {"x": x, "y": y}, "add", relevance, 0.0, "attnlrp")
    torch.testing.assert_close(where.exits[ZERO_OUTPUT], relevance[:, 1])
    assert (sent["x"][:, 1] == 0).all()


@pytest.mark.parametrize("rules", ["chefer", "attnlrp"])
def test_rotation_before_a_product_is_the_products_rule_before_the_rotation(rules: str) -> None:
    """Together with the product, the rotary embedding is one bilinear function of the unrotated queries."""
    angles = random(3, 8, seed=3)

    class Rotation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return apply_rot_embed_cat(x, angles)

    queries, keys, relevance = random(2, 3, 4), random(2, 4, 5, seed=1), random(2, 3, 5, seed=2)
    rotated = apply_rot_embed_cat(queries, angles)
    at_rotated, _ = send(Binary(torch.matmul), {"x": rotated, "y": keys}, "matmul", relevance, 0.0, rules)
    sent, _ = send(Rotation(), {"x": queries}, "apply_rot_embed_cat", at_rotated["x"], 0.0, rules)
    for image in range(2):
        matrix = jacobian(lambda q, k=keys[image]: (apply_rot_embed_cat(q, angles) @ k).flatten(), queries[image])
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for j, value in enumerate((rotated[image] @ keys[image]).flatten()):
            expected += queries[image] * matrix[j] * relevance[image].flatten()[j] / value / 2
        torch.testing.assert_close(sent["x"][image], expected, rtol=1e-8, atol=1e-10)

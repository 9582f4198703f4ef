"""Weights that run several times: one row of the table, one choice of bits, one set of codes, one cost."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import mixqvit
from mixqvit.criteria.hawq_v2 import hawq_harms
from mixqvit.criteria.hessian import hessian_trace_steps, mean_traces
from mixqvit.criteria.loss_change import loss_change_steps, mean_loss_changes
from mixqvit.criteria.pairwise import block_pairs, pair_steps
from mixqvit.criteria.perturbation import squared_perturbations
from mixqvit.criteria.sensitivity.sweep import sensitivity_steps
from mixqvit.errors import ModelError, UnsupportedOperationError
from mixqvit.network.tracing import trace
from mixqvit.packing.model import packed
from mixqvit.relevance.propagation import propagate
from mixqvit.tasks.classification import METRICS
from mixqvit.training.trainable import TrainableModel
from tests.tiny_models import tiny_model


class Recurrent(nn.Module):
    """A transformer whose one block runs three times, on convolutions that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        vit = tiny_model("vit", torch.float32)
        self.stem, self.block, self.norm = nn.Conv2d(1, 16, 4, 4), vit.blocks[0], vit.norm
        self.local, self.local_again = (nn.Conv2d(16, 16, 3, padding=1, groups=16) for _ in range(2))
        self.local_again.weight = self.local.weight
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        values = self.stem(images)
        values = values + 3 * self.local(values)
        values = values + self.local_again(functional.gelu(values))
        tokens = values.flatten(2).transpose(1, 2)
        for _ in range(3):
            tokens = self.block(tokens)
        return self.head(self.norm(tokens).mean(1))


@pytest.fixture(scope="module")
def recurrent():
    torch.manual_seed(0)
    module, pixels = Recurrent().eval(), torch.randn(4, 1, 16, 16)
    return module, pixels, trace(module, pixels)


@pytest.fixture(scope="module")
def calibration(recurrent):
    return mixqvit.calibrate(recurrent[2], recurrent[1], bit_widths=(4, 8))


def test_a_weight_is_one_row_with_the_work_of_all_calls(recurrent):
    module, pixels, graph = recurrent
    rows = {layer.name: layer for layer in graph.layers}
    assert len(rows) == len(graph.layers)  # results are saved by name: a study would wait for the others for ever
    products = [f"block.attn.matmul{number}" for number in range(1, 7)]
    assert set(rows) == {
        *("stem", "local.conv2d", "block.attn.qkv", "block.attn.proj", "block.mlp.fc1", "block.mlp.fc2", "head"),
        *products,
    }
    assert [rows[name].kind for name in products] == ["matmul1", "matmul2"] * 3
    assert [rows[f"block.{name}"].kind for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")] == [
        *("qkv", "proj", "fc1", "fc2")
    ]
    assert {name: len(row.nodes) for name, row in rows.items() if row.more_nodes} == {
        "local.conv2d": 2,
        **dict.fromkeys(("block.attn.qkv", "block.attn.proj", "block.mlp.fc1", "block.mlp.fc2"), 3),
    }
    assert rows["block.attn.qkv"].parameters == 16 * 48
    assert rows["block.attn.qkv"].macs == 3 * 16 * 16 * 48
    assert rows["local.conv2d"].macs == 2 * 16 * 16 * 9
    assert graph.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert not any(row.is_reparameterized for row in rows.values())
    with torch.no_grad():
        torch.testing.assert_close(graph(pixels), module(pixels))


def test_a_shared_weight_is_packed_once_and_loaded_for_all_calls(recurrent, calibration, tmp_path):
    module, pixels, graph = recurrent
    quantized = mixqvit.quantize(calibration, 8)
    with torch.no_grad():
        exact, found = module(pixels), quantized(pixels)
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()
    qkv = graph.by_name["block.attn.qkv"]
    operations = [quantized.operations[node] for node in qkv.nodes]
    assert len({id(operation.prepared) for operation in operations}) == 1
    assert len({float(operation.input_quantizer.scale) for operation in operations}) == 3
    content = packed(quantized)  # checks its own size against the cost
    assert content.weight_bytes == sum(layer.parameters for layer in graph.layers)
    content.write(tmp_path / "model.safetensors")
    assert torch.equal(mixqvit.load_packed(tmp_path / "model.safetensors", model=module)(pixels), found)


def test_quantizing_a_shared_weight_alone_changes_all_its_calls(recurrent, calibration):
    _, pixels, graph = recurrent
    cells = list(sensitivity_steps(calibration, pixels, bit_widths=(4, 8)))
    assert len(cells) == 2 * len(graph.layers)
    reference = graph(pixels).double().log_softmax(1)
    for cell in cells:
        if graph.by_name[cell.layer].more_nodes:
            logits = mixqvit.quantize(calibration, {cell.layer: cell.bits}, compensation=None)(pixels)
            kl = (reference.exp() * (reference - logits.double().log_softmax(1))).sum(1).mean()
            assert METRICS["kl"].harm(cell.effect) == pytest.approx(float(kl), rel=1e-3, abs=1e-9)


def test_all_criteria_score_shared_weights(recurrent, calibration):
    _, pixels, graph = recurrent
    bits_of = lambda layer: [(4, 8 if layer.kind == "patch_embed" else 4)]  # noqa: E731
    changes = mean_loss_changes(loss_change_steps(calibration, pixels, bits_of))
    assert all(value > 0 for found in changes.values() for value in found.values())
    perturbations = list(squared_perturbations(calibration, pixels, (4, 8)))
    harms = hawq_harms(mean_traces(hessian_trace_steps(graph, pixels, probes=2)), perturbations)
    assert set(harms) == set(graph.by_name)
    assert {len(found.operands) for found in perturbations if found.layer == "block.attn.qkv"} == {3}
    terms = list(pair_steps(calibration, pixels, block_pairs(graph.layers)[:3], (4,)))
    assert len(terms) == 3
    for found in terms:
        both = dict.fromkeys((found.first, found.second), 4)
        logits = mixqvit.quantize(calibration, both, compensation=None)(pixels)
        alone = [mixqvit.quantize(calibration, {name: 4}, compensation=None)(pixels) for name in both]
        reference = graph(pixels).double().log_softmax(1)
        first, second, together = (
            float((reference.exp() * (reference - own.double().log_softmax(1))).sum(1).mean())
            for own in (*alone, logits)
        )
        assert next(iter(found.values.values())) == pytest.approx(together - first - second, rel=1e-2, abs=1e-6)


def test_shared_weights_are_trained_as_one(recurrent):
    _, pixels, graph = recurrent
    bits = {layer.name: (4, 8 if layer.kind == "patch_embed" else 4) for layer in graph.layers}
    model = TrainableModel(graph, bits, "lsq", pixels)
    frozen = model.quantized()
    with torch.no_grad():
        torch.testing.assert_close(frozen(pixels), model(pixels))
    packed(frozen)


def test_relevance_of_a_layer_with_several_outputs_is_refused(recurrent):
    _, pixels, graph = recurrent
    with pytest.raises(UnsupportedOperationError, match=r"layer local.conv2d is called 2 times"):
        propagate(graph, pixels)


class Tied(nn.Module):
    def __init__(self, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3, padding=1), second, nn.Linear(8, 5)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.head((self.first(images) + self.second(images)).mean((2, 3)))


def test_convolutions_that_share_a_weight_but_not_their_stride_are_refused():
    with pytest.raises(ModelError, match="first and second share a weight but not their stride"):
        trace(Tied(nn.Conv2d(1, 8, 3, padding=2, dilation=2)), torch.randn(1, 1, 8, 8))


class Regularized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.stem(images).mean((2, 3))) * self.head.weight.norm()


def test_a_weight_that_is_read_beside_its_layer_is_refused():
    with pytest.raises(ModelError, match="weight of head is also read by the operation norm"):
        trace(Regularized(), torch.randn(1, 1, 8, 8))

"""Bits per layer in the formats of other libraries: what is written, and that the real library does it."""

import copy
import json

import pytest
import torch
from torch import nn

from mixqvit.errors import ExportError
from mixqvit.files.export.formats import FORMATS, Exported, exported, find_format
from mixqvit.files.export.library_config import LibraryConfig, grouped, json_content, write_file
from mixqvit.files.export.model_explorer import SENSITIVITY_BITS, exported_program_nodes, overlays
from mixqvit.files.export.modelopt_config import modelopt_config
from mixqvit.files.export.torchao_config import torchao_config
from mixqvit.models.loading import load_model
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.network.query_key import merge_query_key
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize
from tests.tiny_models import small_transformer, tiny_images, tiny_model

MODELS = ("digits_vit", "digits_deit", "digits_swin")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """An embedded model, its graph, an image and mixed bits that differ from layer to layer."""
    module = load_model(request.param).module.eval()
    pixels = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = trace(module, pixels)
    widths = (2, 3, 4, 5, 6, 7, 8)
    bits = {}
    for index, layer in enumerate(graph.layers):
        pair = (widths[index % 7], widths[(index + index // 7) % 7])
        bits[layer.name] = (pair[0], pair[0]) if layer.is_matmul else pair
    return module, graph, pixels, bits


def read_back(config: LibraryConfig):
    return json.loads(json_content(config.document))


def text(config: LibraryConfig) -> str:
    return " ".join(config.notes)


# torchao


def test_torchao_names_every_linear_layer_and_says_what_it_cannot(model):
    _, graph, _, bits = model
    config = torchao_config(graph, bits)
    entries = config.document["_data"]["fqn_to_config"]
    linear = [layer.name for layer in graph.layers if isinstance(_operation(graph, layer), nn.Linear)]
    assert list(entries) == linear
    for name in linear:
        assert entries[name]["_data"]["weight_dtype"]["_data"] == f"int{bits[name][0]}"
    assert "Attention products stay in full precision" in text(config)
    assert "Convolutions stay in full precision" in text(config)
    for layer in graph.layers:
        is_told = layer.is_matmul or layer.kind == "patch_embed" or bits[layer.name][1] != 8
        assert not is_told or _is_named(layer.name, config), layer.name


def test_torchao_of_uniform_bits_groups_blocks():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    notes = text(torchao_config(graph, {layer.name: (4, 4) for layer in graph.layers}))
    assert "Inputs allotted 4 bits run at 8 (per token): `blocks.*.attn.qkv`, `blocks.*.attn.proj`" in notes
    assert "`blocks.*.attn.matmul1`, `blocks.*.attn.matmul2`" in notes


def test_torchao_leaves_full_precision_alone():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    config = torchao_config(graph, {"head": (4, FULL_PRECISION), "blocks.0.attn.qkv": (FULL_PRECISION, 8)})
    entries = config.document["_data"]["fqn_to_config"]
    assert {name: entry["_type"] for name, entry in entries.items()} == {"head": "IntxWeightOnlyConfig"}
    assert "Inputs of layers with a full-precision weight stay in full precision: `blocks.0.attn.qkv`." in config.notes
    assert "Attention products" not in text(config)


def test_torchao_itself_reads_and_applies_it(model):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.core.config import config_from_dict, config_to_dict

    module, graph, pixels, bits = model
    bits = bits | {graph.layers[-1].name: (3, FULL_PRECISION)}  # one of the other kind
    document = read_back(torchao_config(graph, bits))
    config = config_from_dict(document)
    assert config_to_dict(config) == document
    quantized = copy.deepcopy(module)
    quantization.quantize_(quantized, config, filter_fn=None)
    for layer in graph.layers:
        if layer.is_matmul:
            continue
        weight = quantized.get_submodule(layer.name).weight
        if layer.kind == "patch_embed":
            assert type(weight) is nn.Parameter
            continue
        assert weight.qdata.dtype == torch.int8
        assert weight.scale.numel() == layer.channels
        levels = [row.unique().numel() for row in weight.qdata]
        width = bits[layer.name][0]
        assert max(levels) <= 2**width
        assert max(levels) > 2 ** (width - 1) or width > 5  # a channel has few weights
        assert weight.target_dtype == getattr(torch, f"int{width}")
    with torch.no_grad():
        logits, expected = quantized(pixels), module(pixels)
    assert logits.shape == expected.shape
    assert logits.isfinite().all()
    assert not torch.equal(logits, expected)


# ModelOpt


def test_modelopt_switches_off_all_first_and_names_every_operand(model):
    _, graph, _, bits = model
    config = modelopt_config(graph, bits)
    first, *entries = config.document["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    assert [entry["quantizer_name"] for entry in entries] == list(_expected_quantizers(graph, bits))
    assert "register_attention_for_kv_quant" in text(config)
    assert "attention probabilities" in text(config)
    for layer in graph.layers:
        assert not layer.is_matmul or _is_named(layer.name, config)


def test_modelopt_leaves_full_precision_alone():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    config = modelopt_config(graph, {"head": (4, FULL_PRECISION)})
    entries = config.document["quant_cfg"][1:]
    assert entries == [{"quantizer_name": "head.weight_quantizer", "cfg": {"num_bits": 4, "axis": 0}}]
    assert len(config.notes) == 1


def test_modelopt_itself_reads_and_applies_it(model):
    quantization = pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed")
    from modelopt.torch.quantization.nn import QuantModuleRegistry, TensorQuantizer
    from modelopt.torch.quantization.plugins.attention import register_attention_for_kv_quant

    module, graph, pixels, bits = model
    own = copy.deepcopy(module)
    attention = type(
        own.get_submodule(next(layer.name for layer in graph.layers if layer.is_matmul).rpartition(".")[0])
    )
    if attention not in QuantModuleRegistry:
        assert register_attention_for_kv_quant(attention)
    document = read_back(modelopt_config(graph, bits))
    try:
        quantized = quantization.quantize(own, document, lambda running: running(pixels))
    finally:
        QuantModuleRegistry.unregister(attention)
    switched_on = {
        name: quantizer
        for name, quantizer in quantized.named_modules()
        if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled
    }
    expected = _expected_quantizers(graph, bits)
    assert {name: quantizer.num_bits for name, quantizer in switched_on.items()} == expected
    for layer in graph.layers:
        if layer.is_matmul:
            continue
        quantizer = switched_on[f"{layer.name}.weight_quantizer"]
        assert quantizer.amax.numel() == layer.channels
        with torch.no_grad():
            weight = quantizer(module.get_submodule(layer.name).weight)
        levels = max(row.unique().numel() for row in weight.flatten(1))
        assert 1 < levels <= 2 ** bits[layer.name][0]
    with torch.no_grad():
        assert quantized(pixels).isfinite().all()


# Model Explorer


def test_overlays_have_every_layer_under_the_names_of_both_graphs(model):
    _, graph, _, bits = model
    importance = {layer.name: 1 / (2 + index) for index, layer in enumerate(graph.layers)}
    harms = {layer.name: {SENSITIVITY_BITS: float(index)} for index, layer in enumerate(graph.layers)}
    found = overlays(graph, bits, importance, harms)
    assert list(found) == ["weight_bits", "activation_bits", "importance", "sensitivity"]
    nodes = exported_program_nodes(graph)
    assert set(nodes) == {layer.name for layer in graph.layers if not layer.is_matmul}
    for index, layer in enumerate(graph.layers):
        expected = (*bits[layer.name], importance[layer.name], float(index))
        for overlay, value in zip(found.values(), expected, strict=True):
            keys = [layer.name, *([nodes[layer.name]] if layer.name in nodes else [])]
            assert [overlay["results"][key]["value"] for key in keys] == [value] * len(keys)


def test_overlays_do_without_importance_and_sensitivity(model):
    _, graph, _, bits = model
    assert list(overlays(graph, bits)) == ["weight_bits", "activation_bits"]


def test_a_colour_for_every_width():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    thresholds = overlays(graph, {"head": 2})["weight_bits"]["thresholds"]
    assert [threshold["value"] for threshold in thresholds] == [2, 3, 4, 5, 6, 7, 8, FULL_PRECISION]
    assert len({threshold["bgColor"] for threshold in thresholds}) == 8


def test_model_explorer_itself_reads_them_and_knows_the_nodes(model, tmp_path):
    builder = pytest.importorskip("model_explorer.node_data_builder", reason="ai-edge-model-explorer is not installed")
    from model_explorer.pytorch_exported_program_adapter_impl import PytorchExportedProgramAdapterImpl

    module, graph, pixels, bits = model
    program = torch.export.export(module, (pixels,))
    adapter = PytorchExportedProgramAdapterImpl(program, {"const_element_count_limit": 16})
    (shown,) = adapter.convert()["graphs"]
    ids = {node.id: node for node in shown.nodes}
    for name, node in exported_program_nodes(graph).items():
        places = [place for place, _ in program_node(program, node).meta["nn_module_stack"].values()]
        assert places[-1] == name
        assert ids[node].label in ("aten.linear", "aten.conv2d")
    importance = {layer.name: 0.5 for layer in graph.layers}
    for document in overlays(graph, bits, importance).values():
        plain = json.loads(json_content(document))
        data = builder.GraphNodeData(
            results={key: builder.NodeDataResult(**result) for key, result in plain["results"].items()},
            name=plain["name"],
            thresholds=[builder.ThresholdItem(**item) for item in plain.get("thresholds", [])],
            gradient=[builder.GradientItem(**item) for item in plain.get("gradient", [])],
            hideAggregatedStats=plain.get("hideAggregatedStats"),
        )
        written = json.loads(data.to_json_string())
        assert {key: written[key] for key in plain} == plain


@pytest.mark.slow
def test_overlays_name_nodes_of_the_exported_onnx_model():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from mixqvit.files.export.onnx_model import exported_onnx

    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    quantized = quantize(calibrate(graph, tiny_images(4, torch.float32), "min-max"), 4)
    nodes = onnx.load_from_string(exported_onnx(quantized, "tiny").content).graph.node
    names = {node.name: node.op_type for node in nodes}
    for layer in graph.layers:
        assert names.get(layer.name) in ("MatMul", "Gemm", "Conv"), layer.name


def program_node(program, name: str):
    return next(node for node in program.graph_module.graph.nodes if node.name == name)


# What they share


def test_a_model_with_merged_weights_is_refused():
    graph = merge_query_key(trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32)))
    for config in (torchao_config, modelopt_config):
        with pytest.raises(ExportError, match="ONNX"):
            config(graph, {})


@pytest.mark.parametrize("name", ["beit", "eva02", "swin_v2", "pvt_v2", "cait", "siglip"])
def test_further_architectures_have_all_configurations(name):
    module, pixels = small_transformer(name, torch.float32)
    graph = trace(module, pixels)
    bits = {layer.name: (4, 4) for layer in graph.layers}
    assert torchao_config(graph, bits).document["_data"]["fqn_to_config"]
    assert len(modelopt_config(graph, bits).document["quant_cfg"]) > len(graph.layers)
    assert set(bits) <= set(overlays(graph, bits)["weight_bits"]["results"])


def test_layers_of_all_blocks_are_written_as_one():
    graph = trace(tiny_model("vit", torch.float32), tiny_images(1, torch.float32))
    assert grouped(["blocks.0.attn.qkv", "blocks.1.attn.qkv", "head"], graph) == "`blocks.*.attn.qkv`, `head`"
    assert grouped(["blocks.1.attn.qkv"], graph) == "`blocks.1.attn.qkv`"


def test_several_files_are_sent_as_one_archive_of_the_same_bytes():
    found = Exported({".a.json": b"1", ".b.json": b"22"})
    name, content = found.one_file("model")
    assert name == "model.zip"
    assert content == found.one_file("model")[1]
    assert Exported({".onnx": b"1"}).one_file("model") == ("model.onnx", b"1")
    assert found.size_bytes == 3


def test_an_unknown_format_and_a_folder_that_is_not_there_are_said(tmp_path):
    with pytest.raises(ExportError, match="onnx, allocation, torchao, modelopt, model-explorer"):
        find_format("tflite")
    with pytest.raises(ExportError, match="allocation_document"):
        exported(None, {}, "allocation")
    with pytest.raises(ExportError, match="cannot be written"):
        write_file(b"", tmp_path / "none" / "file.json")
    assert all(one.description.endswith(".") for one in FORMATS.values())


def _operation(graph, layer):
    return None if layer.is_matmul else graph.operation(layer)


def _is_named(name: str, config: LibraryConfig) -> bool:
    parts = ["*" if part.isdecimal() else part for part in name.split(".")]
    return any(f"`{written}`" in text(config) for written in (name, ".".join(parts)))


def _expected_quantizers(graph, bits) -> dict[str, int]:
    """Return bits by the quantizer's name, all that ModelOpt can quantize."""
    found = {}
    for layer in graph.layers:
        scope = layer.name.rpartition(".")[0]
        first, second = bits[layer.name]
        if layer.kind == "matmul1":
            found |= {f"{scope}.q_bmm_quantizer": first, f"{scope}.k_bmm_quantizer": second}
        elif layer.kind == "matmul2":
            found |= {f"{scope}.v_bmm_quantizer": second}
        else:
            found |= {f"{layer.name}.weight_quantizer": first, f"{layer.name}.input_quantizer": second}
    return found

"""Bits per layer as a configuration of NVIDIA Model Optimizer (https://github.com/NVIDIA/Model-Optimizer).

The document is what `modelopt.torch.quantization.quantize(model, document, forward_loop)` takes (ModelOpt 0.47):
`quant_cfg` is a list whose later entries win, so that everything is switched off first and every quantizer of an
allocated operand is switched on by its exact name: one scale per output channel of a weight (`axis` 0), one per input.

ModelOpt quantizes what a module's own `forward` multiplies. BEiT, EVA and Swin v2 multiply the weight of `qkv` without
calling that module, so that its quantizers never run there; the traced graph does not tell these models apart.
"""

from collections.abc import Mapping
from typing import Any

from mixqvit.files.export.library_config import LibraryConfig, check_layers, grouped
from mixqvit.network.bits import FULL_PRECISION, Bits, resolve_bits
from mixqvit.network.graph import Graph

__all__ = ["modelopt_config"]

# What ModelOpt calls the quantizers of an attention's operands, None for the one that it has none for.
_PRODUCTS = {
    "matmul1": ("q_bmm_quantizer", "k_bmm_quantizer"),
    "matmul2": (None, "v_bmm_quantizer"),
}


def modelopt_config(graph: Graph, bits: Mapping[str, int | Bits]) -> LibraryConfig:
    """Return a ModelOpt configuration with one entry per quantized operand.

    Args:
        graph: The traced model.
        bits: Bits by layer name.

    Raises:
        BitWidthError: A bit-width or layer name is not possible.
        ExportError: The model has layers that timm's does not have.
    """
    check_layers(graph)
    resolved = resolve_bits(graph.layers, bits)
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    registered, missing = [], []
    for layer in graph.layers:
        scope, _, own = layer.name.rpartition(".")
        if layer.is_matmul:
            quantizers = [name and f"{scope}.{name}" for name in _PRODUCTS.get(own, (None, None))]
        else:
            quantizers = [f"{layer.name}.weight_quantizer", f"{layer.name}.input_quantizer"]
        for operand, (name, width) in enumerate(zip(quantizers, resolved[layer.name], strict=True)):
            if width == FULL_PRECISION:
                continue
            if name is None:
                missing.append(layer.name)
                continue
            if layer.is_matmul:
                registered.append(layer.name)
            per_channel = operand == 0 and not layer.is_matmul
            entries.append({"quantizer_name": name, "cfg": {"num_bits": width, "axis": 0 if per_channel else None}})
    notes = [
        "ModelOpt fits scales of its own, symmetric around zero, to the largest absolute value of a channel or of the "
        "images in `forward_loop`; the ranges, logarithmic quantizers, reparameterization and error compensation that "
        "were measured here are not part of its format."
    ]
    if registered:
        notes.append(
            "Query, key and value are quantized once their attention class is registered, before `quantize`: "
            "`modelopt.torch.quantization.plugins.attention.register_attention_for_kv_quant(type(attention))`. "
            f"Without it they stay in full precision: {grouped(dict.fromkeys(registered), graph)}."
        )
    if missing:
        notes.append(
            "The attention probabilities, or operands of products that ModelOpt does not know, stay in full precision: "
            f"{grouped(dict.fromkeys(missing), graph)}."
        )
    return LibraryConfig({"quant_cfg": entries, "algorithm": "max"}, tuple(notes))

"""Bits per layer as a configuration of torchao (https://github.com/pytorch/ao): `FqnToConfig` in its own JSON.

What is written here without torchao, `torchao.core.config.config_from_dict` reads (torchao 0.18), and
`torchao.quantization.quantize_(model, config, filter_fn=None)` applies it to timm's model:

- weights of Linear layers have their true width, 2 to 8 bits, as codes with a zero point, one scale per output channel;
- their inputs run at 8 bits with one scale per token, computed while running: torchao has no other dynamic width.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mixqvit.files.export.library_config import LibraryConfig, check_layers, grouped
from mixqvit.network.bits import FULL_PRECISION, Bits, resolve_bits
from mixqvit.network.graph import Graph

__all__ = ["DYNAMIC_BITS", "torchao_config"]

DYNAMIC_BITS = 8
"""Bits of an input that torchao quantizes while running."""

_VERSIONS = {"FqnToConfig": 1, "IntxWeightOnlyConfig": 2, "Int8DynamicActivationIntxWeightConfig": 2, "PerAxis": 1}


def torchao_config(graph: Graph, bits: Mapping[str, int | Bits]) -> LibraryConfig:
    """Return a torchao configuration with one entry per Linear layer whose weight is quantized.

    Args:
        graph: The traced model.
        bits: Bits by layer name.

    Raises:
        BitWidthError: A bit-width or layer name is not possible.
        ExportError: The model has layers that timm's does not have.
    """
    check_layers(graph)
    resolved = resolve_bits(graph.layers, bits)
    configs: dict[str, Any] = {}
    products, convolutions, inputs_alone, widened = [], [], [], {}
    for layer in graph.layers:
        weight_bits, activation_bits = resolved[layer.name]
        if (weight_bits, activation_bits) == (FULL_PRECISION, FULL_PRECISION):
            continue
        if layer.is_matmul:
            products.append(layer.name)
        elif not isinstance(graph.operation(layer), nn.Linear):
            convolutions.append(layer.name)
        elif weight_bits == FULL_PRECISION:
            inputs_alone.append(layer.name)
        elif activation_bits == FULL_PRECISION:
            configs[layer.name] = _weight_only(weight_bits)
        else:
            configs[layer.name] = _with_dynamic_input(weight_bits)
            if activation_bits != DYNAMIC_BITS:
                widened.setdefault(activation_bits, []).append(layer.name)
    notes = [
        "torchao fits scales of its own, from the smallest to the largest weight of each output channel; the ranges, "
        "reparameterization and error compensation that were measured here are not part of its format."
    ]
    for width, names in sorted(widened.items()):
        notes.append(f"Inputs allotted {width} bits run at {DYNAMIC_BITS} (per token): {grouped(names, graph)}.")
    for names, reason in (
        (products, "Attention products stay in full precision, for torchao quantizes layers with a weight only"),
        (convolutions, "Convolutions stay in full precision, for torchao's low-bit weights do not run in them"),
        (inputs_alone, "Inputs of layers with a full-precision weight stay in full precision"),
    ):
        if names:
            notes.append(f"{reason}: {grouped(names, graph)}.")
    # Two names of the same entries, as torchao 0.18 writes them; an older one reads the second.
    return LibraryConfig(_config("FqnToConfig", fqn_to_config=configs, module_fqn_to_config=configs), tuple(notes))


def _weight_only(bits: int) -> dict[str, Any]:
    return _config(
        "IntxWeightOnlyConfig",
        weight_dtype=_dtype(bits),
        granularity=_config("PerAxis", axis=0),
        mapping_type=_member("MappingType", "ASYMMETRIC"),
        scale_dtype=None,
        intx_packing_format=_member("IntxPackingFormat", "UNPACKED_TO_INT8"),
        intx_choose_qparams_algorithm=_member("IntxChooseQParamsAlgorithm", "AFFINE"),
    )


def _with_dynamic_input(bits: int) -> dict[str, Any]:
    return _config(
        "Int8DynamicActivationIntxWeightConfig",
        weight_dtype=_dtype(bits),
        weight_granularity=_config("PerAxis", axis=0),
        weight_mapping_type=_member("MappingType", "ASYMMETRIC"),
        weight_scale_dtype=None,
        act_mapping_type=_member("MappingType", "ASYMMETRIC"),
        intx_packing_format=_member("IntxPackingFormat", "UNPACKED_TO_INT8"),
        intx_choose_qparams_algorithm=_member("IntxChooseQParamsAlgorithm", "AFFINE"),
    )


def _config(kind: str, **fields: Any) -> dict[str, Any]:
    return {"_type": kind, "_version": _VERSIONS[kind], "_data": fields}


def _dtype(bits: int) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": f"int{bits}"}


def _member(kind: str, name: str) -> dict[str, str]:
    return {"_type": kind, "_data": name}

"""A quantized model as an ONNX file that other runtimes execute.

Weights are integer initializers with a DequantizeLinear per output channel; activations pass QuantizeLinear and
DequantizeLinear. Codes are stored in the narrowest type that the file format has for them: 2 bits in UINT2 (opset 25),
3 and 4 in UINT4 (opset 21), 5 to 8 in UINT8; where an activation has fewer bits than its type, a Clip before
QuantizeLinear keeps it to its true range. Logarithmic and twin quantizers are standard operators, and so are uniform
ones whose zero point is no code of the type. The move of a reparameterized input (RepQ-ViT, arXiv 2212.08254, section
3.2) is folded into the LayerNorm before it where that serves this layer alone; elsewhere it is a Mul and an Add.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn
from torch.nn import functional

from mixqvit.errors import ExportError, PackingError
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.notes import Note
from mixqvit.packing.codes import weight_codes
from mixqvit.quantization.model import QuantizedModel
from mixqvit.quantization.operations import QuantizedLayer, QuantizedMatmul
from mixqvit.quantization.quantizers.base import Quantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["SCHEMA", "OnnxExport", "exported_full_precision", "exported_onnx"]

SCHEMA = 1
"""Version of what the file's metadata say."""

OPSET, TWO_BIT_OPSET = 21, 25

_STORED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_LARGEST_CODE = 255
_EXAMPLES = 2  # of which the exporter makes any number


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX model.

    Attributes:
        content: The file.
        opset: Version of the operators it needs.
        stored_bits: Width that a layer's weight codes are stored at: 2, 4 or 8, and 32 in full precision; layers with
            a weight only.
    """

    content: bytes
    opset: int
    stored_bits: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.content)


def exported_onnx(quantized: QuantizedModel, model: str, notes: Sequence[Note] = ()) -> OnnxExport:
    """Return a quantized model as ONNX: input `pixels` `[batch, C, H, W]` (normalized), output `logits`.

    Args:
        quantized: The model, on the CPU.
        model: Its name, for the metadata.
        notes: Those of the study, for the metadata.

    Raises:
        ExportError: It has an operation that ONNX has not.
    """
    stored = {
        layer.name: _stored_width(quantized.bits[layer.name][0])
        for layer in quantized.graph.layers
        if not layer.is_matmul
    }
    proto = _exported(_Lowered(quantized), quantized.graph)
    _store_codes(proto, {name: width for name, width in stored.items() if width < 8})
    opset = TWO_BIT_OPSET if 2 in stored.values() else OPSET
    _set_opset(proto, opset)
    metadata = {
        "mixqvit_onnx": str(SCHEMA),
        "model": model,
        "recipe": quantized.recipe,
        "bits": json.dumps({name: list(pair) for name, pair in quantized.bits.items()}),
        "stored_weight_bits": json.dumps(stored),
        "source": quantized.source or quantized.graph.fingerprint,
        "notes": json.dumps([note.text for note in notes]),
    }
    return OnnxExport(_finished(proto, metadata), opset, stored)


def exported_full_precision(graph: Graph, model: str) -> bytes:
    """Return the full-precision model as ONNX, to compare with; arguments and errors as in `exported_onnx`."""
    unquantized = QuantizedModel(graph, {}, "", {})
    proto = _exported(_Lowered(unquantized), graph)
    return _finished(proto, {"mixqvit_onnx": str(SCHEMA), "model": model, "recipe": "full precision"})


class _Lowered(nn.Module):
    """Runs the traced graph, with what ONNX has for the quantized layers."""

    def __init__(self, quantized: QuantizedModel) -> None:
        super().__init__()
        self.graph = quantized.graph
        self.network = quantized.graph.module  # so that the exporter finds the parameters
        self.lowered = nn.ModuleDict()
        self.replace: dict[str, nn.Module] = {}
        for layer in quantized.graph.layers:
            operation = quantized.operations.get(layer.node)
            if operation is None:
                continue
            norm = _own_norm(quantized.graph, layer, operation)
            lowered = _lowered(layer, operation, is_moved=norm is not None)
            for call, node in enumerate(layer.more_nodes, 2):
                other = _lowered(layer, quantized.operations[node], is_moved=False)
                if other.dims == lowered.dims:
                    other.weight = lowered.weight  # stored once
                self._add(node, other, f"{layer.name}.call{call}")
            if norm is not None:
                node, module = norm
                self._add(node, _MovedNorm(module, operation.input_quantizer.move), f"{layer.name}.moved_norm")
            self._add(layer.node, lowered, layer.name)

    def _add(self, node: str, module: nn.Module, name: str) -> None:
        self.lowered[name.replace(".", "/")] = module
        self.replace[node] = module

    def forward(self, pixels: Tensor) -> Tensor:
        return self.graph.run(pixels, self.replace)[0]


def _own_norm(graph: Graph, layer: Layer, operation: Any) -> tuple[str, nn.LayerNorm] | None:
    """Return node and module of the LayerNorm that gives a reparameterized layer its input, if it serves it alone."""
    if layer.is_matmul or layer.more_nodes:
        return None
    if operation.input_quantizer is None or operation.input_quantizer.move is None:
        return None
    (name,) = graph.operand_nodes(layer)
    node = next(node for node in graph.nodes if node.name == name)
    readers = [user for user in node.users if user.name == layer.node or _reads_values(user)]
    if node.op != "call_module" or len(readers) != 1:
        return None
    module = graph.module.get_submodule(node.target)
    return (name, module) if isinstance(module, nn.LayerNorm) and module.elementwise_affine else None


def _reads_values(node: fx.Node) -> bool:
    """Return whether a node needs more of its input than the shape."""
    if node.op == "call_method":
        return node.target not in ("size", "dim")
    return not (node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"))


class _MovedNorm(nn.Module):
    """A LayerNorm whose γ and β hold the move x / r - t."""

    def __init__(self, norm: nn.LayerNorm, move: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        scale, offset = move
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        self.register_buffer("weight", norm.weight.detach() * scale)
        self.register_buffer("bias", bias.detach() * scale + offset)

    def forward(self, values: Tensor) -> Tensor:
        return functional.layer_norm(values, self.shape, self.weight, self.bias, self.eps)


class _Moved(nn.Module):
    """x / r - t."""

    def __init__(self, move: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        scale, offset = move
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale + self.offset


def _lowered(layer: Layer, operation: Any, is_moved: bool) -> nn.Module:
    if isinstance(operation, QuantizedMatmul):
        return _LoweredMatmul(operation)
    return _LoweredLayer(layer, operation, is_moved)


class _LoweredMatmul(nn.Module):
    def __init__(self, operation: QuantizedMatmul) -> None:
        super().__init__()
        self.first, self.second = _activation(operation.first), _activation(operation.second)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.matmul(self.first(left), self.second(right))


class _LoweredLayer(nn.Module):
    def __init__(self, layer: Layer, operation: QuantizedLayer, is_moved: bool) -> None:
        super().__init__()
        self.quantizer = _activation(operation.input_quantizer, is_moved)
        self.convolution = operation.convolution
        prepared = operation.prepared
        # A product with a weight [in, out] is what runtimes have integer kernels for. Where the input is in floating
        # point, onnxruntime would quantize it to 8 bits for such a product (MatMulNBits), which is not this model; a
        # weight [1, in, out] keeps it from that.
        is_integer = isinstance(_last(self.quantizer), _Uniform)
        self.dims = 4 if self.convolution is not None else 2 if is_integer else 3
        self.weight = _weight(prepared.weight, prepared.quantizer, layer.name, self.dims)
        self.register_buffer("bias", prepared.bias)

    def forward(self, values: Tensor) -> Tensor:
        values, weight = self.quantizer(values), self.weight()
        if self.convolution is not None:
            return functional.conv2d(values, weight, self.bias, **self.convolution)
        is_single = values.dim() < self.dims
        product = torch.matmul(values.unsqueeze(0) if is_single else values, weight)
        product = product.squeeze(0) if is_single else product
        return product if self.bias is None else product + self.bias


def _last(module: nn.Module) -> nn.Module:
    return module[-1] if isinstance(module, nn.Sequential) else module


def _weight(weight: Tensor, quantizer: UniformQuantizer | None, name: str, dims: int) -> nn.Module:
    """Return what gives the weight as `[out, in, kh, kw]`, `[in, out]` or `[1, in, out]`."""

    def laid_out(values: Tensor) -> Tensor:
        if dims == 4:
            return values
        return values.T.reshape(*[1] * (dims - 2), *values.T.shape).contiguous()

    if quantizer is None:
        return _Constant(laid_out(weight))
    zero_point = quantizer.zero_point.flatten()
    try:
        codes = torch.from_numpy(weight_codes(weight, quantizer, name).copy()).reshape(weight.shape)
    except PackingError as error:
        raise ExportError(str(error)) from error
    axis = 0 if dims == 4 else dims - 1
    return _Codes(laid_out(codes), quantizer.scale.flatten(), zero_point, axis, 2 ** _stored_width(quantizer.bits) - 1)


class _Constant(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", weight)

    def forward(self) -> Tensor:
        return self.values


class _Codes(nn.Module):
    """(code - zero point) · scale, per output channel; a zero point that is no code is subtracted by itself."""

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, largest: int) -> None:
        super().__init__()
        self.axis = axis
        whole = zero_point.round().clamp(0, largest)
        rest = (zero_point - whole) * scale
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", whole.to(torch.uint8))
        shape = [-1 if index == axis else 1 for index in range(codes.dim())]
        self.register_buffer("rest", rest.reshape(shape) if bool(rest.any()) else None)

    def forward(self) -> Tensor:
        weight = _dequantize(self.codes, self.scale, self.zero_point, self.axis, self.codes.shape)
        return weight if self.rest is None else weight - self.rest


def _activation(quantizer: Quantizer | None, is_moved: bool = False) -> nn.Module:
    """Return a quantizer by its codes where ONNX has such, else by its own arithmetic, after its move."""
    if quantizer is None:
        return nn.Identity()
    of_moved = quantizer if quantizer.uniform is None else quantizer.uniform
    lowered = _Uniform(of_moved) if _has_onnx_codes(quantizer.uniform) else _Simulated(of_moved)
    return lowered if quantizer.move is None or is_moved else nn.Sequential(_Moved(quantizer.move), lowered)


def _has_onnx_codes(uniform: UniformQuantizer | None) -> bool:
    if uniform is None or uniform.zero_point.dim() > 1:
        return False
    codes = uniform.zero_point
    return bool(((codes == codes.round()) & (codes >= 0) & (codes <= _LARGEST_CODE)).all())


class _Simulated(nn.Module):
    """A quantizer in standard operators."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, values: Tensor) -> Tensor:
        return self.quantizer(values)


class _Uniform(nn.Module):
    """Clip to the true range, QuantizeLinear, DequantizeLinear."""

    def __init__(self, quantizer: UniformQuantizer) -> None:
        super().__init__()
        scale, zero_point = quantizer.scale, quantizer.zero_point
        self.per_channel = scale.dim() == 1 and scale.numel() > 1
        if not self.per_channel:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        else:
            zero_point = zero_point.expand_as(scale).contiguous()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))
        low, high = -zero_point * scale, (2**quantizer.bits - 1 - zero_point) * scale
        self.clips = quantizer.bits < 8
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, values: Tensor) -> Tensor:
        axis = values.dim() - 1 if self.per_channel else None
        if self.clips:
            values = (
                torch.clamp(values, self.low, self.high) if self.per_channel else _clip(values, self.low, self.high)
            )
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (values, self.scale, self.zero_point),
            {} if axis is None else {"axis": axis},
            dtype=torch.uint8,
            shape=values.shape,
            version=OPSET,
        )
        return _dequantize(codes, self.scale, self.zero_point, axis, values.shape)


def _clip(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        "Clip", (values, low, high), {}, dtype=torch.float32, shape=values.shape, version=OPSET
    )


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, shape: Any) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (codes, scale, zero_point),
        {} if axis is None else {"axis": axis},
        dtype=torch.float32,
        shape=shape,
        version=OPSET,
    )


def _exported(lowered: _Lowered, graph: Graph) -> onnx.ModelProto:
    example = torch.zeros(_EXAMPLES, *graph.input_shape)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                lowered.eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"This model cannot be written as ONNX: {reason} `pack` writes it as a file that this program reads."
        ) from error
    finally:
        quiet.setLevel(level)
    return program.model_proto


def _stored_width(bits: int) -> int:
    return next((width for width in _STORED if bits <= width), FULL_PRECISION)


def _store_codes(proto: onnx.ModelProto, narrow: Mapping[str, int]) -> None:
    """Store the codes and zero points of these layers at fewer than 8 bits."""
    widths = {f"lowered.{name.replace('.', '/')}.weight": width for name, width in narrow.items()}
    known = {tensor.name: tensor for tensor in proto.graph.initializer}
    changed = {}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in known:
            continue
        prefix, _, _ = node.input[0].rpartition(".codes")
        if prefix in widths:
            changed |= {node.input[0]: widths[prefix], node.input[2]: widths[prefix]}
    for name, width in changed.items():
        tensor = known[name]
        values = onnx.numpy_helper.to_array(tensor).reshape(-1)
        packed = helper.make_tensor(name, _STORED[width], tensor.dims, _packed(values, width), raw=True)
        tensor.CopyFrom(packed)
    for value in proto.graph.value_info:
        if value.name in changed:
            value.type.tensor_type.elem_type = _STORED[changed[value.name]]


def _packed(codes: np.ndarray, width: int) -> bytes:
    """Return codes as ONNX stores them: the first in the lowest bits of a byte."""
    bits = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def _set_opset(proto: onnx.ModelProto, opset: int) -> None:
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    proto.ir_version = max(proto.ir_version, 10 if opset < TWO_BIT_OPSET else 13)


def _finished(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    _name_nodes(proto)
    proto.producer_name = "mixqvit"
    del proto.metadata_props[:]
    helper.set_model_props(proto, dict(metadata))
    return proto.SerializeToString()


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Name every node by the layer it belongs to, and the one that multiplies exactly as the layer.

    What tells of the exporter is dropped.
    """
    for index, node in enumerate(proto.graph.node):
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
        layer = next((part for part in json.loads(scopes.replace("'", '"')) if part.startswith("lowered.")), "")
        name = layer.removeprefix("lowered.").split(".")[0].replace("/", ".")
        multiplies = name and node.op_type in ("MatMul", "Gemm", "Conv")
        node.name = name if multiplies else "/".join(filter(None, (name, f"{node.op_type}_{index}")))
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]

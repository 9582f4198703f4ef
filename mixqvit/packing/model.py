"""A quantized model as one file and back.

Tensors of the file, each over all layers in network order:

- `parameters`, `weights`: what stays in float32; biases, norms and embeddings, then weights that are not quantized;
- `weight_scales`, `weight_zero_points`: one per output channel of every quantized weight;
- `created_biases`: biases that layers got from quantization;
- `operand_numbers`, `operand_channels`: parameters of the activation quantizers (`mixqvit.packing.parameters`);
- `bits`: the allocation, (weight bits, activation bits) per layer;
- `codes`: integer weight codes, packed at their true width (`mixqvit.packing.codes`), every layer from a full byte on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mixqvit.allocation.costs import OPERAND_BYTES, Cost, Storage, cost
from mixqvit.errors import PackingError
from mixqvit.models.model import Model
from mixqvit.network.bits import FULL_PRECISION, Bits
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.network.query_key import is_merged
from mixqvit.packing import architecture, container
from mixqvit.packing.codes import dequantized, pack_codes, unpack_codes, weight_codes
from mixqvit.packing.parameters import decode_quantizer, encode_quantizer
from mixqvit.quantization.model import QuantizedModel
from mixqvit.quantization.operations import (
    PreparedWeight,
    QuantizedLayer,
    QuantizedMatmul,
    QuantizedOperation,
)
from mixqvit.quantization.quantizers.base import Quantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.recipes import stored_parameters

__all__ = ["Packed", "PackedSource", "load_packed", "pack", "packed", "packed_source", "storage"]

_FLOAT_TENSORS = ("parameters", "weights", "weight_scales", "created_biases")
_BYTE_TENSORS = ("operand_numbers", "operand_channels", "weight_zero_points", "bits", "codes")
_SCALE_TENSORS = ("weight_scales", "created_biases", "operand_numbers", "operand_channels", "weight_zero_points")
_LARGEST_BYTE = 255
_MERGED = "merged"


@dataclass(frozen=True)
class Packed:
    """A packed model.

    Attributes:
        content: The file's content.
        weight_bytes: Codes.
        scale_bytes: Parameters of quantizers, and biases that quantization created.
        full_precision_bytes: What stays in float32.
        container_bytes: Header and table of bits.
    """

    content: bytes
    weight_bytes: int
    scale_bytes: int
    full_precision_bytes: int
    container_bytes: int

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.content)

    def write(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            PackingError: It cannot be written.
        """
        container.write(self.content, Path(path))

    def check(self, cost: Cost) -> None:
        """Make sure that the file has the size that was predicted.

        Raises:
            PackingError: It has not; this is a mistake of the program.
        """
        for name in ("weight_bytes", "scale_bytes", "full_precision_bytes", "container_bytes", "size_bytes"):
            actual, predicted = getattr(self, name), getattr(cost, name)
            if actual != predicted:
                raise PackingError(
                    f"The packed model has {actual:,} {name}, not {predicted:,} as predicted: report it."
                )


def pack(quantized: QuantizedModel, path: str | Path, model: Model | None = None) -> Packed:
    """Write a quantized model as one safetensors file with integer weight codes at their true width, atomically.

    Args:
        quantized: What `quantize` returned, of a model in float32.
        path: Where to write; the folder must exist.
        model: The model it was made from. Embedded and timm models are named in the file, so that it can be loaded
            without anything else.

    Returns:
        The file's content and what its size is made of.

    Raises:
        PackingError: The model cannot be packed or the file cannot be written.
    """
    found = packed(quantized, model)
    found.write(path)
    return found


def packed(quantized: QuantizedModel, model: Model | None = None) -> Packed:
    """Return what `pack` writes, without writing it.

    Raises:
        PackingError: The model cannot be packed.
    """
    graph = quantized.graph
    _refuse_unpackable(graph)
    parts = _Parts()
    biases: dict[str, Tensor] = {}
    for index, layer in enumerate(graph.layers):
        bits, operation = quantized.bits[layer.name], quantized.operations.get(layer.node)
        quantizers = [own for node in layer.nodes for own in _quantizers(quantized.operations.get(node))]
        parts.add("bits", np.array(bits, np.uint8))
        if isinstance(operation, QuantizedLayer):
            parts.add_weight(layer, operation.prepared)
            if operation.prepared.bias is not None and layer.has_bias:
                biases[f"{layer.name}.bias"] = operation.prepared.bias
            elif operation.prepared.bias is not None:
                parts.created_biases.append(index)
                parts.add("created_biases", operation.prepared.bias)
        elif operation is None and not layer.is_matmul:
            parts.add("weights", graph.weight(layer))
        for quantizer, width in zip(quantizers, layer.activation_bits(bits), strict=False):
            if quantizer is not None:
                parts.add_operand(quantizer, width)
    for name, parameter in architecture.unquantized_parameters(graph).items():
        parts.add("parameters", biases.get(name, parameter))
    header_bytes = _header_bytes(graph, model)
    tensors = parts.tensors()
    sizes = {name: array.nbytes for name, array in tensors.items()}
    found = Packed(
        content=container.encode(
            tensors,
            _metadata(graph, model, quantized.source) | {"details": parts.details(quantized.recipe)},
            header_bytes,
        ),
        weight_bytes=sizes["codes"],
        scale_bytes=sum(sizes[name] for name in _SCALE_TENSORS),
        full_precision_bytes=sizes["parameters"] + sizes["weights"],
        container_bytes=container.LENGTH_BYTES + header_bytes + sizes["bits"],
    )
    found.check(cost(graph.layers, quantized.bits, storage(graph, quantized.recipe, model)))
    return found


def _refuse_unpackable(graph: Graph) -> None:
    for name, parameter in graph.module.named_parameters():
        if parameter.dtype != torch.float32:
            raise PackingError(
                f"Only models in float32 can be packed; {name} is {parameter.dtype}. Call model.float()."
            )
    keeping = architecture.keeps_statistics(graph)
    if keeping is not None:
        raise PackingError(f"{keeping} keeps statistics beside its parameters (a batch norm?), which cannot be packed.")


@dataclass
class _Parts:
    """The tensors of a file while it is put together."""

    pieces: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {name: [] for name in (*_FLOAT_TENSORS, *_BYTE_TENSORS)}
    )
    kinds: dict[str, int] = field(default_factory=dict)
    kind_of_operand: list[int] = field(default_factory=list)
    created_biases: list[int] = field(default_factory=list)
    far_zero_points: dict[int, float] = field(default_factory=dict)
    quantized_channels: int = 0
    half_zero_points: bool = False

    def add(self, name: str, values: Tensor | np.ndarray | bytes) -> None:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        array = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else values
        self.pieces[name].append(array.reshape(-1))

    def add_weight(self, layer: Layer, prepared: PreparedWeight) -> None:
        quantizer = prepared.quantizer
        if quantizer is None:
            self.add("weights", prepared.weight)
            return
        self.add("codes", pack_codes(weight_codes(prepared.weight, quantizer, layer.name), quantizer.bits))
        self.add("weight_scales", quantizer.scale)
        # Almost every range reaches zero, so that the zero point is a code; those of others go into the header.
        zero_points = quantizer.zero_point.flatten().numpy()
        is_far = (zero_points < 0) | (zero_points > _LARGEST_BYTE)
        for channel in np.flatnonzero(is_far):
            self.far_zero_points[self.quantized_channels + int(channel)] = float(zero_points[channel])
        # Those of statistical quantization lie halfway between two codes, all of them.
        self.half_zero_points |= bool((zero_points % 1 == 0.5).all())
        self.add("weight_zero_points", np.where(is_far, 0, zero_points).astype(np.uint8))
        self.quantized_channels += len(zero_points)

    def add_operand(self, quantizer: Quantizer, width: int) -> None:
        encoded = encode_quantizer(quantizer, width)
        self.kind_of_operand.append(self.kinds.setdefault(encoded.kind, len(self.kinds)))
        self.add("operand_numbers", encoded.numbers)
        self.add("operand_channels", encoded.channels)

    def tensors(self) -> dict[str, np.ndarray]:
        joined = {
            name: np.concatenate([np.empty(0, np.float32 if name in _FLOAT_TENSORS else np.uint8), *pieces])
            for name, pieces in self.pieces.items()
        }
        return joined | {"bits": joined["bits"].reshape(-1, 2)}

    def details(self, recipe: str) -> str:
        details = {
            "kinds": [json.loads(kind) for kind in self.kinds],
            "operands": self.kind_of_operand,
            "recipe": recipe,
            "created_biases": self.created_biases,
            "zero_points": self.far_zero_points,
        }
        if self.half_zero_points:
            details["half_zero_points"] = True
        return json.dumps(details, separators=(",", ":"))


def _quantizers(operation: QuantizedOperation | None) -> tuple[Quantizer | None, ...]:
    if operation is None:
        return ()
    if isinstance(operation, QuantizedMatmul):
        return operation.first, operation.second
    return (operation.input_quantizer,)


def storage(graph: Graph, recipe: str, model: Model | None = None) -> Storage:
    """Return what the size of a packed model depends on beside its layers; arguments as in `packed`."""
    parameters = sum(parameter.numel() for parameter in architecture.unquantized_parameters(graph).values())
    container_bytes = container.LENGTH_BYTES + _header_bytes(graph, model) + 2 * len(graph.layers)
    return Storage(stored_parameters(recipe), 4 * parameters, container_bytes, graph.unquantized_macs)


def _metadata(graph: Graph, model: Model | None, source: str | None = None) -> dict[str, str]:
    """Return what the header says whatever the bits are; its length does not depend on the source."""
    metadata = {
        "model": "" if model is None else model.name,
        "architecture": json.dumps(architecture.describe(model)),
        "input_shape": json.dumps(graph.input_shape),
        "layers": " ".join(layer.name for layer in graph.layers),
        "structure": architecture.fingerprint(graph),
        "source": source or graph.fingerprint,
    }
    return metadata | {"query_key": _MERGED} if is_merged(graph) else metadata


def _header_bytes(graph: Graph, model: Model | None) -> int:
    """Return the length of the header: room for the kinds of quantizers there can be, and some far zero points."""
    operands = sum(len(layer.activations) for layer in graph.layers)
    # Quantizers with parameters per channel are as many kinds as there are numbers of channels.
    shapes = {layer.input_shape[-1] for layer in graph.layers} | {layer.output_shape[1:] for layer in graph.layers}
    room = 2048 + 6 * operands + 320 * len(shapes)
    return container.sealed_header_bytes(_metadata(graph, model), room)


@dataclass(frozen=True)
class PackedSource:
    """What a packed model was made from.

    Attributes:
        model: Name of the embedded or timm model; empty for others.
        fingerprint: `Graph.fingerprint` of the full-precision model.
    """

    model: str
    fingerprint: str


def packed_source(path: str | Path) -> PackedSource:
    """Return what a packed model was made from.

    Raises:
        PackingError: The file cannot be read, is truncated or altered, or is no packed model.
    """
    _, metadata = container.decode(container.read(Path(path)), str(path))
    return PackedSource(metadata["model"], metadata["source"])


def load_packed(path: str | Path, model: Model | nn.Module | None = None) -> QuantizedModel:
    """Load what `pack` wrote; the logits are those of the model that was packed, bit for bit.

    The graph of the result has the dequantized weights in place of the full-precision ones.

    Args:
        path: The file.
        model: A model of the same architecture, with any weights; only needed for one that is neither embedded nor
            timm's.

    Raises:
        PackingError: The file cannot be read, is truncated or altered, is no packed model, or does not fit the model.
        ModelError: The model cannot be built or traced.
    """
    name = str(path)
    tensors, metadata = container.decode(container.read(Path(path)), name)
    module = model.module if isinstance(model, Model) else model
    input_shape = tuple(json.loads(metadata["input_shape"]))
    merged = metadata.get("query_key") == _MERGED
    graph = architecture.rebuild(json.loads(metadata["architecture"]), module, input_shape, merged)
    if architecture.fingerprint(graph) != metadata["structure"]:
        raise PackingError(
            f"{name} does not fit {type(module or graph.module).__name__}: layers, shapes or constants differ. "
            "Give the model that it was made from."
        )
    reader = _Reader(tensors, json.loads(metadata["details"]))
    with torch.no_grad():
        return _filled(graph, reader)


class _Reader:
    """Hands out the tensors of a file in the order they were put in."""

    def __init__(self, tensors: Mapping[str, np.ndarray], details: Mapping) -> None:
        self._tensors = tensors
        self._positions = dict.fromkeys(tensors, 0)
        self._kinds = [json.dumps(kind) for kind in details["kinds"]]
        self._kind_of_operand = iter(details["operands"])
        self.recipe = details["recipe"]
        self.created_biases = set(details["created_biases"])
        self._zero_points = tensors["weight_zero_points"].astype(np.float32)
        if details.get("half_zero_points"):
            self._zero_points += 0.5
        for channel, zero_point in details["zero_points"].items():
            self._zero_points[int(channel)] = zero_point

    def take(self, name: str, count: int) -> np.ndarray:
        start = self._positions[name]
        self._positions[name] += count
        return self._tensors[name].reshape(-1)[start : start + count]

    def floats(self, name: str, shape: tuple[int, ...]) -> Tensor:
        # Copied, so that memory is aligned as that of other tensors, on which products may depend.
        return torch.tensor(self.take(name, prod(shape))).reshape(shape)

    def weight(self, shape: tuple[int, ...], bits: int) -> tuple[Tensor, UniformQuantizer]:
        count, channel = prod(shape), self._positions["weight_scales"]
        broadcast = (shape[0], *[1] * (len(shape) - 1))
        zero_points = torch.tensor(self._zero_points[channel : channel + shape[0]]).reshape(broadcast)
        quantizer = UniformQuantizer(self.floats("weight_scales", broadcast), zero_points, bits)
        codes = unpack_codes(self.take("codes", -(-count * bits // 8)), bits, count)
        return dequantized(codes, shape, quantizer), quantizer

    def operand(self, width: int) -> Quantizer | None:
        if width == FULL_PRECISION:
            return None
        kind = self._kinds[next(self._kind_of_operand)]
        start = self._positions["operand_channels"]
        channels = self._tensors["operand_channels"][start:].data
        quantizer, taken = decode_quantizer(kind, self.take("operand_numbers", OPERAND_BYTES), channels, width)
        self._positions["operand_channels"] += taken
        return quantizer


def _filled(graph: Graph, reader: _Reader) -> QuantizedModel:
    """Put the numbers of a file into a graph that nobody else has seen."""
    parameters = architecture.unquantized_parameters(graph)
    for parameter in parameters.values():
        parameter.copy_(reader.floats("parameters", tuple(parameter.shape)))
    bits: dict[str, Bits] = {}
    operations: dict[str, QuantizedOperation] = {}
    for index, layer in enumerate(graph.layers):
        pair = bits[layer.name] = tuple(reader.take("bits", 2).tolist())
        is_quantized = pair != (FULL_PRECISION, FULL_PRECISION)
        if layer.is_matmul and is_quantized:
            operations[layer.node] = QuantizedMatmul(reader.operand(pair[0]), reader.operand(pair[1]))
        elif not layer.is_matmul:
            prepared = _prepared(graph, layer, reader, pair[0], index in reader.created_biases)
            quantizers = {node: reader.operand(pair[1]) for node in layer.nodes}
            _set_dequantized(graph, layer, prepared, quantizers[layer.node])
            if is_quantized:
                convolution = convolution_arguments(graph, layer)
                operations |= {node: QuantizedLayer(prepared, own, convolution) for node, own in quantizers.items()}
    return QuantizedModel(graph, bits, reader.recipe, operations)


def _prepared(graph: Graph, layer: Layer, reader: _Reader, bits: int, created_bias: bool) -> PreparedWeight:
    shape = tuple(graph.weight(layer).shape)
    if bits == FULL_PRECISION:
        weight, quantizer = reader.floats("weights", shape), None
    else:
        weight, quantizer = reader.weight(shape, bits)
    if created_bias:
        return PreparedWeight(weight, reader.floats("created_biases", shape[:1]), quantizer)
    return PreparedWeight(weight, graph.bias(layer).clone() if layer.has_bias else None, quantizer)


def _set_dequantized(graph: Graph, layer: Layer, prepared: PreparedWeight, quantizer: Quantizer | None) -> None:
    """Give the graph's own layer the weight and bias that the codes stand for, without a move of the input."""
    weight, bias = prepared.weight, prepared.bias
    if quantizer is not None:
        weight, bias = quantizer.unfold(weight, bias)
    graph.weight(layer).copy_(weight)
    if layer.has_bias:
        graph.bias(layer).copy_(bias)

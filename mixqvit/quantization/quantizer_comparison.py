"""Comparing quantizers: every one of the menu on one operand, by its error in the layer's output and by its grid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from mixqvit.errors import CalibrationError, MixQViTError
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.fisher import Fisher
from mixqvit.quantization.operands import operands_of, sampled_rows
from mixqvit.quantization.operations import PreparedWeight, QuantizedLayer, QuantizedMatmul
from mixqvit.quantization.quantizers.base import Described, Quantizer
from mixqvit.quantization.recipes import MENU, RECIPES

__all__ = ["FittedQuantizer", "Histogram", "OperandComparison", "compare_quantizers"]

# Quantizers are fitted to all values, as in calibration; their errors are compared on a sample.
_SAMPLED_ROWS = 2048
_SAMPLED_VALUES = 2**20
_BINS = 100


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often which values occur.

    Attributes:
        edges: Ends of the bins, `[bins + 1]`.
        counts: Values per bin, `[bins]`.
    """

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class FittedQuantizer:
    """One quantizer of the menu, fitted to an operand at every bit-width.

    Attributes:
        described: What people read, its name on the menu among it.
        look: Stands for it in figures: a small number, the same for every operand that it is offered for and another
            than those of the other quantizers offered there.
        recipes: The recipes that use it for such operands.
        is_per_channel: Whether channels have grids of their own.
        errors: ‖f(x̂) - f(x)‖² / ‖f(x)‖² by bit-width: the squared error of the layer's output relative to its size,
            this operand alone quantized.
        levels: The values it can return by bit-width, ascending; of the channel of median width where it is per
            channel.
    """

    described: Described
    look: int
    recipes: tuple[str, ...]
    is_per_channel: bool
    errors: Mapping[int, float]
    levels: Mapping[int, np.ndarray]

    @property
    def name(self) -> str:
        """Its name on the menu."""
        return self.described.name


@dataclass(frozen=True, eq=False)
class OperandComparison:
    """All quantizers of the menu on one operand.

    Attributes:
        layer: Name of the layer.
        role: What the operand is, one of `operands.ROLES`.
        values: Histogram of all its values on the calibration images.
        channel: Number of the channel of median width, counted over all heads; None where no quantizer is per channel.
        channel_values: Histogram of that channel's values, in the same bins; None likewise.
        quantizers: In the order of the menu.
    """

    layer: str
    role: str
    values: Histogram
    channel: int | None
    channel_values: Histogram | None
    quantizers: tuple[FittedQuantizer, ...]


def compare_quantizers(
    graph: Graph,
    layer: Layer,
    place: int,
    pixels: Tensor,
    fisher: Fisher | None = None,
    bit_widths: Sequence[int] = BIT_WIDTHS,
) -> OperandComparison:
    """Fit every quantizer of the menu to one operand and compare them, everything else in full precision.

    Args:
        graph: The traced model.
        layer: The layer that reads the operand.
        place: Which of `Layer.activations`: 0, or 1 for the second factor of an attention product.
        pixels: Calibration images `[N, C, H, W]`.
        fisher: Squared gradients at this layer, for the quantizers that weigh errors by them.
        bit_widths: Bit-widths to fit.

    Raises:
        MixQViTError: The layer has no such operand.
        CalibrationError: The operand is not finite.
        ImageError: The images do not fit the model.
    """
    with torch.no_grad():
        _, factors = next(layer_operands(graph, pixels, (layer,)))
        if not 0 <= place < len(factors):
            raise MixQViTError(f"{layer.name} has no operand {place}; it has {len(factors)}.")
        if not all(torch.isfinite(factor).all() for factor in factors):
            raise CalibrationError(f"An input of layer {layer.name} is not finite (NaN or infinity).")
        operand = operands_of(graph, layer, factors, len(pixels), fisher)[place]
        error_of = _output_error(graph, layer, place, factors)
        fitted = {name: fit(operand, bit_widths) for name, fit in MENU[operand.role].items()}
        per_channel = {name: found[bit_widths[0]].is_per_channel for name, found in fitted.items()}
        columns = _columns(layer, operand.values) if any(per_channel.values()) else None
        channel = None if columns is None else _median_channel(columns)
        edges = np.histogram_bin_edges(operand.values.double().numpy(), _BINS)
        looks = _looks()
        quantizers = tuple(
            FittedQuantizer(
                fit.described,
                looks[name],
                tuple(recipe.name for recipe in RECIPES.values() if recipe.activations[operand.role] is fit),
                per_channel[name],
                {bits: error_of(fitted[name][bits]) for bits in bit_widths},
                {bits: fitted[name][bits].levels(channel or 0).numpy() for bits in bit_widths},
            )
            for name, fit in MENU[operand.role].items()
        )
        return OperandComparison(
            layer.name,
            operand.role,
            _histogram(operand.values, edges),
            channel,
            None if columns is None else _histogram(columns[:, channel], edges),
            quantizers,
        )


def _looks() -> Mapping[str, int]:
    """Number the names of the menu so that those offered for one operand differ, with as few numbers as it takes."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(name for menu in MENU.values() for name in menu):
        beside = {found.get(other) for menu in MENU.values() if name in menu for other in menu}
        found[name] = next(number for number in count() if number not in beside)
    return found


def _columns(layer: Layer, values: Tensor) -> Tensor:
    """Return `[N, channels]`; of an attention product's `[B, heads, N, C]` the channels of one head after another."""
    return values.transpose(1, 2).flatten(2).flatten(0, 1) if layer.is_matmul else values.flatten(0, -2)


def _median_channel(columns: Tensor) -> int:
    lower, upper = torch.aminmax(columns, dim=0)
    return int((upper - lower).argsort(stable=True)[(columns.shape[1] - 1) // 2])


def _histogram(values: Tensor, edges: np.ndarray) -> Histogram:
    return Histogram(edges, np.histogram(values.double().numpy(), edges)[0])


def _output_error(graph: Graph, layer: Layer, place: int, factors: tuple[Tensor, ...]) -> Callable[[Quantizer], float]:
    """Return a function from a quantizer of one operand to ‖f(x̂) - f(x)‖² / ‖f(x)‖² on a sample."""
    if layer.is_matmul:
        # Evenly spread over images and windows; both factors must come from the same ones.
        count = max(1, _SAMPLED_VALUES // max(factor[0].numel() for factor in factors))
        step = -(-len(factors[0]) // count)
        sample = tuple(factor[::step] for factor in factors)

        def output(quantizer: Quantizer) -> Tensor:
            return QuantizedMatmul(*((quantizer, None) if place == 0 else (None, quantizer)))(*sample)

        exact = torch.matmul(*sample)
    else:
        weight, bias, convolution = graph.weight(layer), graph.bias(layer), convolution_arguments(graph, layer)
        inputs = factors[place]
        if convolution is None:
            inputs = sampled_rows(inputs.flatten(0, -2), _SAMPLED_ROWS)

        def output(quantizer: Quantizer) -> Tensor:
            prepared = PreparedWeight(*quantizer.fold(weight, bias), None)
            return QuantizedLayer(prepared, quantizer, convolution)(inputs)

        exact = graph.operation(layer).forward(inputs)
    size = float(exact.square().sum()) or 1.0
    return lambda quantizer: float((output(quantizer) - exact).square_().sum()) / size

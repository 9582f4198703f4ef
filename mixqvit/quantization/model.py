"""The quantized model: quantization simulated in floating-point arithmetic at any bits per layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mixqvit.errors import CalibrationError
from mixqvit.network.bits import Bits, BitsPerLayer, resolve_bits
from mixqvit.network.devices import moved, named_out_of_memory
from mixqvit.network.graph import Graph
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.quantization.compensation import compensate
from mixqvit.quantization.operations import QuantizedOperation
from mixqvit.quantization.paused_runs import PausedRuns
from mixqvit.quantization.recipes import Compensation, find_recipe

__all__ = ["QuantizedModel", "quantize"]


@dataclass(frozen=True)
class QuantizedModel:
    """A model whose layers run on quantized operands.

    Attributes:
        graph: The traced model underneath.
        bits: (weight bits, activation bits) per layer, 32 for full precision.
        recipe: Name of the recipe.
        operations: What runs instead of each quantized layer, by graph node.
        source: `Graph.fingerprint` of the full-precision model that training began with; None where nothing was trained
            and `graph` is that model.
    """

    graph: Graph
    bits: BitsPerLayer
    recipe: str
    operations: Mapping[str, QuantizedOperation]
    source: str | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`."""
        with torch.no_grad():
            return self.graph.run(pixels, self.operations)[0]

    def on(self, device: torch.device) -> "QuantizedModel":
        """Return the same model on a device: itself where it is there already."""
        graph = self.graph.on(device)
        if graph is self.graph:
            return self
        return replace(self, graph=graph, operations=moved(self.operations, device))


def quantize(
    calibration: Calibration,
    bits: int | Mapping[str, int | Bits],
    compensation: Compensation | Literal["recipe"] | None = "recipe",
    paused_runs: PausedRuns | None = None,
) -> QuantizedModel:
    """Return the model at the given bits.

    Args:
        calibration: What `calibrate` returned.
        bits: One bit-width for all layers (2 to 8; the patch embedding's input then keeps 8), or a mapping from
            layer name to (weight bits, activation bits) or one number for both; layers left out stay in full
            precision, as does an operand with 32.
        compensation: Which errors to compensate on the calibration images; None for none. `recipe` does what the
            recipe says: `mix-qvit` compensates, the others do not.
        paused_runs: Paused runs of earlier calls with this calibration and compensation; the result is the same, only
            faster where the first layers keep their bits.

    Raises:
        BitWidthError: A bit-width or layer name is not possible.
        CalibrationError: The calibration serves other bits only, or cannot compensate.
        MixQViTError: Memory does not suffice for error compensation.
    """
    graph = calibration.graph
    resolved = resolve_bits(graph.layers, bits)
    recipe = find_recipe(calibration.recipe)
    operations: dict[str, QuantizedOperation] = {}
    for layer in graph.layers:
        operations |= layer_operations(calibration, layer, resolved[layer.name])
    if compensation == "recipe":
        compensation = recipe.compensation
    if compensation is not None and operations:
        if not recipe.needs_fisher:
            raise CalibrationError(f"Recipe {recipe.name} has no token weights to compensate with; use mix-qvit.")
        token_weights = {name: piece.token_weights for name, piece in calibration.layers.items()}
        stage = f"error compensation, which needs all {len(calibration.pixels)} calibration images at once"
        with torch.no_grad(), named_out_of_memory(graph.device, stage):
            operations = compensate(
                graph,
                calibration.pixels,
                operations,
                resolved,
                token_weights,
                recipe.fit_weight,
                compensation,
                paused_runs,
            )
    return QuantizedModel(graph, resolved, calibration.recipe, operations)

"""Recipes: which quantizer each operand gets, how weights are fitted, whether errors are compensated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mixqvit.errors import CalibrationError
from mixqvit.network.bits import Bits, input_bits
from mixqvit.quantization import fits, ranges
from mixqvit.quantization.fits import Fit, OperandQuantizers
from mixqvit.quantization.operands import ROLES, Operand
from mixqvit.quantization.quantizers import UniformQuantizer
from mixqvit.quantization.reparameterization import reparameterized_quantizer

__all__ = ["MENU", "RECIPES", "Compensation", "Recipe", "find_recipe"]


@dataclass(frozen=True)
class Compensation:
    """Closed-form corrections of quantization errors, layer by layer through the quantized network.

    Attributes:
        regression: Move the weight by ridge regression against the error of all layers before (ERQ, arXiv 2407.06794).
        rounding: Round weights column by column, the rest making up for each error (GPTQ, arXiv 2210.17323).
        bias: Move the bias by the mean error that is left (Nagel et al. 2019, arXiv 1906.04721).
    """

    regression: bool = True
    rounding: bool = True
    bias: bool = True


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: What users call it.
        description: One line for people.
        activations: The fit of each role of `operands.ROLES`.
        fit_weight: From a weight and a bit-width to its quantizer.
        one_setting: Calibrated for one (weight bits, activation bits), with the layers before already quantized.
        needs_fisher: Whether fits weigh errors by squared gradients.
        compensation: What `quantize` corrects; None for nothing.
    """

    name: str
    description: str
    activations: Mapping[str, Fit]
    fit_weight: Callable[[Tensor, int], UniformQuantizer]
    one_setting: bool = False
    needs_fisher: bool = False
    compensation: Compensation | None = None


def repq_operands(operands: tuple[Operand, ...], bits: Bits) -> tuple[OperandQuantizers, ...]:
    """Fit every operand as the published RepQ-ViT code does (arXiv 2212.08254), for one setting."""
    fitted = []
    for operand in operands:
        width = input_bits(operand.layer, bits[1])
        if operand.role == "post_layer_norm":
            channels = ranges.fit_per_channel(operand.rows, width)
            quantizer = reparameterized_quantizer(channels, round_zero_point=False)
        elif operand.role == "probabilities":
            quantizer = ranges.fit_log_sqrt2(operand.values, width)
        else:
            quantizer = ranges.fit_per_tensor(operand.values, width)
        fitted.append({width: quantizer})
    return tuple(fitted)


def _roles(default: Fit, **others: Fit) -> Mapping[str, Fit]:
    return {role: others.get(role, default) for role in ROLES}


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "mix-qvit",
            "this project's default: ranges that weigh tokens by squared gradients, logarithms of searched base, "
            "reparameterization, closed-form error compensation; any bits",
            _roles(
                fits.searched_reparameterized,
                image=fits.percentile,
                query=fits.fisher_uniform,
                key=fits.fisher_uniform,
                probabilities=fits.adaptive_log,
                value=fits.searched_channels,
                post_gelu=fits.adaptive_log,
                input=fits.output_error_uniform,
            ),
            fits.fitted_weight,
            needs_fisher=True,
            compensation=Compensation(),
        ),
        Recipe(
            "adalog",
            "AdaLog (arXiv 2407.12951): logarithms of searched base after softmax and GELU",
            _roles(
                fits.output_error_uniform,
                probabilities=fits.adaptive_log,
                post_layer_norm=fits.percentile_reparameterized,
                post_gelu=fits.adaptive_log,
            ),
            fits.fitted_weight,
        ),
        Recipe(
            "repq-vit",
            "RepQ-ViT (arXiv 2212.08254) as published: calibrated for one bit setting, layer after layer",
            _roles(
                fits.percentile,
                probabilities=fits.log_sqrt2,
                post_layer_norm=fits.percentile_reparameterized,
            ),
            ranges.fit_weight,
            one_setting=True,
        ),
        Recipe(
            "ptq4vit",
            "PTQ4ViT (arXiv 2111.12293): twin uniform ranges after softmax and GELU",
            _roles(fits.output_error_uniform, probabilities=fits.twin_softmax, post_gelu=fits.twin_gelu),
            fits.fitted_weight,
        ),
        Recipe(
            "fq-vit",
            "FQ-ViT (arXiv 2111.13824): power-of-two factors after LayerNorm, log2 after softmax",
            _roles(fits.min_max, probabilities=fits.log2, post_layer_norm=fits.power_of_two_factor),
            ranges.fit_min_max_weight,
        ),
        Recipe(
            "min-max",
            "the plainest: every range from its smallest to its largest value",
            _roles(fits.min_max),
            ranges.fit_min_max_weight,
        ),
    )
}
"""All recipes by name."""

_EVERYWHERE: Mapping[str, Fit] = {
    "min-max": fits.min_max,
    "percentile": fits.percentile,
    "output error": fits.output_error_uniform,
}
_SOFTMAX: Mapping[str, Fit] = {
    "log2": fits.log2,
    "log√2": fits.log_sqrt2,
    "twin uniform": fits.twin_softmax,
    "adaptive log": fits.adaptive_log,
}
_LAYER_NORM: Mapping[str, Fit] = {
    "power-of-two factor": fits.power_of_two_factor,
    "reparameterized": fits.percentile_reparameterized,
    "clipped channel-wise": fits.clipped_reparameterized,
    "weighted search": fits.searched_reparameterized,
}

MENU: Mapping[str, Mapping[str, Fit]] = dict.fromkeys(("image", "input"), _EVERYWHERE) | {
    "query": _EVERYWHERE | {"weighted search": fits.fisher_uniform},
    "key": _EVERYWHERE | {"weighted search": fits.fisher_uniform},
    "probabilities": _EVERYWHERE | _SOFTMAX,
    "value": _EVERYWHERE | {"per channel": fits.searched_channels},
    "post_layer_norm": _EVERYWHERE | _LAYER_NORM,
    "attention_output": _EVERYWHERE | {"weighted search": fits.searched_reparameterized},
    "post_gelu": _EVERYWHERE | {"twin uniform": fits.twin_gelu, "adaptive log": fits.adaptive_log},
}
"""The quantizers that can be chosen for each role, by the name people see."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        CalibrationError: There is none.
    """
    if name not in RECIPES:
        raise CalibrationError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]

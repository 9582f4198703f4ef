"""Recipes: which quantizer each operand gets, how weights are fitted, whether errors are compensated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mixqvit.errors import CalibrationError
from mixqvit.network.bits import Bits, input_bits
from mixqvit.quantization import fits, ranges
from mixqvit.quantization.operands import Operand
from mixqvit.quantization.quantizers.adaptive_log import adaptive_log
from mixqvit.quantization.quantizers.base import Fit, OperandQuantizers
from mixqvit.quantization.quantizers.log2 import log2
from mixqvit.quantization.quantizers.log_sqrt2 import fit_log_sqrt2, log_sqrt2
from mixqvit.quantization.quantizers.power_of_two_factor import power_of_two_factor
from mixqvit.quantization.quantizers.twin_uniform import twin_gelu, twin_softmax
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.reparameterization import reparameterized_quantizer
from mixqvit.quantization.roles import ROLES, ChannelParameters

__all__ = ["MENU", "RECIPES", "CalibrationTime", "Compensation", "Recipe", "find_recipe", "stored_parameters"]


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
class CalibrationTime:
    """How long a calibration for all bit-widths takes, on one thread of a 2-core machine.

    With 32 images mix-qvit takes 4.4 s (digits_vit), 2.8 s (digits_swin) and 27 s (DeiT-Tiny).

    Attributes:
        passes: Passes of the network that an image takes.
        layer_seconds: Seconds that a layer takes beside them.
    """

    passes: float
    layer_seconds: float


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: What users call it.
        description: One line for people.
        activations: The fit of each of `ROLES`.
        fit_weight: From a weight and a bit-width to its quantizer.
        calibration_time: As measured; None for a recipe of one setting, which no study calibrates for all.
        one_setting: For a recipe that is calibrated for one (weight bits, activation bits), with the layers before
            already quantized: what fits the operands of a layer instead of `activations`. None for any bits.
        needs_fisher: Whether fits weigh errors by squared gradients.
        compensation: What `quantize` corrects; None for nothing.
    """

    name: str
    description: str
    activations: Mapping[str, Fit]
    fit_weight: Callable[[Tensor, int], UniformQuantizer]
    calibration_time: CalibrationTime | None
    one_setting: Callable[[tuple[Operand, ...], Bits], tuple[OperandQuantizers, ...]] | None = None
    needs_fisher: bool = False
    compensation: Compensation | None = None

    @property
    def stored(self) -> Mapping[str, ChannelParameters]:
        """What is stored for every channel, by the roles of operands whose channels have parameters of their own."""
        return {role: fit.stored for role, fit in self.activations.items() if fit.stored is not None}


def repq_operands(operands: tuple[Operand, ...], bits: Bits) -> tuple[OperandQuantizers, ...]:
    """Fit every operand as the published RepQ-ViT code does (arXiv 2212.08254), for one setting."""
    fitted = []
    for operand in operands:
        width = input_bits(operand.layer, bits[1])
        if operand.role == "post_layer_norm":
            channels = ranges.fit_per_channel(operand.rows, width)
            quantizer = reparameterized_quantizer(channels, round_zero_point=False)
        elif operand.role == "probabilities":
            quantizer = fit_log_sqrt2(operand.values, width)
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
                probabilities=adaptive_log,
                value=fits.searched_channels,
                post_gelu=adaptive_log,
                input=fits.output_error_uniform,
            ),
            fits.fitted_weight,
            CalibrationTime(20, 0.083),
            needs_fisher=True,
            compensation=Compensation(),
        ),
        Recipe(
            "adalog",
            "AdaLog (arXiv 2407.12951): logarithms of searched base after softmax and GELU",
            _roles(
                fits.output_error_uniform,
                probabilities=adaptive_log,
                post_layer_norm=fits.percentile_reparameterized,
                post_gelu=adaptive_log,
            ),
            fits.fitted_weight,
            CalibrationTime(13.5, 0.066),
        ),
        Recipe(
            "repq-vit",
            "RepQ-ViT (arXiv 2212.08254) as published: calibrated for one bit setting, layer after layer",
            _roles(
                fits.percentile,
                probabilities=log_sqrt2,
                post_layer_norm=fits.percentile_reparameterized,
            ),
            ranges.fit_weight,
            None,
            one_setting=repq_operands,
        ),
        Recipe(
            "ptq4vit",
            "PTQ4ViT (arXiv 2111.12293): twin uniform ranges after softmax and GELU",
            _roles(fits.output_error_uniform, probabilities=twin_softmax, post_gelu=twin_gelu),
            fits.fitted_weight,
            CalibrationTime(6, 0.0085),
        ),
        Recipe(
            "fq-vit",
            "FQ-ViT (arXiv 2111.13824): power-of-two factors after LayerNorm, log2 after softmax",
            _roles(fits.min_max, probabilities=log2, post_layer_norm=power_of_two_factor),
            ranges.fit_min_max_weight,
            CalibrationTime(1.9, 0.0005),
        ),
        Recipe(
            "min-max",
            "the plainest: every range from its smallest to its largest value",
            _roles(fits.min_max),
            ranges.fit_min_max_weight,
            CalibrationTime(1.1, 0.0003),
        ),
    )
}
"""All recipes by name."""

_EVERYWHERE = (fits.min_max, fits.percentile, fits.output_error_uniform)


def _menu(**more: tuple[Fit, ...]) -> Mapping[str, Mapping[str, Fit]]:
    return {role: {fit.name: fit for fit in (*_EVERYWHERE, *more.get(role, ()))} for role in ROLES}


MENU: Mapping[str, Mapping[str, Fit]] = _menu(
    query=(fits.fisher_uniform,),
    key=(fits.fisher_uniform,),
    probabilities=(log2, log_sqrt2, twin_softmax, adaptive_log),
    value=(fits.searched_channels,),
    post_layer_norm=(
        power_of_two_factor,
        fits.percentile_reparameterized,
        fits.clipped_reparameterized,
        fits.searched_reparameterized,
    ),
    attention_output=(fits.searched_reparameterized,),
    post_gelu=(twin_gelu, adaptive_log),
)
"""The quantizers that can be chosen for each role, by the name people see; the plainest first."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        CalibrationError: There is none.
    """
    if name not in RECIPES:
        raise CalibrationError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def stored_parameters(recipe: str) -> Mapping[str, ChannelParameters]:
    """Return `Recipe.stored` of the recipe of a quantized model.

    Recipes of training, which are not among `RECIPES`, learn one step for all channels.
    """
    return RECIPES[recipe].stored if recipe in RECIPES else {}

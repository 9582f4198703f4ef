"""Λ of a study as the harm of choices."""

from collections.abc import Mapping

from mixqvit.criteria.choices import ChoiceHarms, Harms, independent_choices, tied_choices
from mixqvit.criteria.sensitivity.stage import Effects, Sweep, own_sweep
from mixqvit.errors import AllocationError
from mixqvit.stages.context import Context

__all__ = ["layer_harms", "operand_harms", "sensitivity_choices", "sweeps"]


def sweeps(study: Context, tied: bool) -> list[Sweep]:
    """Return the stages of Λ: of both operands together, or of the weights and of the activations alone."""
    return [own_sweep(study, operands) for operands in (("both",) if tied else ("weights", "activations"))]


def layer_harms(
    study: Context, operands: str = "both", metric: str | None = None, baseline: int | None = None
) -> dict[str, dict[int, float]]:
    """Return Λ by layer name and bit-width, computing what is missing.

    Args:
        study: Whose model.
        operands: `both`, `weights` or `activations`.
        metric: How harm is measured, one of the task's `metrics`; the study's own by default.
        baseline: Bit-width of all other layers; the study's own by default.

    Raises:
        MixQViTError: The metric is unknown.
        ImageError: The metric needs labels and there are none.
    """
    chosen = study.task.metric(metric or study.metric, study.analysis_images.labels is not None)
    sweep = own_sweep(study, operands, baseline)
    effects: Effects = study.result(sweep)
    return study.remembered(
        ("sensitivity", chosen.name, sweep),
        lambda: {name: {bits: chosen.harm(found) for bits, found in row.items()} for name, row in effects.items()},
    )


def operand_harms(study: Context, operands: str) -> dict[str, dict[int, float]]:
    """Return Λ for sums: what was measured below zero, by noise, counts as no harm."""
    return _not_below_zero(layer_harms(study, operands))


def sensitivity_choices(study: Context, tied: bool, given: Harms | None = None) -> ChoiceHarms:
    """Return Λ by layer and bits; what was measured below zero, by noise, counts as no harm.

    Args:
        study: Whose model.
        tied: Whether both operands of a layer share their bits; else the harms of both, measured alone, are added.
        given: Another Λ than the study's own, for tied bits.

    Raises:
        AllocationError: Another Λ is given, and bits are not tied.
    """
    if given is not None:
        if not tied:
            raise AllocationError(
                "A sensitivity by bit-width is that of both operands together: use tied bits with it."
            )
        return tied_choices(study.layers, _not_below_zero(given))
    swept = [operand_harms(study, sweep.operands) for sweep in sweeps(study, tied)]
    # Only this is computed under the lock: a sweep may have to wait for a session that needs it.
    build = tied_choices if tied else independent_choices
    return study.remembered(("choices", tied), lambda: build(study.layers, *swept))


def _not_below_zero(harms: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    return {name: {bits: max(0.0, harm) for bits, harm in row.items()} for name, row in harms.items()}

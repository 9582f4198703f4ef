"""The strategies of bit allocation: what each minimises, and what it has to know about the layers first."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixqvit.errors import AllocationError

__all__ = ["STRATEGIES", "Strategy", "find_strategy"]


@dataclass(frozen=True)
class Strategy:
    """One way to choose bits.

    Attributes:
        name: As in `STRATEGIES`.
        description: In one plain sentence, with the source.
        needs: The stages that score the layers for it: `relevance`, `sensitivity`, `hessian`, `loss change`,
            `pairs` (with the sensitivity over full precision), `step sizes`.
        is_control: Whether it is there for comparison only.
        has_gamma: Whether γ changes what it chooses.
    """

    name: str
    description: str
    needs: tuple[str, ...] = ()
    is_control: bool = False
    has_gamma: bool = False

    def check_tied(self, tied: bool) -> None:
        """Raise AllocationError where a strategy that scores both operands together is to choose them apart."""
        if not tied and "pairs" in self.needs:
            raise AllocationError(
                f"The pairwise terms of {self.name} are measured with both operands of a layer at the same bits: let "
                "them share their bits, or choose another strategy."
            )


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "mix-qvit",
            "Importance to the power γ times sensitivity, Σ Ω^γ · Λ (Mix-QViT, arXiv 2501.06357).",
            ("relevance", "sensitivity"),
            has_gamma=True,
        ),
        Strategy(
            "lrp-qvit",
            "Importance to the power γ alone, Σ Ω^γ · (4^(−w) + 4^(−a)) (LRP-QViT, arXiv 2401.11243).",
            ("relevance",),
            has_gamma=True,
        ),
        Strategy("sensitivity", "Sensitivity alone, Σ Λ: the measured harm of each layer.", ("sensitivity",)),
        Strategy(
            "hawq-v2",
            "Mean Hessian trace of the loss times squared perturbation, of weights and (ours) of activation operands "
            "(HAWQ-V2, arXiv 1911.03852).",
            ("hessian",),
        ),
        Strategy(
            "mpqco",
            "Second-order loss change from calibration gradients, at the output of each layer (ours; MPQCO, arXiv "
            "2110.06554).",
            ("loss change",),
        ),
        Strategy(
            "clado",
            "Sensitivity (KL over full precision) and what two layers quantized together add to it, pair by pair: an "
            "integer quadratic program (CLADO, arXiv 2307.05657; noise in the pairs is projected away relative to the "
            "layers' own harms, ours).",
            ("pairs",),
        ),
        Strategy(
            "limpq",
            "Step sizes learned in a short training at all bit-widths together, Σ s_a + 2 · s_w (LIMPQ, arXiv "
            "2203.08368; on calibration images, by distillation, ours).",
            ("step sizes",),
        ),
        Strategy(
            "uniform",
            "The same bits everywhere, the largest that fit; restricted layers get the nearest that they may have.",
            is_control=True,
        ),
        Strategy("random", "A random importance in place of Ω: seeded, within the budget.", is_control=True),
        Strategy(
            "inverse",
            "The worst informed: layers count by one over their harm, so that those that break get the fewest bits.",
            ("sensitivity",),
            is_control=True,
        ),
    )
}
"""All strategies by name, the controls last."""


def find_strategy(name: str) -> Strategy:
    """Return a strategy by name.

    Raises:
        AllocationError: There is none of this name.
    """
    if name not in STRATEGIES:
        raise AllocationError(f"There is no allocation strategy {name!r}; choose one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]

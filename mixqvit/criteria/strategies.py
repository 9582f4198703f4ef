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
        has_seed: Whether it draws at random.
        is_independent: Whether it can choose the bits of weights and activations apart.
        is_search: Whether it minimises anything.
        is_exact: Whether its optimum is proven for any budget, so that every budget of a frontier is solved at once.
    """

    name: str
    description: str
    needs: tuple[str, ...] = ()
    is_control: bool = False
    has_gamma: bool = False
    has_seed: bool = False
    is_independent: bool = True
    is_search: bool = True
    is_exact: bool = True

    @property
    def weighs_sensitivity(self) -> bool:
        """Whether it minimises Σ Ω^γ · Λ; its allocations are compared by that, those of others by Σ Λ."""
        return self.has_gamma and "sensitivity" in self.needs


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
            is_independent=False,
            is_exact=False,
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
            is_search=False,
            is_exact=False,
        ),
        Strategy(
            "random",
            "A random importance in place of Ω: seeded, within the budget.",
            is_control=True,
            has_seed=True,
        ),
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

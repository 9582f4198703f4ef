"""What the strategies of a study have to know about the layers: everything that scores them, as stages."""

from collections.abc import Callable, Iterator

from mixqvit.allocation.choices import ChoiceHarms
from mixqvit.criteria.hessian import HessianTraces, hawq_harms
from mixqvit.criteria.indicators import LearnedSteps, indicator_harms
from mixqvit.criteria.loss_change import LossChanges
from mixqvit.criteria.pairwise import PairHarms, PairPlan, Pairs, pair_cost
from mixqvit.criteria.perturbation import Perturbations
from mixqvit.criteria.strategies import find_strategy
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.progress import Progress
from mixqvit.stages import runner
from mixqvit.stages.stage import Stage
from mixqvit.study.part import Part

__all__ = ["Scores"]


class Scores(Part):
    """What HAWQ-V2, MPQCO, CLADO and LIMPQ know about the layers, and which stages each strategy needs."""

    def stages(self, strategy: str, tied: bool = True, gamma: float = 1.0) -> list[Stage]:
        """Return the stages that a strategy needs, in the order they are computed.

        Args:
            strategy: One of `strategies`.
            tied: Whether both operands of a layer share their bits.
            gamma: Exponent of importance; with 0 importance is not needed.

        Raises:
            AllocationError: The strategy is unknown.
        """
        study = self.study
        stages: dict[str, Callable[[], list[Stage]]] = {
            "relevance": lambda: [study.relevances.stage()] if gamma != 0 else [],
            "sensitivity": lambda: [
                study.sensitivities.stage(operands) for operands in (("both",) if tied else ("weights", "activations"))
            ],
            "hessian": lambda: [HessianTraces(), Perturbations()],
            "loss change": lambda: [LossChanges(tied)],
            "pairs": lambda: [study.sensitivities.stage("both", FULL_PRECISION), Pairs()],
            "step sizes": lambda: [LearnedSteps()],
        }
        return [stage for need in find_strategy(strategy).needs for stage in stages[need]()]

    def steps(self, strategy: str = "mix-qvit", tied: bool = True, gamma: float = 1.0) -> Iterator[Progress]:
        """Compute what a strategy has to know about the layers; everything that is missing, piece by piece.

        Args:
            strategy: One of `strategies`.
            tied: Whether both operands of a layer share their bits.
            gamma: Exponent of importance; with 0 importance is not needed.

        Raises:
            AllocationError: The strategy is unknown, or cannot choose bits independently.
            UnsupportedOperationError: It needs relevance, and the model has an operation without a rule.
        """
        find_strategy(strategy).check_tied(tied)
        yield from runner.ready(self.study, self.stages(strategy, tied, gamma))
        yield Progress(1, 1, f"scores for {strategy}", strategy)

    def seconds(self, strategy: str, tied: bool = True) -> float:
        """Return the computing time in seconds of what `score_steps` computed, calibration aside, over all sessions."""
        return sum(runner.seconds_spent(self.study, stage) for stage in self.stages(strategy, tied))

    def hessian_steps(self) -> Iterator[Progress]:
        """Estimate the mean Hessian traces and measure the perturbations; the last result is the harm by bits."""
        yield from runner.ready(self.study, [HessianTraces(), Perturbations()])
        yield Progress(1, 1, "Hessian", self.hessian(), HessianTraces.name)

    def hessian(self) -> ChoiceHarms:
        """Return the harm by layer and bits that HAWQ-V2 adds up."""
        study = self.study
        traces, found = study.result(HessianTraces()), study.result(Perturbations())
        return study.remembered("hessian", lambda: hawq_harms(traces, found))

    def loss_change_steps(self, tied: bool = True) -> Iterator[Progress]:
        """Predict the loss change of each layer from calibration gradients; the last result is the harm by bits.

        Args:
            tied: Whether both operands share their bits; otherwise weights and activations are scored alone, the other
                one in full precision.
        """
        return runner.steps(self.study, LossChanges(tied))

    def loss_change(self, tied: bool = True) -> ChoiceHarms:
        """Return the loss change by layer and bits."""
        return self.study.result(LossChanges(tied))

    def pair_steps(self) -> Iterator[Progress]:
        """Measure what pairs of layers cost together beyond what each costs alone; the last result is all terms."""
        return runner.steps(self.study, Pairs())

    def pairs(self) -> PairHarms:
        """Return the pairwise terms."""
        return self.study.result(Pairs())

    def indicator_steps(self) -> Iterator[Progress]:
        """Train the step sizes of all operands at all bit-widths; the last result is s_a + α · s_w by bits."""
        yield from runner.ready(self.study, [LearnedSteps()])
        yield Progress(1, 1, LearnedSteps.name, self.indicators(), LearnedSteps.name)

    def indicators(self) -> ChoiceHarms:
        """Return s_a + α · s_w by layer and bits."""
        found = self.study.result(LearnedSteps())
        return self.study.remembered("indicators", lambda: indicator_harms(found))

    def pair_estimate(self) -> float:
        """Return about how many seconds measuring the missing pairs takes here, from a timed run of a few images."""
        study, plan = self.study, PairPlan.of(self.study)
        saved = study.saved(Pairs())
        known = {(terms.first, terms.second) for terms in saved.values()}
        pairs = [pair for pair in plan.pairs if pair not in known]
        if not pairs:
            return 0.0
        return study.seconds_per_image() * pair_cost(study.graph, pairs, len(plan.bit_widths), plan.images)

    def pair_widths(self) -> tuple[int, ...]:
        """Return the bit-widths that pairs are measured at, and so those that `clado` chooses among."""
        return PairPlan.of(self.study).bit_widths

"""What a criterion is: one way to score the choices of every layer, which an allocation minimises.

Nothing here or in the files of the criteria loads torch before layers are scored: pages and the command line know all
criteria at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar, Protocol

from mixqvit.criteria.choices import ChoiceHarms, Harms, PairHarms

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["NOTHING", "Asked", "Criterion", "Given", "Search"]


class Search(Enum):
    """How bits are found; `mixqvit.allocation.search` has the solvers."""

    EXACT = auto()
    """The least sum of harms over the layers, proven for any budget."""
    PAIRWISE = auto()
    """The least sum over layers and pairs of layers, to a stated gap."""
    UNIFORM = auto()
    """None: the largest bits that are the same everywhere."""


class Asked(Protocol):
    """What criteria listen to in a request."""

    @property
    def gamma(self) -> float:
        """Exponent of importance; with 0 importance is not needed."""
        ...

    @property
    def tied(self) -> bool:
        """Whether both operands of a layer share their bits; attention products always do."""
        ...

    @property
    def seed(self) -> int:
        """Of what is drawn at random."""
        ...


@dataclass(frozen=True)
class Given:
    """Scores that somebody hands in, in place of the study's own.

    Attributes:
        importance: Ω by layer name.
        sensitivity: Λ by layer name and bit-width, for tied bits.
    """

    importance: Mapping[str, float] | None = None
    sensitivity: Harms | None = None


NOTHING = Given()


class Criterion(ABC):
    """One way to score choices, which people choose by its name as the strategy of an allocation.

    Attributes:
        name: Unique.
        sentence: What it minimises, in one plain sentence with the source.
        search: How its bits are found.
        is_control: Whether it is there for comparison only.
        has_gamma: Whether it weighs layers by importance to the power γ, and so needs relevance, unless γ is 0.
        weighs_sensitivity: Whether it minimises Σ Ω^γ · Λ; its allocations are compared by that, those of others by
            Σ Λ.
        has_seed: Whether it draws at random.
        is_independent: Whether it can choose the bits of weights and activations apart.
        is_costly: Whether scoring takes longest of all: people are asked before it begins.
    """

    name: ClassVar[str]
    sentence: ClassVar[str]
    search: ClassVar[Search] = Search.EXACT
    is_control: ClassVar[bool] = False
    has_gamma: ClassVar[bool] = False
    weighs_sensitivity: ClassVar[bool] = False
    has_seed: ClassVar[bool] = False
    is_independent: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False

    @property
    def is_search(self) -> bool:
        """Whether it minimises anything."""
        return self.search is not Search.UNIFORM

    @property
    def is_exact(self) -> bool:
        """Whether its optimum is proven for any budget, so that every budget of a frontier is solved at once."""
        return self.search is Search.EXACT

    def needs(self, study: "Context", asked: Asked) -> Sequence["Stage"]:
        """Return the stages that score the layers for it, in the order they are computed."""
        return ()

    @abstractmethod
    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the harm of every choice, computing what is missing of the stages that it needs.

        Raises:
            AllocationError: γ is not usable, or what is given is not.
            UnsupportedOperationError: It needs relevance, and the model has an operation without a rule.
        """

    def pairs(self, study: "Context") -> PairHarms:
        """Return what two layers do together beyond what each does alone; for a pairwise search."""
        return {}

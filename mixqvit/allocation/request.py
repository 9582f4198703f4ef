"""What a person asks for: an allocation within a budget, with restrictions, by a strategy.

One object from Python, page, link, command line and allocation file to the solver. It says nothing about the model: the
same request can be asked of any whose layers have the names that it restricts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.documents import check_document
from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.allocation.restrictions import RESTRICTIONS, Restrictions
from mixqvit.criteria.criterion import Criterion
from mixqvit.criteria.registry import CRITERIA, DEFAULT, find_criterion
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BIT_WIDTHS, NUMBER_FORMATS, WIDTHS_TEXT

__all__ = ["BITS_SCHEMA", "Request", "as_request", "request_schema"]


@dataclass(frozen=True)
class Request:
    """What is asked for. Nothing is checked before it is solved; what is left out is as the defaults say, everywhere.

    Attributes:
        budget: Ceilings.
        restrictions: What is demanded of single layers and kinds.
        strategy: What is minimised, one of `CRITERIA`.
        gamma: Exponent of importance, of strategies that have it; with 0 importance is not needed.
        tied: Whether both operands of a layer share their bits; attention products always do.
        seed: Of strategies that draw at random.
    """

    budget: Budget = field(default_factory=Budget)
    restrictions: Restrictions = field(default_factory=Restrictions)
    strategy: str = DEFAULT
    gamma: float = 1.0
    tied: bool = True
    seed: int = 0

    def changed(self, **keywords: Any) -> Self:
        """Return the request with other values of some parts, by the names that `to_json` gives them.

        Args:
            keywords: `strategy`, `gamma`, `tied`, `seed`; ceilings by the names of `QUANTITIES`, None for none, and
                `cap_bitops`; `pinned`, `allowed`, `at_least`, `at_most`, None for none.

        Raises:
            TypeError: There is no part of a name.
        """
        budgeted = {name: keywords.pop(name) for name in (*QUANTITIES, "cap_bitops") if name in keywords}
        restricted = {name: keywords.pop(name) for name in RESTRICTIONS if name in keywords}
        budget = self.budget.changed(**budgeted) if budgeted else self.budget
        restrictions = replace(self.restrictions, **restricted) if restricted else self.restrictions
        return replace(self, **{"budget": budget, "restrictions": restrictions, **keywords})

    @property
    def criterion(self) -> Criterion:
        """The strategy itself.

        Raises:
            AllocationError: There is none of this name.
        """
        return find_criterion(self.strategy)

    @property
    def yardstick(self) -> tuple[float, bool]:
        """What all settings beside its allocation are compared by: (γ of Σ Ω^γ · Λ, whether Λ is that of tied bits).

        γ is 0 where the strategy does not minimise Ω^γ · Λ itself.
        """
        return (self.gamma if self.criterion.weighs_sensitivity else 0.0), self.tied

    @property
    def yardstick_words(self) -> str:
        """What all settings are compared by, as a formula."""
        return "Σ Ω^γ · Λ" if self.criterion.weighs_sensitivity else "Σ Λ"

    def check(self) -> None:
        """Refuse a strategy that does not exist or cannot choose as asked, and a seed that is none.

        Raises:
            AllocationError: So it is.
        """
        if not self.tied and not self.criterion.is_independent:
            raise AllocationError(
                f"Strategy {self.strategy} knows harms with both operands of a layer at the same bits only: let them "
                "share their bits, or choose another strategy."
            )
        if self.seed < 0:
            raise AllocationError(f"The seed must be 0 or a positive number, not {self.seed}.")

    def to_json(self) -> dict[str, Any]:
        """Return the request as a document that JSON can write; `from_json` reads it back as it was."""
        restricted = {
            name: {place: _listed(value) for place, value in getattr(self.restrictions, name).items()}
            for name in RESTRICTIONS
        }
        own = {"strategy": self.strategy, "gamma": self.gamma, "tied": self.tied, "seed": self.seed}
        return {**own, **self.budget.to_json(), **restricted}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], name: str = "This request", inside: tuple[str, ...] = ()) -> Self:
        """Return the request that a document states; what it leaves out, or is null, is as by default.

        Args:
            document: As `to_json` returns it.
            name: What messages call it, or the whole that it is part of.
            inside: Where in the whole it is.

        Raises:
            AllocationFileError: An entry is unknown or not of its kind; the message says which, and what it must be.
        """
        check_document(document, request_schema(), name, inside)
        given = {key: value for key, value in document.items() if value is not None}
        if "seed" in given:
            given["seed"] = int(given["seed"])
        for restriction in given.keys() & set(RESTRICTIONS):
            given[restriction] = {place: _whole(value) for place, value in given[restriction].items()}
        return cls().changed(**given)


def as_request(given: Request | float | None = None, **keywords: Any) -> Request:
    """Return what a person asks for.

    Args:
        given: A request, to which the keywords change something; or a budget in average bits.
        keywords: As for `Request.changed`.

    Raises:
        TypeError: There is no keyword of a name.
    """
    if given is None or isinstance(given, Request):
        return (given or Request()).changed(**keywords)
    return Request().changed(average_bits=given, **keywords)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _whole(value: Any) -> Any:
    """Return bits as integers, which a JSON file may write as 4.0."""
    return tuple(map(int, value)) if isinstance(value, list) else int(value)


# JSON Schema

_PAIRS = [[one, other] for one in NUMBER_FORMATS for other in NUMBER_FORMATS]
_PAIR_TEXT = f"[weight bits, activation bits], each {WIDTHS_TEXT}"
_WIDTH = {"enum": list(BIT_WIDTHS), "description": f"a bit-width of {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"}

BITS_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"enum": _PAIRS, "description": _PAIR_TEXT},
    "description": f"an object from layer name to {_PAIR_TEXT}; layers left out stay in full precision",
}
"""Bits of every layer in a file."""


def _by(what: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "additionalProperties": schema,
        "description": f"an object from {what} to {schema['description']}",
    }


def request_schema() -> dict[str, Any]:
    """Return the JSON Schema of a request."""
    number, truth = {"type": ["number", "null"]}, {"type": ["boolean", "null"]}
    numbers = {
        name: number | {"description": f"a number, the most that {one.title} may be, or null"}
        for name, one in QUANTITIES.items()
    }
    pin = {"enum": [*NUMBER_FORMATS, *_PAIRS], "description": f"a bit-width of {WIDTHS_TEXT}; or two, {_PAIR_TEXT}"}
    widths = {
        "type": "array",
        "items": _WIDTH,
        "description": f"a list of bit-widths of {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}",
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "description": "an object",
        "properties": {
            "strategy": {"enum": [*CRITERIA, None], "description": f"one of {', '.join(CRITERIA)}"},
            **numbers,
            "cap_bitops": truth
            | {"description": "true or false, whether average bits cap BitOps at those of uniform bits"},
            "gamma": number | {"description": "a number, the exponent of importance"},
            "tied": truth | {"description": "true or false, whether both operands of a layer share their bits"},
            "seed": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": 2**63,
                "description": "a whole number from 0",
            },
            "pinned": _by("layer name", pin),
            "at_least": _by("layer name", _WIDTH),
            "at_most": _by("layer name", _WIDTH),
            "allowed": _by("kind of layer", widths),
        },
    }

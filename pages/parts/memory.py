"""What a browser session remembers on the Budget page: the allocation shown, the one before, what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.request import Request
from mixqvit.network.bits import Bits, BitsPerLayer

if TYPE_CHECKING:
    from mixqvit.tasks.evaluation import Evaluation

STEPS_BACK = 100

Key = tuple[Bits, ...]
"""Bits of all layers in network order: what tells settings apart."""

Controls = Mapping[str, Any]
"""What the controls are set to, by the keys of their widgets; restrictions, which no widget holds, among them."""


@dataclass(frozen=True)
class Measured:
    """One setting and what was measured of it; neither depends on γ, which predicted harm does.

    Attributes:
        name: `mixed`, `uniform` or `full precision`.
        bits: (weight bits, activation bits) by layer name.
        evaluation: On all evaluation images.
    """

    name: str
    bits: BitsPerLayer
    evaluation: "Evaluation"


@dataclass
class Memory:
    """What this browser session remembers about one study.

    Attributes:
        allocation: The last allocation that fitted its budget.
        wanted: What it was solved for.
        previous: The bits before it, None at first.
        points: What was measured so far, by the setting's bits.
        settings: Allocations with their common predicted harm, by (γ, tied) and bits.
        scored: What strategies have to know that is there: (strategy, tied).
        importance: Ω by layer name; None as long as no strategy needed it.
        uniforms: Whether all uniform settings are wanted.
        asked: Settings of a large model that are to be measured.
        held: Bits held as A, None for nothing.
        controls: What the controls were set to, the last as they are now.
    """

    allocation: Allocation | None = None
    wanted: Request | None = None
    previous: BitsPerLayer | None = None
    points: dict[Key, Measured] = field(default_factory=dict)
    settings: dict[tuple[tuple[float, bool], Key], Allocation] = field(default_factory=dict)
    scored: set[tuple[str, bool]] = field(default_factory=set)
    importance: Mapping[str, float] | None = None
    uniforms: bool = False
    asked: set[Key] = field(default_factory=set)
    held: BitsPerLayer | None = None
    controls: list[Controls] = field(default_factory=list)

    def show(self, allocation: Allocation, wanted: Request) -> None:
        """Make an allocation the one that is shown."""
        if self.allocation is not None and self.allocation.bits != allocation.bits:
            self.previous = self.allocation.bits
        self.allocation, self.wanted = allocation, wanted

    def measured(self, bits: BitsPerLayer) -> "Evaluation | None":
        """Return what was measured of bits; None for nothing."""
        found = self.points.get(key(bits))
        return found and found.evaluation

    def remember(self, name: str, bits: BitsPerLayer, evaluation: "Evaluation") -> None:
        """Remember what was measured of bits, under the name that they were first seen by."""
        self.points.setdefault(key(bits), Measured(name, bits, evaluation))

    def note(self, controls: Controls) -> None:
        """Remember what the controls are set to, so that Undo finds the way back."""
        if not self.controls or self.controls[-1] != controls:
            self.controls = [*self.controls[-STEPS_BACK:], controls]

    def step_back(self) -> Controls:
        """Forget the last change of the controls; returns what they were set to before."""
        self.controls.pop()
        return self.controls[-1]


def key(bits: BitsPerLayer) -> Key:
    """Return what tells settings apart."""
    return tuple(bits.values())

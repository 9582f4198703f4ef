"""What a browser session remembers on the Budget page: the allocation shown, the one before, what was measured."""

from dataclasses import dataclass, field

from mixqvit.allocation.request import Request

STEPS_BACK = 100


@dataclass(frozen=True)
class Measured:
    """One setting and what was measured of it; neither depends on γ, which predicted harm does.

    Attributes:
        name: `mixed`, `uniform` or `full precision`.
        bits: (weight bits, activation bits) by layer name.
        evaluation: On all evaluation images.
    """

    name: str
    bits: dict
    evaluation: object


@dataclass
class Memory:
    """What this browser session remembers about one study.

    Attributes:
        allocation: The last allocation that fitted its budget.
        wanted: What it was solved for.
        previous: The bits before it, None at first.
        points: What was measured so far, by the setting's bits.
        settings: Allocations with their common predicted harm, by γ and bits.
        scored: What strategies have to know that is there: (strategy, tied).
        importance: Ω by layer name; None as long as no strategy needed it.
        uniforms: Whether all uniform settings are wanted.
        asked: Settings of a large model that are to be measured.
        held: Bits held as A, None for nothing.
        controls: What the controls were set to, the last as they are now.
    """

    allocation: object = None
    wanted: Request | None = None
    previous: dict | None = None
    points: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    scored: set = field(default_factory=set)
    importance: dict | None = None
    uniforms: bool = False
    asked: set = field(default_factory=set)
    held: dict | None = None
    controls: list = field(default_factory=list)

    def show(self, allocation, wanted):
        if self.allocation is not None and self.allocation.bits != allocation.bits:
            self.previous = self.allocation.bits
        self.allocation, self.wanted = allocation, wanted

    def measured(self, bits):
        found = self.points.get(key(bits))
        return found and found.evaluation

    def remember(self, name, bits, evaluation):
        self.points.setdefault(key(bits), Measured(name, bits, evaluation))

    def note(self, controls):
        """Remember what the controls are set to, so that Undo finds the way back."""
        if not self.controls or self.controls[-1] != controls:
            self.controls = [*self.controls[-STEPS_BACK:], controls]

    def step_back(self):
        """Forget the last change of the controls; returns what they were set to before."""
        self.controls.pop()
        return self.controls[-1]


def key(bits):
    return tuple(bits.values())

"""What a browser session remembers on the Budget page: the allocation shown, the one before, what was measured."""

from dataclasses import dataclass, field


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
        wanted: What it was solved with: the arguments of `study.allocate`.
        previous: The bits before it, None at first.
        points: What was measured so far, by the setting's bits.
        uniforms: Whether all uniform settings are wanted.
    """

    allocation: object = None
    wanted: dict | None = None
    previous: dict | None = None
    points: dict = field(default_factory=dict)
    uniforms: bool = False

    def show(self, allocation, wanted):
        if self.allocation is not None and self.allocation.bits != allocation.bits:
            self.previous = self.allocation.bits
        self.allocation, self.wanted = allocation, wanted

    def measured(self, allocation):
        found = self.points.get(key(allocation))
        return found and found.evaluation

    def remember(self, name, allocation, evaluation):
        self.points[key(allocation)] = Measured(name, allocation.bits, evaluation)


def key(allocation):
    return tuple(allocation.bits.values())

"""The parts of a study: each knows one subject, and stands on the study alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from mixqvit.study.study import Study

__all__ = ["Part", "of"]

P = ParamSpec("P")
R = TypeVar("R")
Own = TypeVar("Own", bound="Part")


@dataclass(frozen=True)
class Part:
    """A view on a study; what it remembers is in the study's memory."""

    study: "Study"


def of(part: type[Own], method: Callable[Concatenate[Own, P], R]) -> Callable[Concatenate["Study", P], R]:
    """Return a method of a study that is that of one of its parts."""

    @wraps(method)
    def delegated(study: "Study", *arguments: P.args, **named: P.kwargs) -> R:
        return method(part(study), *arguments, **named)

    return delegated

"""The parts of a study: each knows one subject, and stands on the study alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from mixqvit.study.base import StudyBase

__all__ = ["Part", "of"]

P = ParamSpec("P")
R = TypeVar("R")
Own = TypeVar("Own", bound="Part")


@dataclass(frozen=True)
class Part:
    """A view on a study, which makes the parts it builds on; what it remembers is in the memory of the study."""

    study: StudyBase


def of(part: type[Own], method: Callable[Concatenate[Own, P], R]) -> Callable[Concatenate[StudyBase, P], R]:
    """Return a method of a study that is that of one of its parts."""

    @wraps(method)
    def delegated(study: StudyBase, *arguments: P.args, **named: P.kwargs) -> R:
        return method(part(study), *arguments, **named)

    return delegated

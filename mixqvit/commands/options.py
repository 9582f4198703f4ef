"""Options that several commands have."""

import argparse
from collections.abc import Sequence
from typing import Any

from mixqvit.commands.paths import expanded
from mixqvit.commands.printing import notice

__all__ = ["add_allocation_file"]


class _EarlierName(argparse.Action):
    """Stores what an option's earlier name is given where the option itself stores it, and says the name of today."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        notice(f"{option_string} FILE is --{self.dest} FILE now.")
        setattr(namespace, self.dest, values)


def add_allocation_file(parser: argparse._ActionsContainer, earlier: bool = True) -> None:
    """Add `--allocation FILE`.

    Args:
        parser: What to add it to.
        earlier: Whether `--recipe FILE`, as it was called once, still works.
    """
    parser.add_argument(
        "--allocation",
        type=expanded,
        metavar="FILE",
        help="an allocation file, which `allocate --output` wrote; it names its model",
    )
    if earlier:
        parser.add_argument("--recipe", dest="allocation", type=expanded, action=_EarlierName, help=argparse.SUPPRESS)

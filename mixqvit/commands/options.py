"""Options that several commands have."""

import argparse
from collections.abc import Sequence
from typing import Any

from mixqvit.commands.paths import expanded
from mixqvit.commands.printing import notice

__all__ = ["add_allocation_file", "add_earlier_name"]


class _EarlierName(argparse.Action):
    """Stores what an option's earlier name is given where the option itself stores it, and says the name of today."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        value = f" {self.metavar}" if self.metavar else ""
        notice(f"{option_string}{value} is --{self.dest}{value} now.")
        setattr(namespace, self.dest, values)


def add_earlier_name(parser: argparse._ActionsContainer, option: str, now: str, **how: Any) -> None:
    """Let an option be given by the name that it had once, with a notice; help does not tell of it.

    Args:
        parser: What the option was added to.
        option: Its earlier name.
        now: Where the option stores its value, by its name of today.
        how: What else `add_argument` was told of the option.
    """
    parser.add_argument(option, dest=now, action=_EarlierName, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)


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
        add_earlier_name(parser, "--recipe", "allocation", type=expanded, metavar="FILE")

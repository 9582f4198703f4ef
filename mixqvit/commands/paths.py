"""Paths on the command line: `~` is the home folder, which a shell leaves as it is in `--images=~/photos`."""

import os
from pathlib import Path

__all__ = ["expanded", "path_of"]


def expanded(text: str) -> str:
    """Return a text that may be a path; other sources, such as `digits`, stay, as does `~` of an unknown user."""
    return os.path.expanduser(text)  # noqa: PTH111 (that of Path fails for an unknown user, and changes `hf://`)


def path_of(text: str) -> Path:
    """Return a path."""
    return Path(expanded(text))

"""Which of the server's files a browser may name: only those below folders that the owner allows."""

import os
from pathlib import Path

from mixqvit.cache import default_folder
from mixqvit.errors import AccessError

__all__ = ["ROOTS_VARIABLE", "allowed_path", "data_roots"]

ROOTS_VARIABLE = "MIXQVIT_DATA_ROOTS"
"""Environment variable with the allowed folders, separated as in PATH."""


def data_roots() -> tuple[Path, ...]:
    """Return the folders below which paths may lie: those of `MIXQVIT_DATA_ROOTS`, by default the working folder.

    The cache folder, where uploads and saved studies are, is always among them.
    """
    named = [text for text in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if text.strip()]
    folders = [Path(text).expanduser() for text in named] or [Path.cwd()]
    return tuple(folder.resolve() for folder in (*folders, default_folder()))


def allowed_path(text: str) -> Path:
    """Return the file or folder that a browser named, links followed.

    Args:
        text: A path on the server; a relative one starts at the first of `data_roots`.

    Raises:
        AccessError: It lies outside of the allowed folders, or nothing is there. What lies outside is not looked at:
            the message is the same whether it exists or not.
    """
    roots = data_roots()
    if not text.strip() or "\0" in text:
        raise AccessError("Give the path of a file or a folder.")
    try:
        path = (roots[0] / Path(text.strip()).expanduser()).resolve()
        inside = any(path.is_relative_to(root) for root in roots)
        exists = inside and path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise AccessError(f"{text!r} is no path that can be opened.") from error
    if not inside:
        raise AccessError(
            f"{text} lies outside of the folders that this dashboard may read: {', '.join(map(str, roots))}. Its owner "
            f"can allow another one: start it with the environment variable {ROOTS_VARIABLE} set to the folder."
        )
    if not exists:
        raise AccessError(f"There is no {text} on the machine that runs this dashboard (looked at {path}).")
    return path

"""Files that a browser sent: kept for a while in a place of bounded size, then removed."""

import hashlib
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mixqvit.cache import default_folder
from mixqvit.errors import AccessError

__all__ = ["KEPT_SECONDS", "LIMIT_BYTES", "keep_upload", "remove_old_uploads", "uploads_folder"]

LIMIT_BYTES = 4 * 2**30
"""All uploads together; the ones sent longest ago are removed first."""

KEPT_SECONDS = 24 * 3600
"""An upload that was sent so long ago is removed."""

_PIECE = 2**20


def uploads_folder() -> Path:
    """Return where uploads lie; below the cache folder, so that their paths may be named."""
    return default_folder() / "uploads"


def keep_upload(name: str, content: BinaryIO) -> Path:
    """Write an upload and return its path; the same file sent again gets the same path.

    Args:
        name: What the browser calls the file. Only its last part is used, without unusual characters.
        content: Read to its end.

    Raises:
        AccessError: It is larger than all uploads may be together, or cannot be written.
    """
    folder = uploads_folder()
    digest, size = hashlib.sha256(), 0
    partial = folder / f"partial {uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                while piece := content.read(_PIECE):
                    size += len(piece)
                    if size > LIMIT_BYTES:
                        raise AccessError(
                            f"{name} is larger than the {LIMIT_BYTES / 2**30:.0f} GB that uploads may take. Put it on "
                            "the machine that runs the dashboard and name its path."
                        )
                    digest.update(piece)
                    file.write(piece)
            path = folder / digest.hexdigest()[:32] / _plain(name)
            path.parent.mkdir(exist_ok=True)
            partial.replace(path)
            path.parent.touch()
        finally:
            partial.unlink(missing_ok=True)
        remove_old_uploads(keep=path)
    except OSError as error:
        raise AccessError(f"The upload {name} cannot be kept in {folder} ({error.strerror}).") from error
    return path


def remove_old_uploads(keep: Path | None = None) -> None:
    """Remove what was sent more than `KEPT_SECONDS` ago, and what was sent longest ago above `LIMIT_BYTES`.

    Args:
        keep: An upload that stays in any case.
    """
    folder = uploads_folder()
    if not folder.is_dir():
        return
    found = []
    for place in folder.iterdir():
        with suppress(OSError):  # another session removes as well
            size = sum(file.stat().st_size for file in place.iterdir()) if place.is_dir() else place.stat().st_size
            found.append((place.stat().st_mtime, size, place))
    total = sum(size for _, size, _ in found)
    for sent, size, place in sorted(found):
        if keep is not None and place == keep.parent:
            continue
        if total > LIMIT_BYTES or time.time() - sent > KEPT_SECONDS:
            with suppress(OSError):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            total -= size


def _plain(name: str) -> str:
    """Return a file name that means nothing to a file system; the end, which says the kind of file, stays."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[/\\]", name)[-1]).lstrip(".")[-100:] or "upload"

"""Where this program keeps files of its own: saved results, uploads, downloads."""

import os
from pathlib import Path

import platformdirs

__all__ = ["default_folder"]


def default_folder() -> Path:
    """Return the cache folder: `MIXQVIT_CACHE` if set, else the user's cache folder."""
    return Path(os.environ.get("MIXQVIT_CACHE") or platformdirs.user_cache_dir("mixqvit", appauthor=False))

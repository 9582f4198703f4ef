"""Which source of images a person means."""

from contextlib import suppress
from pathlib import PurePath

from mixqvit.errors import ImageError
from mixqvit.images.kinds import is_image_name, unread_name
from mixqvit.images.listing import shown
from mixqvit.images.sources.source import SOURCES, Given, ImageSource, source_path

__all__ = ["details", "find_source", "forms", "is_path", "is_same", "short_name", "uploads"]


def find_source(where: str, follow_links: bool = False) -> ImageSource:
    """Return where images come from.

    Args:
        where: What a person named, see `forms`.
        follow_links: Whether links that lead out of a folder are followed.

    Raises:
        ImageError: It names nothing that is known, or cannot be read.
    """
    given = Given(where, follow_links)
    if not where.strip() or (is_path(where) and not _exists(given)):
        raise ImageError(f"unknown images {shown(where)!r}: they are neither there nor named otherwise ({forms()})")
    named = [kind for kind in SOURCES.values() if kind.is_named(where)]
    try:
        found = next((source for kind in named or SOURCES.values() if (source := kind.parse(given)) is not None), None)
    except OSError as error:
        raise ImageError(f"{shown(where)} cannot be read ({error.strerror or error})") from error
    if found is not None:
        return found
    if is_image_name(given.path.name) or unread_name(given.path.name):
        raise ImageError(f"{given.path} is a single file; give the folder it is in")
    raise ImageError(f"{given.path} is of an unknown kind; give one of these: {forms()}")


def is_path(where: str) -> bool:
    """Return whether a text is a path, if it names any images; nothing is looked at."""
    return not any(kind.is_named(where) for kind in SOURCES.values())


def is_same(where: str, other: str) -> bool:
    """Return whether two texts name the same images."""
    if where == other or not (is_path(where) and is_path(other)):
        return where == other
    return source_path(where).resolve() == source_path(other).resolve()


def short_name(where: str) -> str:
    """Return a text by which a person knows images, without the folders of a path."""
    return PurePath(where).name if is_path(where) else where


def forms() -> str:
    """Return in words how images are named."""
    words = [kind.words for kind in SOURCES.values()]
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def details() -> str:
    """Return sentences on what the sources look like inside."""
    return " ".join(filter(None, (kind.details for kind in SOURCES.values())))


def uploads() -> list[str]:
    """Return the endings, without the dot, of the files that a browser may send."""
    return [ending for kind in SOURCES.values() for ending in kind.uploads]


def _exists(given: Given) -> bool:
    with suppress(OSError, ValueError):  # a name that no file system takes
        return given.path.is_dir() or given.path.is_file()
    return False

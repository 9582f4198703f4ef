"""Which files are read, by name: images, and lists of their classes; and what helps with images of other kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

__all__ = [
    "IMAGE_SUFFIXES",
    "VALIDATION_LIST",
    "heif_is_read",
    "is_heif",
    "is_image_name",
    "is_validation_list",
    "unread_content",
    "unread_name",
]

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    ]
)

VALIDATION_LIST = "LOC_val_solution.csv"
"""The file that says the classes of the validation images of Kaggle's ImageNet."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@cache
def heif_is_read() -> bool:
    """Return whether HEIC photographs are read: where the package pillow-heif is installed, which need not be."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_heif(data: bytes) -> bool:
    """Return whether a file begins as a HEIC photograph does."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def is_image_name(name: str) -> bool:
    """Return whether a file name ends as that of an image does that is read."""
    suffix = _suffix(name)
    return suffix in IMAGE_SUFFIXES or (suffix in _HEIF.suffixes and heif_is_read())


def is_validation_list(name: str) -> bool:
    """Return whether a path is that of a list of classes, see `validation_list`."""
    return PurePosixPath(name).name == VALIDATION_LIST


def unread_name(name: str) -> str | None:
    """Return what a file is and what helps where its name is that of an image of a kind that is not read."""
    suffix = _suffix(name)
    return next((kind.reason for kind in _KINDS if suffix in kind.suffixes and not is_image_name(name)), None)


def unread_content(data: bytes) -> str | None:
    """Return the same for the content of a file, whatever its name is."""
    kind = next((kind for kind in _KINDS if kind.is_content(data)), None)
    return None if kind is None or (kind is _HEIF and heif_is_read()) else kind.reason


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


@dataclass(frozen=True)
class _Kind:
    """Images that are not read, or not everywhere."""

    reason: str
    suffixes: frozenset[str]
    is_content: Callable[[bytes], bool] = lambda data: False


_SAVE = "save it as JPEG or PNG"
_HEIF = _Kind(
    f"it is a HEIC photograph, which is read where the package pillow-heif is installed; install it, or {_SAVE}",
    frozenset({".heic", ".heif", ".hif"}),
    is_heif,
)
_KINDS = (
    _HEIF,
    _Kind(
        f"it is a JPEG 2000 image, which is not read; {_SAVE}",
        frozenset({".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}),
        lambda data: data.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    ),
    _Kind(
        f"it is a JPEG XL image, which is not read; {_SAVE}",
        frozenset({".jxl"}),
        lambda data: data.startswith((b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")),
    ),
    _Kind(
        f"it is a camera's raw photograph, which is not read; {_SAVE}",
        frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}),
    ),
)

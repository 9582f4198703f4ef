"""Zip archives of image files.

`zipfile` reads them. The end of the directory is looked at before, by hand, for `zipfile` reads a directory whole,
whatever its size, and does not refuse members that share bytes.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.files import can_be_kept
from mixqvit.images.listing import Entry, Steps, UnreadableImage
from mixqvit.images.sources.archives import MAX_MEMBERS, Archive, Members, check_ratio
from mixqvit.images.sources.source import Given, registered

__all__ = ["ZipArchive"]

MAX_DIRECTORY_BYTES = 64 * 2**20
"""Bytes of the directory at a zip file's end, 300 for each of the most members admitted: all of it is kept at once."""

_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"
_LOCATOR_64 = b"PK\x06\x07"
_ENTRY = b"PK\x01\x02"
_LOCAL_HEADER_BYTES = 30
_REPORT_EVERY = 2000


# For a damaged directory or member; its own error is only one of them.
_ZIPFILE_RAISES = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


@registered
@dataclass(frozen=True)
class ZipArchive(Archive):
    """A zip archive."""

    kind = "zip"
    words = "a .zip"
    uploads = ("zip",)

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for a file that begins as one."""
        return cls(given.where) if given.start[:2] == b"PK" else None

    def listing_steps(self) -> Steps:
        """List the members that are images; what is declared is checked before anything is expanded."""
        with self.path.open("rb") as file:
            _check_directory(file, self.path)
            members = Members(self.path)
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
            except _ZIPFILE_RAISES as error:
                raise _damaged(self.path, error) from error
        _check_overlaps(infos, self.path)
        expanded = compressed = 0
        for info in infos:
            if members.count() % _REPORT_EVERY == 0:
                yield Progress(0, 1, f"listing: {len(members.entries)} images")
            name = info.orig_filename  # `filename` is cut at a NUL
            if name.endswith("/"):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.create_system == 3 and kind not in (0, stat.S_IFREG):
                members.refuse(name, "it is a link or a device, not a file")
            elif info.flag_bits & 1:
                members.refuse(name, "it is encrypted")
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                members.refuse(name, "it is compressed in a way that is not read; use ordinary zip compression")
            elif members.add(name, info.file_size, info):
                check_ratio(self.path, info.file_size, info.compress_size)
                expanded, compressed = expanded + info.file_size, compressed + info.compress_size
                check_ratio(self.path, expanded, compressed)
        return members.listing()

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read members one at a time."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                for entry in entries:
                    yield entry, _member(archive, entry.key)
        except (OSError, zipfile.BadZipFile) as error:
            raise _damaged(self.path, error) from error

    def size(self, entry: Entry) -> int:
        """Return the expanded bytes that the directory declares."""
        return entry.key.file_size

    def is_kept(self, entries: Sequence[Entry]) -> bool:
        """Return whether members may be: the directory would be read again for every few of them."""
        return can_be_kept(sum(map(self.size, entries)))

    def stamp(self, entry: Entry) -> str:
        """Return size and checksum of a member."""
        return f"{entry.key.file_size} {entry.key.CRC}"


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | UnreadableImage:
    try:
        with archive.open(info) as member:
            data = member.read(info.file_size + 1)
    except _ZIPFILE_RAISES as error:
        return UnreadableImage(f"it is damaged inside the archive ({error})")
    if len(data) != info.file_size:
        return UnreadableImage(f"it has {len(data)} bytes where the archive says {info.file_size}")
    return data


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Refuse a directory that is too large to be read whole, as `zipfile` reads it, before it is."""
    end_of_file = file.seek(0, 2)
    tail_start = max(0, end_of_file - 22 - 65535)
    file.seek(tail_start)
    tail = file.read()
    position = len(tail) - 22
    if position < 0 or tail[position : position + 4] != _END or tail[-2:] != b"\0\0":
        position = tail.rfind(_END)  # an archive with a comment
    if position < 0 or len(tail) - position < 22:
        raise _damaged(path, "it has no directory at its end")
    size = struct.unpack_from("<L", tail, position + 12)[0]
    end = tail_start + position
    if position >= 20 and tail[position - 20 : position - 16] == _LOCATOR_64:
        file.seek(max(0, end - 20 - 56))
        record = file.read(56)
        if record[:4] != _END_64:
            raise _damaged(path, "its directory is not where it should be")
        size = struct.unpack_from("<Q", record, 40)[0]
        end -= 20 + 56
    if size > end:
        raise _damaged(path, "its directory is larger than the file")
    if size > MAX_DIRECTORY_BYTES:
        raise ImageError(
            f"the directory of the archive {path} takes {size >> 20} MiB, more than {MAX_DIRECTORY_BYTES >> 20}; "
            "give a part of it"
        )
    file.seek(end - size)
    if file.read(size).count(_ENTRY) > MAX_MEMBERS:
        raise ImageError(f"the archive {path} has more than {MAX_MEMBERS:,} members; give a part of it")
    file.seek(0)


def _check_overlaps(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse members that share bytes: the trick by which a small zip file expands to petabytes."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ImageError(
                f"members of the archive {path} overlap, as no archiver writes them; it is not read. Pack the images "
                "again"
            )
        if info.compress_size:
            end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _damaged(path: Path, reason: object) -> ImageError:
    return ImageError(f"the archive {path} is damaged ({reason}); pack the images again")

"""Tar archives of image files, plain or compressed, read from front to back.

`tarfile` reads the headers, from a reader of our own: the ones that the standard library opens for compressed archives
set no limit to what a header, a ratio of compression or the dictionary of xz asks for.
"""

import bz2
import gzip
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.files import MAX_KEPT_BYTES, can_be_kept
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, Steps, UnreadableImage
from mixqvit.images.local_files import file_stamp
from mixqvit.images.sources.archives import Archive, Members, check_ratio
from mixqvit.images.sources.source import Given, registered

__all__ = ["TarArchive"]

XZ_MEMORY_BYTES = 256 * 2**20
"""Memory that unpacking xz may take: four times what its highest ordinary level needs; a header may ask for 4 GiB."""

_CHUNK = 2**20
_HEADERS_BYTES = 2**20  # of one member's extended header: names are read whole, and are never as long
_REPORT_EVERY = 500


_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")

# What tarfile, and what unpacks, raise for a damaged archive.
_DAMAGE = (
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)


@registered
@dataclass(frozen=True)
class TarArchive(Archive):
    """A tar archive, compressed as a whole or not."""

    kind = "tar"
    words = "a .tar, .tar.gz, .tar.bz2 or .tar.xz"
    uploads = ("tar", "gz", "tgz", "bz2", "xz")

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for a file that begins as one, or whose name says it."""
        is_tar = given.start.startswith(_COMPRESSED) or given.start[257:262] == b"ustar"
        is_tar = is_tar or (given.path.suffix.lower() == ".tar" and not given.path.is_dir())
        return cls(given.where) if is_tar else None

    def listing_steps(self) -> Steps:
        """List the members that are images: one pass over the whole archive where it is compressed."""
        members = Members(self.path)
        notes: tuple[str, ...] = ()
        with self.path.open("rb") as file, closing(_Reader(file, self.path)) as reader:
            try:
                with tarfile.open(fileobj=reader, mode="r:") as archive:
                    while True:
                        member = archive.next()
                        archive.members = []  # tarfile would keep them all
                        if member is None:
                            break
                        reader.headers = 0
                        if members.count() % _REPORT_EVERY == 0:
                            yield Progress(0, 1, f"listing: {len(members.entries)} images")
                        if member.isdir():
                            continue
                        if not member.isreg() or member.issparse():
                            members.refuse(member.name, "it is a link or a device, not a file")
                        else:
                            members.add(member.name, member.size, (member.offset_data, member.size))
                last = reader.last
                reader.finish()
                if last.strip(b"\0"):
                    notes = (f"the archive is damaged after {members.count() - 1} members; what follows is not read",)
            except _DAMAGE as error:
                raise _damaged(self.path, error) from error
        return members.listing(notes)

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read members in the order in which they lie in the archive."""
        with self.path.open("rb") as file, closing(_Reader(file, self.path, MAX_FILE_BYTES)) as reader:
            for entry in sorted(entries, key=lambda entry: entry.key):
                offset, size = entry.key
                reader.headers = 0
                try:
                    reader.seek(offset)
                    data = reader.read(size)
                except _DAMAGE as error:
                    raise _damaged(self.path, error) from error
                yield entry, data if len(data) == size else UnreadableImage("it is cut off inside the archive")

    def size(self, entry: Entry) -> int:
        """Return the bytes that a member's header declares."""
        return entry.key[1]

    def is_kept(self, entries: Sequence[Entry]) -> bool:
        """Return whether the archive is compressed as a whole, and so can be read only from front to back."""
        with self.path.open("rb") as file:
            if not file.read(6).startswith(_COMPRESSED):
                return False
        size = sum(map(self.size, entries))
        if not can_be_kept(size):
            raise ImageError(
                f"the training images of the archive {self.path} take {size / 2**30:.1f} GiB, and what is compressed "
                f"as a whole can be read only from front to back: at most {MAX_KEPT_BYTES >> 30} GiB of it are kept in "
                "memory. Unpack it and give the folder, or pack it as .tar or .zip"
            )
        return True

    def stamps(self) -> tuple[str, ...]:
        """Return size and time of change of the archive."""
        return (file_stamp(self.path),)

    def stamp(self, entry: Entry) -> str:
        """Return the place of a member in the archive."""
        return str(entry.key)


class _Reader:
    """The expanded content of a file, as far as `tarfile` needs one: forwards only, and never much at once."""

    def __init__(self, file: BinaryIO, path: Path, most: int = _HEADERS_BYTES) -> None:
        self._path = path
        self._most = most
        self._position = 0
        self.last = b""
        self.headers = 0
        """Bytes read since somebody set it to 0; a listing reads headers only, of one member after the other."""
        self._compressed = path.stat().st_size
        start = file.read(6)
        file.seek(0)
        self._seekable = False
        if start[:2] == b"\x1f\x8b":
            unpacked = gzip.GzipFile(fileobj=file)
            self._more: Callable[[int], bytes] = unpacked.read
        elif start[:3] == b"BZh":
            self._more = _unpacking(file, bz2.BZ2Decompressor)
        elif start == b"\xfd7zXZ\0":
            self._more = _unpacking(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES))
        else:
            self._more = file.read
            self._seekable = True
            self._file = file

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        self.headers += size
        if not (size >= 0 and self.headers <= self._most):
            raise ImageError(
                f"a member of the archive {self._path} has a header of {self.headers} bytes; it is not read"
            )
        pieces = []
        while size:
            piece = self._more(size)
            if not piece:
                break
            self._count(len(piece))
            pieces.append(piece)
            size -= len(piece)
        self.last = b"".join(pieces)
        return self.last

    def seek(self, position: int) -> int:
        """Go forwards to a position."""
        if position < self._position:
            raise ImageError(f"a member of the archive {self._path} says that it lies before another one; damaged?")
        if self._seekable:
            self._position = self._file.seek(position)
        while self._position < position:
            piece = self._more(min(_CHUNK, position - self._position))
            if not piece:
                break
            self._count(len(piece))
        return self._position

    def finish(self) -> None:
        """Unpack what is left: the checksum of compressed data comes at their end."""
        while not self._seekable and (piece := self._more(_CHUNK)):
            self._count(len(piece))

    def tell(self) -> int:
        """Return the position in the expanded content."""
        return self._position

    def close(self) -> None:
        """Let go of the file."""
        self._more = lambda _: b""

    def _count(self, size: int) -> None:
        self._position += size
        if not self._seekable:
            check_ratio(self._path, self._position, self._compressed)


def _unpacking(
    file: BinaryIO, new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
) -> Callable[[int], bytes]:
    """Returns a function that unpacks at most so many bytes; several compressed streams may follow one another."""
    decompressor = new()

    def more(size: int) -> bytes:
        nonlocal decompressor
        while True:
            if decompressor.eof:
                rest = decompressor.unused_data or file.read(_CHUNK)
                if not rest.strip(b"\0"):  # xz may be padded
                    return b""
                decompressor = new()
            else:
                rest = file.read(_CHUNK) if decompressor.needs_input else b""
                if decompressor.needs_input and not rest:
                    raise EOFError("the compressed data ends too early")
            data = decompressor.decompress(rest, size)
            if data:
                return data

    return more


def _damaged(path: Path, reason: object) -> ImageError:
    return ImageError(f"the archive {path} is damaged or none ({reason}); pack the images again")

"""A parquet file of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mixqvit.images.parquet_files import ParquetFiles
from mixqvit.images.sources.source import Given, Listed, PathSource, registered

__all__ = ["Parquet"]


@registered
@dataclass(frozen=True)
class Parquet(PathSource):
    """A parquet file; several are a `Folder`."""

    kind = "parquet"
    words = "a .parquet file or a folder of them"
    uploads = ("parquet",)

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for a file that begins as one."""
        return cls(given.where) if given.start[:4] == b"PAR1" else None

    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """List the rows."""
        return (yield from ParquetFiles(self.path.parent, (self.path,), str(self.path)).listed_steps())

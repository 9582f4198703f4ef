"""Data sets of the Hugging Face hub: the parquet files of the splits that are needed, kept in the cache folder.

The hub's own client downloads; `datasets.load_dataset` would fetch every file of a split, and copy all of it again.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mixqvit.cache import default_folder
from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.listing import split_of
from mixqvit.images.parquet_files import ParquetFiles
from mixqvit.images.sources.source import FileSource, Given, Listed, registered

__all__ = ["CALIBRATION_BYTES", "EVALUATION_BYTES", "HubDataset"]

EVALUATION_BYTES = 8 * 2**30
"""Bytes of the files that are downloaded to evaluate on: ImageNet's validation set has 6.7 GB."""

CALIBRATION_BYTES = 2**30
"""Bytes of the files of a training split that are downloaded: a hundred images are needed of it."""

_PREFIX = "hf:"
_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps a parquet copy of data sets that are stored in another way."""


@registered
@dataclass(frozen=True)
class HubDataset(FileSource):
    """A data set `hf:owner/name` or `hf:owner/name@split`.

    Attributes:
        name: Of the data set, `owner/name`.
        wanted_split: The split that was named, or None.
    """

    kind = "hub"
    words = "hf:NAME@SPLIT for a data set of Hugging Face"

    name: str
    wanted_split: str | None

    @classmethod
    def is_named(cls, where: str) -> bool:
        """Return whether a text has the prefix of data sets."""
        return where.startswith(_PREFIX)

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for the name of a data set."""
        if not cls.is_named(given.where):
            return None
        match = re.fullmatch(r"hf:([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?", given.where)
        if match is None:
            raise ImageError(
                f"{given.where!r} names no data set of the Hugging Face hub; write hf:owner/name or "
                "hf:owner/name@split. A folder or a parquet file is given by its path alone"
            )
        return cls(given.where, *match.groups())

    @staticmethod
    def written(name: str, split: str = "") -> str:
        """Return what names a data set, and one of its splits."""
        return f"{_PREFIX}{name.removeprefix(_PREFIX)}" + (f"@{split}" if split else "")

    @property
    def cache(self) -> Path:
        """Where downloads are kept."""
        return default_folder() / "datasets"

    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """Download what is needed and list its rows."""
        from mixqvit.models.download import unreachable

        yield Progress(0, 1, f"looking for {self.name} on the hub")
        notes: list[str] = []
        problem = unreachable()
        if problem is None:
            revision, sizes = self._found()
        else:
            revision, sizes = self._kept(problem)
            notes.append("the hub cannot be reached; what was downloaded before is used")
        files = self._needed(sizes, notes)
        local: list[Path] = []
        total = sum(sizes[file] for file in files)
        done = 0
        for file in files:
            yield Progress(0, 1, f"downloading {self.name}: {done >> 20} of {total >> 20} MiB")
            local.append(self._downloaded(file, revision, offline=problem is not None))
            done += sizes[file]
        splits = {path: _split(file) for path, file in zip(local, files, strict=True)}
        rows, listing = yield from ParquetFiles(self.cache, tuple(local), self.where, splits).listed_steps()
        return rows, replace(listing, notes=(*listing.notes, *notes))

    def _found(self) -> tuple[str, dict[str, int]]:
        """Returns the revision that has parquet files, and their sizes."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import RevisionNotFoundError

        reasons = []
        for revision in ("main", _CONVERTED):
            try:
                tree = list(HfApi().list_repo_tree(self.name, repo_type="dataset", revision=revision, recursive=True))
            except RevisionNotFoundError:
                reasons.append(f"there is no {revision}")
                continue
            except Exception as error:  # see `unreachable`
                raise self._refused(error) from error
            files = [file for file in tree if isinstance(file, RepoFile)]
            sizes = {file.path: file.size for file in files if str(file.path).endswith(".parquet")}
            if sizes:
                return revision, sizes
            reasons.append(f"{revision} holds {len(files)} other file(s)")
        raise ImageError(
            f"{self.where} has no parquet files, and the hub has converted none ({', '.join(reasons)}); download its "
            "images and give their folder"
        )

    def _kept(self, unreachable: str) -> tuple[str, dict[str, int]]:
        """Returns the same as `_found`, of what earlier downloads left."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import LocalEntryNotFoundError

        for revision in ("main", _CONVERTED):
            try:
                folder = Path(
                    snapshot_download(
                        self.name,
                        repo_type="dataset",
                        revision=revision,
                        cache_dir=self.cache,
                        local_files_only=True,
                    )
                )
            except LocalEntryNotFoundError:  # nothing is kept of this revision
                continue
            paths = sorted(folder.rglob("*.parquet"))
            if paths:
                return revision, {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        raise ImageError(
            f"the data set {self.where} must be downloaded, but {unreachable}; connect to the network, or give a "
            "folder of images or of downloaded parquet files"
        )

    def _needed(self, sizes: dict[str, int], notes: list[str]) -> list[str]:
        """Returns the files of the splits that are used, so many as are needed."""
        configurations: dict[str, list[str]] = defaultdict(list)
        for file in sorted(sizes):
            configurations[_configuration(file)].append(file)
        if len(configurations) > 1 and "default" not in configurations:
            raise ImageError(
                f"{self.where} has several configurations ({', '.join(sorted(configurations)[:5])}); download the "
                "parquet files of one of them and give their folder"
            )
        by_split: dict[str | None, list[str]] = defaultdict(list)
        for file in configurations.get("default") or next(iter(configurations.values())):
            by_split[_split(file)].append(file)
        if self.wanted_split is not None:
            wanted = split_of(self.wanted_split) or self.wanted_split
            if wanted not in by_split:
                raise ImageError(
                    f"{self.name} has no split {self.wanted_split!r}; it has {', '.join(map(str, by_split))}"
                )
            limits = {wanted: EVALUATION_BYTES}
        else:
            evaluation = next((split for split in ("validation", "test", None) if split in by_split), None)
            limits = {"train": CALIBRATION_BYTES} if "train" in by_split and evaluation in by_split else {}
            limits[evaluation if evaluation in by_split else next(iter(by_split))] = EVALUATION_BYTES
        needed = []
        for split, limit in limits.items():
            if sizes[by_split[split][0]] > EVALUATION_BYTES:
                raise ImageError(
                    f"a single file of {self.where} has more than the {EVALUATION_BYTES >> 30} GiB that are "
                    "downloaded; download it yourself, and give its path"
                )
            files, size = [], 0
            for file in by_split[split]:
                size += sizes[file]
                if files and size > limit:
                    break
                files.append(file)
            if len(files) < len(by_split[split]):
                notes.append(
                    f"of the {len(by_split[split])} files of the split {split} the first {len(files)} are used"
                )
            needed += files
        return needed

    def _downloaded(self, file: str, revision: str, offline: bool) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    self.name,
                    file,
                    repo_type="dataset",
                    revision=revision,
                    cache_dir=self.cache,
                    local_files_only=offline,
                )
            )
        except Exception as error:  # see `unreachable`
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ImageError:
        from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

        from mixqvit.models.reading import first_line

        if isinstance(error, GatedRepoError):
            return ImageError(
                f"the data set {self.name} is given only to those who accepted its conditions on the hub: accept them "
                "there, and log in with: hf auth login"
            )
        if isinstance(error, RepositoryNotFoundError):
            return ImageError(
                f"the hub has no data set {self.name}, or it is private; check the name (owner/name), or log in with: "
                "hf auth login"
            )
        return ImageError(f"the data set {self.name} cannot be downloaded ({first_line(error)}); try again later")


def _split(file: str) -> str | None:
    return next(
        (split for part in reversed(file.split("/")) if (split := split_of(part.removeprefix("partial-")))), None
    )


def _configuration(file: str) -> str:
    """Returns the part of a file's folder that is no split: `data/train-0.parquet` is in `data`."""
    return "/".join(part for part in file.split("/")[:-1] if not split_of(part.removeprefix("partial-")))

"""Data sets of the Hugging Face hub: the parquet files of the splits that are needed, kept in the cache folder."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixqvit.cache import default_folder
from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.listing import Entry, Steps, UnreadableImage, split_of
from mixqvit.images.parquet import Parquet

__all__ = ["CALIBRATION_BYTES", "EVALUATION_BYTES", "PREFIX", "HubDataset"]

PREFIX = "hf:"
EVALUATION_BYTES = 8 * 2**30
"""Bytes of the files that are downloaded to evaluate on: ImageNet's validation set has 6.7 GB."""

CALIBRATION_BYTES = 2**30
"""Bytes of the files of a training split that are downloaded: a hundred images are needed of it."""

PROBE_SECONDS = 5

_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps a parquet copy of data sets that are stored in another way."""


class HubDataset:
    """A data set `hf:owner/name` or `hf:owner/name@split`."""

    def __init__(self, source: str) -> None:
        """Take its name apart.

        Raises:
            ImageError: It is none.
        """
        match = re.fullmatch(r"hf:([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?", source)
        if match is None:
            raise ImageError(
                f"{source!r} names no data set of the Hugging Face hub; write hf:owner/name or hf:owner/name@split. "
                "A folder or a parquet file is given by its path alone"
            )
        self.source = source
        self.name, self.wanted_split = match.groups()
        self.cache = default_folder() / "datasets"
        self._parquet: Parquet | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The downloaded files of a data set that was listed."""
        return self._parquet.files

    def listing_steps(self) -> Steps:
        """Download what is needed and list its rows."""
        yield Progress(0, 1, f"looking for {self.name} on the hub")
        notes: list[str] = []
        unreachable = self._probe()
        if unreachable is None:
            revision, sizes = self._found()
        else:
            revision, sizes = self._kept(unreachable)
            notes.append("the hub cannot be reached; what was downloaded before is used")
        files = self._needed(sizes, notes)
        local: list[Path] = []
        total = sum(sizes[file] for file in files)
        done = 0
        for file in files:
            yield Progress(0, 1, f"downloading {self.name}: {done >> 20} of {total >> 20} MiB")
            local.append(self._downloaded(file, revision, offline=unreachable is not None))
            done += sizes[file]
        splits = {path: _split(file) for path, file in zip(local, files, strict=True)}
        self._parquet = Parquet(self.cache, local, self.source, splits.get)
        listing = yield from self._parquet.listing_steps()
        return replace(listing, notes=(*listing.notes, *notes))

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read the images of rows."""
        return self._parquet.read(entries)

    def _probe(self) -> str | None:
        """Asks the hub once, and returns why it cannot be reached. Its own client would try for a minute."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except Exception as error:  # the client's library, and so its errors, differ between versions of the hub
            return f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})"
        return None

    def _found(self) -> tuple[str, dict[str, int]]:
        """Returns the revision that has parquet files, and their sizes."""
        for revision in ("main", _CONVERTED):
            sizes = {file.path: file.size for file in self._tree(revision) if str(file.path).endswith(".parquet")}
            if sizes:
                return revision, sizes
        raise ImageError(
            f"{self.source} has no parquet files, and the hub has converted none; download its images and give their "
            "folder"
        )

    def _tree(self, revision: str) -> list[Any]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import RevisionNotFoundError

        try:
            tree = HfApi().list_repo_tree(self.name, repo_type="dataset", revision=revision, recursive=True)
            return [file for file in tree if isinstance(file, RepoFile)]
        except RevisionNotFoundError:
            return []
        except Exception as error:  # see _probe
            raise self._refused(error) from error

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
            f"the data set {self.source} must be downloaded, but {unreachable}; connect to the network, or give a "
            "folder of images or of downloaded parquet files"
        )

    def _needed(self, sizes: dict[str, int], notes: list[str]) -> list[str]:
        """Returns the files of the splits that are used, so many as are needed."""
        configurations: dict[str, list[str]] = defaultdict(list)
        for file in sorted(sizes):
            configurations[_configuration(file)].append(file)
        if len(configurations) > 1 and "default" not in configurations:
            raise ImageError(
                f"{self.source} has several configurations ({', '.join(sorted(configurations)[:5])}); download the "
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
                    f"a single file of {self.source} has more than the {EVALUATION_BYTES >> 30} GiB that are "
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
        except Exception as error:  # see _probe
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ImageError:
        from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

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
        return ImageError(f"the data set {self.name} cannot be downloaded ({_first_line(error)}); try again later")


def _split(file: str) -> str | None:
    return next(
        (split for part in reversed(file.split("/")) if (split := split_of(part.removeprefix("partial-")))), None
    )


def _configuration(file: str) -> str:
    """Returns the part of a file's folder that is no split: `data/train-0.parquet` is in `data`."""
    return "/".join(part for part in file.split("/")[:-1] if not split_of(part.removeprefix("partial-")))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

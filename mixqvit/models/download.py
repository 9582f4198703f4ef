"""Downloads from the Hugging Face hub into its own cache, with progress in bytes.

The hub's own client downloads, keeps the cache and goes on after a pause; but it shows its progress on a terminal only
(to others from version 1.3 on, differently for each way of transport), and tries for a minute where no network is.
"""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    get_session,
)

from mixqvit.engines.progress import Progress
from mixqvit.errors import ModelError
from mixqvit.models.reading import first_line

__all__ = ["download_steps", "unreachable"]

PROBE_SECONDS = 5
LOOK_SECONDS = 0.2
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


def download_steps(name: str, hub_id: str, file_name: str | None = None) -> Iterator[Progress]:
    """Yield the bytes of a model's weights as they arrive; the last result is the path in the hub's cache.

    Args:
        name: The model's name, for messages.
        hub_id: Repository `owner/name`, with `@revision` if it is not the main one.
        file_name: The file in it; by default the usual names, safetensors first.

    Raises:
        ModelError: There is no network, no such repository, no permission, or the download broke off.
    """
    repository, _, revision = hub_id.partition("@")
    place = {"repo_id": repository, "revision": revision or None}
    names = FILE_NAMES if file_name is None else _safe_first(file_name)
    for candidate in names:
        cached = try_to_load_from_cache(filename=candidate, **place)
        if isinstance(cached, str):
            yield Progress(1, 1, f"{name} is in the local cache", Path(cached))
            return
    reason = unreachable()
    if reason is not None:
        raise ModelError(
            f"the pretrained weights of {name} must be downloaded, but {reason}; connect to the network, or give a "
            "downloaded file as its checkpoint"
        )
    found, metadata = _find(name, place, names)
    total, etag = metadata.size or 0, metadata.etag or ""
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "blobs")
    answers: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_download, args=(answers, {**place, "filename": found}), daemon=True).start()
    shown = -1
    while True:
        try:
            answer = answers.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            present = min(_present(blobs, etag), total)
            if present != shown:
                shown = present
                yield Progress(
                    present, max(total, 1), f"Downloading {name}: {_megabytes(present)} of {_megabytes(total)}"
                )
            continue
        if isinstance(answer, Exception):
            raise _explained(name, repository, answer, broke_off=True) from answer
        yield Progress(max(total, 1), max(total, 1), f"{name} is downloaded", Path(answer))
        return


def _download(answers: queue.Queue[Any], what: dict[str, Any]) -> None:
    """Let the hub's own client download."""
    try:
        answers.put(hf_hub_download(**what, cache_dir=constants.HF_HUB_CACHE, endpoint=constants.ENDPOINT))
    except Exception as error:  # told to whoever waits, in the other thread
        answers.put(error)


def _find(name: str, place: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for candidate in names:
        url = hf_hub_url(filename=candidate, endpoint=constants.ENDPOINT, **place)
        try:
            return candidate, get_hf_file_metadata(url, timeout=PROBE_SECONDS)
        except EntryNotFoundError:
            continue
        except Exception as error:  # see `unreachable`
            raise _explained(name, place["repo_id"], error) from error
    raise ModelError(
        f"{place['repo_id']} on the hub has no weights of {name} ({' or '.join(names)}); give a file as its checkpoint"
    )


def _safe_first(file_name: str) -> tuple[str, ...]:
    """Return the names under which the same weights may lie, safetensors before what must be unpickled."""
    safe = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
    return tuple(dict.fromkeys((safe.get(file_name, str(Path(file_name).with_suffix(".safetensors"))), file_name)))


def _present(blobs: Path, etag: str) -> int:
    """Return how many bytes are there: what the hub's client has written to its newest unfinished file."""
    sizes = []
    for file in blobs.glob(f"{etag}*.incomplete"):
        try:
            status = file.stat()
            sizes.append((status.st_mtime_ns, status.st_size))
        except OSError:  # finished and renamed in this moment
            continue
    return max(sizes)[1] if sizes else 0


def unreachable() -> str | None:
    """Ask the hub once, and return why it cannot be reached; None if it can."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the client's library, and so its errors, differ between versions of the hub
        return f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
    return None


def _explained(name: str, repository: str, error: Exception, broke_off: bool = False) -> ModelError:
    address = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"the weights of {name} are given only to those who accept their licence: do so at {address}, then log in "
            "with `hf auth login` (older versions: `huggingface-cli login`)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"the hub has no repository {repository} for {name}, or only for those who may see it; check the name, or "
            "log in with `hf auth login`"
        )
    if isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None:
        return ModelError(
            f"the hub refused the weights of {name} (status {error.response.status_code} for {address}); try again "
            "later, or give a downloaded file as its checkpoint"
        )
    happened = "broke off" if broke_off else "failed"
    return ModelError(
        f"the download of {name} {happened} ({first_line(error)}); check the network and the free disk space, then "
        "try again, or give a downloaded file as its checkpoint"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"

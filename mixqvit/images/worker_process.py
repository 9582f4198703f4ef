"""The process that decodes and augments training images; see `workers`. It is run, never imported.

It imports this module and nothing of the program that started it. It starts no threads of its own, so that forking is
safe, and ends when its input does: with the program that started it, however that ended.

In: a TrainingFiles, then Requests. Out, for each Request: a Part for each job, or a sentence on why there is none, and
None at the end.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from torch.utils.data import DataLoader, Dataset

from mixqvit.errors import ImageError
from mixqvit.images.training_reading import Part, Request, ViewReader


class _Jobs(Dataset):
    """The parts of a request by number."""

    def __init__(self, reader: ViewReader, request: Request) -> None:
        self._reader = reader
        self._request = request

    def __len__(self) -> int:
        return len(self._request.jobs)

    def __getitem__(self, number: int) -> Part | str:
        try:
            return self._reader.part(self._request.seed, self._request.epoch, self._request.jobs[number])
        except ImageError as error:
            return str(error)


def _unchanged(part: Any) -> Any:
    return part


def _answers(reader: ViewReader, request: Request) -> Iterator[Part | str]:
    fork = hasattr(os, "fork")
    return iter(
        DataLoader(
            _Jobs(reader, request),
            batch_size=None,
            collate_fn=_unchanged,  # arrays made tensors would go through /dev/shm, which containers keep small
            num_workers=request.workers if fork else 0,
            multiprocessing_context="fork" if fork else None,
        )
    )


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""

    def reply(answer: Part | str | None) -> None:
        pickle.dump(answer, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()

    files = pickle.load(requests)
    try:
        reader = ViewReader(files)
    except ImageError as error:
        reply(str(error))
        return
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        for answer in _answers(reader, request):
            reply(answer)
        reply(None)


if __name__ == "__main__":
    own = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get between the answers
    with suppress(BrokenPipeError), os.fdopen(own, "wb") as answers:
        _serve(sys.stdin.buffer, answers)

"""Work that several sessions may want at the same time: one computes it, the others watch it being saved."""

import time
from collections.abc import Callable, Iterator

from mixqvit.progress import Progress
from mixqvit.stages.store import Store

__all__ = ["WORK", "once", "seconds_spent"]

SECONDS_BETWEEN_LOOKS = 0.2
WORK, _SECONDS = "work", "seconds"


def once(
    store: Store, key: str, progress: Callable[[], Progress], run: Callable[[], Iterator[Progress]]
) -> Iterator[Progress]:
    """Run work whose pieces are saved under a key, or wait while another session, here or elsewhere, does.

    If that session stops, this one goes on from what it saved. The computing time is saved too.

    Args:
        store: Where claims and results are.
        key: What the results are saved under.
        progress: Returns how much is saved.
        run: Computes and saves what is missing, piece by piece.

    Yields:
        The progress of this session or of the one that works.
    """
    while (saved := progress()).done < saved.total:
        claim = store.claim(key, WORK)
        if claim is None:
            yield saved
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        try:
            yield from _timed(store, key, claim, run())
        finally:
            store.release(claim)


def seconds_spent(store: Store, key: str) -> float:
    """Return the computing time in seconds that the results under a key took, over all sessions."""
    return store.rows(_seconds_key(key)).get(_SECONDS, 0.0)


def _timed(store: Store, key: str, claim: str, steps: Iterator[Progress]) -> Iterator[Progress]:
    """Yield the steps, renewing the claim and saving the time that computing them took."""
    spent = seconds_spent(store, key)
    while True:
        started = time.perf_counter()
        step = next(steps, None)
        spent += time.perf_counter() - started
        if step is None:
            return
        store.renew(claim)
        store.put(_seconds_key(key), _SECONDS, spent)
        yield step


def _seconds_key(key: str) -> str:
    return f"{key} {_SECONDS}"

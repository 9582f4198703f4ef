"""Work that several sessions may want at the same time: one computes it, the others watch it being saved."""

import time
from collections.abc import Callable, Iterator

from mixqvit.records import Progress
from mixqvit.store import Store

__all__ = ["once"]

SECONDS_BETWEEN_LOOKS = 0.2
_WORK = "work"


def once(
    store: Store, key: str, progress: Callable[[], Progress], run: Callable[[], Iterator[Progress]]
) -> Iterator[Progress]:
    """Run work whose pieces are saved under a key, or wait while another session, here or elsewhere, does.

    If that session stops, this one goes on from what it saved.

    Args:
        store: Where claims and results are.
        key: What the results are saved under.
        progress: Returns how much is saved.
        run: Computes and saves what is missing, piece by piece.

    Yields:
        The progress of this session or of the one that works.
    """
    while (saved := progress()).done < saved.total:
        if not store.claim(key, _WORK):
            yield saved
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        try:
            for step in run():
                store.renew(key, _WORK)
                yield step
        finally:
            store.release(key, _WORK)

"""Small studies of the embedded models, and what they begin with: computed once per test run."""

import shutil
from functools import partial

from mixqvit.stages.store import Store
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study

SMALL = partial(Settings, calibration_images=8, analysis_images=8, evaluation_images=100)
"""Settings with fewer images than a user's, in place of `Settings` where a test does not need more."""


class FirstResults:
    """What a small study of an embedded model begins with: relevance, calibration, the sweep, the first allocation.

    All workers of a test run share the folder; who comes second waits for the first, as sessions of a study do.
    """

    def __init__(self, folder) -> None:
        self._store = Store(folder)
        self._identities: dict[str, str] = {}

    def put(self, name: str, store: Store) -> Store:
        """Copy the results of a model to a store, computing them if they are not there yet; return the store."""
        if name not in self._identities:
            study = Study(name, settings=SMALL(), store=self._store)
            study.relevance()
            for bits in (32, 4, study.allocate(average_bits=4.0)):
                study.evaluate(bits)
            self._identities[name] = study.identity
        for key in self._store.keys(self._identities[name]):
            store.put_many((key, item, value) for item, value in self._store.rows(key).items())
            tensors = self._store.folder / "tensors" / key
            if tensors.exists():
                shutil.copytree(tensors, store.folder / "tensors" / key, dirs_exist_ok=True)
        return store

"""How the pieces of a stage are kept in the store: as rows, as files of tensors, or as one state that grows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mixqvit.stages.store import Store

__all__ = ["ROWS", "STATE", "TENSORS", "Form", "State", "Tensors"]

_STATE, _PIECES = "state", "pieces"
_PREFIX = "tensors/"  # what the store lists files of tensors under


@dataclass(frozen=True, eq=False)
class Tensors:
    """A piece as tensors, with words about them."""

    tensors: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class State:
    """A piece as a value that JSON can write, and the tensors that the next piece goes on from."""

    row: Any
    tensors: Mapping[str, Any]


class Form(Protocol):
    """Reads and writes the pieces under a key."""

    def names(self, store: Store, key: str) -> list[str]:
        """Return the names of the saved pieces, in the order they were saved."""
        ...

    def load(self, store: Store, key: str) -> dict[str, Any]:
        """Return the saved pieces by name, as they were written; damaged ones are forgotten."""
        ...

    def save(self, store: Store, key: str, name: str, written: Any) -> list[tuple[str, str, Any]]:
        """Save a piece, atomically, or return the rows (key, item, value) that save it."""
        ...


class _Rows:
    """Values that JSON can write, one row each."""

    def names(self, store: Store, key: str) -> list[str]:
        return store.items(key)

    def load(self, store: Store, key: str) -> dict[str, Any]:
        return store.rows(key)

    def save(self, store: Store, key: str, name: str, written: Any) -> list[tuple[str, str, Any]]:
        return [(key, name, written)]


class _Tensors:
    """`Tensors`, one file each."""

    def names(self, store: Store, key: str) -> list[str]:
        return [item.removeprefix(_PREFIX) for item in store.items(key) if item.startswith(_PREFIX)]

    def load(self, store: Store, key: str) -> dict[str, Tensors]:
        found = {}
        for name in self.names(store, key):
            saved = store.tensors(key, name)
            if saved is None:
                store.delete(key, _PREFIX + name)
            else:
                found[name] = Tensors(*saved)
        return found

    def save(self, store: Store, key: str, name: str, written: Tensors) -> list[tuple[str, str, Any]]:
        store.put_tensors(key, name, written.tensors, written.metadata)
        return []


class _Growing:
    """One file with the latest piece's tensors and the rows of all pieces, so that both are always of the same time."""

    def names(self, store: Store, key: str) -> list[str]:
        return list(self.load(store, key))

    def load(self, store: Store, key: str) -> dict[str, Any]:
        metadata = store.metadata(key, _STATE)
        return {} if metadata is None else json.loads(metadata[_PIECES])

    def save(self, store: Store, key: str, name: str, written: State) -> list[tuple[str, str, Any]]:
        pieces = self.load(store, key) | {name: written.row}
        store.put_tensors(key, _STATE, written.tensors, {_PIECES: json.dumps(pieces)})
        return []

    def tensors(self, store: Store, key: str) -> dict[str, Any] | None:
        """Return the tensors of the latest piece; None where there is none."""
        saved = store.tensors(key, _STATE)
        return None if saved is None else saved[0]


ROWS, TENSORS, STATE = _Rows(), _Tensors(), _Growing()

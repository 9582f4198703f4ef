"""Allocations that a person keeps: by name, for this very model, whatever version of the program made them."""

from collections.abc import Mapping
from typing import Any

from mixqvit.errors import AllocationError
from mixqvit.stages.store import KEPT, fingerprint
from mixqvit.study.part import Part

__all__ = ["KeptAllocations"]


class KeptAllocations(Part):
    """Recipes of allocations, by name."""

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep an allocation's recipe under a name; an earlier one of the same name is replaced.

        Raises:
            AllocationError: The name is empty.
        """
        if not name.strip():
            raise AllocationError("Give the allocation a name to save it under.")
        self.study.store.put(self._key, name.strip(), dict(document))

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the recipes of the allocations that were kept, by name, oldest first."""
        return self.study.store.rows(self._key)

    def delete(self, name: str) -> None:
        """Forget a kept allocation."""
        self.study.store.delete(self._key, name)

    @property
    def _key(self) -> str:
        return KEPT + fingerprint("allocations", self.study.graph.fingerprint)

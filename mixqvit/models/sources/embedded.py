"""The embedded models, by their names."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mixqvit.engines.progress import Progress
from mixqvit.models.cards import EMBEDDED, card_path, checkpoint_path
from mixqvit.models.sources.source import ModelSource, registered

if TYPE_CHECKING:
    from torch import nn

    from mixqvit.models.checkpoints import Checkpoint
    from mixqvit.models.model import Model

__all__ = ["EmbeddedModel"]


@registered
class EmbeddedModel(ModelSource):
    """A small model that comes with this program."""

    kind = "embedded"
    words = f"{', '.join(EMBEDDED)} (embedded, with images of their own)"

    @classmethod
    def parse(cls, model: str | None, checkpoint: str | None) -> Self | None:
        """Return this source for the names of embedded models."""
        return cls(model) if checkpoint is None and model in EMBEDDED else None

    @property
    def files(self) -> tuple[Path, ...]:
        """Card and weights, which `train-embedded` writes."""
        return card_path(self.model), checkpoint_path(self.model)

    def load_steps(self, chosen: Collection[str]) -> Iterator[Progress]:
        """Load the model with the weights that its card describes."""
        from mixqvit.models.embedded import load_embedded

        yield Progress(0, 1, f"Reading {self.model}")
        yield Progress(1, 1, f"{self.model} is loaded", load_embedded(self.model))

    @property
    def stems(self) -> tuple[str, ...]:
        """None beside the usual ones."""
        return ()

    def filled(self, checkpoint: "Checkpoint", others: Sequence[str], chosen: Collection[str]) -> "Model":
        """Return the model with other weights."""
        from mixqvit.models.embedded import embedded_from

        return embedded_from(self.model, checkpoint)

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> "nn.Module | None":
        """Return the module of a card's `architecture`: a `class` and its `arguments`."""
        if "class" not in architecture:
            return None
        import torch

        from mixqvit.models.embedded import build_architecture

        with torch.random.fork_rng(devices=[]):  # the weights are replaced; nobody's random numbers change for them
            return build_architecture(architecture)

"""A file of weights, in an architecture that a person names, that the file names, or that is guessed."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mixqvit.engines.progress import Progress
from mixqvit.models.layouts import SUFFIXES
from mixqvit.models.sources.factory import find_source
from mixqvit.models.sources.source import ModelSource, registered

if TYPE_CHECKING:
    from mixqvit.models.guess import Guess

__all__ = ["CheckpointFile"]


@registered
class CheckpointFile(ModelSource):
    """A file of weights; its model, where one is named, says the architecture."""

    kind = "checkpoint"
    words = ""
    file_words = f"weights as safetensors or as torch.save wrote them ({', '.join(SUFFIXES[:4])}, ...)"
    architecture_words = (
        "Without a model, the architecture is the one that the file itself names (arch or args of the training "
        "script), or is guessed from the tensors."
    )

    @classmethod
    def parse(cls, model: str | None, checkpoint: str | None) -> Self | None:
        """Return this source wherever a file is given."""
        return cls(model, checkpoint) if checkpoint is not None else None

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return Path(self.checkpoint).expanduser()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def located(self, path: Callable[[str], str | Path]) -> "CheckpointFile":
        """Return the same with another path of the file."""
        named = None if self.model is None else find_source(self.model).located(path).model
        return replace(self, model=named, checkpoint=str(path(self.checkpoint)))

    def load_steps(self, chosen: Collection[str]) -> Iterator[Progress]:
        """Read the file, find out its architecture, and fill that with the weights."""
        from mixqvit.models.checkpoints import STEMS, read_checkpoint
        from mixqvit.models.guess import guess
        from mixqvit.models.recorded import is_same

        source = None if self.model is None else find_source(self.model)
        stems = STEMS if source is None else (*STEMS, *source.stems)
        yield Progress(0, 3, f"Reading {self.path.name}")
        checkpoint = read_checkpoint(self.path, stems)
        recorded = checkpoint.recorded
        others, notes = (), ()
        if source is None and recorded.architecture is not None:
            source = find_source(recorded.architecture)
            notes = (f"The file names its architecture {source.model} ({recorded.source}).",)
            if set(source.stems) - set(STEMS):  # the weights may lie under a prefix that only these stems show
                checkpoint = read_checkpoint(self.path, (*STEMS, *source.stems))
        elif source is None:
            yield Progress(1, 3, "Recognizing the architecture")
            guessed = guess(checkpoint)
            name, *others = guessed.names
            source, notes = find_source(name), _guess_notes(guessed)
        elif recorded.architecture is not None and not is_same(source.model, recorded.architecture):
            notes = (f"The file names another architecture, {recorded.architecture} ({recorded.source}).",)
        yield Progress(2, 3, f"Filling {source.model} with the weights")
        model = source.filled(checkpoint, others, chosen)
        yield Progress(3, 3, f"{source.model} is loaded", replace(model, notes=(*notes, *model.notes)))


def _guess_notes(guessed: "Guess") -> tuple[str, ...]:
    name, *others = guessed.names
    notes = [f"The architecture {name} was guessed from names and shapes of the weights."]
    if others:
        notes.append(f"The same tensors fit {_some(others)}: if the model is one of these, name it.")
    if guessed.differing:
        listed = [f"{other} ({difference})" for other, difference in guessed.differing.items()]
        notes.append(f"Some of these compute something else: {_some(listed)}.")
    return tuple(notes)


def _some(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")

"""A folder as timm saves and the hub serves a model, `local-dir:FOLDER`."""

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from mixqvit.engines.progress import Progress
from mixqvit.models.sources.factory import find_source
from mixqvit.models.sources.source import ModelSource, registered

__all__ = ["LocalFolder"]


@registered
class LocalFolder(ModelSource):
    """A folder with `config.json` beside a file of weights."""

    kind = "folder"
    prefix = "local-dir:"
    words = "local-dir:FOLDER, a folder that timm or the hub wrote (config.json beside the weights)"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.place).expanduser()

    @property
    def files(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.folder,)

    def located(self, path: Callable[[str], str | Path]) -> "LocalFolder":
        """Return the same with another path of the folder."""
        return replace(self, model=f"{self.prefix}{path(self.place)}")

    def load_steps(self, chosen: Collection[str]) -> Iterator[Progress]:
        """Load the weights into the architecture that `config.json` describes."""
        from mixqvit.models.architectures import build
        from mixqvit.models.assumed import preprocessing_note
        from mixqvit.models.checkpoints import STEMS, read_checkpoint
        from mixqvit.models.filling import check_classes, timm_model
        from mixqvit.models.fitting import fill
        from mixqvit.models.local_folder import read_folder

        yield Progress(0, 2, f"Reading {self.folder}")
        described = read_folder(self.folder)
        name = described.architecture
        checkpoint = read_checkpoint(described.weights, (*STEMS, *find_source(name).stems))
        yield Progress(1, 2, f"Filling {name} with the weights")
        check_classes(name, described.arguments.get("num_classes"), f"{self.folder} holds no classifier")
        module = fill(build(name, described.arguments), checkpoint, name)
        model = timm_model(name, module, checkpoint.notes, described.arguments, described.data_config, chosen)
        known = {key for key, value in described.data_config.items() if value is not None} | set(chosen)
        notes = list(filter(None, [preprocessing_note(model.preprocessing, name, (), known)]))
        labels = described.label_names
        if labels is not None and len(labels) == module.num_classes:
            model = replace(model, class_names=described.label_descriptions or labels, label_names=labels)
        elif labels is not None:
            notes.append(
                f"config.json names {len(labels)} classes, but the model has {module.num_classes}: the names are not "
                "used."
            )
        yield Progress(2, 2, f"{name} is loaded", replace(model, notes=(*model.notes, *notes)))

    def with_weights(self, file: Path, name: str) -> tuple[str | None, str | None]:
        """Return another such folder: the weights with this folder's description."""
        shutil.copy(self.folder / "config.json", file.parent)
        return f"{self.prefix}{file.parent}", None

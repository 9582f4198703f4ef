"""timm's models, by their names; the pretrained weights are downloaded."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ModelError
from mixqvit.models.cards import EMBEDDED
from mixqvit.models.layouts import SUFFIXES
from mixqvit.models.sources.local_folder import LocalFolder
from mixqvit.models.sources.source import ModelSource, registered

if TYPE_CHECKING:
    from torch import nn

    from mixqvit.models.checkpoints import Checkpoint
    from mixqvit.models.model import Model

__all__ = ["TimmModel"]


@registered
class TimmModel(ModelSource):
    """A model of timm, and every name that nobody else knows."""

    kind = "timm"
    words = "any model name of timm, such as deit_tiny_patch16_224"

    @classmethod
    def parse(cls, model: str | None, checkpoint: str | None) -> Self | None:
        """Return this source for all names that are not those of embedded models."""
        return cls(model) if checkpoint is None and model is not None and model not in EMBEDDED else None

    def load_steps(self, chosen: Collection[str]) -> Iterator[Progress]:
        """Load the pretrained model, from the local cache where it is there, otherwise over the network."""
        import timm
        from safetensors import SafetensorError

        from mixqvit.models.download import download_steps
        from mixqvit.models.filling import check_classes, timm_model
        from mixqvit.models.fitting import check_finite
        from mixqvit.models.reading import check_file, first_line

        self._check()
        name, config = self.model, timm.get_pretrained_cfg(self.model)
        if config is None or not (config.hf_hub_id or config.url):
            raise ModelError(f"timm has no pretrained weights for {name}; give a file of your own as its checkpoint")
        check_classes(name, config.num_classes)
        yield Progress(0, 1, f"Looking for the weights of {name}")
        overlay, total = None, 1
        if config.hf_hub_id and not config.custom_load:
            for step in download_steps(name, config.hf_hub_id, config.hf_hub_filename):
                total = step.total
                yield replace(step, result=None)
            check_file(step.result)
            overlay = {"file": str(step.result)}
        try:
            module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the pretrained weights of {name} could not be loaded ({first_line(error)}); check the network, "
                "or give a downloaded file as its checkpoint"
            ) from error
        check_finite(module.state_dict(), f"the pretrained weights of {name}")
        yield Progress(total, total, f"{name} is loaded", timm_model(name, module))

    @property
    def stems(self) -> tuple[str, ...]:
        """What timm says the model applies to the image itself."""
        import timm

        self._check()
        config = timm.get_pretrained_cfg(self.model)
        first = () if config is None or not config.first_conv else config.first_conv
        return tuple(f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first))

    def filled(self, checkpoint: "Checkpoint", others: Sequence[str], chosen: Collection[str]) -> "Model":
        """Return the model with a checkpoint's weights, built with the arguments that these show."""
        from mixqvit.models.filling import filled

        return filled(self.model, checkpoint, others, chosen)

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> "nn.Module | None":
        """Return the module of a `timm` name and the `arguments` by which it differs."""
        name, arguments = architecture.get("timm"), architecture.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            return None
        from mixqvit.models.architectures import build

        return build(name, arguments)

    def _check(self) -> None:
        """Refuse what is no model of timm, with the names that may have been meant."""
        import timm

        from mixqvit.models.names import suggestions

        if not timm.is_model(self.model):
            raise ModelError(_unknown(self.model))
        try:
            timm.get_pretrained_cfg(self.model)
        except RuntimeError as error:
            others = suggestions(self.model)
            hint = f"; it has {' and '.join(others)}" if others else ""
            raise ModelError(
                f"unknown model {self.model!r}: timm knows {self.model.split('.')[0]}, but not this tag of it{hint}"
            ) from error


def _unknown(name: str) -> str:
    from mixqvit.models.names import suggestions

    if name.lower().endswith(SUFFIXES):
        return f"unknown model {name!r}; if it is a file of weights, give it as the checkpoint"
    if "/" in name:
        return (
            f"unknown model {name!r}; give a file of weights as the checkpoint, and a folder that timm saved as "
            f"{LocalFolder.prefix}{name}"
        )
    close = suggestions(name)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"embedded are {', '.join(EMBEDDED)}; others are timm's names"
    )
    return f"unknown model {name!r}; {hint}"

"""Loading a model by its name, from a file of weights or from a folder, with progress."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from mixqvit.errors import ImageError, ModelError
from mixqvit.models.architectures import arguments_of, build, check_finite, fill, on_meta
from mixqvit.models.cards import EMBEDDED
from mixqvit.models.checkpoints import read_checkpoint
from mixqvit.models.download import download_steps
from mixqvit.models.embedded import embedded_from, load_embedded
from mixqvit.models.guess import guess_architecture
from mixqvit.models.local_folder import read_folder
from mixqvit.models.model import Model, class_and_label_names, frozen
from mixqvit.models.names import suggestions
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.models.reading import SUFFIXES, check_file, first_line
from mixqvit.progress import Progress

__all__ = ["LOCAL_FOLDER", "load_model", "load_model_steps"]

LOCAL_FOLDER = "local-dir:"


def load_model(
    name: str | None = None, checkpoint: str | Path | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Model:
    """Load a model with its weights.

    Args:
        name: An embedded model (see `list_models`), any model name of timm, or `local-dir:FOLDER` with a model that
            timm saved. None to guess the architecture from the checkpoint.
        checkpoint: Weights in a `.safetensors` file, or one of `torch.save`, which is read with `weights_only=True`.
            Without it the embedded weights are used, or timm's pretrained ones are downloaded.
        preprocessing: What to change of timm's data configuration: `mean`, `std`, `interpolation`, `crop_pct`,
            `crop_mode`.

    Raises:
        ModelError: Unknown name, weights that cannot be downloaded, or a file that is missing, damaged or of
            another architecture.
        ImageError: The preprocessing cannot be changed like that.
    """
    *_, last = load_model_steps(name, checkpoint, preprocessing)
    return last.result


def load_model_steps(
    name: str | None = None, checkpoint: str | Path | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Iterator[Progress]:
    """Load a model like `load_model`, yielding what is done; the last result is the `Model`.

    While weights are downloaded, `done` and `total` are bytes.

    Raises:
        ModelError, ImageError: As `load_model`.
    """
    if name is not None and name.startswith(LOCAL_FOLDER):
        if checkpoint is not None:
            raise ModelError(f"{name} has weights of its own; give either the folder or a checkpoint")
        steps = _from_folder(Path(name.removeprefix(LOCAL_FOLDER)).expanduser())
    elif checkpoint is not None:
        if name is not None and name not in EMBEDDED:
            _check_name(name)
        steps = _from_checkpoint(name, Path(checkpoint).expanduser())
    elif name is None:
        raise ModelError("name a model, or give a file of weights as its checkpoint")
    elif name in EMBEDDED:
        steps = iter([Progress(0, 1, f"Reading {name}"), Progress(1, 1, f"{name} is loaded", load_embedded(name))])
    else:
        _check_name(name)
        steps = _pretrained(name)
    for step in steps:
        if isinstance(step.result, Model) and preprocessing:
            changed = step.result.preprocessing.overridden(preprocessing)
            step = replace(step, result=replace(step.result, preprocessing=changed))
        yield step


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise ModelError(_unknown(name))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        others = suggestions(name)
        hint = f"; it has {' and '.join(others)}" if others else ""
        raise ModelError(
            f"unknown model {name!r}: timm knows {name.split('.')[0]}, but not this tag of it{hint}"
        ) from error


def _unknown(name: str) -> str:
    if name.lower().endswith(SUFFIXES):
        return f"unknown model {name!r}; if it is a file of weights, give it as the checkpoint"
    close = suggestions(name)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"embedded are {', '.join(EMBEDDED)}; others are timm's names"
    )
    return f"unknown model {name!r}; {hint}"


def _from_checkpoint(name: str | None, path: Path) -> Iterator[Progress]:
    yield Progress(0, 3, f"Reading {path.name}")
    checkpoint = read_checkpoint(path)
    notes = ()
    if name is None:
        yield Progress(1, 3, "Recognizing the architecture")
        name, *others = guess_architecture(checkpoint)
        notes = _guess_notes(name, others)
    yield Progress(2, 3, f"Filling {name} with the weights")
    if name in EMBEDDED:
        model = embedded_from(name, checkpoint)
    else:
        arguments = arguments_of(on_meta(name, {}), checkpoint)
        _check_classes(name, arguments.get("num_classes"), f"{path} holds no classifier")
        module = fill(build(name, arguments), checkpoint, name)
        model = _timm_model(name, module, notes + _argument_notes(arguments) + checkpoint.notes, arguments)
        if timm.data.infer_imagenet_subset({"num_classes": module.num_classes}) is not None:
            assumed = f"Its {module.num_classes} classes are taken for ImageNet's, in timm's order."
            model = replace(model, notes=(*model.notes, assumed))
    yield Progress(3, 3, f"{name} is loaded", model)


def _guess_notes(name: str, others: list[str]) -> tuple[str, ...]:
    notes = [f"The architecture {name} was guessed from names and shapes of the weights."]
    own = _normalization(name)
    differing = [other for other in others if _normalization(other) != own]
    if differing:
        shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        notes.append(
            f"The same weights fit {shown}, with other preprocessing: if the model was trained like one of these, name "
            "it or change the preprocessing."
        )
    return tuple(notes)


def _normalization(name: str) -> tuple[Any, ...]:
    config = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std), config.interpolation, config.crop_pct


def _argument_notes(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    words = {
        "num_classes": "classes",
        "in_chans": "channels",
        "img_size": "pixels on each side",
        "window_size": "tokens",
    }
    words["window_size"] = "tokens on each side of a window"
    stated = [f"{value} {words[key]}" for key, value in arguments.items() if key in words]
    return (f"The checkpoint differs from timm's model in shape: {', '.join(stated)}.",) if stated else ()


def _from_folder(folder: Path) -> Iterator[Progress]:
    yield Progress(0, 2, f"Reading {folder}")
    described = read_folder(folder)
    name = described.architecture
    checkpoint = read_checkpoint(described.weights)
    yield Progress(1, 2, f"Filling {name} with the weights")
    _check_classes(name, described.arguments.get("num_classes"), f"{folder} holds no classifier")
    module = fill(build(name, described.arguments), checkpoint, name)
    model = _timm_model(name, module, checkpoint.notes, described.arguments, described.data_config)
    labels = described.label_names
    if labels is not None and len(labels) == module.num_classes:
        model = replace(model, class_names=described.label_descriptions or labels, label_names=labels)
    elif labels is not None:
        note = (
            f"config.json names {len(labels)} classes, but the model has {module.num_classes}: the names are not used."
        )
        model = replace(model, notes=(*model.notes, note))
    yield Progress(2, 2, f"{name} is loaded", model)


def _timm_model(
    name: str,
    module: nn.Module,
    notes: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
) -> Model:
    _check_classes(name, module.num_classes)
    preprocessing, changed = _preprocessing(module, data_config)
    names = class_and_label_names(module.num_classes)
    return Model(name, frozen(module), preprocessing, *names, notes=notes + changed, arguments=arguments or {})


def _check_classes(name: str, classes: int | None, because: str = "") -> None:
    if classes is not None and classes < 1:
        reason = f" ({because})" if because else ""
        raise ModelError(
            f"{name} has no classifier head{reason}, so it has no classes to keep; choose a classification model, or "
            "give a checkpoint that is fine-tuned to classes"
        )


def _preprocessing(module: nn.Module, data_config: Mapping[str, Any] | None) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return timm's data configuration for the channels and the size that the module really reads."""
    try:
        config = timm.data.resolve_data_config(pretrained_cfg={**module.pretrained_cfg, **(data_config or {})})
        stem = getattr(module, "patch_embed", None)
        channels = getattr(getattr(stem, "proj", None), "in_channels", config["input_size"][0])
        size = getattr(stem, "img_size", None) or config["input_size"][1:]
        notes = ()
        mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
        if len(mean) != channels:
            mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
            notes = (f"timm normalizes other numbers of channels than {channels}: the average is taken for each.",)
        given = {key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")}
        return Preprocessing((channels, *(int(side) for side in size)), mean, std, **given), notes
    except (ImageError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"the preprocessing that comes with the model cannot be used ({first_line(error)})") from error


def _pretrained(name: str) -> Iterator[Progress]:
    """The pretrained model of timm, from the local cache where it is there, otherwise over the network."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ModelError(f"timm has no pretrained weights for {name}; give a file of your own as its checkpoint")
    _check_classes(name, config.num_classes)
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
    yield Progress(total, total, f"{name} is loaded", _timm_model(name, module))

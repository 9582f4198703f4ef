"""Loading a model by its name, from a file of weights or from a folder, with progress."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError, ModelError
from mixqvit.models.architectures import (
    arguments_of,
    build,
    check_finite,
    check_fits,
    classifiers,
    differences,
    fill,
    in_timm_names,
    on_meta,
    possible_classifier,
)
from mixqvit.models.assumed import per_channel, preprocessing_note
from mixqvit.models.cards import EMBEDDED
from mixqvit.models.checkpoints import STEMS, Checkpoint, read_checkpoint
from mixqvit.models.download import download_steps
from mixqvit.models.embedded import embedded_from, load_embedded
from mixqvit.models.guess import Guess, guess
from mixqvit.models.local_folder import read_folder
from mixqvit.models.model import Model, class_and_label_names, frozen
from mixqvit.models.names import suggestions
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.models.reading import SUFFIXES, check_file, first_line

__all__ = ["LOCAL_FOLDER", "load_model", "load_model_steps"]

LOCAL_FOLDER = "local-dir:"


def load_model(
    name: str | None = None, checkpoint: str | Path | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Model:
    """Load a model with its weights.

    Args:
        name: An embedded model (see `list_models`), any model name of timm, or `local-dir:FOLDER` with a model that
            timm saved. None to take the architecture that the checkpoint names, or to guess it from the tensors.
        checkpoint: Weights in a `.safetensors` file, or one of `torch.save`, which is read with `weights_only=True`.
            What is assumed about them is in the model's notes.
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
        steps = _from_folder(Path(name.removeprefix(LOCAL_FOLDER)).expanduser(), preprocessing or {})
    elif checkpoint is not None:
        if name is not None and name not in EMBEDDED:
            _check_name(name)
        steps = _from_checkpoint(name, Path(checkpoint).expanduser(), preprocessing or {})
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
    if "/" in name:
        return (
            f"unknown model {name!r}; give a file of weights as the checkpoint, and a folder that timm saved as "
            f"{LOCAL_FOLDER}{name}"
        )
    close = suggestions(name)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"embedded are {', '.join(EMBEDDED)}; others are timm's names"
    )
    return f"unknown model {name!r}; {hint}"


def _from_checkpoint(name: str | None, path: Path, chosen: Mapping[str, Any]) -> Iterator[Progress]:
    yield Progress(0, 3, f"Reading {path.name}")
    checkpoint = read_checkpoint(path, _stems(name))
    recorded = checkpoint.recorded
    others, notes = (), ()
    if name is None and recorded.architecture is not None:
        name = recorded.architecture
        notes = (f"The file names its architecture {name} ({recorded.source}).",)
        if set(_stems(name)) - set(STEMS):  # the weights may lie under a prefix that only these stems show
            checkpoint = read_checkpoint(path, _stems(name))
    elif name is None:
        yield Progress(1, 3, "Recognizing the architecture")
        guessed = guess(checkpoint)
        name, *others = guessed.names
        notes = _guess_notes(guessed)
    elif recorded.architecture is not None and not _is_same(name, recorded.architecture):
        notes = (f"The file names another architecture, {recorded.architecture} ({recorded.source}).",)
    yield Progress(2, 3, f"Filling {name} with the weights")
    if name in EMBEDDED:
        model = embedded_from(name, checkpoint)
    else:
        arguments = _arguments(name, checkpoint)
        sketch = on_meta(name, arguments)
        if sketch.num_classes < 1:
            raise ModelError(_headless(name, sketch, checkpoint))
        module = fill(build(name, arguments), checkpoint, name)
        notes += _argument_notes(arguments) + checkpoint.notes + recorded.notes
        if recorded.num_classes not in (None, module.num_classes):
            notes += (f"The file says {recorded.num_classes} classes, its classifier has {module.num_classes}.",)
        if timm.data.infer_imagenet_subset({"num_classes": module.num_classes}) is not None:
            notes += (f"Its {module.num_classes} classes are taken for ImageNet's, in timm's order.",)
        stated = dict(recorded.data_config)
        if recorded.image_size is not None:
            stated["input_size"] = (module.pretrained_cfg["input_size"][0], *2 * (recorded.image_size,))
        model = _timm_model(name, module, notes, arguments, stated, chosen)
        known = {"mean", "std"} if recorded.is_preprocessing_known or "." in name else set()
        assumed = preprocessing_note(model.preprocessing, name, others, known | stated.keys() | chosen.keys())
        model = replace(model, notes=(*model.notes, *filter(None, [assumed])))
    yield Progress(3, 3, f"{name} is loaded", model)


def _stems(name: str | None) -> tuple[str, ...]:
    config = None if name is None or name in EMBEDDED else timm.get_pretrained_cfg(name)
    first = () if config is None or not config.first_conv else config.first_conv
    return (*STEMS, *(f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first)))


def _is_same(name: str, recorded: str) -> bool:
    return name.partition(".")[0] == recorded.partition(".")[0]


def _arguments(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the architecture's arguments: those of the training script, if it was of this name, then the shapes'."""
    recorded = checkpoint.recorded
    is_of_name = recorded.architecture is not None and _is_same(name, recorded.architecture)
    written = dict(recorded.arguments) if is_of_name else {}
    arguments = written | arguments_of(on_meta(name, written), checkpoint)
    own = getattr(getattr(on_meta(name, arguments), "patch_embed", None), "img_size", None)
    if own is None or recorded.image_size is None or own == 2 * (recorded.image_size,):
        return arguments
    # the size shows in no shape where positions are relative or rotated; elsewhere the table of positions counts
    resized = {**arguments, "img_size": recorded.image_size}
    module = on_meta(name, resized)
    return arguments if differences(module, in_timm_names(checkpoint.state, module)[0], checkpoint.state) else resized


def _headless(name: str, sketch: nn.Module, checkpoint: Checkpoint) -> str:
    """Return why a checkpoint without a classifier under timm's name is refused.

    Raises:
        ModelError: Its other tensors are not the architecture's either.
    """
    check_fits(sketch, checkpoint, name)
    found = possible_classifier(sketch, checkpoint)
    if found is None:
        return _without_classifier(name, f"{checkpoint.path} holds no classifier")
    return (
        f"{checkpoint.path} holds the features of {name}, and beside them {found}, which may be a classifier of its "
        f"own: if the model is nothing but that after timm's features, call it {classifiers(sketch)[0]}.weight there, "
        "and its bias likewise"
    )


def _guess_notes(guessed: Guess) -> tuple[str, ...]:
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


def _argument_notes(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    words = {
        "num_classes": ("class", "classes"),
        "in_chans": ("channel", "channels"),
        "img_size": ("pixel", "pixels on each side"),
        "window_size": ("token", "tokens on each side of a window"),
    }
    stated = [
        f"{value} {words[key][value != 1]}" if key in words else f"{key} = {value}" for key, value in arguments.items()
    ]
    return (f"The checkpoint differs from timm's model: {', '.join(stated)}.",) if stated else ()


def _from_folder(folder: Path, chosen: Mapping[str, Any]) -> Iterator[Progress]:
    yield Progress(0, 2, f"Reading {folder}")
    described = read_folder(folder)
    name = described.architecture
    checkpoint = read_checkpoint(described.weights, _stems(name))
    yield Progress(1, 2, f"Filling {name} with the weights")
    _check_classes(name, described.arguments.get("num_classes"), f"{folder} holds no classifier")
    module = fill(build(name, described.arguments), checkpoint, name)
    model = _timm_model(name, module, checkpoint.notes, described.arguments, described.data_config, chosen)
    known = {key for key, value in described.data_config.items() if value is not None} | chosen.keys()
    notes = list(filter(None, [preprocessing_note(model.preprocessing, name, (), known)]))
    labels = described.label_names
    if labels is not None and len(labels) == module.num_classes:
        model = replace(model, class_names=described.label_descriptions or labels, label_names=labels)
    elif labels is not None:
        notes.append(
            f"config.json names {len(labels)} classes, but the model has {module.num_classes}: the names are not used."
        )
    yield Progress(2, 2, f"{name} is loaded", replace(model, notes=(*model.notes, *notes)))


def _timm_model(
    name: str,
    module: nn.Module,
    notes: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    chosen: Collection[str] = (),
) -> Model:
    _check_classes(name, module.num_classes)
    arguments = arguments or {}
    preprocessing, averaged = _preprocessing(module, arguments.get("in_chans"), data_config or {})
    names = class_and_label_names(module.num_classes)
    notes += () if {"mean", "std"} <= set(chosen) else averaged
    return Model(name, frozen(module), preprocessing, *names, notes=notes, arguments=arguments)


def _check_classes(name: str, classes: int | None, because: str = "") -> None:
    if classes is not None and classes < 1:
        raise ModelError(_without_classifier(name, because))


def _without_classifier(name: str, because: str = "") -> str:
    reason = f" ({because})" if because else ""
    return (
        f"{name} has no classifier head{reason}, so it has no classes to keep; choose a classification model, or give "
        "a checkpoint that is fine-tuned to classes"
    )


def _preprocessing(
    module: nn.Module, channels: int | None, data_config: Mapping[str, Any]
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return timm's data configuration for the channels and the size that the module really reads.

    Args:
        module: A model of timm.
        channels: What it was built for; None for the usual number.
        data_config: What is stated beside the weights, which goes before timm's.
    """
    try:
        config = timm.data.resolve_data_config(pretrained_cfg={**module.pretrained_cfg, **data_config})
        size = getattr(getattr(module, "patch_embed", None), "img_size", None) or config["input_size"][1:]
        channels = channels or config["input_size"][0]
        notes = ()
        if {len(config["mean"]), len(config["std"])} != {channels}:
            notes = (
                f"No mean and std for each of the model's channels ({channels}) are stated: the average is taken for "
                f"each; choose with --preprocessing mean=... and std=..., {channels} number(s) each.",
            )
        mean, std = (per_channel(config[key], channels) for key in ("mean", "std"))
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

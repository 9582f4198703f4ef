"""timm's models from their modules and weights: arguments, classes, preprocessing, and what is said about them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
from torch import nn

from mixqvit.errors import ImageError, ModelError
from mixqvit.models.architectures import build, on_meta
from mixqvit.models.assumed import per_channel, preprocessing_note
from mixqvit.models.checkpoints import Checkpoint
from mixqvit.models.fitting import (
    arguments_of,
    check_fits,
    classifiers,
    differences,
    fill,
    in_timm_names,
    possible_classifier,
)
from mixqvit.models.model import Model, class_and_label_names, frozen
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.models.reading import first_line
from mixqvit.models.recorded import is_same

__all__ = ["check_classes", "filled", "timm_model"]


def filled(name: str, checkpoint: Checkpoint, others: Sequence[str], chosen: Collection[str]) -> Model:
    """Return timm's model of a name with the weights of a checkpoint, built with the arguments that these show.

    Args:
        name: timm's name.
        checkpoint: The weights.
        others: Further architectures that they fit, whose preprocessing may be meant.
        chosen: Values of the preprocessing that a person chose.

    Raises:
        ModelError: They are of another architecture, or have no classifier.
    """
    recorded, arguments = checkpoint.recorded, _arguments(name, checkpoint)
    sketch = on_meta(name, arguments)
    if sketch.num_classes < 1:
        raise ModelError(_headless(name, sketch, checkpoint))
    module = fill(build(name, arguments), checkpoint, name)
    notes = _argument_notes(arguments) + checkpoint.notes + recorded.notes
    if recorded.num_classes not in (None, module.num_classes):
        notes += (f"The file says {recorded.num_classes} classes, its classifier has {module.num_classes}.",)
    if timm.data.infer_imagenet_subset({"num_classes": module.num_classes}) is not None:
        notes += (f"Its {module.num_classes} classes are taken for ImageNet's, in timm's order.",)
    stated = dict(recorded.data_config)
    if recorded.image_size is not None:
        stated["input_size"] = (module.pretrained_cfg["input_size"][0], *2 * (recorded.image_size,))
    model = timm_model(name, module, notes, arguments, stated, chosen)
    known = {"mean", "std"} if recorded.is_preprocessing_known or "." in name else set()
    assumed = preprocessing_note(model.preprocessing, name, others, known | stated.keys() | set(chosen))
    return replace(model, notes=(*model.notes, *filter(None, [assumed])))


def _arguments(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the architecture's arguments: those of the training script, if it was of this name, then the shapes'."""
    recorded = checkpoint.recorded
    is_of_name = recorded.architecture is not None and is_same(name, recorded.architecture)
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


def timm_model(
    name: str,
    module: nn.Module,
    notes: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    chosen: Collection[str] = (),
) -> Model:
    """Return the record of a module of timm.

    Args:
        name: timm's name.
        module: With its weights.
        notes: What is known to be said about it.
        arguments: By which it differs from timm's model of that name.
        data_config: What is stated beside the weights about the preprocessing.
        chosen: Values of the preprocessing that a person chose.

    Raises:
        ModelError: It has no classifier, or its preprocessing is impossible.
    """
    check_classes(name, module.num_classes)
    arguments = arguments or {}
    preprocessing, averaged = _preprocessing(module, arguments.get("in_chans"), data_config or {})
    names = class_and_label_names(module.num_classes)
    notes += () if {"mean", "std"} <= set(chosen) else averaged
    return Model(name, frozen(module), preprocessing, *names, notes=notes, arguments=arguments)


def check_classes(name: str, classes: int | None, because: str = "") -> None:
    """Refuse a model without classes.

    Raises:
        ModelError: It has none; `because` says why.
    """
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

"""Images: the embedded handwritten digits, or a folder of photographs with one sub-folder per class."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixqvit.errors import ImageError

if TYPE_CHECKING:
    from mixqvit.zoo import Model

__all__ = ["DIGITS_MEAN", "DIGITS_SIZE", "DIGITS_STD", "Images", "load_images"]

DIGITS_SIZE = (1, 32, 32)
# Mean and standard deviation of the training digits after enlarging, rounded.
DIGITS_MEAN = (0.311,)
DIGITS_STD = (0.355,)
DIGITS_COUNTS = {"calibration": 128, "evaluation": 500}  # all others are training images
DIGITS_SEED = "mixqvit digits split 1"

FOLDER_CALIBRATION = 32
FOLDER_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


@dataclass(frozen=True, eq=False)
class Images:
    """Images ready for a model.

    Attributes:
        source: `digits`, or the folder's path.
        split: `calibration`, `evaluation` or `training`.
        pixels: `[N, C, H, W]` float32, normalized.
        labels: `[N]` int64, indices into `class_names`; None where nothing is known.
        class_names: The model's classes.
        names: One per image, such as `digit 0231` or the file's path inside the folder.
        mean: Per channel, what the normalization subtracted.
        std: Per channel, what the normalization divided by.
    """

    source: str
    split: str
    pixels: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of pixels and labels: two sets with the same one give the same results."""
        digest = hashlib.sha256(f"{tuple(self.pixels.shape)} {self.labels is None}".encode())
        digest.update(np.ascontiguousarray(self.pixels.numpy()))
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels.numpy()))
        return digest.hexdigest()

    def display(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns images `start` to `stop` as a screen shows them, `[N, H, W, C]`, 0 to 1, normalization undone."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (self.pixels[start:stop] * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    def subset(self, count: int) -> "Images":
        """Returns the first `count` images (all of them where there are fewer).

        Raises:
            ImageError: `count` is below 1.
        """
        _check_limit(count)
        if count >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, pixels=self.pixels[:count], labels=labels, names=self.names[:count])

    def shuffled(self, seed: int) -> "Images":
        """Returns the same images in another order, always the same for a seed; 0 leaves them as they are."""
        if seed == 0:
            return self
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        labels = None if self.labels is None else self.labels[order]
        names = tuple(self.names[index] for index in order.tolist())
        return replace(self, pixels=self.pixels[order], labels=labels, names=names)


def load_images(
    source: str | Path = "digits",
    split: Literal["calibration", "evaluation", "training"] = "evaluation",
    model: "Model | None" = None,
    limit: int | None = None,
) -> Images:
    """Loads one split of a set of images.

    `digits` are the 1,797 handwritten digits of scikit-learn, 8x8 pixels enlarged to 32x32 (bicubic): 128 for
    calibration, 500 for evaluation, 1,169 for training, always the same ones, balanced over the classes and
    mixed, so that the first few are of different classes.

    A folder holds one sub-folder per class, named by WordNet ids for an ImageNet-1k model, otherwise one for each
    of the model's classes in sorted order. Of the sorted list of files every tenth is for calibration, at most 32
    of them; all others are for evaluation. Inside a split the classes take turns.

    Args:
        source: `digits`, or a folder.
        split: Which part; `training` exists for the digits only.
        model: Whose preprocessing and classes to use; needed for a folder.
        limit: At most so many images, the first of the split.

    Raises:
        ImageError: Unknown source or split, an unreadable image, images that do not fit the model, a limit below 1.
    """
    if split not in ("calibration", "evaluation", "training"):
        raise ImageError(f"unknown split {split!r}; choose calibration, evaluation or training")
    if limit is not None:
        _check_limit(limit)
    if str(source) == "digits":
        return _load_digits(split, model, limit)
    return _load_folder(Path(source), split, model, limit)


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ImageError(f"at least one image is needed, {limit} were asked for; give a number of 1 or more")


def _by_turns(labels: Sequence[int]) -> list[int]:
    """Returns positions such that classes take turns: the first of every class, then the second, ..."""
    seen: dict[int, int] = defaultdict(int)
    turns = []
    for position, label in enumerate(labels):
        turns.append((seen[label], position))
        seen[label] += 1
    return [position for _, position in sorted(turns)]


def _digits_split(labels: Sequence[int]) -> dict[str, list[int]]:
    """Returns the digits' indices of every split.

    The order is that of SHA-256 digests: fixed whatever the version of any random generator.
    """
    shuffled = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{DIGITS_SEED}/{i}".encode()).digest())
    remaining = [shuffled[position] for position in _by_turns([labels[i] for i in shuffled])]
    splits = {}
    for name, count in DIGITS_COUNTS.items():
        splits[name], remaining = remaining[:count], remaining[count:]
    splits["training"] = remaining
    return splits


def _load_digits(split: str, model: "Model | None", limit: int | None) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    class_names = tuple(str(name) for name in digits.target_names)
    if model is not None and (tuple(model.input_size) != DIGITS_SIZE or len(model.class_names) != len(class_names)):
        raise ImageError(
            f"the digits (one channel, 32x32, 10 classes) do not fit {model.name} "
            f"(input {tuple(model.input_size)}, {len(model.class_names)} classes); give a folder of images"
        )
    indices = _digits_split(digits.target.tolist())[split][:limit]
    small = torch.from_numpy(digits.images[indices] / 16).float().unsqueeze(1)
    large = F.interpolate(small, size=DIGITS_SIZE[1:], mode="bicubic", align_corners=False).clamp(0, 1)
    return Images(
        source="digits",
        split=split,
        pixels=(large - DIGITS_MEAN[0]) / DIGITS_STD[0],
        labels=torch.from_numpy(digits.target[indices]).long(),
        class_names=class_names,
        names=tuple(f"digit {index:04d}" for index in indices),
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
    )


def _load_folder(folder: Path, split: str, model: "Model | None", limit: int | None) -> Images:
    if not folder.is_dir():
        raise ImageError(f"unknown images {str(folder)!r}: neither 'digits' nor a folder that exists")
    if model is None:
        raise ImageError(f"the images of {folder} need a model to be prepared for; give the model as well")
    if split == "training":
        raise ImageError(f"a folder such as {folder} has no training split; choose calibration or evaluation")
    files = sorted(
        (path for path in folder.glob("*/*") if path.suffix.lower() in FOLDER_SUFFIXES),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise ImageError(f"{folder} holds no images; it needs one sub-folder per class with image files inside")
    classes = _class_indices(sorted({path.parent.name for path in files}), folder, model)
    chosen = _folder_split([classes[path.parent.name] for path in files], split)[:limit]
    if not chosen:
        raise ImageError(f"{folder} holds only {len(files)} image(s), none left for {split}; add more images")
    files = [files[position] for position in chosen]
    return Images(
        source=str(folder),
        split=split,
        pixels=_read_files(files, model),
        labels=torch.tensor([classes[path.parent.name] for path in files]),
        class_names=model.class_names,
        names=tuple(path.relative_to(folder).as_posix() for path in files),
        mean=model.mean,
        std=model.std,
    )


def _folder_split(labels: Sequence[int], split: str) -> list[int]:
    """Returns the positions of one split in the sorted list of files."""
    tenth = range(0, len(labels), 10)
    turns = _by_turns([labels[position] for position in tenth])
    calibration = [tenth[turn] for turn in turns][:FOLDER_CALIBRATION]
    if split == "calibration":
        return calibration
    taken = set(calibration)
    others = [position for position in range(len(labels)) if position not in taken]
    return [others[turn] for turn in _by_turns([labels[position] for position in others])]


def _class_indices(names: Sequence[str], folder: Path, model: "Model") -> dict[str, int]:
    """Returns the model's class index of every sub-folder's name."""
    from timm.data import ImageNetInfo

    if len(model.class_names) == 1000:
        index = {name: position for position, name in enumerate(ImageNetInfo().label_names())}
        known = [name for name in names if name in index]
        if len(known) == len(names):
            return {name: index[name] for name in names}
        if known:
            unknown = next(name for name in names if name not in index)
            raise ImageError(
                f"the sub-folder {unknown} of {folder} is no WordNet id of ImageNet-1k; rename or remove it"
            )
    if len(names) == len(model.class_names):
        return {name: position for position, name in enumerate(names)}
    raise ImageError(
        f"{folder} has {len(names)} sub-folders with images, {model.name} has {len(model.class_names)} classes: name "
        "the sub-folders by WordNet ids (ImageNet-1k models), or have one for every class in the order of the classes"
    )


def _read_files(files: Sequence[Path], model: "Model") -> Tensor:
    """Returns the images prepared as the model's own configuration says, `[N, C, H, W]`."""
    import timm.data
    from PIL import Image, ImageOps

    config = timm.data.resolve_model_data_config(model.module)
    config |= {"input_size": model.input_size, "mean": model.mean, "std": model.std}
    transform = timm.data.create_transform(**config, is_training=False)
    mode = "L" if model.input_size[0] == 1 else "RGB"
    pixels = []
    for path in files:
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert(mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"the image {path} cannot be read ({error}); replace or remove it") from error
        pixels.append(transform(upright))
    return torch.stack(pixels)

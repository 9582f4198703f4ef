"""Small images, models and folders that the tests of image sources are made of."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo
from timm.models.vision_transformer import VisionTransformer

from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing

ANIMALS = ("ant", "bee", "cow")


def tiny_model(classes: int | Sequence[str], channels: int = 3, size: int = 16) -> Model:
    """A model whose preprocessing is known: input 16x16, mean and std 0.5, no crop."""
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else tuple(classes)
    module = VisionTransformer(
        img_size=size, patch_size=8, in_chans=channels, num_classes=len(names), embed_dim=8, depth=1, num_heads=1
    ).eval()
    return Model("tiny", module, Preprocessing((channels, size, size), (0.5,) * channels, (0.5,) * channels), names)


def imagenet_model() -> Model:
    """A tiny model with the 1000 classes of ImageNet-1k."""
    info = ImageNetInfo()
    model = tiny_model(info.label_descriptions())
    return Model("tiny", model.module, model.preprocessing, model.class_names, tuple(info.label_names()))


def picture(number: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """A picture of one colour that tells its number, 0 to 65535: red the upper and green the lower byte."""
    return Image.new("RGB", size, (number // 256, number % 256, 7))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(number: int) -> bytes:
    return encoded(picture(number))


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))


def class_folders(folder: Path, names: Sequence[str] = ANIMALS, each: int = 11) -> Path:
    """Sub-folders of images, numbered through: 0 to each - 1 in the first class, and so on."""
    for name, content in class_files(names, each).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def class_files(names: Sequence[str] = ANIMALS, each: int = 11) -> dict[str, bytes]:
    """The content of `class_folders`, by path."""
    return {
        f"{name}/{number:02d}.png": png(label * each + number)
        for label, name in enumerate(names)
        for number in range(each)
    }


def numbers(pixels: object) -> list[int]:
    """The numbers that normalized pictures tell."""
    shown = np.rint((np.asarray(pixels)[:, :2, 8, 8] * 0.5 + 0.5) * 255).astype(int)
    return (shown[:, 0] * 256 + shown[:, 1]).tolist()


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }

"""How a photograph becomes a model's input: timm's data configuration as a plain record that needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

from mixqvit.errors import ImageError

__all__ = ["CROP_MODES", "INTERPOLATIONS", "Preprocessing"]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")

_OVERRIDABLE = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized, cropped and normalized (timm's `resolve_data_config`).

    Attributes:
        input_size: Channels, height and width of what the model reads.
        mean: Per channel, what normalization subtracts; pixels are 0 to 1.
        std: Per channel, what normalization divides by.
        interpolation: Filter of the resizing, one of `INTERPOLATIONS`.
        crop_pct: Part of the shorter side that is kept, 0 to 1.
        crop_mode: One of `CROP_MODES`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ImageError: A value is not possible.
        """
        channels = self.input_size[0]
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != channels or not all(isfinite(value) for value in values):
                raise ImageError(f"The {name} of the preprocessing needs {channels} finite number(s), not {values}.")
        if min(self.std) <= 0:
            raise ImageError(f"The std of the preprocessing must be above 0, not {self.std}.")
        if not 0 < self.crop_pct <= 1:
            raise ImageError(f"The crop is the part of the image that is kept, above 0 to 1, not {self.crop_pct}.")
        for name, possible in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if getattr(self, name) not in possible:
                raise ImageError(
                    f"The {name.replace('_', ' ')} {getattr(self, name)!r} is unknown; choose {', '.join(possible)}."
                )

    def overridden(self, values: Mapping[str, Any]) -> "Preprocessing":
        """Return another preprocessing with some values changed: `mean`, `std`, `interpolation`, crop.

        Raises:
            ImageError: A name cannot be changed, or a value is not possible.
        """
        unknown = [name for name in values if name not in _OVERRIDABLE]
        if unknown:
            raise ImageError(f"The preprocessing has no {unknown[0]!r} to change; it has {', '.join(_OVERRIDABLE)}.")
        plain = {name: tuple(value) if name in ("mean", "std") else value for name, value in values.items()}
        try:
            return replace(self, **plain)
        except TypeError as error:
            raise ImageError(f"The preprocessing cannot be changed to {dict(values)}: {error}.") from error

    def timm_config(self) -> dict[str, Any]:
        """Return the keywords of `timm.data.create_transform`."""
        return asdict(self)

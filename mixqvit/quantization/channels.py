"""What is known about the channels of a post-LayerNorm input: plain records that need no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CLIPS",
    "OUTLIER_TIMES",
    "VARIANTS",
    "ChannelDistribution",
    "ChannelRanges",
    "ChannelStatistics",
    "ClipCurve",
    "TokenMap",
    "Variant",
]

OUTLIER_TIMES = 2.0
"""A channel is called an outlier where its range is this many times as wide as the median channel's: a grid that
covers it leaves the median channel at most half of its steps, one bit less."""

VARIANTS = ("per tensor", "per channel", "reparameterized", "clipped")
"""Ways to quantize the input: one scale for all channels, one per channel, that folded into LayerNorm and the next
layer's weight, and the same after clipping the ranges across channels."""

CLIPS = tuple(step / 200 for step in range(21))
"""Fractions of channels clipped at either side that are compared: 0 to 10 % in steps of half a percent."""


@dataclass(frozen=True)
class ChannelStatistics:
    """How the values of each channel of a layer's input are spread over the tokens of the calibration images.

    Attributes:
        layer: Name of the layer.
        tokens: Tokens of all images together.
        lower: Smallest value, `[C]`.
        upper: Largest value, `[C]`.
        mean: Mean, `[C]`.
        deviation: Standard deviation, `[C]`.
        kurtosis: Fourth central moment over the squared variance, `[C]`: 3 for a normal distribution, more where few
            tokens are far from the rest; 0 for a constant channel.
    """

    layer: str
    tokens: int
    lower: np.ndarray
    upper: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    kurtosis: np.ndarray

    @property
    def width(self) -> np.ndarray:
        """Width of each channel's range, `[C]`."""
        return self.upper - self.lower

    @property
    def times_median(self) -> np.ndarray:
        """Width of each channel's range over the median channel's, `[C]`."""
        return self.width / max(float(np.median(self.width)), np.finfo(float).tiny)

    @property
    def max_to_median(self) -> float:
        """Widest range of a channel over the median: 1 means all alike."""
        return float(self.times_median.max())

    @property
    def is_outlier(self) -> np.ndarray:
        """Whether each channel is more than `OUTLIER_TIMES` as wide as the median channel, `[C]`."""
        return self.times_median > OUTLIER_TIMES

    @property
    def median_channel(self) -> int:
        """The channel whose width is the (lower) median."""
        return int(np.argsort(self.width, kind="stable")[(len(self.width) - 1) // 2])

    @property
    def widest_channel(self) -> int:
        """The channel with the widest range."""
        return int(self.width.argmax())


@dataclass(frozen=True)
class Variant:
    """One way to quantize the layer's input and weight, and what it does to every channel.

    Attributes:
        grid_lower: Smallest value that each channel's grid reaches, `[C]`.
        grid_upper: Largest value that each channel's grid reaches, `[C]`.
        ratio: r: what the channel is divided by and its weight column multiplied by, `[C]`; 1 without a move.
        shift: t: what is subtracted from the channel after the division, `[C]`; 0 without a move.
        value_error: Mean squared error of each channel's values, `[C]`, in units of the input.
        weight_error: Squared error of each weight column (sum over outputs), `[C]`, in units of the layer's weight.
        contribution: What each channel adds to the squared error of the output if all channels erred independently,
            relative to the squared output, `[C]`.
        output_error: Squared error of the layer's output relative to the squared output.
        weight_columns: Root mean square of each weight column that gets quantized, `[C]`.
        weight_rows: Width of the range of each row, which one weight quantizer has to cover, `[out]`.
    """

    grid_lower: np.ndarray
    grid_upper: np.ndarray
    ratio: np.ndarray
    shift: np.ndarray
    value_error: np.ndarray
    weight_error: np.ndarray
    contribution: np.ndarray
    output_error: float
    weight_columns: np.ndarray
    weight_rows: np.ndarray


@dataclass(frozen=True)
class ChannelRanges:
    """The channels of one post-LayerNorm input, and what quantization at some bits makes of them.

    Attributes:
        layer: Name of the layer whose input this is.
        bits: Bit-width of weights and activations.
        clip: Fraction of channels whose range is clipped at either side in variant `clipped`.
        statistics: The channels as they are.
        variants: Ways to quantize them, by the names in `VARIANTS`.
    """

    layer: str
    bits: int
    clip: float
    statistics: ChannelStatistics
    variants: Mapping[str, Variant]

    @property
    def max_to_median(self) -> float:
        """Widest range of a channel over the median: 1 means all alike."""
        return self.statistics.max_to_median


@dataclass(frozen=True)
class ClipCurve:
    """What clipping across channels does to a layer.

    Attributes:
        layer: Name of the layer.
        bits: Bit-width of weights and activations.
        output_errors: Squared error of the layer's output relative to the squared output, by clip.
    """

    layer: str
    bits: int
    output_errors: Mapping[float, float]

    @property
    def least(self) -> float:
        """The clip with the least error of the layer's output; the smallest of several."""
        return min(self.output_errors, key=lambda clip: (self.output_errors[clip], clip))


@dataclass(frozen=True)
class ChannelDistribution:
    """How often a channel takes which values over the tokens of the calibration images.

    Attributes:
        layer: Name of the layer.
        channel: Which channel.
        edges: Ends of the bins, `[bins + 1]`.
        patches: Tokens per bin, `[bins]`, extra tokens left out.
        extra: Class and other extra tokens per bin, `[bins]`; zeros where the model has none.
        extra_tokens: How many extra tokens an image has.
    """

    layer: str
    channel: int
    edges: np.ndarray
    patches: np.ndarray
    extra: np.ndarray
    extra_tokens: int


@dataclass(frozen=True)
class TokenMap:
    """A layer's input for one image.

    Attributes:
        layer: Name of the layer.
        values: `[tokens, C]`, in the order in which the layer sees the tokens.
        extra_tokens: How many tokens at the front are no patches: class token, distillation token, registers.
        patches_per_row: Patches in a row of the image where all other tokens are the patches in order, else 0.
        windows: Windows that the tokens are grouped into, one after another; 1 for all together.
    """

    layer: str
    values: np.ndarray
    extra_tokens: int
    patches_per_row: int
    windows: int

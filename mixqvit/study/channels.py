"""The channels of one model's post-LayerNorm inputs, layer by layer, with what was looked at last kept in memory."""

import threading
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache

from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError, MixQViTError
from mixqvit.images.images import Images
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.quantization import outliers
from mixqvit.quantization.channels import (
    CLIPS,
    ChannelDistribution,
    ChannelRanges,
    ChannelStatistics,
    ClipCurve,
    TokenMap,
)
from mixqvit.quantization.outliers import LayerInput

__all__ = ["ChannelStudy"]

# Inputs of whole layers are large, ranges and curves are many.
LAYER_INPUTS, CHANNEL_RANGES = 4, 64


class ChannelStudy:
    """Looks at channels on calibration images, and at single evaluation images; results are never changed."""

    def __init__(self, graph: Graph, calibration_pixels: Tensor, evaluation_images: Images) -> None:
        """Nothing is computed yet.

        Args:
            graph: The traced model.
            calibration_pixels: `[N, C, H, W]`.
            evaluation_images: Where `token_map` takes its image from.
        """
        self._graph = graph
        self._pixels = calibration_pixels
        self._images = evaluation_images
        self._lock = threading.RLock()
        self._statistics: dict[str, ChannelStatistics] = {}
        self._clip_harms: dict[tuple[str, int], dict[float, float]] = {}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers whose input is post-LayerNorm and gets reparameterized."""
        return outliers.post_layer_norm_layers(self._graph.layers)

    def statistics_steps(self) -> Iterator[Progress]:
        """Look at every post-LayerNorm input; every piece, and the result, is the statistics by layer so far."""
        layers = self.layers
        found = dict(self._statistics)
        if len(found) < len(layers):
            for done, piece in enumerate(outliers.layer_input_steps(self._graph, self._pixels), 1):
                found[piece.layer.name] = outliers.channel_statistics(piece)
                words = f"channels of {piece.layer.name}"
                yield Progress(done, len(layers), words, stage="channels", piece=dict(found))
            self._statistics = found
        yield Progress(len(layers), len(layers), "channels", dict(found), "channels")

    def statistics(self) -> dict[str, ChannelStatistics]:
        """Return the statistics of the channels of every post-LayerNorm input by layer name."""
        with self._lock:
            *_, last = self.statistics_steps()
        return last.result

    def ranges(self, layer: str, bits: int, clip: float = 0.0) -> ChannelRanges:
        """Return the channels of a post-LayerNorm input and what quantization at `bits` makes of them.

        Args:
            layer: Name of one of `layers`.
            bits: Bit-width of weights and activations, 2 to 8.
            clip: Fraction of channels whose range is clipped at either side in variant `clipped`.
        """
        return self._ranges(layer, bits, clip)

    def clip_curve(self, layer: str, bits: int) -> ClipCurve:
        """Return the error of the layer's output against the clipped fraction of channels."""
        return self._clip_curve(layer, bits)

    def clip_harm_steps(self, layer: str, bits: int) -> Iterator[Progress]:
        """Measure the network's harm against the clipped fraction; every piece is KL in nats by clip so far."""
        harms = self._clip_harms.setdefault((layer, bits), {})
        steps = outliers.clip_harm_steps(self._graph, self._input(layer), self._pixels, bits, finished=set(harms))
        for clip, harm in steps:
            harms[clip] = harm
            words = f"{layer} clipped at {100 * clip:g} %"
            yield Progress(len(harms), len(CLIPS), words, stage="clipping", piece=dict(harms))
        yield Progress(len(CLIPS), len(CLIPS), "clipping", dict(harms), "clipping")

    def distribution(self, layer: str, channel: int) -> ChannelDistribution:
        """Return how often a channel of a post-LayerNorm input takes which values."""
        return outliers.channel_distribution(self._input(layer), channel)

    def token_map(self, layer: str, index: int) -> TokenMap:
        """Return a post-LayerNorm input for the evaluation image at this position."""
        if not 0 <= index < len(self._images):
            raise ImageError(f"There is no evaluation image {index}; they are numbered 0 to {len(self._images) - 1}.")
        pixels = self._images.pixels[index : index + 1]
        return outliers.token_map(outliers.layer_input(self._graph, self._layer(layer), pixels))

    @cached_property
    def _input(self) -> Callable[[str], LayerInput]:
        """From a layer's name to its input on the calibration images."""
        return lru_cache(LAYER_INPUTS)(
            lambda layer: outliers.layer_input(self._graph, self._layer(layer), self._pixels)
        )

    @cached_property
    def _ranges(self) -> Callable[[str, int, float], ChannelRanges]:
        return lru_cache(CHANNEL_RANGES)(
            lambda layer, bits, clip: outliers.channel_ranges(self._graph, self._input(layer), bits, clip)
        )

    @cached_property
    def _clip_curve(self) -> Callable[[str, int], ClipCurve]:
        return lru_cache(CHANNEL_RANGES)(lambda layer, bits: outliers.clip_curve(self._graph, self._input(layer), bits))

    def _layer(self, name: str) -> Layer:
        if name not in self._graph.by_name:
            raise MixQViTError(f"There is no layer {name!r} in this model.")
        return self._graph.by_name[name]

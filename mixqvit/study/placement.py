"""Where the stages of a study compute: the model on its device, and where double precision is needed."""

import time
from math import inf

import torch

from mixqvit.network.devices import precise_device
from mixqvit.network.graph import Graph
from mixqvit.relevance.propagation import in_precision
from mixqvit.study.base import StudyBase

__all__ = ["Placement"]

TIMING_SECONDS = 120
"""After so long a pass is timed again."""


class Placement(StudyBase):
    """The model on the device of a study. What stages save and show is on the CPU; what they compute with is not."""

    @property
    def _device_graph(self) -> Graph:
        """The traced model on the device."""
        return self._remembered("device graph", lambda: self.graph.on(self.device))

    @property
    def _precise_graph(self) -> Graph:
        """The traced model for calibration and gradients, whose sums need double precision: on the CPU for MPS."""
        if precise_device(self.device) == self.device:
            return self._device_graph
        return self.graph.on(precise_device(self.device))

    @property
    def _double_precision_device_graph(self) -> Graph:
        """The traced model in double precision, for relevance."""
        return self._remembered(
            "double precision device graph", lambda: in_precision(self._precise_graph, torch.float64)
        )

    def _seconds_per_image(self, images: int = 4) -> float:
        """Return the time of a full-precision pass of one image among a few, measured here a short while ago at most.

        A page asks at every move of a control, and the machine may be busy now and idle later.
        """
        measured, seconds = self._memory.get(("seconds per image", images), (-inf, 0.0))
        if time.monotonic() - measured > TIMING_SECONDS:
            seconds = self._timed_pass(images)
            self._memory["seconds per image", images] = (time.monotonic(), seconds)
        return seconds

    def _timed_pass(self, images: int) -> float:
        graph, pixels = self._device_graph, self.evaluation_images.pixels[:images]
        with torch.no_grad():
            graph(pixels).cpu()  # the first run is slower
            started = time.perf_counter()
            graph(pixels).cpu()
        return (time.perf_counter() - started) / len(pixels)

"""What a stage sees of a study."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mixqvit.engines.base import Engine
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.images import Images
from mixqvit.models.model import Model
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.stages.store import Store
from mixqvit.tasks.task import Task

__all__ = ["Computed", "Context"]

Value = TypeVar("Value")


class Computed(Protocol):
    """What results are asked for by: a stage (`mixqvit.stages.stage.Stage`), which itself names the context.

    Attributes:
        name: What progress says; unique.
        version: Raised whenever the numbers change.
    """

    name: str
    version: int


class Context(Protocol):
    """A model, its images, where to compute, and the results of other stages.

    Attributes:
        store: Where pieces are saved.
        engine: What runs tasks.
        device: Where the model computes.
        model: As it was loaded.
        image_sets: Its images, as they were loaded.
        calibration_images: All images that choices may be made by.
        evaluation_images: Images to measure on, and for nothing else.
    """

    store: Store
    engine: Engine
    device: torch.device
    model: Model
    image_sets: ImageSets
    calibration_images: Images
    evaluation_images: Images

    @property
    def recipe(self) -> str:
        """Name of the study's quantization recipe."""
        ...

    @property
    def importance(self) -> str:
        """Name of the study's kind of layer importance."""
        ...

    def measure(self, method: str | None = None) -> str:
        """Return how what a method attributes to a layer becomes one number."""
        ...

    @property
    def metric(self) -> str:
        """Name of the study's metric of harm."""
        ...

    @property
    def baseline(self) -> int:
        """Bit-width of all other layers while one is swept."""
        ...

    @property
    def module(self) -> nn.Module:
        """The model before it is traced."""
        ...

    @property
    def graph(self) -> Graph:
        """The traced model, on the CPU."""
        ...

    @property
    def device_graph(self) -> Graph:
        """The traced model on the device."""
        ...

    @property
    def precise_graph(self) -> Graph:
        """The traced model for sums that need double precision: on the CPU for MPS."""
        ...

    @property
    def double_precision_graph(self) -> Graph:
        """The traced model in double precision, where `precise_graph` is."""
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The quantized layers, in network order."""
        ...

    @property
    def calibration_pixels(self) -> Tensor:
        """The images that quantizers are fitted to, `[N, C, H, W]`."""
        ...

    @property
    def analysis_images(self) -> Images:
        """The calibration images that relevance, sensitivity and other scores are averaged over."""
        ...

    @property
    def task(self) -> Task:
        """What outputs mean, and what decisions are among."""
        ...

    @property
    def identity(self) -> str:
        """What the keys of all results of this model on these calibration images begin with."""
        ...

    @property
    def memory(self) -> dict[Any, Any]:
        """What is remembered while the study is open."""
        ...

    def remembered(self, name: Any, compute: Callable[[], Value]) -> Value:
        """Return what is in memory under a name, computing it the first time."""
        ...

    def seconds_per_image(self, images: int = 4) -> float:
        """Return the time of a full-precision pass of one image among a few, measured here a short while ago."""
        ...

    def sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the tasks of the engine have it: no part of a larger one where it leaves the process."""
        ...

    def saved(self, stage: Computed) -> dict[str, Any]:
        """Return the saved pieces of a stage by the names of their items, computing none."""
        ...

    def state(self, stage: Computed) -> dict[str, Any] | None:
        """Return the tensors that a stage of the form `STATE` goes on from; None where there are none."""
        ...

    def result(self, stage: Computed) -> Any:
        """Return the result of a stage, computing what is missing."""
        ...

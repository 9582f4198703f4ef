"""What all parts of a study stand on: the model, its images, the settings, and where results are kept."""

import copy
import threading
import time
from collections.abc import Callable
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from mixqvit.allocation.costs import Storage
from mixqvit.engines.base import Engine
from mixqvit.engines.this_process import ThisProcess
from mixqvit.errors import BitWidthError, CalibrationError, ImageError, MixQViTError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.images import Images
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sampling import Sampling
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.devices import choose_device, describe, precise_device
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.tracing import trace
from mixqvit.notes import Note
from mixqvit.packing.model import storage
from mixqvit.quantization.evaluation_stage import FullPrecision, own_reference_answers
from mixqvit.quantization.fidelity_stage import Checked
from mixqvit.quantization.outliers import amplify_outliers
from mixqvit.quantization.recipes import find_recipe
from mixqvit.relevance.methods import find_method
from mixqvit.relevance.propagation import in_precision
from mixqvit.relevance.result import MEASURES
from mixqvit.stages import runner
from mixqvit.stages.stage import Stage, versions
from mixqvit.stages.store import Store, fingerprint
from mixqvit.study.notes import study_notes
from mixqvit.study.settings import Settings
from mixqvit.tasks.task import Task

__all__ = ["StudyBase"]

Result = TypeVar("Result")

TIMING_SECONDS = 120
"""After so long a pass is timed again."""


class StudyBase:
    """The model on its device, its images and settings, where results are kept, and the stages' way to each other."""

    def __init__(
        self,
        model: Model | str,
        images: str | Path | ImageSets | None = None,
        settings: Settings | None = None,
        store: Store | None = None,
    ) -> None:
        """Open a study; nothing long is computed yet.

        Args:
            model: A loaded model, or a name for `load_model`.
            images: What `load_image_sets` is called with, or what it returned; by default the images that belong to the
                model.
            settings: What to compute with.
            store: Where to save; the user's cache folder by default.

        Raises:
            ModelError, ImageError, StoreError: What was named cannot be opened.
            MixQViTError: Unknown importance method, measure or metric.
            BitWidthError: The baseline is not possible.
            CalibrationError: Unknown recipe, or one that serves a single bit setting only.
        """
        self.settings = settings or Settings()
        self.store = store or Store()
        self.model = load_model(model) if isinstance(model, str) else model
        source = images or self.model.images
        if source is None:
            raise ImageError(f"Say which images to use with {self.model.name}: a folder with one sub-folder per class.")
        if not isinstance(source, ImageSets):
            sampling = Sampling(self.settings.evaluation_images, self.settings.sampling_seed, self.settings.label_order)
            source = load_image_sets(source, self.model, sampling)
        self.image_sets = source
        self.calibration_images = source.calibration.shuffled(self.settings.calibration_seed)
        self.evaluation_images = source.evaluation
        self.device = choose_device()
        self.engine: Engine = ThisProcess()
        find_method(self.settings.importance)
        self.task.metric(self.settings.metric, self.calibration_images.labels is not None)
        if self.settings.baseline != FULL_PRECISION and self.settings.baseline not in BIT_WIDTHS:
            raise BitWidthError(
                f"The baseline of a sweep is {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} bits, or {FULL_PRECISION} for full "
                f"precision, not {self.settings.baseline!r}."
            )
        if self.settings.measure not in (None, *MEASURES):
            raise MixQViTError(
                f"There is no measure {self.settings.measure!r} of importance; choose one of {', '.join(MEASURES)}."
            )
        recipe = find_recipe(self.settings.recipe)
        if recipe.one_setting:
            raise CalibrationError(
                f"Recipe {recipe.name} is calibrated for one bit setting, so a study cannot compare bits with it. "
                "Use recipe mix-qvit, or mixqvit.calibrate from Python."
            )
        self._lock = threading.RLock()
        self.memory: dict[Any, Any] = {}

    def with_engine(self, engine: Engine) -> Self:
        """Return the same study, results in memory included, whose sweeps and evaluations run elsewhere."""
        other = copy.copy(self)
        other.engine = engine
        return other

    # What stages see of a study (`mixqvit.stages.context.Context`)

    @property
    def recipe(self) -> str:
        """Name of the quantization recipe."""
        return self.settings.recipe

    @property
    def importance(self) -> str:
        """Name of the kind of layer importance."""
        return self.settings.importance

    def measure(self, method: str | None = None) -> str:
        """Return how what a method attributes to a layer becomes one number: `share`, `absolute` or `positive`."""
        return self.settings.measure or find_method(method or self.settings.importance).measure

    @property
    def metric(self) -> str:
        """Name of the metric of harm."""
        return self.settings.metric

    @property
    def baseline(self) -> int:
        """Bit-width of all other layers while one is swept."""
        return self.settings.baseline

    @property
    def graph(self) -> Graph:
        """The traced model, on the CPU, with amplified outliers if the settings ask for them."""
        return self.remembered("graph", lambda: trace(self.module, self.calibration_images.pixels))

    @property
    def module(self) -> nn.Module:
        """The model before it is traced, with amplified outliers if the settings ask for them."""
        settings, example = self.settings, self.calibration_images.pixels[:1]
        if settings.outlier_factor == 1:
            return self.model.module
        return amplify_outliers(self.model.module, example, settings.outlier_factor, settings.outlier_channels)

    @property
    def device_graph(self) -> Graph:
        """The traced model on the device."""
        return self.remembered("device graph", lambda: self.graph.on(self.device))

    @property
    def precise_graph(self) -> Graph:
        """The traced model for calibration and gradients, whose sums need double precision: on the CPU for MPS."""
        if precise_device(self.device) == self.device:
            return self.device_graph
        return self.graph.on(precise_device(self.device))

    @property
    def notes(self) -> tuple[Note, ...]:
        """What to know beside every number of this study: what was assumed, left out or measured on too little.

        What the answers in full precision tell is among them once the evaluation images have been run, and what the
        check of the calibration could not tell once that was made.
        """
        checked = self.memory.get(runner.key(self, Checked(self.recipe)))
        unchecked = () if checked is None or checked.note is None else (Note(checked.note),)
        is_known = runner.key(self, FullPrecision()) in self.memory
        answers = own_reference_answers(self).notes if is_known else ()
        return (*self.remembered("notes", lambda: study_notes(self, self.settings)), *unchecked, *answers)

    @property
    def double_precision_graph(self) -> Graph:
        """The traced model in double precision, for relevance, which divides by outputs near zero."""
        return self.remembered("double precision graph", lambda: in_precision(self.precise_graph, torch.float64))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The table of quantized layers, in network order."""
        return self.graph.layers

    def layer(self, name: str) -> Layer:
        """Return a layer by name.

        Raises:
            MixQViTError: There is none of this name.
        """
        if name not in self.graph.by_name:
            raise MixQViTError(f"There is no layer {name!r} in this model.")
        return self.graph.by_name[name]

    @property
    def calibration_pixels(self) -> Tensor:
        """The images that quantizers are fitted to, `[N, C, H, W]`."""
        return self.calibration_images.subset(self.settings.calibration_images).pixels

    @cached_property
    def analysis_images(self) -> Images:
        """The calibration images that relevance, sensitivity and other scores are averaged over."""
        return self.calibration_images.subset(self.settings.analysis_images)

    @cached_property
    def task(self) -> Task:
        """What outputs mean; its decisions are among the classes of the images if the settings say so."""
        labels = [images.labels for images in (self.calibration_images, self.evaluation_images)]
        if not self.settings.within_classes or any(values is None for values in labels):
            return self.model.task
        return self.model.task.within(*labels)

    @cached_property
    def identity(self) -> str:
        """What the keys of all results of this model on these calibration images begin with, 16 hexadecimal digits."""
        return fingerprint(self.graph.fingerprint, self.calibration_images.fingerprint)[:16]

    def remembered(self, name: Any, compute: Callable[[], Result]) -> Result:
        """Return what is in memory under a name, computing it the first time, under a lock: nothing that waits."""
        with self._lock:
            if name not in self.memory:
                self.memory[name] = compute()
            return self.memory[name]

    def sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor as tasks have it: a part of a larger one would be sent to other processes as the whole."""
        return tensor if self.engine.is_here else tensor.clone()

    def saved(self, stage: Stage) -> dict[str, Any]:
        """Return the saved pieces of a stage by the names of their items, computing none."""
        return runner.saved(self, stage)

    def state(self, stage: Stage) -> dict[str, Any] | None:
        """Return the tensors that a stage of the form `STATE` goes on from; None where there are none."""
        return runner.state(self, stage)

    def result(self, stage: Stage) -> Any:
        """Return the result of a stage, computing what is missing."""
        return runner.result(self, stage)

    # What else a study says of itself

    @property
    def machine(self) -> str:
        """Where this study computes, and how much memory is free there, in words."""
        return describe(self.device)

    @property
    def storage(self) -> Storage:
        """What the size of a packed model depends on beside its layers."""
        return self.remembered("storage", lambda: storage(self.graph, self.settings.recipe, self.model))

    @property
    def made_with(self) -> dict[str, str]:
        """What results depend on beside the study itself: versions of libraries and of stages, by name."""
        return runner.LIBRARIES | {f"stage {name}": str(number) for name, number in versions().items()}

    def seconds_per_image(self, images: int = 4) -> float:
        """Return the time of a full-precision pass of one image among a few, measured here a short while ago at most.

        A page asks at every move of a control, and the machine may be busy now and idle later.
        """
        measured, seconds = self.memory.get(("seconds per image", images), (-inf, 0.0))
        if time.monotonic() - measured > TIMING_SECONDS:
            seconds = _timed_pass(self.device_graph, self.evaluation_images.pixels[:images])
            self.memory["seconds per image", images] = (time.monotonic(), seconds)
        return seconds


def _timed_pass(graph: Graph, pixels: Tensor) -> float:
    with torch.no_grad():
        graph(pixels).cpu()  # the first run is slower
        started = time.perf_counter()
        graph(pixels).cpu()
    return (time.perf_counter() - started) / len(pixels)

"""What every stage of a study builds on: the model, its images, the settings, and where results are kept."""

import copy
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

import timm
import torch
from torch import Tensor, nn

from mixqvit.allocation.costs import Storage
from mixqvit.criteria.sensitivity.metrics import find_metric
from mixqvit.engines.base import Engine
from mixqvit.engines.this_process import ThisProcess
from mixqvit.errors import BitWidthError, CalibrationError, ImageError, MixQViTError
from mixqvit.images.images import Images
from mixqvit.images.loading import ImageSets, load_image_sets
from mixqvit.images.sampling import Sampling
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.devices import choose_device, describe
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.tracing import trace
from mixqvit.packing.model import storage
from mixqvit.progress import Progress
from mixqvit.quantization import outliers
from mixqvit.quantization.recipes import find_recipe
from mixqvit.relevance.methods import find_method
from mixqvit.relevance.propagation import in_precision
from mixqvit.relevance.result import MEASURES
from mixqvit.study.settings import Settings
from mixqvit.study.store import Store, code_version, fingerprint

__all__ = ["StudyBase"]

Result = TypeVar("Result")

# A stage's results are found again only by the very code that made them.
_SHARED_CODE = ("study/base.py", "graph.py", "tracing.py", "layer_table.py", "layers.py", "bits.py")
_CODE = {
    "relevance": ("study/relevance.py", "relevance"),
    "calibration": ("study/sensitivity.py", "quantization"),
    "sensitivity": ("study/sensitivity.py", "quantization", "sensitivity", "batching.py", "evaluation.py"),
    "criteria": (
        "study/criteria.py",
        "study/sensitivity.py",
        "criteria",
        "quantization",
        "batching.py",
        "evaluation.py",
    ),
    "training": ("study/training.py", "training", "quantization", "datasets/augmentation.py", "evaluation.py"),
    "indicators": (
        "study/criteria.py",
        "criteria/indicators.py",
        "training/distillation.py",
        "training/schedule.py",
        "training/step_sizes.py",
    ),
    "evaluation": ("study/evaluation.py", "study/sensitivity.py", "quantization", "evaluation.py"),
}


_TORCH = torch.__version__.partition("+")[0]  # without the device that this build is for


class StudyBase:
    """The model, its images and settings, and where results are kept."""

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
            sampling = Sampling(self.settings.evaluation_images, self.settings.sampling_seed)
            source = load_image_sets(source, self.model, sampling)
        self.image_sets = source
        self.calibration_images = source.calibration.shuffled(self.settings.calibration_seed)
        self.evaluation_images = source.evaluation
        self.device = choose_device()
        self.engine: Engine = ThisProcess()
        find_method(self.settings.importance)
        metric = find_metric(self.settings.metric)
        if metric.needs_labels and self.calibration_images.labels is None:
            raise ImageError(f"The metric {metric.name} compares with labels, and these images have none.")
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
        self._memory: dict[Any, Any] = {}

    def with_engine(self, engine: Engine) -> Self:
        """Return the same study, results in memory included, whose sweeps and evaluations run elsewhere."""
        other = copy.copy(self)
        other.engine = engine
        return other

    @property
    def graph(self) -> Graph:
        """The traced model, with amplified outliers if the settings ask for them."""
        return self._remembered("graph", lambda: trace(self._module, self.calibration_images.pixels))

    @property
    def _module(self) -> nn.Module:
        """The model before it is traced, with amplified outliers if the settings ask for them."""
        settings = self.settings
        if settings.outlier_factor == 1:
            return self.model.module
        amplified = outliers.amplify_outliers
        return amplified(self.model.module, self._example, settings.outlier_factor, settings.outlier_channels)

    @property
    def _example(self) -> Tensor:
        return self.calibration_images.pixels[:1]

    @property
    def machine(self) -> str:
        """Where this study computes, and how much memory is free there, in words."""
        return describe(self.device)

    @cached_property
    def class_subset(self) -> tuple[int, ...] | None:
        """The classes that top-1 looks at, by index: those of the images if the settings say so; None for all."""
        labels = [images.labels for images in (self.calibration_images, self.evaluation_images)]
        if not self.settings.within_classes or any(values is None for values in labels):
            return None
        return tuple(sorted({index for values in labels for index in values.tolist()}))

    @property
    def _double_precision_graph(self) -> Graph:
        """Relevance divides by outputs near zero and needs double precision; converted once."""
        return self._remembered("double precision graph", lambda: in_precision(self.graph, torch.float64))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The table of quantized layers, in network order."""
        return self.graph.layers

    @property
    def storage(self) -> Storage:
        """What the size of a packed model depends on beside its layers."""
        return self._remembered("storage", lambda: storage(self.graph, self.settings.recipe, self.model))

    def _layer(self, name: str) -> Layer:
        if name not in self.graph.by_name:
            raise MixQViTError(f"There is no layer {name!r} in this model.")
        return self.graph.by_name[name]

    @property
    def _calibration_pixels(self) -> Tensor:
        return self.calibration_images.subset(self.settings.calibration_images).pixels

    @cached_property
    def _analysis_images(self) -> Images:
        return self.calibration_images.subset(self.settings.analysis_images)

    @property
    def _analysis_pixels(self) -> Tensor:
        return self._analysis_images.pixels

    def _key(self, stage: str, *parts: Any) -> str:
        code = (code_version(*_SHARED_CODE, *_CODE[stage]), _TORCH, timm.__version__)
        if stage == "relevance":
            code += (version("captum"),)
        sources = (self.graph.fingerprint, self.calibration_images.fingerprint)
        return f"{self.identity}-{fingerprint(stage, *code, *sources, *parts)}"

    @cached_property
    def identity(self) -> str:
        """What the keys of all results of this model on these calibration images begin with, 16 hexadecimal digits."""
        return fingerprint(self.graph.fingerprint, self.calibration_images.fingerprint)[:16]

    @property
    def made_with(self) -> dict[str, str]:
        """What results depend on beside the study itself: versions of libraries, fingerprint of this program."""
        return {"torch": _TORCH, "timm": timm.__version__, "mixqvit": code_version("")}

    def _remembered(self, name: Any, compute: Callable[[], Result]) -> Result:
        with self._lock:
            if name not in self._memory:
                self._memory[name] = compute()
            return self._memory[name]

    def _finished(self, name: Any, steps: Callable[[], Iterator[Progress]]) -> Any:
        """Return a remembered result, running its stage to the end if there is none.

        Without the lock: a stage may wait for a session that computes the same and needs it.
        """
        if name not in self._memory:
            for _ in steps():
                pass
        return self._memory[name]

"""Mix-QViT: how few bits can each layer of a vision transformer live on, and what does it cost?

The names below are the public API. They are imported on first use, because torch takes seconds to load and the
dashboard paints before that.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Allocation": "allocation.budget",
    "Budget": "allocation.budget",
    "Calibration": "quantization.calibration",
    "Evaluation": "tasks.evaluation",
    "Graph": "network.graph",
    "ImageSets": "images.image_sets",
    "Images": "images.images",
    "Layer": "network.layers",
    "MixQViTError": "errors",
    "Model": "models.model",
    "QuantizedModel": "quantization.model",
    "Relevance": "relevance.result",
    "Request": "allocation.request",
    "Sampling": "images.sampling",
    "Settings": "study.settings",
    "Store": "stages.store",
    "Study": "study.study",
    "StudyDescription": "study.library",
    "TrainingSettings": "training.settings",
    "allocate": "allocation.exact",
    "amplify_outliers": "quantization.outliers",
    "calibrate": "quantization.calibration",
    "evaluate": "quantization.evaluation",
    "importance_steps": "relevance.methods",
    "keep_trained": "study.trained_study",
    "list_models": "models.cards",
    "load_image_sets": "images.loading",
    "load_images": "images.loading",
    "load_model": "models.loading",
    "load_packed": "packing.model",
    "open_study": "files.open_studies",
    "pack": "packing.model",
    "propagate": "relevance.propagation",
    "quantize": "quantization.model",
    "trace": "network.tracing",
    "transformer_attribution": "relevance.attribution",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixqvit' has no attribute {name!r}")
    return getattr(import_module(f"mixqvit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""Mix-QViT: how few bits can each layer of a vision transformer live on, and what does it cost?

The names below are the public API. They are imported on first use, because torch takes seconds to load and the
dashboard paints before that.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Allocation": "allocation",
    "Budget": "allocation",
    "Calibration": "quantization",
    "Evaluation": "evaluation",
    "Graph": "graph",
    "ImageSets": "datasets",
    "Images": "datasets",
    "Layer": "layers",
    "MixQViTError": "errors",
    "Model": "zoo",
    "QuantizedModel": "quantization",
    "Relevance": "relevance",
    "Sampling": "datasets",
    "Settings": "records",
    "Store": "store",
    "Study": "study",
    "StudyDescription": "library",
    "TrainingSettings": "training.settings",
    "allocate": "allocation",
    "amplify_outliers": "outliers",
    "calibrate": "quantization",
    "evaluate": "evaluation",
    "importance_steps": "relevance.methods",
    "keep_trained": "trained_study",
    "list_models": "cards",
    "load_image_sets": "datasets",
    "load_images": "datasets",
    "load_model": "zoo",
    "load_packed": "packing",
    "open_study": "open_studies",
    "pack": "packing",
    "propagate": "relevance",
    "quantize": "quantization",
    "trace": "tracing",
    "transformer_attribution": "relevance",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixqvit' has no attribute {name!r}")
    return getattr(import_module(f"mixqvit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

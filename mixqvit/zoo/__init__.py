"""Models: the embedded ones, timm's by name, and timm architectures with weights from a local file."""

from mixqvit.cards import ModelSummary, list_models
from mixqvit.zoo.embedded import build_architecture, load_embedded
from mixqvit.zoo.guess import guess_architecture
from mixqvit.zoo.loading import load_model, load_model_steps
from mixqvit.zoo.model import Model
from mixqvit.zoo.names import suggestions

__all__ = [
    "Model",
    "ModelSummary",
    "build_architecture",
    "guess_architecture",
    "list_models",
    "load_embedded",
    "load_model",
    "load_model_steps",
    "suggestions",
]

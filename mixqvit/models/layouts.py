"""What files of weights are called, and what those are, in words, that are not read: other libraries' and programs'."""

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["OWN_ARGUMENTS", "SUFFIXES", "file_kind", "foreign_layout"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pyth", ".th", ".pkl", ".tar")
"""What files of weights are usually called; which kind they are of is seen by their content."""

OWN_ARGUMENTS = (
    'write {"architecture": NAME, "num_classes": N, "model_args": {...}} into a config.json beside the weights '
    "(as model.safetensors or pytorch_model.bin) and give the folder as local-dir:FOLDER"
)
"""How to say with which arguments a timm model was built."""

# The first whose pattern is found in some name counts.
_LAYOUTS = (
    (r"(^|\.)embeddings\.patch_embeddings\.(projection\.)?\w+$", "Hugging Face transformers"),
    (r"(^|\.)vision_model\.embeddings\.", "Hugging Face transformers"),
    (r"(^|\.)encoder\.layers\.encoder_layer_\d+\.", "torchvision"),
    (r"(^|\.)transformer\.resblocks\.\d+\.", "OpenAI's CLIP and open_clip"),
    (r"(^|\.)patch_embed\.projection\.weight$", "mmpretrain"),
    (r"(^|\.)Transformer/encoderblock_\d+/", "Google's JAX release"),
)

_KINDS = {
    ".npz": "a NumPy archive, as JAX writes weights; timm converts Google's: load it with model.load_pretrained(FILE), "
    "and save the model's state_dict()",
    ".npy": "a NumPy array; save the model's state_dict()",
    ".onnx": "an ONNX graph, whose weights have lost their names; give the PyTorch checkpoint that it was made from",
    ".pt2": "a program of torch.export, not plain weights; save the state_dict() of the model that it was made from",
    ".h5": "an HDF5 file, as Keras writes weights; give the PyTorch checkpoint of the model",
    ".hdf5": "an HDF5 file, as Keras writes weights; give the PyTorch checkpoint of the model",
    ".keras": "a Keras model; give the PyTorch checkpoint of the model",
    ".msgpack": "a MessagePack file, as Flax writes weights; give the PyTorch checkpoint of the model",
    ".tflite": "a TensorFlow Lite graph; give the PyTorch checkpoint of the model",
    ".pb": "a TensorFlow graph; give the PyTorch checkpoint of the model",
    ".gguf": "a GGUF file of quantized weights; give the PyTorch checkpoint in full precision",
    ".engine": "a TensorRT engine; give the PyTorch checkpoint that it was built from",
}


def foreign_layout(names: Iterable[str]) -> str | None:
    """Return whose names these are where they are known and not timm's, otherwise None."""
    listed = list(names)
    return next((owner for pattern, owner in _LAYOUTS if any(re.search(pattern, name) for name in listed)), None)


def file_kind(path: Path) -> str | None:
    """Return what a file without readable weights is by its suffix, and what helps; None if that says nothing."""
    return _KINDS.get(path.suffix.lower())

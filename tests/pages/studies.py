"""Small studies of a model with a thousand classes, or some of them, for tests that open one by its name."""

import json
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, keep_study

CLASSES = 1000
SHARK = 2  # "great white shark, white shark, man-eater, ..."
SHAPE = {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3}


def keep_small_study(name: str, folder: Path, labelled: bool, classes: int = CLASSES, **settings) -> str:
    """Save a tiny random ViT with ImageNet's first classes and 60 images of noise, and keep a study of them."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **SHAPE)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, 0, 0.1)
    model = folder / "model"
    model.mkdir(parents=True)
    save_file(module.state_dict(), model / "model.safetensors")
    info = ImageNetInfo()
    names = info.label_names()[:classes]
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": classes,
        "model_args": SHAPE,
        "label_names": names,
        "label_descriptions": {name: info.label_name_to_description(name) for name in names},
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (model / "config.json").write_text(json.dumps(config))
    for number in range(60):
        path = folder / "photos" / (names[SHARK + number % 3] if labelled else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 10 + number).convert("RGB").save(path)
    found = {"calibration_images": 4, "analysis_images": 4, "evaluation_images": 12} | settings
    return keep_study(Store(), name, StudyDescription(f"local-dir:{model}", None, str(folder / "photos"), {}, found))

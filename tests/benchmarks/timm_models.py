"""Print what comes of many timm models: `python -m tests.benchmarks.timm_models FILE [MODEL ...]`.

FILE lists names of timm models, one in a line; models named after it are run alone. Every model runs in a process of
its own, within a limit of time. It gets random weights without zeros (LayerScales and last norms of branches begin at
zero, and would hide what they multiply), batch norms of its own images' statistics, and four smooth random images; the
largest models get fewer blocks and smaller images. It is opened as a study opens it, calibrated by recipe min-max and
run at 8 bits. The correlation is that of all logits at 8 bits with full precision, centred over images.
"""

import multiprocessing
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import mixqvit
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize

IMAGES = 4
CLASSES = 20
SECONDS = 600
"""For one model, at most."""

SMALLER: Mapping[str, Mapping[str, Any]] = {
    "vit_pe_core_tiny_patch16_384": {"img_size": 224, "depth": 4},
    "vit_pe_spatial_tiny_patch16_512": {"img_size": 224, "depth": 4},
    "vit_pe_lang_large_patch14_448": {"img_size": 112, "depth": 2},
    "vit_small_patch16_18x2_224": {"depth": 4},
    "vit_small_patch14_dinov2": {"img_size": 224, "depth": 4},
    "vit_small_patch14_reg4_dinov2": {"img_size": 224, "depth": 4},
    "aimv2_large_patch14_224": {"img_size": 112, "depth": 2},
    "samvit_base_patch16_224": {"depth": 4},
    "beit_base_patch16_224": {"depth": 4},
    "beitv2_base_patch16_224": {"depth": 4},
    "beit3_base_patch16_224": {"depth": 4},
    "eva02_base_patch16_clip_224": {"depth": 4},
    "vit_base_patch16_siglip_224": {"depth": 4},
    "vit_base_patch16_siglip_gap_224": {"depth": 4},
    "vit_base_patch16_clip_quickgelu_224": {"depth": 4},
    "vit_base_mci_224": {"depth": 4},
    "naflexvit_base_patch16_gap": {"depth": 4},
    "naflexvit_base_patch16_map": {"depth": 4},
}


def random_model(name: str) -> nn.Module:
    """Return a timm model with seeded random weights, none of them zero, whose logits differ between images."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=CLASSES, **SMALLER.get(name, {}))
    generator = torch.Generator().manual_seed(0)
    for path, parameter in module.named_parameters():
        if parameter.dim() <= 1 or float(parameter.detach().std()) < 1e-3:
            noise = torch.randn(parameter.shape, generator=generator)
            is_factor = path.endswith(("weight", "gamma", "gain", "scale")) or "ls" in path or "gamma" in path
            parameter.data = ((1 + 0.1 * noise) if is_factor else 0.05 * noise).to(parameter)
        elif path.endswith("weight"):
            # The usual 0.02 leaves so little of a signal that biases rule the network.
            parameter.data *= max(1.0, parameter[0].numel() ** -0.5 / float(parameter.detach().std()))
    return module.eval()


def random_images(shape: tuple[int, int, int]) -> Tensor:
    """Return smooth random images `[IMAGES, *shape]`."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(IMAGES, shape[0], 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, shape[1:], mode="bicubic")
    return smooth + 0.2 * torch.randn(IMAGES, *shape, generator=generator)


def settle_batch_norms(module: nn.Module, pixels: Tensor) -> None:
    """Give batch norms the statistics of images: with random weights their first ones leave nothing of a signal."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    if norms:
        with torch.no_grad():
            module(pixels)
    module.eval()


def correlation(reference: Tensor, found: Tensor) -> float:
    """Return the correlation of logits `[N, classes]`, centred over images."""
    first, second = (values.double() - values.double().mean(dim=0) for values in (reference, found))
    return float((first * second).sum() / (first.norm() * second.norm()))


def row(name: str) -> str:
    """Return one row of the table without the seconds."""
    module = random_model(name)
    shape = timm.data.resolve_model_data_config(module)["input_size"]
    if "img_size" in SMALLER.get(name, {}):
        shape = (shape[0], *[SMALLER[name]["img_size"]] * 2)
    pixels = random_images(tuple(shape))
    settle_batch_norms(module, pixels)
    try:
        graph = mixqvit.trace(module, pixels)
        calls = sum(len(layer.nodes) for layer in graph.layers)
        found = calibrate(graph, pixels, "min-max", bit_widths=(8,))
        with torch.no_grad():
            reference = module(pixels)
        agreement = correlation(reference, quantize(found, 8)(pixels))
        return f"opens | {len(graph.layers)} | {calls} | {agreement:.3f} | {' '.join(graph.notes)}"
    except mixqvit.MixQViTError as error:
        return f"refused | | | | {error}"
    except Exception as error:  # what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"**traceback** | | | | {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _send(connection: Connection, name: str) -> None:
    connection.send(row(name).replace("\n", " "))


def main(listed: str, *models: str) -> None:
    """Measure and print, row by row."""
    print(f"| model | | layers | calls | correlation | message | seconds |\n|{' --- |' * 7}", flush=True)
    context = multiprocessing.get_context("fork")  # with everything imported
    for name in models or Path(listed).read_text().split():
        started = time.perf_counter()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, name))
        process.start()
        sender.close()
        try:
            finished = receiver.poll(SECONDS)
            found = receiver.recv() if finished else f"**not finished** | | | | within {SECONDS} s"
        except EOFError:
            found = "**died** | | | | without a word"
        process.kill()
        process.join()
        print(f"| {name} | {found} | {time.perf_counter() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

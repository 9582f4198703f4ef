"""An ONNX export run by onnxruntime, beside the quantized model it was made from and the full-precision one."""

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from mixqvit.errors import ExportError, ImageError
from mixqvit.files.export.onnx_model import exported_full_precision
from mixqvit.quantization.model import QuantizedModel

__all__ = ["OnnxCheck", "check_onnx", "opened_session"]

REPEATS = 3
"""Of which the fastest counts."""


@dataclass(frozen=True)
class OnnxCheck:
    """What onnxruntime makes of an export.

    Attributes:
        images: Number of images.
        agreement: Fraction of images with the same top-1 class as the quantized model here.
        correlation: Of all logits with those of the quantized model here.
        seconds: Time of an image in onnxruntime.
        full_precision_seconds: Time of an image through the full-precision ONNX model, in the same run.
    """

    images: int
    agreement: float
    correlation: float
    seconds: float
    full_precision_seconds: float


def check_onnx(content: bytes, quantized: QuantizedModel, pixels: Tensor, threads: int = 1) -> OnnxCheck:
    """Run an export and compare it.

    Args:
        content: The ONNX file.
        quantized: The model it was made from.
        pixels: Images `[N, C, H, W]`, normalized.
        threads: Of onnxruntime.

    Raises:
        ExportError: onnxruntime refuses the file.
        ImageError: There are no images.
    """
    if not len(pixels):
        raise ImageError("An export is checked on at least one image.")
    expected = quantized(pixels).cpu()
    logits, seconds = _timed(opened_session(content, threads), pixels)
    _, full_seconds = _timed(opened_session(exported_full_precision(quantized.graph, ""), threads), pixels)
    return OnnxCheck(
        len(pixels),
        int(quantized.graph.task.agreeing(torch.from_numpy(logits), expected)) / len(pixels),
        float(np.corrcoef(logits.ravel(), expected.numpy().ravel())[0, 1]),
        seconds / len(pixels),
        full_seconds / len(pixels),
    )


def opened_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an ONNX model ready to run on the CPU.

    Raises:
        ExportError: onnxruntime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"onnxruntime {onnxruntime.__version__} does not run this export: {reason}") from error


def _timed(session: onnxruntime.InferenceSession, pixels: Tensor) -> tuple[np.ndarray, float]:
    images, best = {"pixels": pixels.numpy()}, float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        (logits,) = session.run(None, images)
        best = min(best, time.perf_counter() - started)
    return logits, best

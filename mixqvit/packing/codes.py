"""Integer weight codes: recovered from a quantized weight, and packed at their true width."""

import numpy as np
import torch
from torch import Tensor

from mixqvit.errors import PackingError
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["dequantized", "pack_codes", "unpack_codes", "weight_codes"]


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes packed without gaps, least significant bit first; the last byte is filled with zeros.

    Args:
        codes: uint8 `[N]`, each below 2^bits.
        bits: Width of a code, 1 to 8.

    Returns:
        uint8 `[ceil(N · bits / 8)]`: bit j of code i is bit (i · bits + j) mod 8 of byte (i · bits + j) div 8.
    """
    return np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` codes, uint8 `[count]`, that `pack_codes` packed."""
    bit_rows = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(bit_rows, axis=1, bitorder="little")[:, 0]


def weight_codes(weight: Tensor, quantizer: UniformQuantizer, layer: str) -> np.ndarray:
    """Return the codes weight / scale + zero_point of a quantized weight, uint8 `[elements]`.

    Zero points are whole, or halfway between two codes.

    Raises:
        PackingError: The weight is not on the quantizer's grid.
    """
    codes = quantizer.codes(weight)
    if codes.min() < 0 or codes.max() >= 2**quantizer.bits or not torch.equal(quantizer.decoded(codes), weight):
        raise PackingError(
            f"The weight of layer {layer} is not made of {quantizer.bits}-bit codes. Pack the model that `quantize` "
            "returned, unchanged."
        )
    return codes.to(torch.uint8).flatten().numpy()


def dequantized(codes: np.ndarray, shape: torch.Size, quantizer: UniformQuantizer) -> Tensor:
    """Return the weight `(code - zero_point) · scale`, the very numbers that `weight_codes` was given."""
    return quantizer.decoded(torch.from_numpy(codes).reshape(shape))

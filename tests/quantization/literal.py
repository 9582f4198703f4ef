"""Slow, literal float64 implementations of the papers' formulas, one number at a time: what the tests compare with."""

import math

import numpy as np

PERCENTILES = (0.999, 0.9999, 0.99999)


def rounded(value):
    """Round half to even, as torch and the published code do."""
    return float(np.round(value))


def clamped(value, low, high):
    return min(max(value, low), high)


def minus_log2(ratio):
    return math.inf if ratio <= 0 else -math.log2(ratio)


def uniform(value, scale, zero_point, bits):
    """x_q = clip(round(x / s) + z, 0, 2^b - 1), x̂ = s (x_q - z) (RepQ-ViT, arXiv 2212.08254)."""
    code = clamped(rounded(value / scale) + zero_point, 0, 2**bits - 1)
    return (code - zero_point) * scale


def log_sqrt2(value, scale, bits):
    """RepQ-ViT's log√2: k = round(-2 log2(A / s)), codes beyond the last are zero as in the published code."""
    if value == 0:
        return 0.0
    exponent = max(rounded(-2 * math.log2(value / scale)), 0)
    return 0.0 if exponent >= 2**bits else scale * 2 ** (-exponent / 2)


def log2(value, scale, bits):
    """FQ-ViT's Log-Int-Softmax (arXiv 2111.13824): clip(round(-log2 A), 0, 2^b - 1)."""
    code = clamped(rounded(minus_log2(value / scale)), 0, 2**bits - 1)
    return scale * 2.0**-code


def adaptive_log(value, scale, step, shift, bits, zero_code):
    """AdaLog (arXiv 2407.12951): clip(round(-log_base((x + shift) / s)), 0, 2^b - 1) with base 2^step."""
    code = clamped(rounded(minus_log2((value + shift) / scale) / step), 0, 2**bits - 1)
    if zero_code and code == 2**bits - 1:
        return -shift
    return scale * (2.0**step) ** -code - shift


def unsigned_uniform(value, scale, bits):
    """Ψ of PTQ4ViT on a range that starts at zero: codes 0 to 2^bits - 1."""
    return clamped(rounded(value / scale), 0, 2**bits - 1) * scale


def twin_softmax(value, scale, exponent, bits):
    """PTQ4ViT (arXiv 2111.12293): the fine range R1 below 2^(b-1) Δ1, R2 above, with Δ2 = 2^m Δ1.

    What R2 would round to zero although it lies above R1 becomes the largest value of R1: the one difference.
    """
    if value < 2 ** (bits - 1) * scale:
        return unsigned_uniform(value, scale, bits - 1)
    return unsigned_uniform(value, scale * 2.0**exponent, bits - 1) or (2 ** (bits - 1) - 1) * scale


def twin_gelu(value, scale, exponent, bits):
    """PTQ4ViT: negative values on Δ1 down to -2^(b-1) Δ1, positive ones on Δ2 = 2^m Δ1."""
    if value < 0:
        return clamped(rounded(value / scale), -(2 ** (bits - 1)), 0) * scale
    return unsigned_uniform(value, scale * 2.0**exponent, bits - 1)


def power_of_two_factor(value, scale, zero_point, exponent, bits):
    """FQ-ViT: X_q = clip(round(X / (2^α s)) + z, 0, 2^b - 1)."""
    code = clamped(rounded(value / (2.0**exponent * scale)) + zero_point, 0, 2**bits - 1)
    return 2.0**exponent * scale * (code - zero_point)


def reparameterized(value, ratio, shift, scale, zero_point, bits):
    """RepQ-ViT, section 3.2: the uniform quantizer (s*, z*) on the moved input x / r - t."""
    return uniform(value / ratio - shift, scale, zero_point, bits)


def squared_error(quantize, values):
    return sum((quantize(value) - value) ** 2 for value in values)


def range_search(values, bits):
    """RepQ-ViT's published search: one quantile at a time, the least squared error wins; (scale, zero point)."""
    best = None
    for percentile in PERCENTILES:
        upper = float(np.quantile(values, percentile))
        lower = float(np.quantile(values, 1 - percentile))
        scale = (upper - lower) / (2**bits - 1)
        zero_point = rounded(-lower / scale)
        error = sum((uniform(value, scale, zero_point, bits) - value) ** 2 for value in values)
        if best is None or error < best[0]:
            best = (error, scale, zero_point)
    return best[1:]


def min_max(values, bits):
    scale = (max(values) - min(values)) / (2**bits - 1)
    return scale, rounded(-min(values) / scale)


def fit_power_of_two_factor(channels, bits):
    """FQ-ViT: s and z from the range of all channels over 2^K, α_c = argmin of the squared error; K = 3."""
    lowest = min(min(channel) for channel in channels)
    highest = max(max(channel) for channel in channels)
    scale = (highest - lowest) / (2**bits - 1) / 2**3
    zero_point = clamped(rounded(-lowest / (2**3 * scale)), 0, 2**bits - 1)
    exponents = []
    for channel in channels:
        errors = []
        for exponent in range(4):
            error = 0.0
            for value in channel:
                error += (power_of_two_factor(value, scale, zero_point, exponent, bits) - value) ** 2
            errors.append(error)
        exponents.append(errors.index(min(errors)))
    return scale, zero_point, exponents


def fit_twin_softmax(values, bits):
    """R2 = [0, 1] with 2^(b-1) codes; the split 2^-m, m = 0 to 19, with the least squared error: (Δ1, m)."""
    errors = []
    for exponent in range(20):
        scale = 2.0**-exponent / (2 ** (bits - 1) - 1)
        errors.append(sum((twin_softmax(value, scale, exponent, bits) - value) ** 2 for value in values))
    exponent = errors.index(min(errors))
    return 2.0**-exponent / (2 ** (bits - 1) - 1), exponent


def fit_twin_gelu(values, bits):
    """R1 = [min, 0]; the exponent of R2's step with the least squared error: (Δ1, m)."""
    scale = -min(values) / 2 ** (bits - 1)
    errors = {}
    for exponent in range(-20, 21):
        errors[exponent] = sum((twin_gelu(value, scale, exponent, bits) - value) ** 2 for value in values)
    return scale, min(errors, key=errors.get)

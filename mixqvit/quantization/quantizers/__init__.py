"""Quantizers: each maps a tensor to its quantized values, in floating-point arithmetic, and leaves its input alone.

Scales and the other tensors of a quantizer are scalars or broadcast to the input; what they mean is in each class.
"""

from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.log2 import Log2Quantizer
from mixqvit.quantization.quantizers.log_sqrt2 import LogSqrt2Quantizer
from mixqvit.quantization.quantizers.power_of_two_factor import PowerOfTwoFactorQuantizer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.twin_uniform import TwinGeluQuantizer, TwinSoftmaxQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = [
    "ActivationQuantizer",
    "AdaptiveLogQuantizer",
    "Log2Quantizer",
    "LogSqrt2Quantizer",
    "PowerOfTwoFactorQuantizer",
    "ReparameterizedQuantizer",
    "TwinGeluQuantizer",
    "TwinSoftmaxQuantizer",
    "UniformQuantizer",
]

ActivationQuantizer = (
    UniformQuantizer
    | Log2Quantizer
    | LogSqrt2Quantizer
    | AdaptiveLogQuantizer
    | TwinSoftmaxQuantizer
    | TwinGeluQuantizer
    | PowerOfTwoFactorQuantizer
    | ReparameterizedQuantizer
)
"""Every quantizer of the menu."""

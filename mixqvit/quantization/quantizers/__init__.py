"""Quantizers: each maps a tensor to its quantized values, in floating-point arithmetic, and leaves its input alone.

Scales and the other tensors of a quantizer are scalars or broadcast to the input; what they mean is in each class. What
every quantizer knows of itself is in `base`; a file holds a class and, beside the uniform ones, how it is fitted.
"""

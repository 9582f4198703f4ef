"""Quantized models and their bits for other programs: ONNX, torchao, ModelOpt, Model Explorer, our own recipe."""

"""Quantized models and their bits for other programs: ONNX, torchao, ModelOpt, Model Explorer; allocation files."""

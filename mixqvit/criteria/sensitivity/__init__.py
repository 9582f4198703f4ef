"""Quantization sensitivity: the harm of quantizing one layer alone (METHOD.md, "Quantization sensitivity Λ")."""

"""Post-training quantization: quantizers, calibration, reparameterization, the quantized model."""

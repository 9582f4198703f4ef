"""Training: the embedded models from scratch, and quantized models with the quantizers in the loop."""

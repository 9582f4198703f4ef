"""Packed models: one safetensors file with integer weight codes at their true width."""

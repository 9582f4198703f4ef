"""Relevance: which layers, tokens and pixels a model's decision for an image rests on."""

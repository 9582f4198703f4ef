"""Relevance: which layers, tokens and pixels a model's decision for an image rests on."""

from mixqvit.relevance.attribution import transformer_attribution
from mixqvit.relevance.propagation import BATCH_SIZE, RULES, propagate, propagate_steps
from mixqvit.relevance.result import MEASURES, Relevance, merge

__all__ = [
    "BATCH_SIZE",
    "MEASURES",
    "RULES",
    "Relevance",
    "merge",
    "propagate",
    "propagate_steps",
    "transformer_attribution",
]

"""Relevance: which layers, tokens and pixels a model's decision for an image rests on."""

from mixqvit.relevance.attribution import transformer_attribution
from mixqvit.relevance.propagation import BATCH_SIZE, propagate, propagate_steps
from mixqvit.relevance.result import MEASURES, LayerTotals, Relevance, merge
from mixqvit.relevance.rules import RULE_SETS

__all__ = [
    "BATCH_SIZE",
    "MEASURES",
    "RULE_SETS",
    "LayerTotals",
    "Relevance",
    "merge",
    "propagate",
    "propagate_steps",
    "transformer_attribution",
]

"""What else than relevance and sensitivity scores layers: the criteria of HAWQ-V2, MPQCO, CLADO and LIMPQ."""

from mixqvit.criteria.hessian import LayerTraces, Trace, TraceBatch, hawq_harms, hessian_trace_steps, mean_traces
from mixqvit.criteria.indicators import INDICATOR_PASSES, Indicators, IndicatorState, indicator_harms, indicator_steps
from mixqvit.criteria.loss_change import LossChangeBatch, loss_change_steps, mean_loss_changes
from mixqvit.criteria.pairwise import Pair, PairTerms, all_pairs, block_pairs, pair_cost, pair_steps
from mixqvit.criteria.perturbation import Perturbation, squared_perturbations
from mixqvit.criteria.shared import tied_bits

__all__ = [
    "INDICATOR_PASSES",
    "IndicatorState",
    "Indicators",
    "LayerTraces",
    "LossChangeBatch",
    "Pair",
    "PairTerms",
    "Perturbation",
    "Trace",
    "TraceBatch",
    "all_pairs",
    "block_pairs",
    "hawq_harms",
    "hessian_trace_steps",
    "indicator_harms",
    "indicator_steps",
    "loss_change_steps",
    "mean_loss_changes",
    "mean_traces",
    "pair_cost",
    "pair_steps",
    "squared_perturbations",
    "tied_bits",
]

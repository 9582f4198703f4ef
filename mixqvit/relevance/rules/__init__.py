"""Propagation rules: one small class per operation, each sending the relevance of an output to its operands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mixqvit.relevance.rules.attnlrp import ATTNLRP
from mixqvit.relevance.rules.chefer import CHEFER
from mixqvit.relevance.step import Rule, copied, fan_out

__all__ = ["RULE_SETS", "RuleSet"]


@dataclass(frozen=True)
class RuleSet:
    """All that one paper says about propagating relevance.

    Attributes:
        name: What the set is called.
        description: One sentence and its source.
        rules: Rules by operation name (`mixqvit.network.graph.operation_name`).
        signed: Whether the stabilizer takes the sign of the denominator.
        join: What becomes of the relevances that several readers of one value send to it.
    """

    name: str
    description: str
    rules: Mapping[str, Rule]
    signed: bool
    join: Callable


RULE_SETS: Mapping[str, RuleSet] = {
    rule_set.name: rule_set
    for rule_set in (
        RuleSet(
            "chefer",
            "Positive products share relevance, norms and softmax pass it on (Chefer, Gur & Wolf 2021, "
            "arXiv 2012.09838).",
            CHEFER,
            signed=False,
            join=fan_out,
        ),
        RuleSet(
            "attnlrp",
            "Signed shares with the bias taking part, the softmax linearized (AttnLRP, Achtibat et al. 2024, "
            "arXiv 2402.05602).",
            ATTNLRP,
            signed=True,
            join=copied,
        ),
    )
}
"""Rule sets by name."""

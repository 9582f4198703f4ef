"""Accuracy in the row of a table."""

from mixqvit.tasks.evaluation import AGREEMENT, Evaluation

__all__ = ["accuracy_columns"]


def accuracy_columns(evaluation: Evaluation) -> dict[str, float]:
    """Return accuracy for the row of a table, in percent: what stands for it with its interval, then agreement."""
    chosen = evaluation.accuracy
    low, high = chosen.interval(evaluation)
    return {
        f"{chosen.word} (%)": 100 * chosen.value(evaluation),
        "from (%)": 100 * low,
        "to (%)": 100 * high,
        f"{AGREEMENT.word} (%)": 100 * evaluation.agreement,
    }

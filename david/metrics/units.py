"""Units of scores: what a score is the mean of, and the number a person reads (a perplexity for an NLL)."""

import math

TOKEN = "nats a token"
QUESTION = "nats a question"  # of multiple choice, read as the share answered right
_ONE_MINUS = "1 − "  # of a metric of which more is better: scores are minimised


def one_minus(metric: str) -> str:
    """Return the unit of 1 minus a metric whose best value is 1.

    Example:
        >>> one_minus("acc")
        '1 − acc'
    """
    return _ONE_MINUS + metric


def is_nll(unit: str) -> bool:
    """Return whether a mean in this unit is a negative log-likelihood, whose exponential is a perplexity."""
    return unit.startswith("nats ")


def difference_unit(unit: str) -> str:
    """Return a unit as it is written after a difference: `nats a token`, or `in 1 − acc` if it is no NLL."""
    return unit if is_nll(unit) else f"in {unit}"


def difference_heading(unit: str) -> str:
    """Return the heading of a column of differences: `Δ nats`, `Δ (1 − acc)`."""
    return "Δ nats" if is_nll(unit) else f"Δ ({unit})"


def readable(unit: str, mean: float) -> tuple[str, float]:
    """Return the name and the value that a person reads for a mean: perplexity, a metric, or the mean itself.

    Example:
        >>> readable("1 − acc", 0.25), readable("bits a byte", 0.9)
        (('acc', 0.75), ('bits a byte', 0.9))
    """
    if is_nll(unit):
        return "perplexity", math.inf if mean > 700 else math.exp(mean)
    if unit.startswith(_ONE_MINUS):
        return unit.removeprefix(_ONE_MINUS), 1 - mean
    return unit, mean

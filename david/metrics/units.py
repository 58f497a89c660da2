"""What a score is a mean of, and how a person reads it: an NLL as perplexity, errors as what was right."""

import math

TOKEN = "nats a token"
QUESTION = "nats a question"  # of multiple choice, read as the share answered right
_LOST = "1 − "  # before a metric of which more is better: a score is to be minimised


def lost(metric: str) -> str:
    """The unit of what is left of a metric to its best, 1.

    Example:
        >>> lost("acc")
        '1 − acc'
    """
    return _LOST + metric


def is_nll(unit: str) -> bool:
    """Whether a mean in this unit is a negative log-likelihood, whose exponential is a perplexity."""
    return unit.startswith("nats ")


def behind(unit: str) -> str:
    """A unit as it stands behind a difference: `nats a token`, or of what is no NLL `in 1 − acc`."""
    return unit if is_nll(unit) else f"in {unit}"


def delta(unit: str) -> str:
    """The head of a column of differences: `Δ nats`, `Δ (1 − acc)`."""
    return "Δ nats" if is_nll(unit) else f"Δ ({unit})"


def read(unit: str, mean: float) -> tuple[str, float]:
    """What a person reads of a mean, by its name: the perplexity, a metric, or the mean itself.

    Example:
        >>> read("1 − acc", 0.25), read("bits a byte", 0.9)
        (('acc', 0.75), ('bits a byte', 0.9))
    """
    if is_nll(unit):
        return "perplexity", math.inf if mean > 700 else math.exp(mean)
    if unit.startswith(_LOST):
        return unit.removeprefix(_LOST), 1 - mean
    return unit, mean

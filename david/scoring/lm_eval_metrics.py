"""Metrics of lm-eval as losses: what is minimised for each document, and in which unit.

lm-eval sums a metric up by a function of its own; this function says whether the metric is a mean over documents or a
likelihood. A metric of all documents at once has no value for one document, and is refused.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from david.errors import ScoreError
from david.metrics import units

Loss = tuple[float, float]  # of a document: the value to be minimised, and its weight in the mean


def document_loss(name: str, task: Any, metric: str) -> tuple[str, Callable[[Any], Loss]]:
    """Return how a metric is minimised document by document.

    Args:
        name: The task's name, for error messages.
        task: The task of lm-eval.
        metric: One of the task's metrics.

    Returns:
        The unit of the loss, and a function that takes lm-eval's value of the metric for a document and returns its
        loss and its weight. A metric of which more is better becomes `1 − metric`, a likelihood an NLL in nats.

    Raises:
        ScoreError: The metric has no value for each document.
    """
    from lm_eval.api import metrics

    aggregation = task.aggregation()[metric]
    if aggregation in (metrics.mean, metrics.nanmean):
        if task.higher_is_better().get(metric, True):
            return units.one_minus(metric), lambda value: (1 - float(value), 1)
        return metric, lambda value: (float(value), 1)
    if aggregation is metrics.perplexity:
        return "nats a document", lambda value: (-float(value), 1)
    if aggregation is metrics.weighted_perplexity:
        return f"nats a {'word' if 'word' in metric else 'byte'}", lambda value: (-float(value[0]), int(value[1]))
    if aggregation is metrics.bits_per_byte:
        return "bits a byte", lambda value: (-float(value[0]) / math.log(2), int(value[1]))
    if aggregation is metrics.brier_score:
        return metric, lambda value: (brier_score(*value), 1)
    others = ", ".join(other for other in task.aggregation() if other != metric)
    raise ScoreError(
        f"{metric} of the task {name} is no mean over documents, so that nothing can be paired: "
        f"name another metric, as in {name}:metric{f' (it has {others})' if others else ''}"
    )


def brier_score(gold: int, shares: Any) -> float:
    """Return the squared distance of the answers' shares from the right answer, summed over the answers.

    Args:
        gold: The number of the right answer.
        shares: The probability of each answer.
    """
    return float(np.sum((np.asarray(shares) - np.eye(len(shares))[gold]) ** 2))

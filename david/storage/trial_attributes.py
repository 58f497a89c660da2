"""The attributes that David stores in a trial, and functions that read one trial.

The attributes of a score (`WINDOW_NLL`, `WINDOW_TOKENS`, `RIGHT`, `CUT`, `UNIT`, `CONVENTION`) belong to
`metrics.score`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from david.metrics.score import CONVENTION, CUT, RIGHT, UNIT, WINDOW_NLL, WINDOW_TOKENS, mean_share

__all__ = [
    "CONVENTION",
    "CUT",
    "DUPLICATE_OF",
    "ERROR",
    "NO_MEMORY",
    "PARTIAL",
    "RECIPE",
    "RIGHT",
    "UNIT",
    "WINDOW_NLL",
    "WINDOW_TOKENS",
    "accuracy",
    "cut_share",
    "unbeaten",
    "value_of",
    "values_of",
]

RECIPE = "recipe"  # notation of the recipe
DUPLICATE_OF = "duplicate_of"  # number of the trial that had the same recipe before
PARTIAL = "partial"  # number of windows that a trial dropped early has scored
ERROR = "error"  # why the trial failed
NO_MEMORY = "no_memory"  # set if it failed for want of memory, of which another worker may have more


def unbeaten(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of `values` no other row beats (the Pareto front).

    Args:
        values: `[R, K]`, K values of each row, all to be minimised.

    Returns:
        `[R]`, False for a row if another is as low in all columns and lower in one, or equal and earlier.
    """
    is_unbeaten = np.ones(len(values), dtype=bool)
    for i, row in enumerate(values):
        as_low = (values <= row).all(axis=1)
        equal = (values == row).all(axis=1)
        is_unbeaten[i] = not (as_low & ~equal).any() and not equal[:i].any()
    return is_unbeaten


def value_of(trial: FrozenTrial) -> float:
    """Return the mean NLL of a trial on the search windows, in nats a token; NaN if it has none."""
    return next(iter(values_of(trial)), math.nan)


def values_of(trial: FrozenTrial) -> list[float]:
    """Return all values that a study minimises, the mean NLL first; an empty list if the trial is not complete."""
    return list(trial.values or ()) if trial.state == TrialState.COMPLETE else []


def accuracy(trial: FrozenTrial) -> float:
    """Return the share of the search's multiple-choice questions that a trial answered right; NaN without any."""
    return mean_share(trial.user_attrs.get(RIGHT, ()))


def cut_share(trial: FrozenTrial) -> float:
    """Return the share of the answers to the search's tasks that were cut; NaN if none were generated."""
    return mean_share(trial.user_attrs.get(CUT, ()))

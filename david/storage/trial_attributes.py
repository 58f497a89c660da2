"""The attributes that David keeps in a trial, and how they are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

WINDOW_NLL = "window_nll"  # of a trial: the NLL of each window it has seen, summed over the window's tokens
WINDOW_TOKENS = "window_tokens"  # … and how many tokens of each were scored
UNIT = "unit"  # … what their mean is in, where that is not nats a token
RIGHT = "right"  # … which multiple-choice questions were answered right
PARTIAL = "partial"  # … where it was dropped before the last window: how many it has seen
ERROR = "error"  # … why it failed
NO_MEMORY = "no_memory"  # … where that was a want of memory, of which another worker may have more


def unbeaten(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of `values` `[R, K]` no other beats: none is as low in all and lower in one, or equal and before."""
    kept = np.ones(len(values), dtype=bool)
    for i, row in enumerate(values):
        as_low = (values <= row).all(axis=1)
        equal = (values == row).all(axis=1)
        kept[i] = not (as_low & ~equal).any() and not equal[:i].any()
    return kept


def value_of(trial: FrozenTrial) -> float:
    """The mean NLL of a trial on the search windows, nats a token; NaN where it has none."""
    return next(iter(values_of(trial)), math.nan)


def values_of(trial: FrozenTrial) -> list[float]:
    """All that a study minimises of a finished trial, the mean NLL first; nothing of any other."""
    return list(trial.values or ()) if trial.state == TrialState.COMPLETE else []


def accuracy(trial: FrozenTrial) -> float:
    """The share of multiple-choice questions of the search that a trial answered right; NaN where there are none."""
    return _share(trial.user_attrs.get(RIGHT, ()))


def _share(right: Sequence[bool]) -> float:
    """The share of what is true; NaN of nothing."""
    return sum(right) / len(right) if right else math.nan


@dataclass(frozen=True)
class HeldOut:
    """A finalist's score on the held-out windows: of each the NLL in nats, the scored tokens and the document.

    Of multiple-choice questions also which were answered `right`.
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int, ...]
    right: tuple[bool, ...] = ()

    @property
    def nll(self) -> float:
        """Mean NLL in nats a token."""
        return sum(self.window_nll) / sum(self.window_tokens)

    @property
    def accuracy(self) -> float:
        """The share of questions answered right; NaN of what is no multiple choice."""
        return _share(self.right)

"""How sure one may be that a recipe differs from its base: paired differences over windows, and a plain word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BETTER, WORSE, UNDECIDED = "better", "worse", "not told apart"


@dataclass(frozen=True)
class Difference:
    """Mean NLL of a recipe minus its base's in nats per token, with its corrected 95% interval; below 0 is better."""

    mean: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """`better` or `worse` where the interval lies on one side of 0, else `not told apart`."""
        if self.high < 0:
            return BETTER
        return WORSE if self.low > 0 else UNDECIDED


def paired_difference(
    recipe_nll: Sequence[float], base_nll: Sequence[float], tokens: Sequence[int], *, finalists: int = 1
) -> Difference:
    """Compare a recipe with its base on the same windows (sums of NLL, and scored tokens, of each window).

    The interval is Student's t over the windows' differences, at 1 − 0.05 / finalists (Bonferroni), so that all
    finalists' intervals hold together with 95%. With fewer than two windows it is infinite. A recipe with an
    infinite NLL is infinitely worse.
    """
    differences = np.asarray(recipe_nll, dtype=float) - np.asarray(base_nll, dtype=float)
    scored = np.asarray(tokens, dtype=float)
    if not np.all(np.isfinite(differences)):
        return Difference(math.inf, math.inf, math.inf)
    mean = float(differences.sum() / scored.sum())
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    # A ratio estimator: windows may score different numbers of tokens.
    spread = float(np.std(differences - mean * scored, ddof=1) / math.sqrt(len(differences)) / scored.mean())
    half = float(stats.t.ppf(1 - 0.025 / finalists, len(differences) - 1)) * spread
    return Difference(mean, mean - half, mean + half)

"""How sure one may be that a recipe differs from its base: paired differences over windows, and a plain word."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from david.errors import ScoreError

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
    recipe_nll: Sequence[float],
    base_nll: Sequence[float],
    tokens: Sequence[int],
    *,
    documents: Sequence[Hashable] | None = None,
    finalists: int = 1,
) -> Difference:
    """Compare a recipe with its base on the same windows (sums of NLL, and scored tokens, of each window).

    The interval is Student's t over the differences, at 1 − 0.05 / finalists (Bonferroni), so that all finalists'
    intervals hold together with 95%. Windows of one document depend on one another, so with the `documents` they come
    from, each document counts as one difference (a ratio estimator over clusters: Cochran, Sampling Techniques, 1977,
    chapter 6). Windows of one document alone are taken as independent, for want of better. With fewer than two windows
    the interval is infinite. A recipe with an infinite NLL is infinitely worse than a base that is finite, and the
    other way round. Raises `ScoreError` where the windows do not pair.
    """
    if not len(recipe_nll) == len(base_nll) == len(tokens) == len(documents or tokens):
        raise ScoreError(f"windows must pair: {len(recipe_nll)} of the recipe, {len(base_nll)} of the base")
    mine, its, scored = (np.asarray(values, dtype=float) for values in (recipe_nll, base_nll, tokens))
    infinite = not np.all(np.isfinite(mine)), not np.all(np.isfinite(its))
    if infinite == (True, True):
        return Difference(math.nan, -math.inf, math.inf)
    if any(infinite):
        return Difference(*[math.inf if infinite[0] else -math.inf] * 3)
    differences = mine - its
    if documents is not None and len(set(documents)) > 1:
        _, cluster = np.unique([str(document) for document in documents], return_inverse=True)
        differences, scored = np.bincount(cluster, differences), np.bincount(cluster, scored)
    mean = float(differences.sum() / scored.sum())
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    spread = float(np.std(differences - mean * scored, ddof=1) / math.sqrt(len(differences)) / scored.mean())
    half = float(stats.t.ppf(1 - 0.025 / finalists, len(differences) - 1)) * spread
    return Difference(mean, mean - half, mean + half)

"""How sure one may be that a recipe differs from its base: paired differences over windows, and a plain word."""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from david.errors import ScoreError
from david.support.text import brief

BETTER, WORSE, UNDECIDED = "better", "worse", "not told apart"

_AT_ONCE = 2**20  # numbers of a resampling that are in memory at once


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
    method: Literal["t", "bootstrap"] = "t",
    resamples: int = 9999,
    seed: int = 0,
) -> Difference:
    """Compare a recipe with its base on the same windows (sums of NLL, and scored tokens, of each window).

    The interval is at 1 − 0.05 / finalists (Bonferroni), so that all finalists' intervals hold together with 95%.
    Windows of one document depend on one another, so with the `documents` they come from, each document counts as one
    difference (a ratio estimator over clusters: Cochran, Sampling Techniques, 1977, chapter 6). Windows of one document
    alone are taken as independent, for want of better. With fewer than two windows the interval is infinite. A recipe
    with an infinite NLL is infinitely worse than a base that is finite, and the other way round.

    By `"t"` the interval is Student's, its spread found by leaving out one document at a time (the jackknife), its
    degrees of freedom one less than `effective_number` of documents: with documents of equal length it is the paired
    t-test's. By `"bootstrap"` the documents are drawn anew, `resamples` times from `seed` (BCa: Efron, Better bootstrap
    confidence intervals, Journal of the American Statistical Association 82, 1987). That needs dozens of documents of
    like length, since it sees nothing beyond those it has: of five finalists that are as good as the base, it calls
    some better in a quarter of studies on four documents. By t that is at most 3 in 100, or 8 where differences lean
    far to one side, so t is the default; experiments/verdict has the numbers.

    Raises `ScoreError` where the windows do not pair, or an option is out of range.

    Example:
        >>> found = paired_difference([10.0, 21.0, 33.0, 41.0], [12.0, 24.0, 34.0, 44.0], tokens=[10, 10, 10, 10])
        >>> round(found.mean, 3), found.word
        (-0.225, 'better')
    """
    if not len(recipe_nll) == len(base_nll) == len(tokens) == len(tokens if documents is None else documents):
        raise ScoreError(f"windows must pair: {len(recipe_nll)} of the recipe, {len(base_nll)} of the base")
    if method not in ("t", "bootstrap"):
        raise ScoreError(f"the method must be 't' or 'bootstrap'; got {brief(method)}")
    if finalists < 1:
        raise ScoreError(f"finalists must be at least 1; got {finalists}")
    check_drawing(resamples, seed)
    mine, its, scored = as_numbers(recipe_nll), as_numbers(base_nll), token_counts(tokens)
    infinite = not np.all(np.isfinite(mine)), not np.all(np.isfinite(its))
    if infinite == (True, True):
        return Difference(math.nan, -math.inf, math.inf)
    if any(infinite):
        return Difference(*[math.inf if infinite[0] else -math.inf] * 3)
    document = document_numbers(documents, len(scored))
    differences, scored = np.bincount(document, mine - its), np.bincount(document, scored)
    mean = float(differences.sum() / scored.sum())
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    outside = 0.05 / finalists
    if method == "bootstrap":
        return Difference(mean, *_bootstrap(differences, scored, outside, resamples, seed))
    left = (differences - mean * scored) / (scored.sum() - scored)
    spread = math.sqrt((1 - 1 / len(left)) * float(left @ left))
    half = spread and spread * float(stats.t.ppf(1 - outside / 2, effective_number(scored) - 1))
    return Difference(mean, mean - half, mean + half)


def as_numbers(values: Any, dimensions: int = 1) -> NDArray[Any]:
    """An array of numbers; `ScoreError` for what is none."""
    try:
        found = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        found = np.array(math.nan)
    if found.ndim != dimensions:
        raise ScoreError(f"expected numbers in {dimensions} dimension(s); got {brief(values)}")
    return found


def token_counts(tokens: Any) -> NDArray[Any]:
    """The scored tokens of windows `[W]`; `ScoreError` where there is no window, or one has none."""
    found = as_numbers(tokens)
    if not found.size or not np.all(np.isfinite(found)) or found.min() <= 0:
        raise ScoreError(f"expected the scored tokens of each window, 1 or more; got {brief(tokens)}")
    return found


def check_drawing(resamples: int, seed: int) -> None:
    """`ScoreError` unless something can be drawn so often, from this seed."""
    if resamples < 1 or seed < 0:
        raise ScoreError(f"resamples must be at least 1 and the seed 0 or more; got {resamples} and {seed}")


def effective_number(tokens: NDArray[Any]) -> float:
    """How many documents of equal length tell as much as those of so many tokens (Kish, Survey Sampling, 1965)."""
    return float(tokens.sum() ** 2 / (tokens @ tokens))


def document_numbers(documents: Sequence[Hashable] | None, windows: int) -> NDArray[np.intp]:
    """The document `[W]` of each window, from 0 on; each window is its own where all are of one, or none is known."""
    if documents is None or len(set(documents)) < 2:
        return np.arange(windows)
    numbers: NDArray[np.intp] = np.unique([str(document) for document in documents], return_inverse=True)[1]
    return numbers


def _bootstrap(
    differences: NDArray[Any], tokens: NDArray[Any], outside: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The interval of the ratio of two sums over documents `[G]`: BCa, or by percentiles where BCa is no number."""
    mean = float(differences.sum() / tokens.sum())
    if np.allclose(differences, mean * tokens, rtol=1e-12, atol=0):
        return mean, mean

    def _interval(method: str) -> tuple[float, float]:
        found = stats.bootstrap(
            (differences, tokens),
            lambda some, scored, axis: some.sum(axis=axis) / scored.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _AT_ONCE // len(tokens)),
            confidence_level=1 - outside,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        low, high = _interval("BCa")
    return _interval("percentile") if math.isnan(low) or math.isnan(high) else (low, high)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two scores of the same recipes, with its 95% interval, and how many recipes."""

    rho: float
    low: float
    high: float
    pairs: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """How alike two scores rank the same recipes: 1 for the same order, −1 for the reverse.

    The interval is Fisher's, with the standard error √((1 + ρ² / 2) / (pairs − 3)) of Bonett and Wright (Sample size
    requirements for estimating Pearson, Kendall and Spearman correlations, Psychometrika 65, 2000). A perfect order
    counts there as halfway to the next, or no doubt would be left after four pairs. Infinite scores are ranked last;
    pairs with a NaN are left out. With fewer than four pairs, or a score that is the same for all, all is NaN. Raises
    `ScoreError` where the scores do not pair.

    Example:
        >>> round(rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]).rho, 3)
        0.9
    """
    if len(first) != len(second):
        raise ScoreError(f"scores must pair: {len(first)} of the first, {len(second)} of the second")
    both = np.array([as_numbers(first), as_numbers(second)])
    both = both[:, ~np.isnan(both).any(axis=0)]
    pairs = both.shape[1]
    if pairs < 4 or (both == both[:, :1]).all(axis=1).any():
        return Correlation(math.nan, math.nan, math.nan, pairs)
    rho = float(stats.spearmanr(stats.rankdata(both[0]), stats.rankdata(both[1])).statistic)
    furthest = 1 - 6 / (pairs**3 - pairs)  # a swap of two neighbours takes twice that off
    inner = min(furthest, max(-furthest, rho))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + inner**2 / 2) / (pairs - 3))
    low, high = (math.tanh(math.atanh(inner) + side) for side in (-half, half))
    return Correlation(rho, min(low, rho), max(high, rho), pairs)

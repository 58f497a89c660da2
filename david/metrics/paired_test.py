"""Paired tests: whether a recipe differs from its base on the same windows.

`paired_difference` returns the mean difference with its corrected interval and a word for it; `rank_correlation`
compares the order in which two scores rank the same recipes.
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from david.errors import ScoreError
from david.support.arguments import check_whole
from david.support.text import brief

BETTER, WORSE, UNDECIDED = "better", "worse", "not told apart"
FEWEST_DOCUMENTS = 4  # below, an interval is many times as wide as the spread of what it was computed from
GROUP = "group "  # begins the name of several documents that count as one: copies of a text, or a named group

_BATCH_NUMBERS = 2**20  # of a resampling, in memory at once


@dataclass(frozen=True)
class Difference:
    """Difference of two mean NLLs, recipe minus base, with its interval; below 0 the recipe is better.

    Attributes:
        mean: The difference, in nats per token.
        low: Lower end of the corrected 95% interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """`better` or `worse` if the interval lies on one side of 0, else `not told apart` (inconclusive)."""
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
    """Test whether a recipe's mean NLL differs from its base's on the same windows.

    The interval is at 1 − 0.05 / finalists (Bonferroni), so that all finalists' intervals hold together with 95%.
    Windows of one document depend on one another, so each document counts as one difference (a ratio estimator over
    clusters: Cochran, Sampling Techniques, 1977, chapter 6), and so does each group of documents, such as copies of one
    text. Windows of a single document are treated as independent, since nothing better is possible; those of a single
    group, or fewer than two windows, leave the interval infinite. A recipe with an infinite NLL is infinitely worse
    than a base with a finite one, and conversely.

    With `"t"` the interval is Student's: the standard error comes from leaving out one document at a time (jackknife),
    the degrees of freedom are one less than `effective_number` of documents; with documents of equal length it is the
    paired t-test's. With `"bootstrap"` the documents are resampled (BCa: Efron, Better bootstrap confidence intervals,
    Journal of the American Statistical Association 82, 1987). That needs dozens of documents of similar length, since
    it sees nothing beyond those it has: of five finalists that are as good as the base, it calls some better in a
    quarter of studies on four documents. With t that is at most 3 in 100, or 8 if differences are strongly skewed, so
    t is the default; experiments/verdict has the numbers.

    Args:
        recipe_nll: NLL sum of each window `[W]` for the recipe, in nats.
        base_nll: NLL sum of each window `[W]` for the base, in nats.
        tokens: Scored tokens of each window `[W]`.
        documents: The document of each window `[W]`, or group (`Corpus.clusters`); left out, each window is its own.
        finalists: How many recipes are compared with the base.
        method: `"t"` or `"bootstrap"`.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        The difference with its interval.

    Raises:
        ScoreError: The windows do not pair, or an option is out of range.

    Example:
        >>> result = paired_difference([10.0, 21.0, 33.0, 41.0], [12.0, 24.0, 34.0, 44.0], tokens=[10, 10, 10, 10])
        >>> round(result.mean, 3), result.word
        (-0.225, 'better')
    """
    if not len(recipe_nll) == len(base_nll) == len(tokens) == len(tokens if documents is None else documents):
        raise ScoreError(f"windows must pair: {len(recipe_nll)} of the recipe, {len(base_nll)} of the base")
    if method not in ("t", "bootstrap"):
        raise ScoreError(f"the method must be 't' or 'bootstrap'; got {brief(method)}")
    if finalists < 1:
        raise ScoreError(f"finalists must be at least 1; got {finalists}")
    check_drawing(resamples, seed)
    recipe_sums, base_sums, scored = as_numbers(recipe_nll), as_numbers(base_nll), token_counts(tokens)
    infinite = not np.all(np.isfinite(recipe_sums)), not np.all(np.isfinite(base_sums))
    if infinite == (True, True):
        return Difference(math.nan, -math.inf, math.inf)
    if any(infinite):
        return Difference(*[math.inf if infinite[0] else -math.inf] * 3)
    document = document_numbers(documents, len(scored))
    differences, scored = np.bincount(document, recipe_sums - base_sums), np.bincount(document, scored)
    mean = float(differences.sum() / scored.sum())
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    error_rate = 0.05 / finalists
    if method == "bootstrap":
        return Difference(mean, *_bootstrap_interval(differences, scored, error_rate, resamples, seed))
    shifts = (differences - mean * scored) / (scored.sum() - scored)  # of the mean, when a document is left out
    standard_error = math.sqrt((1 - 1 / len(shifts)) * float(shifts @ shifts))
    half = standard_error and standard_error * float(stats.t.ppf(1 - error_rate / 2, effective_number(scored) - 1))
    return Difference(mean, mean - half, mean + half)


def as_numbers(values: Any, dimensions: int = 1) -> NDArray[Any]:
    """Return values as an array of floats.

    Raises:
        ScoreError: They are no numbers, or not in as many dimensions.
    """
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array(math.nan)
    if numbers.ndim != dimensions:
        raise ScoreError(f"expected numbers in {dimensions} dimension(s); got {brief(values)}")
    return numbers


def token_counts(tokens: Any) -> NDArray[Any]:
    """Return the scored tokens of windows as an array `[W]`.

    Raises:
        ScoreError: There is no window, or a window without scored tokens.
    """
    counts = as_numbers(tokens)
    if not counts.size or not np.all(np.isfinite(counts)) or counts.min() <= 0:
        raise ScoreError(f"expected the scored tokens of each window, 1 or more; got {brief(tokens)}")
    return counts


def check_drawing(resamples: int, seed: int) -> None:
    """Refuse a number of resamples below 1 or a negative seed with a `ScoreError`."""
    check_whole("resamples", resamples, ScoreError, least=1)
    check_whole("the seed", seed, ScoreError, least=0)


def effective_number(tokens: NDArray[Any]) -> float:
    """Return the effective sample size of documents with these tokens `[G]` (Kish, Survey Sampling, 1965)."""
    return float(tokens.sum() ** 2 / (tokens @ tokens))


def document_numbers(documents: Sequence[Hashable] | None, windows: int) -> NDArray[np.intp]:
    """Number the documents of windows from 0.

    Args:
        documents: The document of each window, or None if unknown.
        windows: The number W of windows.

    Returns:
        The number `[W]` of each window's document; each window is its own if all are of one document, or of none known.
        A group of documents (its name begins with `group `) stays one.
    """
    if documents is None or (len(names := set(documents)) < 2 and not any(str(n).startswith(GROUP) for n in names)):
        return np.arange(windows)
    numbers: NDArray[np.intp] = np.unique([str(document) for document in documents], return_inverse=True)[1]
    return numbers


def _bootstrap_interval(
    differences: NDArray[Any], tokens: NDArray[Any], error_rate: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the interval of the ratio of two sums over documents `[G]`: BCa, or percentiles if BCa is NaN."""
    mean = float(differences.sum() / tokens.sum())
    if np.allclose(differences, mean * tokens, rtol=1e-12, atol=0):
        return mean, mean

    def _interval(method: str) -> tuple[float, float]:
        interval = stats.bootstrap(
            (differences, tokens),
            lambda some, scored, axis: some.sum(axis=axis) / scored.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_NUMBERS // len(tokens)),
            confidence_level=1 - error_rate,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(interval.low), float(interval.high)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        low, high = _interval("BCa")
    return _interval("percentile") if math.isnan(low) or math.isnan(high) else (low, high)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two scores of the same recipes.

    Attributes:
        rho: The correlation, −1 … 1.
        low: Lower end of its 95% interval.
        high: Upper end of the interval.
        pairs: How many recipes have both scores.
    """

    rho: float
    low: float
    high: float
    pairs: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Return how similarly two scores rank the same recipes: 1 for the same order, −1 for the reverse.

    The interval is Fisher's, with the standard error √((1 + ρ² / 2) / (pairs − 3)) of Bonett and Wright (Sample size
    requirements for estimating Pearson, Kendall and Spearman correlations, Psychometrika 65, 2000). For it a perfect
    order counts as halfway to the next possible ρ, or four pairs would leave no uncertainty.

    Args:
        first: A score of each recipe; infinite scores are ranked last, recipes with a NaN are left out.
        second: The other score of the same recipes.

    Returns:
        The correlation; NaN with fewer than four pairs, or if a score is the same for all recipes.

    Raises:
        ScoreError: The scores differ in number, or are no numbers.

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
    limit = 1 - 6 / (pairs**3 - pairs)  # a swap of two neighbours takes twice that off
    inner = min(limit, max(-limit, rho))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + inner**2 / 2) / (pairs - 3))
    low, high = (math.tanh(math.atanh(inner) + side) for side in (-half, half))
    return Correlation(rho, min(low, rho), max(high, rho), pairs)

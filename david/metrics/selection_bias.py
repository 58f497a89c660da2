"""Selection bias: the best of many recipes looks better than the base even if none is.

`luck` estimates how much better by resampling; the result is the luck line of tables, plots and page.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from david.errors import ScoreError
from david.metrics.paired_test import (
    FEWEST_DOCUMENTS,
    as_numbers,
    check_drawing,
    document_numbers,
    effective_number,
    token_counts,
)

_BATCH_NUMBERS = 2**22  # of a resampling, in memory at once


@dataclass(frozen=True)
class Luck:
    """The lowest of many differences in mean NLL to the base, in nats per token: by luck alone, and as measured.

    NaN stands for what cannot be estimated.

    Attributes:
        typical: Median of the lowest difference by luck alone.
        extreme: Its 5% quantile: luck alone is lower once in twenty times.
        best: The lowest difference measured.
        chance: How often luck alone is as low as `best`, 0 … 1.
    """

    typical: float
    extreme: float
    best: float
    chance: float


def luck(
    differences: ArrayLike,
    tokens: Sequence[int],
    documents: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Luck:
    """Estimate the lowest mean difference that as many recipes, none better than the base, would show by luck.

    The documents are resampled with replacement, the same ones for all recipes, since these depend on one another. Each
    time the lowest mean counts, after each recipe's own mean is subtracted (White, A reality check for data snooping,
    Econometrica 68, 2000). The deviations are widened by √(n / (n − 1)), n being the `effective_number` of documents,
    since resampled means of few documents spread too little (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997). A recipe that is worse than the base by more than √(2 ln ln documents) standard errors keeps its
    mean: otherwise hundreds of ruined recipes with a huge spread would inflate the estimate (Hansen, A test for
    superior predictive ability, Journal of Business and Economic Statistics 23, 2005).

    Args:
        differences: NLL sums of recipes minus the base's on the search windows `[R, W]`, in nats. A recipe that racing
            stopped has NaN for the windows that it did not see: those it saw stand in for them, in turn, scaled to
            their tokens. Recipes with an infinite NLL, or without any window, are left out.
        tokens: Scored tokens of each window `[W]`.
        documents: The document of each window `[W]`, or group (`Corpus.clusters`); left out, each window is its own.
        resamples: Resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate. `best` is of recipes that saw all windows. With fewer than four documents the estimate is NaN:
        two or three can be drawn in three or ten ways only.

    Raises:
        ScoreError: The windows do not pair, or an option is out of range.
    """
    check_drawing(resamples, seed)
    if not len(differences):  # type: ignore[arg-type]
        return Luck(*[math.nan] * 4)
    sums, scored = as_numbers(differences, 2), token_counts(tokens)
    if not sums.shape[1] == len(scored) == len(scored if documents is None else documents):
        raise ScoreError(f"windows must pair: differences {list(sums.shape)}, tokens of {len(scored)} windows")
    sums = sums[~np.isinf(sums).any(axis=1) & ~np.isnan(sums).all(axis=1)]
    is_complete = ~np.isnan(sums).any(axis=1)
    _fill_missing_windows(sums, scored)
    document_sums, sizes = _sum_by_document(sums, scored, documents)
    means = document_sums.sum(axis=1) / sizes.sum()
    best = float(means[is_complete].min()) if is_complete.any() else math.nan
    if not len(means) or len(sizes) < FEWEST_DOCUMENTS:
        return Luck(math.nan, math.nan, best, math.nan)
    deviations = document_sums - means[:, None] * sizes
    deviations *= math.sqrt(1 / (1 - 1 / effective_number(sizes)))
    errors = np.sqrt(np.einsum("rg,rg->r", deviations, deviations)) / sizes.sum()
    threshold = math.sqrt(2 * math.log(math.log(max(len(sizes), 3))))
    retained_means = np.where(means > threshold * errors, means, 0)[:, None]
    lowest = np.concatenate(
        [
            (deviations @ counts / (sizes @ counts) + retained_means).min(axis=0)
            for counts in _resample_counts(len(deviations), len(sizes), resamples, seed)
        ]
    )
    chance = math.nan if math.isnan(best) else float(np.mean(lowest <= best))
    return Luck(float(np.median(lowest)), float(np.quantile(lowest, 0.05)), best, chance)


def _fill_missing_windows(sums: NDArray[Any], scored: NDArray[Any]) -> None:
    """Replace the NaN of windows that a recipe did not see by those it saw, in turn; changes `sums` `[R, W]`."""
    for row in np.flatnonzero(np.isnan(sums).any(axis=1)):
        missing = np.isnan(sums[row])
        sums[row, missing] = np.resize((sums[row] / scored)[~missing], missing.sum()) * scored[missing]


def _sum_by_document(
    sums: NDArray[Any], scored: NDArray[Any], documents: Sequence[Hashable] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sums over each document of the differences `[R, G]` and of the tokens `[G]`."""
    document = document_numbers(documents, len(scored))
    order = np.argsort(document, kind="stable")
    starts = np.searchsorted(document[order], np.arange(document.max() + 1))
    return np.add.reduceat(sums[:, order], starts, axis=1), np.bincount(document, scored)


def _resample_counts(recipes: int, documents: int, resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """Yield how often each document is in each resample `[G, batch]`, in batches that keep memory small."""
    draw = np.random.default_rng(seed)
    batch_size = max(1, _BATCH_NUMBERS // max(recipes, documents))
    for done in range(0, resamples, batch_size):
        batch = min(batch_size, resamples - done)
        yield draw.multinomial(documents, np.full(documents, 1 / documents), size=batch).T.astype(float)

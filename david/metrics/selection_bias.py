"""The luck line: the best of many recipes looks better than the base even where none is; how much better, by luck."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from david.errors import ScoreError
from david.metrics.paired_test import as_numbers, check_drawing, document_numbers, effective_number, token_counts

_AT_ONCE = 2**22  # numbers of a resampling that are in memory at once


@dataclass(frozen=True)
class Luck:
    """The lowest of many differences in mean NLL to the base, in nats a token: by luck alone, and as it was seen.

    `typical` is the median of what luck alone shows, `extreme` its 5% quantile: luck goes lower once in twenty. `best`
    is the lowest difference seen, and `chance` how often luck alone is as low. NaN is what cannot be told.
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
    """The best mean difference that as many recipes, none better than the base, would have shown on the same windows.

    `differences` `[R, W]` are NLL sums of recipes minus the base's on the search windows, in nats; `tokens` and
    `documents` are those of the windows (see `paired_difference`). The documents are drawn anew with replacement,
    `resamples` times and the same ones for all recipes, since these depend on one another. Each time the lowest mean is
    kept, after each recipe's own mean is taken off (White, A reality check for data snooping, Econometrica 68, 2000).
    What is left is widened by √(n / (n − 1)), n being the `effective_number` of documents, since resampled means of few
    documents spread too little (Davison and Hinkley, Bootstrap Methods and their Application, 1997). A recipe that is
    worse than the base by more than √(2 ln ln documents) standard errors keeps its mean: else luck would seem to owe
    much to hundreds of ruined recipes with a huge spread (Hansen, A test for superior predictive ability, Journal of
    Business and Economic Statistics 23, 2005).

    A raced recipe has not seen all windows, and has NaN for the others: those it has seen stand in for them again, in
    turn, token for token, as if it had gone on like that. Only recipes that saw all windows can be the `best`. Recipes
    with an infinite NLL, or no window at all, are left out. Fewer than two windows tell nothing of luck. Raises
    `ScoreError` where the windows do not pair, or an option is out of range.
    """
    check_drawing(resamples, seed)
    if not len(differences):  # type: ignore[arg-type]
        return Luck(*[math.nan] * 4)
    told, scored = as_numbers(differences, 2), token_counts(tokens)
    if not told.shape[1] == len(scored) == len(scored if documents is None else documents):
        raise ScoreError(f"windows must pair: differences {list(told.shape)}, tokens of {len(scored)} windows")
    told = told[~np.isinf(told).any(axis=1) & ~np.isnan(told).all(axis=1)]
    whole = ~np.isnan(told).any(axis=1)
    _fill(told, scored)
    sums, sizes = _by_document(told, scored, documents)
    means = sums.sum(axis=1) / sizes.sum()
    best = float(means[whole].min()) if whole.any() else math.nan
    if not len(means) or len(sizes) < 2:
        return Luck(math.nan, math.nan, best, math.nan)
    left = sums - means[:, None] * sizes
    left *= math.sqrt(1 / (1 - 1 / effective_number(sizes)))
    errors = np.sqrt(np.einsum("rg,rg->r", left, left)) / sizes.sum()
    clearly = math.sqrt(2 * math.log(math.log(max(len(sizes), 3))))
    kept = np.where(means > clearly * errors, means, 0)[:, None]
    lowest = np.concatenate(
        [
            (left @ times / (sizes @ times) + kept).min(axis=0)
            for times in _drawn(len(left), len(sizes), resamples, seed)
        ]
    )
    chance = math.nan if math.isnan(best) else float(np.mean(lowest <= best))
    return Luck(float(np.median(lowest)), float(np.quantile(lowest, 0.05)), best, chance)


def _fill(told: NDArray[Any], scored: NDArray[Any]) -> None:
    """Let the windows that a recipe has seen stand in, in turn, for those that it has not; changes `told` `[R, W]`."""
    for row in np.flatnonzero(np.isnan(told).any(axis=1)):
        missing = np.isnan(told[row])
        told[row, missing] = np.resize((told[row] / scored)[~missing], missing.sum()) * scored[missing]


def _by_document(
    told: NDArray[Any], scored: NDArray[Any], documents: Sequence[Hashable] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The sums over each document: of the differences `[R, G]`, and of the tokens `[G]`."""
    document = document_numbers(documents, len(scored))
    order = np.argsort(document, kind="stable")
    starts = np.searchsorted(document[order], np.arange(document.max() + 1))
    return np.add.reduceat(told[:, order], starts, axis=1), np.bincount(document, scored)


def _drawn(recipes: int, documents: int, resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """How often each document comes in each resample `[G, resamples]`, so many at once that memory stays small."""
    draw = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(recipes, documents))
    for done in range(0, resamples, at_once):
        some = min(at_once, resamples - done)
        yield draw.multinomial(documents, np.full(documents, 1 / documents), size=some).T.astype(float)

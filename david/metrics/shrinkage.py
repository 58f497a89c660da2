"""Shrinkage: how much of the finalists' gain on the search windows is left on the held-out ones."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from david.errors import ScoreError
from david.metrics.paired_test import as_numbers, paired_difference


@dataclass(frozen=True)
class Shrinkage:
    """The mean gain of the finalists over the base on the search windows, and the share of it that is left.

    Attributes:
        search_gain: Mean NLL of the base minus that of the finalists on the search windows.
        held_out_gain: The same on the held-out windows.
        left: `held_out_gain` over `search_gain`: 1 if all of the gain is left, 0 if none is; below 0 the finalists are
            worse than the base. NaN if there is no gain on the search windows.
        low: Lower end of the 95% interval of `left`.
        high: Upper end of the interval.
        finalists: How many finalists there are.
    """

    search_gain: float
    held_out_gain: float
    left: float
    low: float
    high: float
    finalists: int


def shrinkage(
    search_differences: Sequence[float],
    recipe_nll: ArrayLike,
    base_nll: Sequence[float],
    tokens: Sequence[int],
    documents: Sequence[Hashable] | None = None,
) -> Shrinkage:
    """Estimate which share of the finalists' mean gain on the search windows is left on the held-out windows.

    The best recipes of a search owe a part of their gain to luck, so that less of it is left on other data (Copas,
    Regression, prediction and shrinkage, Journal of the Royal Statistical Society B 45, 1983). If the recipes' true
    differences to the base are normal around 0 with variance τ², and those measured in the search have the noise σ²
    besides, then τ² / (τ² + σ²) of the gain is left on average, whichever recipes were picked.

    The interval says what the same finalists would show on ever more held-out data. So the gain on the search windows
    is a fixed number in it, and the mean of the finalists' held-out differences has the interval of
    `paired_difference`, by document.

    Args:
        search_differences: Mean NLL of each finalist minus the base's on the search windows `[F]`.
        recipe_nll: NLL sum of each held-out window for each finalist `[F, W]`.
        base_nll: NLL sum of each held-out window for the base `[W]`.
        tokens: Scored tokens of each held-out window `[W]`.
        documents: The document of each held-out window `[W]`; left out, each window is its own.

    Returns:
        The shrinkage.

    Raises:
        ScoreError: There is no finalist, or the finalists or windows do not pair.

    Example:
        >>> found = shrinkage([-0.5, -0.3], [[9, 19, 29], [8, 20, 30]], [10, 20, 30], tokens=[10, 10, 10])
        >>> found.search_gain, round(found.held_out_gain, 3), round(found.left, 3)
        (0.4, 0.083, 0.208)
    """
    gains, sums = -as_numbers(search_differences), as_numbers(recipe_nll, 2)
    if not len(gains) or len(gains) != len(sums):
        raise ScoreError(f"finalists must pair: {len(gains)} on the search windows, {len(sums)} on the held-out ones")
    difference = paired_difference(sums.mean(axis=0).tolist(), base_nll, tokens, documents=documents)
    search_gain = float(np.mean(gains))
    if not search_gain > 0:
        return Shrinkage(search_gain, -difference.mean, math.nan, math.nan, math.nan, len(gains))
    left, low, high = (-value / search_gain for value in (difference.mean, difference.high, difference.low))
    return Shrinkage(search_gain, -difference.mean, left, low, high, len(gains))

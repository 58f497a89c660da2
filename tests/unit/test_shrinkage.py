"""Shrinkage and rank correlations of objectives: against simulated studies whose truth is known."""

import math

import numpy as np
import pytest

from david.errors import ScoreError
from david.metrics.paired_test import paired_difference, rank_correlation
from david.metrics.shrinkage import Shrinkage, shrinkage

RECIPES, FINALISTS, SEARCH, HELD_OUT = 40, 5, 12, 24


def simulated(rng: np.random.Generator, spread: float, noise: float = 1.0) -> tuple[Shrinkage, float]:
    """A study whose recipes truly differ from the base by normal draws: what is found, and the true share left."""
    truth = rng.normal(0, spread, RECIPES)
    searched = truth + rng.normal(0, noise, (SEARCH, RECIPES)).mean(axis=0)
    best = np.argsort(searched)[:FINALISTS]
    base = rng.normal(40, 5, HELD_OUT)
    held_out = base + 10 * (truth[best, None] + rng.normal(0, noise, (FINALISTS, HELD_OUT)))
    found = shrinkage(searched[best].tolist(), held_out, base.tolist(), [10] * HELD_OUT)
    return found, float(truth[best].mean() / searched[best].mean())


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0])
def test_the_interval_holds_the_true_share_in_95_of_100_studies(spread: float) -> None:
    rng = np.random.default_rng(3)
    studies = [simulated(rng, spread) for _ in range(1000)]
    covered = np.mean([found.low <= truth <= found.high for found, truth in studies])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(studies))


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0])
def test_the_mean_share_is_that_of_the_normal_model(spread: float) -> None:
    rng = np.random.default_rng(4)
    left = [simulated(rng, spread)[0].left for _ in range(1000)]
    expected = spread**2 / (spread**2 + 1 / SEARCH)
    assert abs(np.mean(left) - expected) < 3.5 * np.std(left) / math.sqrt(len(left))


def test_one_finalist_has_the_interval_of_its_difference() -> None:
    rng = np.random.default_rng(0)
    base, recipe = rng.normal(40, 5, (2, 9)).tolist()
    documents = [0, 0, 1, 1, 1, 2, 3, 4, 4]
    found = shrinkage([-0.2], [recipe], base, [10] * 9, documents)
    plain = paired_difference(recipe, base, [10] * 9, documents=documents)
    assert (found.held_out_gain, found.left) == pytest.approx((-plain.mean, -plain.mean / 0.2))
    assert (found.low, found.high) == pytest.approx((-plain.high / 0.2, -plain.low / 0.2))


def test_without_a_gain_there_is_no_share() -> None:
    found = shrinkage([0.1, -0.05], [[9, 20], [9, 20]], [10, 20], [10, 10])
    assert found.search_gain == pytest.approx(-0.025)
    assert found.held_out_gain == pytest.approx(0.05)
    assert math.isnan(found.left)


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(ScoreError, match="finalists must pair: 2 on the search windows, 1 on the held-out ones"):
        shrinkage([0.1, 0.2], [[1, 2]], [1, 2], [1, 1])
    with pytest.raises(ScoreError, match="finalists must pair"):
        shrinkage([], np.zeros((0, 2)), [1, 2], [1, 1])
    with pytest.raises(ScoreError, match="windows must pair"):
        shrinkage([0.1], [[1, 2, 3]], [1, 2], [1, 1])


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.8])
@pytest.mark.parametrize("recipes", [12, 40])
def test_the_interval_of_a_rank_correlation_holds_the_true_one(correlation: float, recipes: int) -> None:
    """Two objectives that are bivariate normal have the rank correlation 6 / π · arcsin(ρ / 2) (Pearson, 1907)."""
    rng = np.random.default_rng(5)
    truth = 6 / math.pi * math.asin(correlation / 2)
    covered = 0
    for _ in range(600):
        first = rng.normal(size=recipes)
        second = correlation * first + math.sqrt(1 - correlation**2) * rng.normal(size=recipes)
        found = rank_correlation(first.tolist(), second.tolist())
        covered += found.low <= truth <= found.high
    assert 0.925 < covered / 600 < 0.98

"""Paired differences: against scipy, against a hand computation, and against a simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats

from david.verdict import Difference, paired_difference

RECIPE, BASE = [21.0, 33.5, 18.25, 40.0, 27.0], [22.0, 33.0, 19.75, 41.5, 27.25]  # sums over windows of ten tokens


@pytest.mark.parametrize("finalists", [1, 2, 5, 50])
def test_with_equal_windows_the_interval_is_that_of_the_paired_t_test(finalists: int) -> None:
    found = paired_difference(RECIPE, BASE, [10] * 5, finalists=finalists)
    test = stats.ttest_rel(np.divide(RECIPE, 10), np.divide(BASE, 10))
    interval = test.confidence_interval(confidence_level=1 - 0.05 / finalists)
    assert found.mean == pytest.approx(-0.075)  # (−1 + 0.5 − 1.5 − 1.5 − 0.25) / 50
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


# Differences (2, −6, 1) on windows of (2, 4, 2) tokens: −3/8 a token; what is left, (2.75, −4.5, 1.75), has the
# variance 15.4375. Student's t for two degrees of freedom, from the printed tables: 4.30265 for 95%, 9.92484 for 99%.
@pytest.mark.parametrize(("finalists", "t"), [(1, 4.30265), (5, 9.92484)])
def test_windows_of_unequal_length_are_weighed_by_their_tokens(finalists: int, t: float) -> None:
    found = paired_difference([5, 4, 8], [3, 10, 7], [2, 4, 2], finalists=finalists)
    half = t * math.sqrt(15.4375 / 3) / (8 / 3)
    assert found.mean == -3 / 8
    assert (found.low, found.high) == pytest.approx((-3 / 8 - half, -3 / 8 + half), rel=1e-5)


def test_more_finalists_widen_the_interval_and_never_move_the_mean() -> None:
    alone, among_ten = (paired_difference(RECIPE, BASE, [10] * 5, finalists=n) for n in (1, 10))
    assert among_ten.mean == alone.mean
    assert among_ten.low < alone.low < alone.high < among_ten.high


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.3, -0.1, "better"),
        (0.1, 0.3, "worse"),
        (-0.1, 0.1, "not told apart"),
        (-0.1, 0.0, "not told apart"),
        (0.0, 0.1, "not told apart"),
        (-math.inf, math.inf, "not told apart"),
        (math.inf, math.inf, "worse"),
    ],
)
def test_the_word_follows_the_side_of_zero_on_which_the_whole_interval_lies(low: float, high: float, word: str) -> None:
    assert Difference((low + high) / 2, low, high).word == word


def test_a_recipe_that_is_its_base_is_not_told_apart_from_it() -> None:
    assert paired_difference(BASE, BASE, [10] * 5) == Difference(0.0, 0.0, 0.0)
    assert paired_difference(BASE, BASE, [10] * 5).word == "not told apart"


def test_one_window_tells_a_mean_and_no_certainty() -> None:
    found = paired_difference([12.0], [14.0], [8])
    assert found == Difference(-0.25, -math.inf, math.inf)
    assert found.word == "not told apart"


def test_a_recipe_with_an_infinite_nll_is_infinitely_worse() -> None:
    found = paired_difference([21.0, math.inf, 18.25], [22.0, 33.0, 19.75], [10, 10, 10])
    assert found == Difference(math.inf, math.inf, math.inf)
    assert found.word == "worse"


TRUTH = 0.02  # nats a token


def simulated(rng: np.random.Generator, windows: int, *, equal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Window sums of a recipe that is TRUTH a token worse than its base, with noise, and the tokens of each window."""
    tokens = np.full(windows, 511.0) if equal else rng.integers(100, 512, windows).astype(float)
    base = tokens * rng.normal(3.0, 0.4, windows)
    return base + tokens * rng.normal(TRUTH, 0.05, windows), base, tokens


@pytest.mark.parametrize("equal", [True, False], ids=["equal windows", "unequal windows"])
def test_the_interval_holds_the_truth_in_about_95_of_100_studies(equal: bool) -> None:
    rng = np.random.default_rng(0)
    found = [paired_difference(*map(list, simulated(rng, 40, equal=equal))) for _ in range(4000)]
    assert 0.93 < np.mean([one.low <= TRUTH <= one.high for one in found]) < 0.97


def test_the_intervals_of_five_finalists_hold_together_in_about_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    together = [
        all(
            one.low <= TRUTH <= one.high
            for one in (paired_difference(*map(list, simulated(rng, 20, equal=True)), finalists=5) for _ in range(5))
        )
        for _ in range(1000)
    ]
    assert 0.93 < np.mean(together) < 0.97


def test_windows_of_one_document_count_as_one_difference() -> None:
    recipe, base, tokens = [5.0, 7.0, 4.0, 9.0, 3.0], [4.0, 7.5, 4.5, 7.0, 3.5], [2, 3, 2, 4, 1]
    found = paired_difference(recipe, base, tokens, documents=[0, 0, 1, 1, 2])
    assert found == paired_difference([12.0, 13.0, 3.0], [11.5, 11.5, 3.5], [5, 6, 1])
    assert paired_difference(recipe, base, tokens, documents=[8] * 5) == paired_difference(recipe, base, tokens)


def test_the_interval_holds_under_a_strong_effect_of_the_document() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(6), 4)
    held = [0, 0]
    for _ in range(2000):
        differences = rng.normal(size=6)[documents] + 0.3 * rng.normal(size=24)
        for place, of in enumerate((None, list(documents))):
            found = paired_difference(list(differences), [0.0] * 24, [10] * 24, documents=of)
            held[place] += found.low <= 0 <= found.high
    assert held[0] / 2000 < 0.8  # windows taken as independent
    assert 0.93 < held[1] / 2000 < 0.97

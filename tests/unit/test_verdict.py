"""Paired differences and rank correlation: against scipy, hand computations, and a simulated truth."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from david.errors import ScoreError
from david.metrics.paired_test import Difference, effective_number, paired_difference, rank_correlation
from experiments.verdict import simulate

RECIPE, BASE = [21.0, 33.5, 18.25, 40.0, 27.0], [22.0, 33.0, 19.75, 41.5, 27.25]  # sums over windows of ten tokens


@pytest.mark.parametrize("finalists", [1, 2, 5, 50])
def test_with_equal_windows_the_interval_is_that_of_the_paired_t_test(finalists: int) -> None:
    found = paired_difference(RECIPE, BASE, [10] * 5, finalists=finalists)
    test = stats.ttest_rel(np.divide(RECIPE, 10), np.divide(BASE, 10))
    interval = test.confidence_interval(confidence_level=1 - 0.05 / finalists)
    assert found.mean == pytest.approx(-0.075)  # (−1 + 0.5 − 1.5 − 1.5 − 0.25) / 50
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


# Differences (−1, 1, 0, −6) on documents of (3, 1, 1, 1) tokens: −1 a token; what is left, (2, 2, 1, −5), moves the
# mean by (2/3, 2/5, 1/5, −1) where a document is left out: 3/4 of their squares is 37/30. The documents tell as much as
# 6² / (9 + 1 + 1 + 1) = 3 of equal length. Student's t for two degrees of freedom, from the printed tables: 4.30265 for
# 95%, 9.92484 for 99%.
@pytest.mark.parametrize(("finalists", "t"), [(1, 4.30265), (5, 9.92484)])
def test_documents_of_unequal_length_are_weighed_by_their_tokens(finalists: int, t: float) -> None:
    found = paired_difference([5, 7, 3, 4], [6, 6, 3, 10], [3, 1, 1, 1], finalists=finalists)
    half = t * math.sqrt(37 / 30)
    assert found.mean == -1
    assert (found.low, found.high) == pytest.approx((-1 - half, -1 + half), rel=1e-5)


def test_the_effective_number_is_the_number_where_lengths_are_equal_and_near_one_where_one_is_all() -> None:
    assert effective_number(np.full(7, 30.0)) == 7
    assert effective_number(np.array([3.0, 1.0, 1.0, 1.0])) == 3
    assert effective_number(np.array([1e6, 1.0, 1.0])) == pytest.approx(1, abs=1e-5)


def test_where_one_document_is_all_nothing_is_told() -> None:
    found = paired_difference([-5e6, -5.0, -5.01], [0.0] * 3, [10**6, 1, 1])
    assert (found.mean, found.word) == (pytest.approx(-5), "not told apart")


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


BOTH = pytest.mark.parametrize("method", ["t", "bootstrap"])


@BOTH
def test_a_recipe_that_is_its_base_is_not_told_apart_from_it(method: Any) -> None:
    found = paired_difference(BASE, BASE, [10] * 5, method=method)
    assert found == Difference(0.0, 0.0, 0.0)
    assert found.word == "not told apart"


@BOTH
def test_a_difference_that_is_the_same_on_all_windows_is_certain(method: Any) -> None:
    found = paired_difference([21.0, 31.0, 9.0], [22.0, 33.0, 9.5], [10, 20, 5], method=method)
    assert (found.mean, found.low, found.high) == pytest.approx([-0.1] * 3)
    assert found.word == "better"


@BOTH
def test_one_window_tells_a_mean_and_no_certainty(method: Any) -> None:
    found = paired_difference([12.0], [14.0], [8], method=method)
    assert found == Difference(-0.25, -math.inf, math.inf)
    assert found.word == "not told apart"


@BOTH
def test_a_recipe_with_an_infinite_nll_is_infinitely_worse(method: Any) -> None:
    some, others = [21.0, math.inf, 18.25], [22.0, 33.0, 19.75]
    assert paired_difference(some, others, [10] * 3, method=method) == Difference(math.inf, math.inf, math.inf)
    assert paired_difference(some, others, [10] * 3, method=method).word == "worse"
    assert paired_difference(others, some, [10] * 3, method=method).word == "better"
    assert paired_difference(some, some, [10] * 3, method=method).word == "not told apart"


def test_what_does_not_pair_and_an_unknown_method_are_refused() -> None:
    with pytest.raises(ScoreError, match="2 of the recipe, 1 of the base"):
        paired_difference([1.0, 2.0], [1.0], [3, 3])
    with pytest.raises(ScoreError, match="'t' or 'bootstrap'; got 'wilcoxon'"):
        paired_difference([1.0, 2.0], [1.0, 2.0], [3, 3], method="wilcoxon")  # type: ignore[arg-type]


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


@pytest.mark.slow
def test_neither_few_nor_long_documents_make_the_default_call_a_null_recipe_better() -> None:
    found = {name: simulate.shares(simulate.none_better(name, 8, 300))[0] for name in list(simulate.KINDS)[:-1]}
    assert max(found.values()) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("documents", simulate.HELD_OUT)
@pytest.mark.parametrize("name", [name for name, kind in simulate.KINDS.items() if not kind.leans])
def test_better_appears_in_at_most_six_of_a_hundred_studies_in_which_nothing_is(name: str, documents: int) -> None:
    assert simulate.shares(simulate.none_better(name, documents, 2000))[0] <= 0.06


# The bootstrap


def bca(differences: Any, tokens: Any, outside: float, resamples: int) -> tuple[float, float]:
    """Efron's interval of a ratio of sums, as it is written in his paper."""
    n, mean = len(tokens), differences.sum() / tokens.sum()
    drawn = np.random.default_rng(7).integers(0, n, (resamples, n))
    again = np.sort(differences[drawn].sum(axis=1) / tokens[drawn].sum(axis=1))
    left_out = np.array([np.delete(differences, i).sum() / np.delete(tokens, i).sum() for i in range(n)])
    bent = left_out.mean() - left_out
    acceleration = (bent**3).sum() / (6 * (bent**2).sum() ** 1.5)
    shift = stats.norm.ppf((again < mean).mean() / 2 + (again <= mean).mean() / 2)
    ends = shift + stats.norm.ppf([outside / 2, 1 - outside / 2])
    low, high = np.quantile(again, stats.norm.cdf(shift + ends / (1 - acceleration * ends)))
    return low, high


@pytest.mark.parametrize("finalists", [1, 5])
def test_the_bootstrap_draws_documents_and_is_bias_corrected_and_accelerated(finalists: int) -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), rng.integers(1, 5, 20))
    tokens = rng.integers(50, 200, len(documents))
    recipe = tokens * (rng.exponential(0.2, 20)[documents] + rng.normal(0, 0.1, len(documents)))
    given = list(recipe), [0.0] * len(tokens), list(tokens)
    found = paired_difference(*given, documents=list(documents), finalists=finalists, method="bootstrap")
    expected = bca(np.bincount(documents, recipe), np.bincount(documents, tokens), 0.05 / finalists, 100_000)
    assert found.mean == paired_difference(*given, documents=list(documents)).mean
    assert (found.low, found.high) == pytest.approx(expected, rel=0.03)


def test_the_same_seed_gives_the_same_bootstrap() -> None:
    one, same, other = (
        paired_difference(RECIPE, BASE, [10] * 5, method="bootstrap", resamples=500, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert one.mean == other.mean


def test_with_many_documents_both_methods_tell_the_same() -> None:
    recipe, base, tokens = map(list, simulated(np.random.default_rng(0), 400, equal=False))
    by_t, by_bootstrap = (paired_difference(recipe, base, tokens, method=method) for method in ("t", "bootstrap"))
    assert (by_bootstrap.low, by_bootstrap.high) == pytest.approx(
        (by_t.low, by_t.high), abs=0.1 * (by_t.high - by_t.low)
    )


def test_two_documents_are_enough_for_an_interval_by_bootstrap() -> None:
    found = paired_difference([1.0, 3.0], [2.0, 5.0], [10, 10], method="bootstrap")
    assert (found.mean, found.low, found.high) == pytest.approx((-0.15, -0.2, -0.1))


@pytest.mark.slow
def test_the_bootstrap_is_fooled_by_four_documents_and_the_default_is_not() -> None:
    held = simulate.none_better("gaussian", 4, 300)
    assert simulate.shares(held)[0] < 0.06
    assert simulate.shares(held, "bootstrap")[0] > 0.2


# Rank correlation


# Ranks (1, 2, 3, 4, 5) and (2, 1, 4, 3, 5): 1 − 6 · 4 / 120 = 0.8. Its z is 1.0986, its error √(1.32 / 2) = 0.8124;
# 1.0986 ∓ 1.96 · 0.8124 are −0.4937 and 2.6909.
def test_the_rank_correlation_and_its_interval_are_those_computed_by_hand() -> None:
    found = rank_correlation([0.1, 0.2, 0.4, 0.9, 7.0], [20, -1, 31, 30, 32])
    assert (found.rho, found.low, found.high) == pytest.approx((0.8, -0.4571, 0.9908), abs=1e-4)
    assert found.pairs == 5


def test_the_interval_of_the_rank_correlation_holds_the_truth_in_about_95_of_100_samples() -> None:
    rng, truth = np.random.default_rng(0), 6 / math.pi * math.asin(0.7 / 2)  # of a bivariate normal distribution
    held = 0
    for _ in range(1000):
        first = rng.normal(size=25)
        found = rank_correlation(list(first), list(0.7 * first + math.sqrt(1 - 0.7**2) * rng.normal(size=25)))
        held += found.low <= truth <= found.high
    assert 0.93 < held / 1000 < 0.97


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_of_a_few_leaves_doubt(sign: int) -> None:
    found = rank_correlation([1, 2, 3, 4], [sign * value for value in (1, 2, 3, 4)])
    near, far = (found.high, found.low) if sign == 1 else (found.low, found.high)
    assert found.rho == pytest.approx(sign)
    assert near == found.rho
    assert sign * far < 0


def test_ties_share_a_rank_and_an_infinite_score_is_last() -> None:
    first, second = [1.0, 1.0, 2.0, 5.0, math.inf], [3.0, 4.0, 4.0, 9.0, 8.0]
    assert rank_correlation(first, second).rho == pytest.approx(stats.spearmanr([1, 1, 2, 5, 6], second).statistic)


def test_what_cannot_be_ranked_is_not_a_number() -> None:
    nothing = [math.nan] * 3
    for first, second, pairs in (
        ([], [], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, math.nan, 4], [1, 2, 3, 4], 3),
        ([1, 1, 1, 1], [1, 2, 3, 4], 4),
        ([1, 2, 3, 4], [math.inf] * 4, 4),
    ):
        found = rank_correlation(first, second)
        assert [found.rho, found.low, found.high] == pytest.approx(nothing, nan_ok=True)
        assert found.pairs == pairs
    with pytest.raises(ScoreError, match="4 of the first, 3 of the second"):
        rank_correlation([1, 2, 3, 4], [1, 2, 3])

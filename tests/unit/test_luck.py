"""The luck line: against another implementation, against simulated studies, and where there is nothing to tell."""

import math
import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest

from david.errors import ScoreError
from david.metrics.selection_bias import Luck, luck
from experiments.verdict import simulate

NAN = math.nan
TOKENS = [10, 10, 5, 10, 8, 10]
DOCUMENTS = ["a", "a", "b", "c", "c", "d"]


def drawn(recipes: int, windows: int = 6, *, mean: float = 0.0, seed: int = 0) -> Any:
    """Differences of recipes to their base, in nats, summed over windows of ten tokens."""
    return 10 * np.random.default_rng(seed).normal(mean, 0.05, (recipes, windows))


def by_hand(differences: Any, tokens: list[int], documents: list[str]) -> list[float]:
    """The lowest mean in every possible resample of the documents, with neither draws nor arrays."""
    names = sorted(set(documents))
    windows = {name: [i for i, document in enumerate(documents) if document == name] for name in names}
    sizes = {name: sum(tokens[i] for i in windows[name]) for name in names}
    effective = sum(tokens) ** 2 / sum(size**2 for size in sizes.values())
    lowest = []
    for resample in product(names, repeat=len(names)):
        means = []
        for its in differences:
            mean = sum(its) / sum(tokens)
            left = {name: sum(its[i] for i in windows[name]) - mean * sizes[name] for name in names}
            left = {name: value * math.sqrt(effective / (effective - 1)) for name, value in left.items()}
            error = math.sqrt(sum(value**2 for value in left.values())) / sum(tokens)
            clearly_worse = mean > math.sqrt(2 * math.log(math.log(len(names)))) * error
            moved = sum(left[name] for name in resample) / sum(sizes[name] for name in resample)
            means.append(moved + mean * clearly_worse)
        lowest.append(min(means))
    return lowest


@pytest.mark.parametrize("ruined", [0, 5])
def test_the_line_is_that_of_all_resamples_computed_by_hand(ruined: int) -> None:
    differences = drawn(4)
    differences[0] -= 0.5
    differences = np.concatenate([differences, 8 * drawn(ruined, mean=0.3, seed=1)])
    found, every = (
        luck(differences, TOKENS, DOCUMENTS, resamples=40_000),
        np.array(by_hand(differences, TOKENS, DOCUMENTS)),
    )
    assert found.best == pytest.approx(min(sum(its) / sum(TOKENS) for its in differences))
    assert found.chance == pytest.approx((every <= found.best).mean(), abs=0.01)
    for value, share in ((found.typical, 0.5), (found.extreme, 0.05)):  # of 256 resamples: steps, not a curve
        assert (every < value - 1e-9).mean() - 0.01 <= share <= (every <= value + 1e-9).mean() + 0.01


def test_with_one_recipe_the_line_is_that_of_its_own_spread() -> None:
    found = luck(drawn(1, 400), [10] * 400)
    error = drawn(1, 400).std() / 10 / math.sqrt(400)
    assert found.typical == pytest.approx(0, abs=0.1 * error)
    assert found.extreme == pytest.approx(-1.645 * error, rel=0.1)


def test_more_recipes_are_luckier() -> None:
    lines = [luck(drawn(recipes, 48), [10] * 48) for recipes in (1, 10, 100)]
    assert lines[0].typical > lines[1].typical > lines[2].typical
    assert lines[0].extreme > lines[1].extreme > lines[2].extreme
    assert all(line.extreme < line.typical for line in lines)


def test_a_recipe_that_is_better_goes_below_the_line_and_does_not_move_it() -> None:
    differences = drawn(50, 48)
    without = luck(differences, [10] * 48)
    differences[7] -= 1  # 0.1 nats a token: fourteen standard errors
    found = luck(differences, [10] * 48)
    assert (found.typical, found.extreme) == pytest.approx((without.typical, without.extreme))
    assert found.best < found.extreme
    assert found.chance == 0 < without.chance


def test_ruined_recipes_do_not_move_the_line() -> None:
    differences, ruined = drawn(50, 12), 40 * drawn(300, 12, mean=0.5, seed=1)  # 20 nats worse, forty times the spread
    alone, among = luck(differences, [10] * 12), luck(np.concatenate([differences, ruined]), [10] * 12)
    assert among == alone


@pytest.mark.parametrize(("documents", "windows"), simulate.SEARCH)
def test_the_best_of_recipes_no_better_than_the_base_is_below_the_line_about_once_in_twenty(
    documents: int, windows: int
) -> None:
    searched = simulate.drawn(
        np.random.default_rng(0), simulate.Kind(), 400, simulate.RECIPES, np.full(documents, windows)
    )
    owners = searched.documents.tolist()
    found = [luck(nll[1:] - nll[0], searched.tokens, owners, resamples=500) for nll in searched.nll]
    assert 0.01 <= np.mean([line.best < line.extreme for line in found]) <= 0.08


# Windows not seen


def test_the_windows_a_recipe_has_seen_stand_in_again_for_those_it_has_not() -> None:
    differences = drawn(6)
    raced, filled = differences.copy(), differences.copy()
    raced[4, 2:] = NAN
    filled[4, 2:] = [differences[4, 0] * 0.5, differences[4, 1], differences[4, 0] * 0.8, differences[4, 1]]
    expected = luck(filled, TOKENS, DOCUMENTS)
    found = luck(raced, TOKENS, DOCUMENTS)
    assert (found.typical, found.extreme) == pytest.approx((expected.typical, expected.extreme))


def test_only_a_recipe_that_saw_all_windows_is_the_best() -> None:
    differences = drawn(6)
    differences[4, :2] -= 50
    differences[4, 2:] = NAN
    found = luck(differences, TOKENS)
    assert found.best == pytest.approx(np.delete(differences, 4, axis=0).sum(axis=1).min() / sum(TOKENS))
    raced = luck(differences[4:5], TOKENS)
    assert math.isnan(raced.best)
    assert math.isnan(raced.chance)
    assert math.isfinite(raced.extreme)


def test_infinite_recipes_and_those_without_a_window_are_left_out() -> None:
    differences = drawn(6)
    differences[1, 3], differences[2, :] = math.inf, NAN
    assert luck(differences, TOKENS) == luck(differences[[0, 3, 4, 5]], TOKENS)


# Nothing to tell


@pytest.mark.parametrize("differences", [[], np.empty((0, 6)), [[NAN] * 6] * 3, [[math.inf] * 6]])
def test_without_recipes_there_is_no_line(differences: Any) -> None:
    assert all(math.isnan(value) for value in vars(luck(differences, TOKENS)).values())


def test_one_window_tells_the_best_and_nothing_of_luck() -> None:
    found = luck([[3.0], [-2.0]], [10])
    assert found.best == -0.2
    assert all(math.isnan(value) for value in (found.typical, found.extreme, found.chance))


def test_windows_of_one_document_are_taken_as_independent() -> None:
    assert luck(drawn(5), TOKENS, ["a"] * 6) == luck(drawn(5), TOKENS) == luck(drawn(5), TOKENS, list("abcdef"))


def test_recipes_that_are_the_base_are_as_good_as_luck() -> None:
    assert luck(np.zeros((3, 6)), TOKENS) == Luck(0.0, 0.0, 0.0, 1.0)


def test_what_does_not_pair_is_refused() -> None:
    for given in ((drawn(2), TOKENS[1:]), (drawn(2), TOKENS, DOCUMENTS[1:]), (drawn(2)[0], TOKENS)):
        with pytest.raises(ScoreError, match=r"windows must pair|expected numbers"):
            luck(*given)


def test_what_is_given_is_not_changed_and_gives_the_same_again() -> None:
    differences = drawn(6)
    differences[4, 2:] = NAN
    before = differences.copy()
    assert luck(differences, TOKENS) == luck(differences, TOKENS) != luck(differences, TOKENS, seed=1)
    np.testing.assert_array_equal(differences, before)


def test_thousands_of_recipes_on_a_thousand_windows_fit_into_memory() -> None:
    differences = drawn(5000, 1000)
    tracemalloc.start()
    luck(differences, [10] * 1000, resamples=900)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * differences.nbytes

"""Strategies, on studies without a model: what they ask for, where they end, and that they find what was planted."""

import math
from collections.abc import Callable, Sequence

import optuna
import pytest
from optuna import Study

from david.candidates.neighbours import neighbours
from david.candidates.strategies import Beam, Refine, Scan, Strategy, singles, strategy_named
from david.errors import SearchError
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from tests.helpers.handmade_studies import add, new_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

Landscape = Callable[[Recipe], float]


def distance(one: Sequence[object], other: Sequence[object]) -> int:
    """How many visits must be added, dropped or exchanged to make one recipe the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, start=1):
        new = [i]
        for j, its in enumerate(other, start=1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (mine != its)))
        row = new
    return row[-1]


def towards(target: Recipe) -> Landscape:
    """The nearer to a recipe, the lower."""
    return lambda recipe: 1 + 0.1 * distance(list(recipe), list(target))


def played(strategy: Strategy, nll: Landscape, n_layers: int, study: Study | None = None, limit: int = 3000) -> Study:
    """A study in which the base was scored, and then all that a strategy asked for until its end."""
    study = study or new_study(n_layers)
    if not study.trials:
        add(study, Recipe.identity(n_layers), nll(Recipe.identity(n_layers)))
    while (wanted := strategy(study, n_layers)) and len(study.trials) < limit:
        assert len(set(wanted)) == len(wanted)
        for recipe in wanted:
            add(study, recipe, nll(recipe))
    assert len({trial.user_attrs["recipe"] for trial in study.trials}) == len(study.trials)
    return study


def recipes_of(study: Study) -> list[Recipe]:
    return [Recipe.parse(trial.user_attrs["recipe"]) for trial in study.trials]


def best_of(study: Study) -> Recipe:
    return Recipe.parse(study.best_trial.user_attrs["recipe"])


def test_a_scan_is_every_block_once() -> None:
    assert recipes_of(played(Scan(2), lambda _: 1.0, 6)) == [Recipe.identity(6), *all_blocks(6, 2)]
    assert recipes_of(played(Scan(), lambda _: 1.0, 8)) == [Recipe.identity(8), *all_blocks(8, 2)]  # a quarter


def test_a_beam_stacks_the_best_blocks_as_long_as_that_helps() -> None:
    target = Recipe.from_blocks(8, [(1, 3, 2), (5, 6, 2), (6, 8, 2)])
    found = played(Beam(width=8, max_length=2), towards(target), 8)
    assert best_of(found) == target
    assert recipes_of(found)[1:16] == all_blocks(8, 2)
    repeats = [len(recipe) for recipe in recipes_of(found)]
    assert max(repeats) <= 8 + 2 * 4  # four blocks were tried, and did not help
    assert len(found.trials) < 200


def test_a_beam_that_nothing_helps_is_a_scan() -> None:
    found = played(Beam(width=3, max_length=2), lambda recipe: float(len(recipe)), 8)
    assert recipes_of(found) == recipes_of(played(Scan(2), lambda _: 1.0, 8))


def test_a_beam_goes_no_deeper_than_it_may() -> None:
    found = played(Beam(width=4, max_length=3, max_visits=11), lambda recipe: -float(len(recipe)), 8)
    assert max(map(len, recipes_of(found))) == 11


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        (Recipe([0, 1, 2, 4, 5, 6, 8, 10, 11]), ["drop"]),
        (Recipe([0, 1, 3, 2, 4, 5, 6, 7, 8, 9, 10, 11]), ["swap"]),
        (Recipe.from_blocks(12, [(2, 3, 2), (8, 9, 2)]), ["drop", "add"]),
        (Recipe(range(12), [1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1]), ["scale"]),
    ],
    ids=["three left out", "two swapped", "two repeated", "one over-driven"],
)
def test_refinement_finds_what_is_a_few_steps_away(target: Recipe, steps: list[str]) -> None:
    found = played(Refine(steps=steps), towards(target), 12)
    assert best_of(found) == target


def test_two_runs_that_are_too_much_are_found_at_once() -> None:
    target = Recipe([0, 1, 2, 5, 6, 7, 8, 9, 13])  # without 3 and 4, without 10, 11 and 12
    found = played(Refine(steps=["drop"]), towards(target), 14)
    assert recipes_of(found).index(target) <= 14 + 14 + 16


def test_improvements_are_put_together() -> None:
    target = Recipe([0, 1, 2, 4, 5, 6, 8, 10, 11])  # without 3, 7 and 9
    found = played(Refine(steps=["drop"]), towards(target), 12)
    when = recipes_of(found).index(target)
    assert when <= 12 + 14 + 2  # each layer left out, runs of two to eight, two of these together, and a third


def test_refinement_ends_where_no_neighbour_is_better() -> None:
    target = Recipe.from_blocks(6, [(1, 4, 2)])
    found = played(Refine(), towards(target), 6)
    assert best_of(found) == target
    assert set(neighbours(target, 6)) <= set(recipes_of(found))


def test_refinement_starts_from_a_recipe_that_is_given() -> None:
    start = Recipe.from_blocks(6, [(0, 6, 2)])
    found = played(Refine(start, steps=["drop"]), towards(Recipe.identity(6)), 6)
    assert recipes_of(found)[1] == start
    assert recipes_of(found)[2:14] == neighbours(start, 6, steps={"drop"})


def test_refinement_goes_from_step_to_step_only_where_the_one_before_does_not_help() -> None:
    found = recipes_of(played(Refine(steps=["drop", "swap"]), towards(Recipe.identity(6)), 6))
    assert found[1:7] == neighbours(Recipe.identity(6), 6, steps={"drop"})
    assert set(found[7:]) == set(neighbours(Recipe.identity(6), 6, steps={"swap"}))


def test_refinement_keeps_to_a_depth() -> None:
    found = played(Refine(max_visits=8), lambda recipe: -float(len(recipe)), 6, limit=400)
    assert max(map(len, recipes_of(found))) == 8


@pytest.mark.parametrize("strategy", [Beam(width=4, max_length=3), Refine(steps=["drop", "add"]), Scan(3)], ids=str)
def test_a_strategy_is_taken_up_where_it_was_left(strategy: Strategy) -> None:
    nll = towards(Recipe.from_blocks(8, [(1, 3, 2), (5, 6, 2)]))
    whole = recipes_of(played(strategy, nll, 8))
    for killed_at in (1, 5, len(whole) // 2, len(whole) - 1):
        study = new_study(8)
        for recipe in whole[:killed_at]:
            add(study, recipe, nll(recipe))
        assert set(recipes_of(played(strategy, nll, 8, study))) == set(whole)


def test_what_cannot_be_scored_is_not_asked_for_again() -> None:
    study = new_study(6)
    add(study, Recipe.identity(6), 1.0)
    first = Scan(2)(study, 6)[0]
    add(study, first, None, state="FAIL", error="a layer that fails")
    assert first not in Scan(2)(study, 6)
    for recipe in Refine(steps=["drop"])(study, 6):
        add(study, recipe, None, state="FAIL", error="a layer that fails")
    assert Refine(steps=["drop"])(study, 6) == []


def test_singles_are_each_layer_twice_and_each_left_out() -> None:
    twice, out = singles(4)[:4], singles(4)[4:]
    assert [recipe.repeat_map for recipe in twice] == [
        (0, 0, 1, 2, 3),
        (0, 1, 1, 2, 3),
        (0, 1, 2, 2, 3),
        (0, 1, 2, 3, 3),
    ]
    assert [recipe.repeat_map for recipe in out] == [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]
    assert [str(recipe) for recipe in singles(1)] == ["0, 0"]


def test_a_strategy_goes_by_its_name() -> None:
    start = Recipe([0, 1])
    assert strategy_named("scan", max_length=3, max_visits=9) == Scan(3, 9)
    assert strategy_named("beam", max_length=3, max_visits=9) == Beam(max_length=3, max_visits=9)
    assert strategy_named("refine", start=start, max_length=2) == Refine(start, max_length=2)
    with pytest.raises(SearchError, match="unknown strategy 'climb': expected scan, beam or refine"):
        strategy_named("climb")
    with pytest.raises(SearchError, match="only refine starts from a recipe"):
        strategy_named("beam", start=start)
    with pytest.raises(SearchError, match=r"unknown steps \['jump'\]"):
        Refine(steps=["drop", "jump"])
    with pytest.raises(SearchError, match="width of a beam must be at least 1"):
        Beam(width=0)


def test_refinement_reaches_a_repeated_block_of_a_small_model() -> None:
    study = played(Refine(), towards(Recipe.from_blocks(5, [(0, 2, 2)])), 5)
    values = [trial.value for trial in study.trials]
    assert all(math.isfinite(value) for value in values)
    assert min(values) == pytest.approx(1.0)

"""The neighbours of a recipe, held against what each step means, said of all recipes of a small base one by one."""

import math
from collections.abc import Callable
from itertools import chain, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from david.candidates.neighbours import SCALES, STEPS, neighbours
from david.errors import RecipeError, SearchError
from david.recipe.recipe import Recipe

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no defect

Path = tuple[tuple[int, float], ...]


def recipe_of(path: Path) -> Recipe:
    return Recipe(*zip(*path, strict=True))


def paths(n_layers: int, scales: tuple[float, ...], longest: int) -> list[Path]:
    """Every path of up to so many visits."""
    visits = list(product(range(n_layers), scales))
    return [path for length in range(1, longest + 1) for path in product(visits, repeat=length)]


def layers(path: Path) -> list[int]:
    return [layer for layer, _ in path]


# What each step means: whether it makes `new` of `old`. Most lengths that are cut or repeated here: two.


def without(path: Path, first: int, length: int = 1) -> Path:
    return path[:first] + path[first + length :]


def dropped(old: Path, new: Path, n_layers: int, length: int = 1) -> bool:
    return any(without(old, i, length) == new for i in range(len(old) - length + 1))


def added(old: Path, new: Path, n_layers: int, length: int = 1) -> bool:
    again = [i for i in range(len(new) - 2 * length + 1) if new[i : i + length] == new[i + length : i + 2 * length]]
    return any(without(new, i, length) == old for i in again)


def cut(old: Path, new: Path, n_layers: int) -> bool:
    return dropped(old, new, n_layers, 1) or dropped(old, new, n_layers, 2)


def repeated(old: Path, new: Path, n_layers: int) -> bool:
    return added(old, new, n_layers, 1) or added(old, new, n_layers, 2)


def moved(old: Path, new: Path, n_layers: int) -> bool:
    differ = [i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other]
    if len(old) != len(new) or len(differ) != 2:
        return False
    i, j = differ
    return j == i + 1 and (old[i], old[j]) == (new[j], new[i])


def swapped(old: Path, new: Path, n_layers: int) -> bool:
    plain = [tuple((layer, 1.0) for layer in layers(path)) for path in (old, new)]
    return [scale for _, scale in old] == [scale for _, scale in new] and moved(plain[0], plain[1], n_layers)


def scaled(old: Path, new: Path, n_layers: int) -> bool:
    changed = [i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other]
    if layers(old) != layers(new) or not changed or len({new[i][1] for i in changed}) > 1:
        return False
    if len(changed) == 1:
        return True

    def one_run(i: int, j: int) -> bool:
        follows = old[j] == (old[i][0] + 1, old[i][1])
        seen = [old[visit][0] in layers(old)[:visit] for visit in (i, j)]
        return j == i + 1 and follows and seen[0] == seen[1]

    def joined(i: int, j: int) -> bool:
        return all(one_run(k, k + 1) for k in range(i, j))

    first, last = changed[0], changed[-1]
    whole = (first == 0 or not one_run(first - 1, first)) and (last == len(old) - 1 or not one_run(last, last + 1))
    return joined(first, last) and whole


def shifted(old: Path, new: Path, n_layers: int) -> bool:
    one, other = layers(old), layers(new)
    differ = [i for i in range(len(one)) if one[i : i + 1] != other[i : i + 1]]
    if len(one) != len(other) or len(differ) != 1:
        return False
    place = differ[0]
    if not 0 < place < len(one) - 1:
        return False

    def begins(path: list[int]) -> bool:  # this visit begins a run, behind a seam
        return path[place - 1] + 1 != path[place] and path[place] + 1 == path[place + 1]

    def ends(path: list[int]) -> bool:  # this visit ends a run, before a seam
        return path[place - 1] + 1 == path[place] and path[place] + 1 != path[place + 1]

    return (begins(one) and ends(other)) or (ends(one) and begins(other))


def seams(path: list[int], n_layers: int) -> set[int]:
    framed = [-1, *path, n_layers]
    return {i for i in range(len(path) + 1) if framed[i] + 1 != framed[i + 1]}


def grown(old: Path, new: Path, n_layers: int) -> bool:
    one, other = layers(old), layers(new)
    places = [i for i in range(len(other)) if other[:i] + other[i + 1 :] == one and i in seams(one, n_layers)]
    return any((i and other[i - 1] + 1 == other[i]) or other[i : i + 2] == [other[i], other[i] + 1] for i in places)


def shrunk(old: Path, new: Path, n_layers: int) -> bool:
    one, other = layers(old), layers(new)
    places = [i for i in range(len(one)) if one[:i] + one[i + 1 :] == other]
    return any({i, i + 1} & seams(one, n_layers) for i in places)


MEANING: dict[str, Callable[[Path, Path, int], bool]] = {
    "shift": shifted,
    "grow": grown,
    "shrink": shrunk,
    "scale": scaled,
    "add": added,
    "drop": dropped,
    "move": moved,
    "swap": swapped,
    "cut": cut,
    "repeat": repeated,
}


def test_every_step_has_its_meaning_here() -> None:
    assert tuple(MEANING) == STEPS


def held_against_its_meaning(step: str, n_layers: int, scales: tuple[float, ...], longest: int) -> int:
    """Compares a step with its meaning on every pair of small recipes; returns how many neighbours there were."""
    total = 0
    every = paths(n_layers, scales, longest + 2)
    by_length = {length: [path for path in every if len(path) == length] for length in range(longest + 3)}
    for old in chain.from_iterable(by_length[length] for length in range(1, longest + 1)):
        near = chain.from_iterable(by_length[length] for length in range(max(1, len(old) - 2), len(old) + 3))
        meant = {path for path in near if path != old and MEANING[step](old, path, n_layers)}
        found = [
            tuple(other) for other in neighbours(recipe_of(old), n_layers, steps={step}, scales=scales, max_length=2)
        ]
        assert len(found) == len(set(found))
        assert set(found) == meant, f"{step} of {recipe_of(old)}"
        total += len(found)
    return total


@pytest.mark.parametrize("step", [step for step in STEPS if step != "scale"])
def test_of_all_plain_recipes_those_are_neighbours_that_a_step_makes(step: str) -> None:
    assert held_against_its_meaning(step, 3, (1.0,), 4) > 40


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("shift", "grow", "shrink")])
def test_of_all_scaled_recipes_those_are_neighbours_that_a_step_makes(step: str) -> None:
    assert held_against_its_meaning(step, 2, (1.0, 0.5), 3) > 50


def test_shift_grow_and_shrink_see_runs_of_several_layers_too() -> None:
    for step in ("shift", "grow", "shrink"):
        for text in ("0:6, 2:8", "1:4, 3:6, 5:7", "0:3, 5:8", "4:8, 0:4", "2:5, 2:5, 2:5"):
            old = tuple(Recipe.parse(text))
            found = {tuple(other) for other in neighbours(Recipe.parse(text), 8, steps={step})}
            changed = [
                *((*old[:i], (layer, 1.0), *old[i + 1 :]) for i in range(len(old)) for layer in range(8)),
                *((*old[:i], (layer, 1.0), *old[i:]) for i in range(len(old) + 1) for layer in range(8)),
                *(without(old, i) for i in range(len(old))),
            ]
            assert found == {path for path in changed if path != old and MEANING[step](old, path, 8)}


@pytest.mark.parametrize(
    ("notation", "step", "expected"),
    [
        ("0:8, 4:12", "shift", ["0:9, 5:12", "0:7, 3:12"]),
        ("0:8, 4:12", "grow", ["0:9, 4:12", "0:8, 3:12"]),
        ("0:8, 4:12", "shrink", ["0:7, 4:12", "0:8, 5:12"]),
        # the strength of a block's repeat goes along
        ("0:8, 4:8*0.5, 8:12", "shift", ["0:9, 5:9*0.5, 9:12", "0:7, 3:7*0.5, 7:12"]),
        ("0:8, 4:8*0.5, 8:12", "grow", ["0:9, 4:9*0.5, 9:12", "0:8, 3:8*0.5, 8:12"]),
        ("0:8, 4:8*0.5, 8:12", "shrink", ["0:7, 4:7*0.5, 7:12", "0:8, 5:8*0.5, 8:12"]),
        # and that of its first run, where this is the damped one
        ("0:4, 4:8*0.5, 4:12", "shift", ["0:5, 5:9*0.5, 5:12", "0:3, 3:7*0.5, 3:12"]),
        ("0:4, 4:8*0.5, 4:12", "grow", ["0:4, 4:9*0.5, 4:12", "0:3, 3:8*0.5, 3:12"]),
        ("0:4, 4:8*0.5, 4:12", "shrink", ["0:4, 4:7*0.5, 4:12", "0:5, 5:8*0.5, 5:12"]),
        ("0:7, 6*0.5, 7:12", "shift", ["0:8, 7*0.5, 8:12", "0:6, 5*0.5, 6:12"]),  # one layer, again
        ("0:7, 6*0.5, 7:12", "shrink", ["0:12"]),
        ("0:3, 5:12", "shift", ["0:4, 6:12", "0:2, 4:12"]),  # a skip
        ("0:3, 5:12", "grow", ["0:4, 5:12", "0:3, 4:12"]),
        ("0:3, 5:12", "shrink", ["0:2, 5:12", "0:3, 6:12"]),
        ("1:11", "grow", ["0:11", "1:12"]),  # both ends have one side
        ("1:11", "shrink", ["2:11", "1:10"]),
        ("1:11", "shift", []),
        ("0:12", "shift", []),  # the base has no seam
        ("0:12", "grow", []),
        ("0:12", "shrink", []),
        ("0:12, 0:12", "grow", []),  # nor is there more to take in
    ],
)
def test_a_step_at_a_seam(notation: str, step: str, expected: list[str]) -> None:
    assert [str(other) for other in neighbours(Recipe.parse(notation), 12, steps={step})] == expected


def test_a_run_is_of_first_visits_or_of_repeats_at_one_strength() -> None:
    found = [str(other) for other in neighbours(Recipe.parse("0:4, 2:4, 4:6"), 6, steps={"scale"}, scales=[0.5])]
    assert found[8:] == ["0:4*0.5, 2:6", "0:4, 2:4*0.5, 4:6", "0:4, 2:4, 4:6*0.5"]


def test_from_a_plain_visit_every_usual_strength_can_be_reached_and_back() -> None:
    base = Recipe.identity(4)
    found = neighbours(base, 4, steps={"scale"})
    assert {other.scales[2] for other in found} == set(SCALES) == {0.5, 0.75, 1, 1.25, 1.5, 2}
    assert all(base in neighbours(other, 4, steps={"scale"}) for other in found)


# Any recipe


@st.composite
def recipes(draw: st.DrawFn, scales: tuple[float, ...] = (1.0, 1.0, 0.5, -0.25)) -> tuple[Recipe, int]:
    """A recipe of a few runs, and the number of layers of its base."""
    n_layers = draw(st.integers(1, 7))
    path: list[tuple[int, float]] = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, n_layers - 1))
        joins = bool(path) and path[-1][0] + 1 < n_layers and draw(st.booleans())
        start = path[-1][0] + 1 if joins else start
        scale = draw(st.sampled_from(scales))
        path += [(layer, scale) for layer in range(start, draw(st.integers(start + 1, n_layers)))]
    return recipe_of(tuple(path)), n_layers


@given(recipes(), st.sampled_from(["shift", "move", "swap"]))
@unhurried
def test_shift_move_and_swap_lead_back(case: tuple[Recipe, int], step: str) -> None:
    recipe, n_layers = case
    for other in neighbours(recipe, n_layers, steps={step}):
        assert recipe in neighbours(other, n_layers, steps={step})


@given(recipes())
@unhurried
def test_what_is_added_or_repeated_can_be_dropped_or_cut(case: tuple[Recipe, int]) -> None:
    recipe, n_layers = case
    for there, back in (("add", "drop"), ("repeat", "cut")):
        for other in neighbours(recipe, n_layers, steps={there}):
            assert recipe in neighbours(other, n_layers, steps={back})


@given(recipes((1.0,)))
@unhurried
def test_a_plain_block_that_grew_shrinks_again_where_its_seam_is_still_there(case: tuple[Recipe, int]) -> None:
    recipe, n_layers = case
    for other in neighbours(recipe, n_layers, steps={"grow"}):
        if len(seams([*other.repeat_map], n_layers)) == len(seams([*recipe.repeat_map], n_layers)):
            assert recipe in neighbours(other, n_layers, steps={"shrink"})


@given(recipes())
@unhurried
def test_strengths_do_not_change_which_maps_are_near(case: tuple[Recipe, int]) -> None:
    recipe, n_layers = case
    plain = Recipe(recipe.repeat_map)
    for step in ("grow", "shrink", "shift"):
        found = {other.repeat_map for other in neighbours(recipe, n_layers, steps={step})}
        maps = {other.repeat_map for other in neighbours(plain, n_layers, steps={step})}
        assert found <= maps if step == "shift" else found == maps


@given(recipes(), st.sets(st.sampled_from(STEPS)), st.integers(1, 4), st.none() | st.integers(1, 12))
@unhurried
def test_neighbours_are_valid_distinct_others_within_the_cap_in_one_order(
    case: tuple[Recipe, int], steps: set[str], max_length: int, max_visits: int | None
) -> None:
    recipe, n_layers = case
    options: dict[str, Any] = {"scales": (0.5, 1), "max_length": max_length}
    found = neighbours(recipe, n_layers, steps=steps, max_visits=max_visits, **options)
    each = [neighbours(recipe, n_layers, steps={step}, **options) for step in STEPS if step in steps]
    assert found == [
        other for other in dict.fromkeys(chain.from_iterable(each)) if len(other) <= (max_visits or math.inf)
    ]
    assert recipe not in found
    assert {other.n_layers for other in found} <= {n_layers}
    for other in found:
        other.check(n_layers)
    assert found == neighbours(recipe, n_layers, steps=sorted(steps, reverse=True), max_visits=max_visits, **options)


def test_left_out_every_step_is_taken() -> None:
    recipe = Recipe.parse("0:3, 2*0.5, 3:6")
    assert neighbours(recipe, 6) == neighbours(recipe, 6, steps=STEPS)
    assert neighbours(recipe, 6, steps=()) == []
    assert neighbours(recipe, 6, steps="drop") == neighbours(recipe, 6, steps={"drop"})


def test_a_neighbour_keeps_what_is_known_of_the_base() -> None:
    assert {other.n_layers for other in neighbours(Recipe.parse("0:3"), 6)} == {6}
    known = Recipe.identity(6)
    assert {id(other.base) for other in neighbours(known, 6)} == {id(known.base)}


def test_a_recipe_of_one_visit_keeps_it() -> None:
    assert neighbours(Recipe((2,)), 4, steps={"drop", "cut", "shrink"}) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": {"drop", "jump"}}, "unknown step 'jump': expected some of shift, grow, shrink, scale"),
        ({"steps": "jump"}, "unknown step 'jump'"),
        ({"max_length": 0}, "max_length must be at least 1; got 0"),
        ({"max_visits": 0}, "max_visits must be at least 1; got 0"),
    ],
)
def test_an_option_out_of_range_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SearchError, match=words):
        neighbours(Recipe.identity(4), 4, **options)


def test_a_recipe_of_another_base_and_a_scale_that_is_none_are_refused() -> None:
    with pytest.raises(RecipeError, match="layer 5 is out of range"):
        neighbours(Recipe.parse("0:6"), 4)
    with pytest.raises(RecipeError, match="a scale must be a finite number"):
        neighbours(Recipe.identity(4), 4, scales=[math.nan])

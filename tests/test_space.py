"""Search spaces: a trial becomes a recipe, a recipe becomes a trial's parameters, or None and never a wrong answer."""

import math
from itertools import product
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from optuna.trial import BaseTrial, FixedTrial

from david.errors import SearchError
from david.recipe import Recipe
from david.space import Block, Blocks, all_blocks, blocks_of, named, params_of

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no defect


def said(space: Any, params: dict[str, Any], n_layers: int) -> Recipe:
    """What a space makes of given parameters; Optuna warns, and so the test fails, where one is out of its range."""
    return space(FixedTrial(params), n_layers)


def slots(*rows: tuple[int, int, int], scales: tuple[float, ...] = ()) -> dict[str, Any]:
    """Parameters of `Blocks`, a (start, length, times) a slot."""
    params: dict[str, Any] = {}
    for slot, (start, length, times) in enumerate(rows):
        params |= {f"start_{slot}": start, f"length_{slot}": length, f"times_{slot}": times}
    return params | {f"scale_{slot}": scale for slot, scale in enumerate(scales)}


# A trial → a recipe


@pytest.mark.parametrize(
    ("space", "params", "n_layers", "notation"),
    [
        (Block(), {"start": 3, "length": 2}, 8, "0:5, 3:8"),
        (Block(), {"start": 3, "length": 0}, 8, "0:8"),  # length 0 is the base
        (Block(), {"start": 7, "length": 2}, 8, "0:8, 7"),  # cut at the last layer
        (Block(), {"start": 0, "length": 1}, 1, "0, 0"),
        (Block(max_length=9), {"start": 1, "length": 3}, 4, "0:4, 1:4"),
        (Block(max_times=4), {"start": 2, "length": 1, "times": 4}, 4, "0:3, 2, 2, 2:4"),
        (Block(scales=(0, 1)), {"start": 1, "length": 1, "scale": 0.25}, 4, "0:2, 1*0.25, 2:4"),
        (Block(scales=(0, 1), max_times=3), {"start": 1, "length": 1, "times": 3, "scale": 1}, 4, "0:2, 1, 1:4"),
        (Blocks(2), slots((0, 1, 1), (3, 1, 1)), 4, "0:4"),  # once is off
        (Blocks(2), slots((0, 1, 2), (3, 1, 3)), 4, "0, 0:4, 3, 3"),
        (Blocks(2, max_length=3), slots((2, 3, 2), (1, 3, 2)), 6, "0:4, 1:5, 2:6"),  # overlapping, in any order
        (Blocks(1, scales=(-1, 1)), slots((1, 2, 2), scales=(-0.5,)), 8, "0:3, 1:3*-0.5, 3:8"),
        (Blocks(1, scales=(0, 1)), slots((1, 2, 1), scales=(0.5,)), 8, "0:8"),  # an off slot's scale does nothing
    ],
)
def test_a_space_makes_the_recipe_that_its_parameters_say(
    space: Any, params: dict[str, Any], n_layers: int, notation: str
) -> None:
    recipe = said(space, params, n_layers)
    assert recipe == Recipe.parse(notation)
    assert recipe.n_layers == n_layers


@pytest.mark.parametrize(
    ("space", "n_layers", "ranges"),
    [
        (Block(), 30, {"start": (0, 29), "length": (0, 7)}),
        (Block(), 3, {"start": (0, 2), "length": (0, 1)}),
        (Block(max_length=9, max_times=3), 4, {"start": (0, 3), "length": (0, 4), "times": (2, 3)}),
        (Block(scales=(0.1, 0.9)), 4, {"start": (0, 3), "length": (0, 1), "scale": (0.1, 0.9)}),
        (Blocks(1), 12, {"start_0": (0, 11), "length_0": (1, 3), "times_0": (1, 3)}),
        (
            Blocks(2, max_length=2, max_times=2, scales=(0, 1)),
            4,
            {"start_0": (0, 3), "length_0": (1, 2), "times_0": (1, 2), "scale_0": (0, 1)}
            | {"start_1": (0, 3), "length_1": (1, 2), "times_1": (1, 2), "scale_1": (0, 1)},
        ),
    ],
)
def test_a_space_asks_for_these_parameters_in_these_ranges(
    space: Any, n_layers: int, ranges: dict[str, tuple[float, float]]
) -> None:
    trial = optuna.create_study().ask()
    space(trial, n_layers)
    assert {name: (kind.low, kind.high) for name, kind in trial.distributions.items()} == ranges  # type: ignore[attr-defined]


@pytest.mark.parametrize("space", [Block(scales=(0.1, 0.4)), Blocks(1, scales=(0.1, 0.4))])
def test_scales_come_in_steps_of_a_twentieth_from_the_range_and_no_other(space: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    recipes = [space(study.ask(), 4) for _ in range(200)]
    drawn = {scale for recipe in recipes for scale in recipe.scales}
    assert drawn == {0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 1.0}


# A recipe → its parameters


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Any, dict[str, Any], int]:
    """A space, parameters in its ranges, and the number of layers."""
    n_layers, length, times = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(2, 4))
    low = draw(st.integers(-20, 30))
    high = low + draw(st.integers(1, 30))
    scales = draw(st.sampled_from([None, (low / 20, high / 20)]))
    scale = st.integers(low, high).map(lambda twentieth: twentieth / 20)
    start, longest = st.integers(0, n_layers - 1), min(length, n_layers)
    if draw(st.booleans()):
        params = {"start": draw(start), "length": draw(st.integers(0, longest))}
        params |= {"times": draw(st.integers(2, times))} if times > 2 else {}
        return Block(length, times, scales), params | ({} if scales is None else {"scale": draw(scale)}), n_layers
    count = draw(st.integers(1, 3))
    rows = [(draw(start), draw(st.integers(1, longest)), draw(st.integers(1, times))) for _ in range(count)]
    of_slots = () if scales is None else tuple(draw(scale) for _ in range(count))
    # Two slots with one block add up to more times than a slot may say.
    assume(len({(first, min(first + length, n_layers)) for first, length, _ in rows}) == count)
    return Blocks(count, length, times, scales), slots(*rows, scales=of_slots), n_layers


@given(drawn())
@unhurried
def test_a_recipe_that_a_space_made_is_said_in_parameters_that_make_it_again(
    case: tuple[Any, dict[str, Any], int],
) -> None:
    space, params, n_layers = case
    recipe = said(space, params, n_layers)
    again = space.params(recipe, n_layers)
    assert again is not None
    assert again.keys() == params.keys()
    assert said(space, again, n_layers) == recipe


SPACES = [
    Block(),
    Block(max_length=2, max_times=3),
    Block(scales=(0, 1)),
    Block(scales=(0, 0.5)),
    Block(scales=(1.5, 2)),
    Blocks(),
    Blocks(2, max_length=3, scales=(0, 1)),
    Blocks(2, scales=(0.1, 0.6)),
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("n_layers", [1, 2, 7, 30])
def test_every_space_can_say_the_base(space: Any, n_layers: int) -> None:
    base = Recipe.identity(n_layers)
    assert said(space, space.params(base, n_layers), n_layers) == base


@pytest.mark.parametrize(
    ("space", "notation"),
    [
        (Block(), "0:3, 2:8"),
        (Block(), "0:8, 6:8"),
        (Block(max_times=3), "0:3, 2, 2:8"),
        (Block(scales=(0, 1)), "0:3, 2*0.35, 3:8"),
        (Blocks(), "0:3, 2, 2:5, 4:8"),
        (Blocks(scales=(0, 1)), "0:3, 1:3*0.15, 3:5, 4*0.8, 5:8"),
    ],
)
def test_enqueued_parameters_come_back_from_optuna_as_the_recipe(space: Any, notation: str) -> None:
    study = optuna.create_study()
    study.enqueue_trial(space.params(Recipe.parse(notation), 8))
    assert space(study.ask(), 8) == Recipe.parse(notation)


@pytest.mark.parametrize(
    ("space", "notation"),
    [
        *[(space, "0:3, 4:8") for space in SPACES],  # a skip
        *[(space, "1:8") for space in SPACES],
        *[(space, "0:7") for space in SPACES],
        *[(space, "7, 6, 5, 4, 3, 2, 1, 0") for space in SPACES],
        *[(space, "0:8, 0:9") for space in SPACES],  # of a deeper base
        *[(space, "0:3*0.5, 3:8") for space in SPACES],  # a first run is plain
        *[(space, "0:5, 2*0.5, 3:8") for space in SPACES],  # the layers behind a repeat are plain, and none is skipped
        (Block(), "0:4, 1:8"),  # three layers: too long
        (Block(), "0:2, 1, 1:8"),  # three times: too often
        (Block(max_times=3), "0:2, 1, 1, 1:8"),
        (Block(), "0:2, 1:4, 3:8"),  # two blocks
        (Block(), "0:2, 1*0.5, 2:8"),  # a scale, where repeats are plain
        (Block(scales=(0, 1)), "0:2, 1*0.33, 2:8"),  # between two steps
        (Block(scales=(0, 0.5)), "0:2, 1*0.55, 2:8"),  # beyond the range
        (Block(scales=(0, 0.5)), "0:2, 1:8"),
        (Block(max_times=3, scales=(0, 1)), "0:2, 1*0.5, 1*0.25, 2:8"),  # repeats of unequal strength
        (Blocks(), "0:4, 1:8"),
        (Blocks(2), "0:2, 1:4, 3:6, 5:8"),  # three blocks
        (Blocks(scales=(0, 1)), "0:2, 1*1.05, 2:8"),
    ],
)
def test_a_recipe_that_a_space_cannot_say_is_none(space: Any, notation: str) -> None:
    assert space.params(Recipe.parse(notation), 8) is None


def all_said(space: Any, ranges: dict[str, range], n_layers: int) -> set[tuple[int, ...]]:
    """The maps of every combination of a space's parameters."""
    rows = product(*ranges.values())
    return {said(space, dict(zip(ranges, row, strict=True)), n_layers).repeat_map for row in rows}


@pytest.mark.parametrize(
    ("space", "ranges"),
    [
        (Block(2, 3), {"start": range(3), "length": range(3), "times": range(2, 4)}),
        (Block(1), {"start": range(3), "length": range(2)}),
        (Blocks(1, 2, 3), {"start_0": range(3), "length_0": range(1, 3), "times_0": range(1, 4)}),
    ],
)
def test_of_all_maps_over_three_layers_a_space_says_those_it_can_make_and_no_other(
    space: Any, ranges: dict[str, range]
) -> None:
    maps = [path for length in range(1, 8) for path in product(range(3), repeat=length)]
    assert {path for path in maps if space.params(Recipe(path), 3) is not None} == all_said(space, ranges, 3)


# Plain functions as spaces


def skipping(trial: BaseTrial, n_layers: int) -> Recipe:
    skipped = trial.suggest_int("skipped", -1, n_layers - 1)
    return Recipe([layer for layer in range(n_layers) if layer != skipped])


def by_choice(trial: BaseTrial, n_layers: int) -> Recipe:
    chosen = trial.suggest_categorical("what", ["nothing", "all"])
    scale = trial.suggest_float("scale", 0.5, 1.0, step=0.25)
    return Recipe.from_blocks(n_layers, [(0, n_layers, 2, scale)] if chosen == "all" else [])


def never_the_base(trial: BaseTrial, n_layers: int) -> Recipe:
    return Recipe.from_blocks(n_layers, [(0, 1, trial.suggest_int("times", 2, 4))])


def by_its_number(trial: BaseTrial, n_layers: int) -> Recipe:
    return Recipe.identity(n_layers + 0 * trial.number)


def empty_at_its_lowest(trial: BaseTrial, n_layers: int) -> Recipe:
    return Recipe(range(trial.suggest_int("visits", 0, n_layers)))


@pytest.mark.parametrize(
    ("space", "params"),
    [
        (Block(), {"start": 0, "length": 0}),
        (skipping, {"skipped": -1}),
        (by_choice, {"what": "nothing", "scale": 0.5}),
        (never_the_base, None),
        (by_its_number, None),
        (empty_at_its_lowest, None),
    ],
)
def test_the_base_is_looked_for_at_a_plain_functions_lowest_values(space: Any, params: dict[str, Any] | None) -> None:
    assert params_of(space, Recipe.identity(4), 4) == params
    assert params is None or said(space, params, 4) == Recipe.identity(4)


def test_a_plain_function_is_not_said_to_make_what_it_does_not_make_at_its_lowest() -> None:
    assert params_of(skipping, Recipe.parse("0:3"), 4) is None
    assert params_of(never_the_base, Recipe.parse("0, 0:4"), 4) == {"times": 2}


# Blocks


@pytest.mark.parametrize(("n_layers", "max_length"), [(1, None), (6, None), (6, 1), (6, 3), (6, 6), (6, 40), (30, 7)])
def test_all_blocks_is_every_start_and_end_up_to_a_length_once(n_layers: int, max_length: int | None) -> None:
    expected = []
    for i in range(n_layers):
        longest = n_layers if max_length is None else max_length
        expected += [(*range(j), *range(i, n_layers)) for j in range(n_layers + 1) if 0 < j - i <= longest]
    found = [recipe.repeat_map for recipe in all_blocks(n_layers, max_length)]
    assert found == expected
    assert len(set(found)) == len(found)
    assert all(recipe.n_layers == n_layers for recipe in all_blocks(n_layers, max_length))


def test_a_full_scan_of_thirty_layers_has_465_blocks() -> None:
    assert len(all_blocks(30)) == 465


@pytest.mark.parametrize(
    ("notation", "parts"),
    [
        ("0:6", []),
        ("0:4, 2:6", [(2, 4, 2, 1.0)]),
        ("0:4, 2:4, 2:6", [(2, 4, 3, 1.0)]),
        ("0:4, 2:4*0.5, 4:6", [(2, 4, 2, 0.5)]),
        ("0:4, 2:4*0.5, 2:4*0.25, 4:6", [(2, 4, 2, 0.5), (2, 4, 2, 0.25)]),
        ("0:3, 1:5, 2:6", [(1, 3, 2, 1.0), (2, 5, 2, 1.0)]),
        ("0:6, 0:6", [(0, 6, 2, 1.0)]),
        ("0:6, 5:7", None),  # a base of seven
        ("0:3, 4:6", None),
        ("5, 4, 3, 2, 1, 0", None),
        ("0:4, 2:3, 4:6", None),
        ("0:4, 2:6*0.5", None),
    ],
)
def test_the_blocks_of_a_recipe(notation: str, parts: list[tuple[int, int, int, float]] | None) -> None:
    assert blocks_of(Recipe.parse(notation), 6) == parts


blocks = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(1, n), st.integers(1, 3), st.sampled_from([0.25, 1.0, 1.5]))
            .map(lambda part: (part[0], min(n, part[0] + part[1]), *part[2:]))
            .filter(lambda part: part[0] < part[1]),
            max_size=4,
        ),
    )
)


@given(blocks)
@unhurried
def test_every_recipe_made_of_blocks_is_taken_apart_into_blocks_that_make_it(case: tuple[int, Any]) -> None:
    n_layers, parts = case
    recipe = Recipe.from_blocks(n_layers, parts)
    found = blocks_of(recipe, n_layers)
    assert found is not None
    assert Recipe.from_blocks(n_layers, found) == recipe


visits = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 1.0, 0.5, 0.0])), min_size=1, max_size=9)


@given(st.integers(1, 5), visits)
@unhurried
def test_no_recipe_whatever_is_taken_apart_or_said_wrongly(n_layers: int, path: list[tuple[int, float]]) -> None:
    recipe = Recipe(*zip(*path, strict=True))
    parts = blocks_of(recipe, n_layers)
    assert parts is None or Recipe.from_blocks(n_layers, parts) == recipe
    for space in SPACES:
        params = space.params(recipe, n_layers)
        assert params is None or said(space, params, n_layers) == recipe


# Options


@pytest.mark.parametrize("space", [Block, Blocks])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "max_length must be at least 1; got 0"),
        ({"max_length": -3}, "max_length must be at least 1; got -3"),
        ({"max_times": 1}, "max_times must be at least 2, one repeat; got 1"),
        ({"scales": (1, 0)}, "scales must be a range"),
        ({"scales": (0.5, 0.5)}, "scales must be a range"),
        ({"scales": (0, math.nan)}, "scales must be a range"),
    ],
)
def test_an_option_out_of_range_is_refused_in_words(space: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SearchError, match=words):
        space(**options)


def test_no_blocks_at_all_are_refused() -> None:
    with pytest.raises(SearchError, match="at least one block; got count=0"):
        Blocks(0)


def test_a_space_has_a_name() -> None:
    assert named("block") == Block()
    assert named("blocks") == Blocks()
    assert named("block", scales=(0, 1), max_length=4) == Block(max_length=4, scales=(0, 1))
    assert named("blocks", scales=(0, 1), max_length=4) == Blocks(max_length=4, scales=(0, 1))
    with pytest.raises(SearchError, match="unknown space 'layers': expected block or blocks"):
        named("layers")

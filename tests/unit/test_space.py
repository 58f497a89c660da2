"""Search spaces: a trial becomes a recipe, a recipe becomes a trial's parameters, or None and never a wrong answer."""

import math
import re
from copy import deepcopy
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from optuna.trial import BaseTrial, FixedTrial

from david.candidates.spaces import Block, Blocks, Ratios, Removal, Visits, Windows, params_of, space_named
from david.errors import SearchError
from david.recipe.blocks import all_blocks, blocks_of, scattered
from david.recipe.recipe import Recipe

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


def ratios(*rows: tuple[int, int]) -> dict[str, Any]:
    """Parameters of `Ratios`, a (start, width) a slot."""
    return {f"{name}_{slot}": value for slot, row in enumerate(rows) for name, value in zip(PARTS, row, strict=True)}


PARTS = ("start", "width")


def visits_of(*counts: int, scales: tuple[float, ...] = ()) -> dict[str, Any]:
    """Parameters of `Visits`, a count a layer."""
    params = {f"visits_{layer}": count for layer, count in enumerate(counts)}
    return params | {f"scale_{layer}": scale for layer, scale in enumerate(scales)}


def removed(*rows: tuple[int, int], scales: tuple[float, ...] = ()) -> dict[str, Any]:
    """Parameters of `Removal`, a (start, length) a slot."""
    params: dict[str, Any] = {}
    for slot, (start, length) in enumerate(rows):
        params |= {f"start_{slot}": start, f"length_{slot}": length}
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
        (Windows(), {"width": 4, "overlap": 0}, 8, "0:8"),
        (Windows(), {"width": 4, "overlap": 1}, 8, "0:4, 3:7, 6:8"),
        (Windows(), {"width": 4, "overlap": 2}, 8, "0:4, 2:6, 4:8"),
        (Windows(max_length=4), {"width": 2, "overlap": 2}, 5, "0:2, 1:3, 2:4, 3:5"),  # more than half counts as half
        (Windows(max_length=9), {"width": 8, "overlap": 2}, 8, "0:8"),  # one window is the base
        (Windows(max_length=16), {"width": 16, "overlap": 8}, 40, "0:16, 8:24, 16:32, 24:40"),  # as Goliath overlaps
        (Windows(4, scales=(-1, 1)), {"width": 4, "overlap": 2, "scale": -0.25}, 6, "0:4, 2:4*-0.25, 4:6"),
        (Windows(), {"width": 1, "overlap": 0}, 1, "0"),
        (Ratios(2, 10), ratios((3, 0), (2, 0)), 10, "0:10"),  # no width is off
        (Ratios(2, 10), ratios((3, 2), (0, 0)), 10, "0:10"),  # one slice goes nowhere back
        (Ratios(2, 10), ratios((3, 2), (7, 2)), 10, "0:10"),  # nor do two with a gap
        (Ratios(2, 10), ratios((4, 2), (2, 2)), 10, "0:5, 4:10"),  # in the order of their starts, whatever the slots
        (Ratios(4, 10, 6), ratios((0, 3), (2, 2), (4, 1), (4, 6)), 10, "0:4, 2:5, 4:6, 4:10"),  # the seed's example
        (Ratios(2, 10, scales=(0, 2)), ratios((0, 2), (1, 2)) | {"scale": 1.5}, 10, "0:3, 1:3*1.5, 3:10"),
        (Visits(), visits_of(1, 1, 1, 1), 4, "0:4"),
        (Visits(), visits_of(0, 2, 1, 0), 4, "1, 1, 2"),
        (Visits(3), visits_of(1, 3), 2, "0:2, 1, 1"),
        (Visits(), visits_of(0, 0, 0), 3, "0"),  # a recipe keeps one visit
        (Visits(scales=(-1, 1)), visits_of(2, 1, 2, scales=(0.5, 0, -1)), 3, "0, 0*0.5, 1, 2, 2*-1"),
        (Removal(2), removed((1, 2), (4, 0)), 8, "0, 3:8"),
        (Removal(2, 3), removed((1, 3), (2, 3)), 8, "0, 5:8"),  # the union
        (Removal(2, 3), removed((7, 3), (0, 1)), 8, "1:7"),
        (Removal(2, 4), removed((0, 4), (4, 4)), 8, "0"),
        (Removal(1, scales=(0, 2)), removed((3, 2), scales=(0.25,)), 8, "0:3, 3:5*0.25, 5:8"),
        (Removal(1, scales=(0, 2)), removed((3, 2), scales=(1.5,)), 8, "0:3, 3:5*1.5, 5:8"),
        (Removal(2, 4, scales=(-1, 1)), removed((1, 3), (2, 4), scales=(0.5, -0.5)), 8, "0, 1*0.5, 2:6*-0.5, 6:8"),
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
        (Windows(), 30, {"width": (2, 15), "overlap": (0, 7)}),
        (Windows(max_length=4, scales=(-0.5, 1.5)), 6, {"width": (2, 4), "overlap": (0, 2), "scale": (-0.5, 1.5)}),
        (Windows(), 1, {"width": (1, 1), "overlap": (0, 0)}),
        (Ratios(2), 30, {"start_0": (0, 19), "width_0": (0, 5), "start_1": (0, 19), "width_1": (0, 5)}),
        (
            Ratios(2, 10, 3, scales=(0, 1)),
            6,
            {"start_0": (0, 9), "width_0": (0, 3), "start_1": (0, 9), "width_1": (0, 3), "scale": (0, 1)},
        ),
        (Visits(), 2, {"visits_0": (0, 2), "visits_1": (0, 2)}),
        (
            Visits(3, scales=(0, 1)),
            2,
            {"visits_0": (0, 3), "scale_0": (0, 1), "visits_1": (0, 3), "scale_1": (0, 1)},
        ),
        (Removal(1), 30, {"start_0": (0, 29), "length_0": (0, 7)}),
        (Removal(1, 2, scales=(-1, 0)), 30, {"start_0": (0, 29), "length_0": (0, 2), "scale_0": (-1, 0)}),
    ],
)
def test_a_space_asks_for_these_parameters_in_these_ranges(
    space: Any, n_layers: int, ranges: dict[str, tuple[float, float]]
) -> None:
    trial = optuna.create_study().ask()
    space(trial, n_layers)
    assert {name: (kind.low, kind.high) for name, kind in trial.distributions.items()} == ranges  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "space", [kind(scales=(0.1, 0.4)) for kind in (Block, Blocks, Windows, Ratios, Visits, Removal)], ids=str
)
def test_scales_come_in_steps_of_a_twentieth_from_the_range_and_no_other(space: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    recipes = [space(study.ask(), 4) for _ in range(200)]
    drawn = {scale for recipe in recipes for scale in recipe.scales}
    assert drawn == {0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 1.0}


# A recipe → its parameters


class Drawing:
    """A trial whose suggestions hypothesis draws; it remembers them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.params = draw, dict[str, Any]()

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self.params.setdefault(name, self.draw(st.integers(low, high)))

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        return self.params.setdefault(
            name, round(low + self.draw(st.integers(0, round((high - low) / step))) * step, 4)
        )


@st.composite
def spaces(draw: st.DrawFn, n_layers: int) -> Any:
    """A space with options that fit a base."""
    low = draw(st.integers(-20, 30))
    scales = draw(st.sampled_from([None, (low / 20, (low + draw(st.integers(1, 30))) / 20)]))
    length, times, count = draw(st.integers(1, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    cap = draw(st.none() | st.integers(n_layers, 2 * n_layers + 2))
    kind = draw(st.sampled_from([Block, Blocks, Windows, Ratios, Visits, Removal]))
    if kind is Block:
        return Block(length, times, scales, cap)
    if kind is Blocks:
        return Blocks(count, length, times, scales, cap)
    if kind is Windows:
        return Windows(draw(st.none() | st.integers(2, 9)), scales, cap)
    if kind is Ratios:
        steps = draw(st.integers(1, 20))
        return Ratios(count + 1, steps, draw(st.none() | st.integers(1, steps)), scales, cap)
    return Visits(times - 1, scales, cap) if kind is Visits else Removal(count, length, scales)


def surely_said(space: Any, params: dict[str, Any], n_layers: int) -> bool:
    """Whether a space promises to say again what it has made."""
    if isinstance(space, Blocks):  # two slots with one block add up to more times than a slot may say
        rows = [(params[f"start_{slot}"], params[f"length_{slot}"]) for slot in range(space.count)]
        return len({(start, min(start + length, n_layers)) for start, length in rows}) == space.count
    if isinstance(space, Removal):  # a slot of strength 1 may cut another's block in two
        return 1 not in params.values() or space.scales is None or space.scales[1] <= 1
    return True


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Any, dict[str, Any], int]:
    """A space, parameters in its ranges, and the number of layers."""
    n_layers = draw(st.integers(1, 9))
    space, trial = draw(spaces(n_layers)), Drawing(draw)
    space(trial, n_layers)
    return space, trial.params, n_layers


@given(drawn())
@unhurried
def test_a_recipe_that_a_space_made_is_said_in_parameters_that_make_it_again(
    case: tuple[Any, dict[str, Any], int],
) -> None:
    space, params, n_layers = case
    recipe = said(space, params, n_layers)
    again = space.params(recipe, n_layers)
    if again is None:
        assert not surely_said(space, params, n_layers)
        return
    assert again.keys() == params.keys()
    assert said(space, again, n_layers) == recipe


@given(drawn())
@unhurried
def test_whatever_its_parameters_a_recipe_is_valid_within_its_cap_and_in_the_range_of_its_scales(
    case: tuple[Any, dict[str, Any], int],
) -> None:
    space, params, n_layers = case
    recipe = said(space, params, n_layers)
    recipe.check(n_layers)
    assert recipe.n_layers == n_layers
    assert len(recipe) <= (getattr(space, "max_visits", None) or math.inf)
    low, high = space.scales or (1, 1)
    assert all(scale == 1 or low <= scale <= high for scale in recipe.scales)
    assert str(Recipe.parse(str(recipe))) == str(recipe)
    assert not re.search(r"-0\.0(?!\d)", str(recipe))


@given(drawn())
@unhurried
def test_a_cap_changes_nothing_that_fits_and_cuts_what_does_not_where_it_comes_too_late(
    case: tuple[Any, dict[str, Any], int],
) -> None:
    space, params, n_layers = case
    assume(getattr(space, "max_visits", None) is not None)
    capped, free = said(space, params, n_layers), said(replace(space, max_visits=None), params, n_layers)
    if len(free) <= space.max_visits:
        assert capped == free
        return
    assert len(capped) < len(free)
    assert set(capped.repeat_map) == set(free.repeat_map)  # what is left out are repeats
    one = replace(space, max_visits=space.max_visits + 1)
    assert len(said(one, params, n_layers)) >= len(capped) or isinstance(space, Blocks | Ratios)


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
EVERY_SPACE = [
    *SPACES,
    Block(max_visits=30),
    Blocks(max_visits=33, scales=(-0.5, 1.5)),
    Windows(),
    Windows(max_length=5, scales=(-0.5, 0.5), max_visits=34),
    Ratios(),
    Ratios(3, 7, scales=(1, 2), max_visits=40),
    Visits(),
    Visits(1),
    Visits(3, scales=(-1, 0), max_visits=36),
    Removal(),
    Removal(2, scales=(-0.5, 1.5)),
    Removal(1, scales=(1.5, 2)),
]


@pytest.mark.parametrize("space", EVERY_SPACE, ids=str)
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
        (Windows(scales=(0, 1)), "0:4, 3*0.35, 4:7, 6*0.35, 7"),
        (Windows(max_visits=9), "0:4, 3:8"),
        (Ratios(3, 8), "0:3, 2:5, 4:8"),
        (Ratios(3, 8, scales=(-1, 0)), "0:3, 2*-0.15, 3:8"),
        (Visits(), "1, 1, 2, 5:8"),
        (Visits(scales=(0, 2)), "0, 0*1.35, 1:7, 7, 7*0.15"),
        (Removal(), "0:3, 4:6"),
        (Removal(2, 3), "0, 7"),
        (Removal(scales=(-0.5, 1.5)), "0:3, 3:5*-0.35, 5*1.5, 6:8"),
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
        (Block(max_visits=8), "0:2, 1:8"),  # deeper than the cap
        (Blocks(max_visits=9), "0:2, 0:8"),
        (Windows(), "0:4, 2:8"),  # the second window is wider
        (Windows(), "0:4, 1:5, 2:6, 3:8"),  # overlaps of more than half
        (Windows(), "0:3, 4:8"),
        (Windows(scales=(0, 1)), "0:4, 2:4*0.5, 4:6, 4:8"),
        (Windows(max_length=3), "0:4, 2:6, 4:8"),
        (Windows(max_visits=9), "0:4, 3:7, 6:8"),
        (Ratios(2, 8), "0:3, 2:5, 4:8"),  # three slices
        (Ratios(2, 4), "0:4, 3:8"),  # the seam is between two steps
        (Ratios(3, 8, 1), "0:6, 2:8"),  # that far back is wider than a slice
        (Ratios(3, 8), "0:3, 4:8"),
        (Ratios(3, 8, scales=(0, 1)), "0:3, 2*0.5, 3:5, 4:8"),
        (Ratios(3, 8), "0:3, 2*0.5, 3:8"),
        (Visits(), "0, 0, 0:8"),
        (Visits(), "1, 0, 2:8"),
        (Visits(), "0:4, 2:8"),
        (Visits(), "0*0.5, 1:8"),
        (Visits(3, scales=(0, 1)), "0, 0*0.5, 0*0.25, 1:8"),
        (Visits(max_visits=8), "0, 0:8"),
        (Removal(1), "0, 2, 4:8"),  # two blocks
        (Removal(1, 2), "0, 4:8"),
        (Removal(), "0, 0:8"),
        (Removal(), "0, 1*0.5, 2:8"),
        (Removal(scales=(0, 0.5)), "0, 2:8"),
        (Removal(scales=(0, 0.5)), "0, 1*0.75, 2:8"),
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
        (Windows(3), {"width": range(2, 4), "overlap": range(2)}),
        (Ratios(2, 3, 2), {f"{part}_{i}": range(3) for i in range(2) for part in PARTS}),
        (Ratios(3, 5, 2), {f"start_{i}": range(5) for i in range(3)} | {f"width_{i}": range(3) for i in range(3)}),
        (Visits(), {f"visits_{layer}": range(3) for layer in range(3)}),
        (Visits(max_visits=4), {f"visits_{layer}": range(3) for layer in range(3)}),
        (Removal(2, 2), {f"{part}_{i}": range(3) for i in range(2) for part in ("start", "length")}),
    ],
)
def test_of_all_maps_over_three_layers_a_space_says_those_it_can_make_and_no_other(
    space: Any, ranges: dict[str, range]
) -> None:
    maps = [path for length in range(1, 8) for path in product(range(3), repeat=length)]
    assert {path for path in maps if space.params(Recipe(path), 3) is not None} == all_said(space, ranges, 3)


# Caps


@pytest.mark.parametrize(
    ("space", "params", "notation"),
    [
        (Block(3, 4), {"start": 1, "length": 2, "times": 4}, {14: "0:3, 1:3, 1:3, 1:8", 13: "0:3, 1:3, 1:8", 9: "0:8"}),
        # the later block is left out; a later one that is shorter still fits
        (Blocks(2, 3, 2), slots((1, 2, 2), (4, 2, 2)), {12: "0:3, 1:6, 4:8", 11: "0:3, 1:8", 9: "0:8"}),
        (Blocks(2, 3, 2), slots((1, 2, 2), (4, 1, 2)), {11: "0:3, 1:5, 4:8", 10: "0:3, 1:8", 9: "0:5, 4:8"}),
        (Windows(), {"width": 4, "overlap": 1}, {10: "0:4, 3:7, 6:8", 9: "0:4, 3:8", 8: "0:8"}),
        (Ratios(3, 8), ratios((1, 2), (2, 2), (3, 1)), {12: "0:4, 2:5, 3:8", 11: "0:4, 2:8", 9: "0:4, 3:8", 8: "0:8"}),
        (Visits(), visits_of(2, 1, 0, 2, 1, 1, 1, 2), {10: "0, 0:2, 3, 3:8, 7", 9: "0, 0:2, 3, 3:8", 8: "0, 0:2, 3:8"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_comes_too_late_for_the_cap_is_left_out(
    space: Any, params: dict[str, Any], notation: dict[int, str]
) -> None:
    found = {cap: str(said(replace(space, max_visits=cap), params, 8)) for cap in notation}
    assert found == notation


# Samplers


@pytest.mark.parametrize("space", EVERY_SPACE, ids=str)
@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler(n_startup_trials=5, seed=0),
        optuna.samplers.CmaEsSampler(n_startup_trials=5, seed=0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_model_every_space_as_one_without_a_warning(
    space: Any, sampler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.enable_propagation()
    try:
        study = optuna.create_study(sampler=deepcopy(sampler))
        study.enqueue_trial(space.params(Recipe.identity(30), 30))

        def objective(trial: optuna.Trial) -> float:
            recipe = space(trial, 30)
            return math.dist([sum(recipe.scales), len(recipe)], [33.0, 34.0])

        study.optimize(objective, n_trials=15)
    finally:
        optuna.logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert len({tuple(trial.distributions) for trial in study.trials}) == 1  # one joint space


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
    for space in EVERY_SPACE:
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


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        (Blocks, {"count": 0}, "count must be at least 1; got 0"),
        (Removal, {"count": 0}, "count must be at least 1; got 0"),
        (Removal, {"max_length": 0}, "max_length must be at least 1; got 0"),
        (Ratios, {"count": 1}, "count must be at least 2, since one slice alone goes nowhere back; got 1"),
        (Ratios, {"steps": 0}, "steps must be at least 1; got 0"),
        (Ratios, {"max_width": 0}, "max_width must be at least 1; got 0"),
        (Windows, {"max_length": 1}, "max_length must be at least 2, for windows that overlap; got 1"),
        (Visits, {"most": 0}, "most must be at least 1; got 0"),
        *[(kind, {"scales": (1, 0)}, "scales must be a range") for kind in (Windows, Ratios, Visits, Removal)],
        *[(kind, {"max_visits": 0}, "max_visits must be") for kind in (Block, Blocks, Windows, Ratios, Visits)],
    ],
)
def test_every_space_refuses_what_it_cannot_be(space: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SearchError, match=words):
        space(**options)


@pytest.mark.parametrize("kind", [Block, Blocks, Windows, Ratios, Visits])
def test_a_cap_without_room_for_the_base_is_refused(kind: Any) -> None:
    space = kind(max_visits=5)
    assert space(optuna.create_study().ask(), 5) is not None
    with pytest.raises(SearchError, match="max_visits must be at least 6, the base's layers"):
        space(optuna.create_study().ask(), 6)
    with pytest.raises(SearchError, match="max_visits must be at least 6, the base's layers"):
        space.params(Recipe.identity(6), 6)


def test_a_space_has_a_name() -> None:
    assert space_named("block") == Block()
    assert space_named("blocks") == Blocks()
    assert space_named("block", scales=(0, 1), max_length=4) == Block(max_length=4, scales=(0, 1))
    assert space_named("blocks", scales=(0, 1), max_length=4) == Blocks(max_length=4, scales=(0, 1))
    assert space_named("windows", max_length=4, max_visits=40) == Windows(max_length=4, max_visits=40)
    assert space_named("ratios", scales=(-1, 1)) == Ratios(scales=(-1, 1))
    assert space_named("visits", max_visits=40) == Visits(max_visits=40)
    assert space_named("removal", max_length=4) == Removal(max_length=4)
    words = "unknown space 'layers': expected block, blocks, windows, ratios, visits or removal"
    with pytest.raises(SearchError, match=words):
        space_named("layers")


@pytest.mark.parametrize(
    ("name", "option"), [("ratios", "max_length"), ("visits", "max_length"), ("removal", "max_visits")]
)
def test_an_option_that_a_space_does_not_have_is_refused(name: str, option: str) -> None:
    with pytest.raises(SearchError, match=f"the space {name} has no {option}: leave it out"):
        space_named(name, **{option: 40})


# ---- random recipes of the same depth


@given(st.data())
def test_a_scattered_recipe_is_as_deep_and_changes_as_much(data: st.DataObject) -> None:
    n_layers = data.draw(st.integers(1, 12))
    path = data.draw(st.lists(st.integers(0, n_layers - 1), min_size=1, max_size=20))
    scales = data.draw(st.lists(st.sampled_from([1.0, 0.5, -0.25]), min_size=len(path), max_size=len(path)))
    recipe, draw = Recipe(path, scales), Random(data.draw(st.integers(0, 99)))
    other = scattered(recipe, n_layers, draw)
    assert len(other) == len(recipe)
    other.check(n_layers)
    if recipe == Recipe.identity(n_layers):
        assert other == recipe


def test_a_scattered_block_is_a_block_somewhere_else() -> None:
    recipe, draw = Recipe.from_blocks(12, [(6, 9, 2, 0.5)]), Random(1)
    places = set()
    for _ in range(200):
        [(start, stop, times, scale)] = blocks_of(scattered(recipe, 12, draw), 12) or []
        assert (stop - start, times, scale) == (3, 2, 0.5)
        places.add(start)
    assert places == set(range(10))


def test_a_scattered_skip_is_a_skip_somewhere_else() -> None:
    draw = Random(1)
    skips = {scattered(Recipe.parse("0:3, 5:12"), 12, draw).repeat_map for _ in range(200)}
    assert skips == {tuple(layer for layer in range(12) if layer not in (i, i + 1)) for i in range(11)}


def test_the_identity_scatters_to_itself() -> None:
    assert scattered(Recipe.identity(5), 5, Random(0)) == Recipe.identity(5)

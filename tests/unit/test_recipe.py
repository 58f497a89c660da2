"""Recipes as values: ratios, blocks, notation, and the file that carries them."""

import json
import resource
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.explain import explain
from david.recipe.recipe import Recipe
from david.recipe.schema import Convention, Data, Measurement, Origin, Versions
from david.recipe.verdict import note_verdict, verdict_sentence
from tests.helpers.recipes import DESIGN_FILE, RECIPES

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no defect


def file_with(**changes: Any) -> str:
    """A small valid recipe file with some of its keys changed or added."""
    return json.dumps({"format": "david.recipe", "version": 1, "repeat_map": [0, 1, 2]} | changes)


# Ratios


@pytest.mark.parametrize(
    ("n_layers", "ratios", "repeat_map"),
    [
        # the two worked examples of the design
        (10, [(0, 0.3), (0.2, 0.4), (0.4, 0.5), (0.4, 1)], [0, 1, 2, 3, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9]),
        (7, [(0, 0.5), (0.3, 0.8), (0.5, 1)], [0, 1, 2, 3, 2, 3, 4, 5, 3, 4, 5, 6]),
        # 0.29 · 100 is 28.999… in floating point, and is layer 29 all the same
        (100, [(0, 0.29), (0.29, 1)], [*range(30), *range(29, 100)]),
        (30, [(0, 1 / 3), (1 / 3, 1)], [*range(11), *range(10, 30)]),
        # gaps before the first slice, between two, and after the last
        (10, [(0.2, 0.3), (0.6, 0.7), (0.6, 0.7)], [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]),
        (10, [(0.5, 0.5), (0.5, 0.5)], [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]),
        (4, [(1, 1), (1, 1)], [0, 1, 2, 3, 3]),
        (4, [(0, 1), (0, 1)], [0, 1, 2, 3, 0, 1, 2, 3]),
        (1, [(0, 0.5), (0.5, 1)], [0, 0]),
        (5, [(0, 0)], [0, 1, 2, 3, 4]),
    ],
)
def test_ratios_walk_the_depth_as_the_design_says(
    n_layers: int, ratios: list[tuple[float, float]], repeat_map: list[int]
) -> None:
    recipe = Recipe.from_ratios(n_layers, ratios)
    assert recipe == Recipe(repeat_map)
    assert recipe.n_layers == n_layers


def holder(n_layers: int, depth: Fraction) -> int:
    """The layer that holds a depth: layer k holds k/N up to (k + 1)/N, the last one holds 1 too."""
    return next((k for k in range(n_layers) if depth < Fraction(k + 1, n_layers)), n_layers - 1)


def walked(n_layers: int, slices: Sequence[tuple[Fraction, Fraction]]) -> list[int]:
    """The ratios of the design, one step at a time and in exact fractions."""
    path: list[int] = []
    for start, end in slices:
        while holder(n_layers, start) > (path[-1] + 1 if path else 0):
            path.append(path[-1] + 1 if path else 0)
        path.append(holder(n_layers, start))
        while path[-1] != holder(n_layers, end):
            path.append(path[-1] + 1)
    while path[-1] != n_layers - 1:
        path.append(path[-1] + 1)
    return path


DEPTHS = st.builds(lambda a, b: Fraction(min(a, b), max(a, b)), st.integers(0, 100), st.integers(1, 100))
SLICES = st.lists(st.tuples(DEPTHS, DEPTHS).map(sorted).map(tuple), min_size=1, max_size=5)


@unhurried
@given(n_layers=st.integers(1, 130), slices=SLICES)
def test_ratios_agree_with_a_slow_exact_walk(n_layers: int, slices: list[tuple[Fraction, Fraction]]) -> None:
    ratios = [(float(start), float(end)) for start, end in slices]
    assert list(Recipe.from_ratios(n_layers, ratios).repeat_map) == walked(n_layers, slices)


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ([(0.5, 0.4)], "0 ≤ start ≤ end ≤ 1"),
        ([(0, 0.5), (-0.1, 0.4)], "0 ≤ start ≤ end ≤ 1"),
        ([(0, 1.01)], "0 ≤ start ≤ end ≤ 1"),
        ([(0, float("nan"))], "0 ≤ start ≤ end ≤ 1"),
        ([(float("nan"), 1)], "0 ≤ start ≤ end ≤ 1"),
        ([(0, float("inf"))], "0 ≤ start ≤ end ≤ 1"),
        ([("a", "b")], "two numbers"),
        ([(0, None)], "two numbers"),
        ([(0, [1])], "two numbers"),
        ([0.5], "two numbers"),
        ([(0,)], "two numbers"),
        ([(0, 0.5, 1)], "two numbers"),
        ([None], "two numbers"),
        ([], "at least one"),
        (0.5, "sequence"),
        ("0, 1", "sequence"),
    ],
)
def test_bad_ratios_are_refused_with_what_was_expected(ratios: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_ratios(10, ratios)


# Blocks


@pytest.mark.parametrize(
    ("blocks", "notation"),
    [
        ([], "0:8"),
        ([(2, 5, 1)], "0:8"),  # times 1 leaves it alone
        ([(2, 5, 1, 0.5)], "0:8"),
        ([(2, 5, 2)], "0:5, 2:8"),
        ([(2, 5, 3)], "0:5, 2:5, 2:8"),
        ([(0, 8, 2)], "0:8, 0:8"),
        ([(7, 8, 2)], "0:8, 7"),
        ([(0, 1, 3)], "0, 0, 0:8"),
        ([(1, 3, 2), (5, 6, 2)], "0:3, 1:6, 5:8"),
        ([(5, 6, 2), (1, 3, 2)], "0:3, 1:6, 5:8"),  # the order of writing does not matter
        ([(2, 5, 2), (4, 7, 2)], "0:5, 2:7, 4:8"),  # overlapping
        ([(2, 5, 2), (5, 7, 2)], "0:5, 2:7, 5:8"),  # touching
        ([(1, 6, 2), (2, 4, 3)], "0:4, 2:4, 2:6, 1:8"),  # one inside the other
        ([(2, 4, 2, 0.5)], "0:4, 2:4*0.5, 4:8"),  # the first run stays plain
        ([(2, 4, 3, 0.5), (6, 7, 2, 0)], "0:4, 2:4*0.5, 2:4*0.5, 4:7, 6*0.0, 7"),
        ([(2, 4, 2, 1)], "0:4, 2:8"),
    ],
)
def test_blocks_run_as_often_as_asked(blocks: list[tuple[Any, ...]], notation: str) -> None:
    recipe = Recipe.from_blocks(8, blocks)
    assert recipe == Recipe.parse(notation)
    assert recipe.n_layers == 8


@unhurried
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.integers(0, n - 1).flatmap(lambda i: st.tuples(st.just(i), st.integers(i + 1, n))),
            st.integers(1, 4),
        )
    )
)
def test_one_block_is_the_half_open_range_of_the_word_list(case: tuple[int, tuple[int, int], int]) -> None:
    n_layers, (i, j), times = case
    expected = [*range(j), *(layer for _ in range(times - 1) for layer in range(i, j)), *range(j, n_layers)]
    assert list(Recipe.from_blocks(n_layers, [(i, j, times)]).repeat_map) == expected


@pytest.mark.parametrize(
    "block",
    [
        *[(5, 2, 2), (2, 2, 2), (2, 9, 2), (-1, 3, 2), (2, 5, 0), (2, 5, -1), (2, 5), (2, 5, 2, 1, 1), 7, "253"],
        *[(2, 5, 1.5), (2.0, 5, 2), (2, 5, True), (2, 5, 2, float("nan")), (2, 5, 2, "1"), (2, 5, 2, None)],
    ],
)
def test_bad_blocks_are_refused(block: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_blocks(8, [block])


# The value


def test_equality_and_hash_look_at_map_and_scales_alone() -> None:
    bare = Recipe([0, 1, 1, 2])
    dressed = Recipe.from_blocks(9, [(1, 2, 2)])
    known = Recipe((0, 1, 1, 2), [1, 1, 1, 1], base=Base(num_layers=3), written_as="by hand", made_with=None)
    assert bare == known
    assert len({bare, known}) == 1
    assert bare != dressed
    assert bare != Recipe([0, 1, 1, 2], [1, 1, 0.5, 1])
    assert bare != Recipe([0, 1, 2, 1])
    assert bare != (0, 1, 1, 2)


def test_a_recipe_cannot_change() -> None:
    layers, scales = [0, 1], [1.0, 0.5]
    recipe = Recipe(layers, scales)
    layers.append(2)
    scales[0] = 7
    assert list(recipe) == [(0, 1.0), (1, 0.5)]
    with pytest.raises(FrozenInstanceError):
        recipe.repeat_map = (3,)  # type: ignore[misc]


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    recipe = Recipe(np.array([0, 1, 1]), np.array([1, 0.5, 1], dtype=np.float32))
    assert recipe == Recipe([0, 1, 1], [1, 0.5, 1])
    assert {type(layer) for layer in recipe.repeat_map} == {int}
    assert {type(scale) for scale in recipe.scales} == {float}


def test_scales_are_kept_to_the_last_digit() -> None:
    assert Recipe([0, 1, 2], [1 / 3, -1e-300, 1e300]).scales == (1 / 3, -1e-300, 1e300)
    assert Recipe.parse("0*0.12345678901234567").scales == (0.12345678901234567,)


@pytest.mark.parametrize(
    ("repeat_map", "scales", "told"),
    [
        ([], None, "at least one visit"),
        ([-1], None, "from 0 on; got -1"),
        ([0.0], None, "whole number"),
        ([True], None, "got True"),
        (["0"], None, "a layer must be"),
        ([None], None, "got None"),
        ("012", None, "sequence"),
        (3, None, "sequence"),
        ([0, 1], [1], "2 visits, 1 scales"),
        ([0, 1], [], "2 visits, 0 scales"),
        ([0], [1, 1], "1 visits, 2 scales"),
        ([0], [float("nan")], "finite"),
        ([0], [float("-inf")], "finite"),
        ([0], ["1"], "a scale must be"),
        ([0], [True], "got True"),
        ([0], [None], "got None"),
        ([0], 1.0, "sequence"),
    ],
)
def test_what_is_no_recipe_is_refused_with_what_came(repeat_map: Any, scales: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe(repeat_map, scales)


@pytest.mark.parametrize(
    ("recipe", "is_base"),
    [
        (Recipe.identity(5), True),
        (Recipe([0, 1, 2]), True),
        (Recipe([0, 1, 2], base=Base(num_layers=3)), True),
        (Recipe([0, 1, 2], base=Base(num_layers=4)), False),  # the last layer is skipped
        (Recipe([0, 1, 1, 2]), False),
        (Recipe([0, 2]), False),
        (Recipe([1, 0]), False),
        (Recipe([0, 1], [1, 0.5]), False),
        (Recipe.from_blocks(5, [(1, 3, 1)]), True),
        (Recipe.from_ratios(5, [(0, 0.4), (0.6, 1)]), True),
    ],
)
def test_is_base_means_every_layer_once_in_order_and_plain(recipe: Recipe, is_base: bool) -> None:
    assert recipe.is_base is is_base


def test_check_accepts_a_base_that_has_the_layers() -> None:
    Recipe([0, 4, 4]).check(5)
    Recipe([0, 1]).check(5)
    Recipe.identity(5).check(5)


@pytest.mark.parametrize(
    ("recipe", "n_layers", "told"),
    [
        (Recipe([0, 5, 1]), 5, "layer 5 is out of range: the base has 5 layers"),
        (Recipe([0, 1], base=Base(num_layers=8)), 5, "made for a base of 8 layers; this one has 5"),
        (Recipe.identity(5), 8, "made for a base of 5 layers; this one has 8"),
    ],
)
def test_check_refuses_another_base(recipe: Recipe, n_layers: int, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe.check(n_layers)


def test_a_layer_beyond_its_own_base_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match="layer 4 is out of range"):
        Recipe([0, 4], base=Base(num_layers=4))


def test_it_shows_itself_in_a_line_and_as_a_picture() -> None:
    recipe = Recipe.from_blocks(8, [(2, 4, 2)])
    assert repr(recipe) == "Recipe(0:4, 2:8: 10 visits of 8 layers)"
    assert recipe.picture == "▁▂▃▄▃▄▅▆▇█"
    assert recipe._repr_html_().startswith("<svg")


@unhurried
@given(RECIPES)
def test_notation_reads_back_equal(recipe: Recipe) -> None:
    assert Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "repeat_map"),
    [
        ("0:4", [0, 1, 2, 3]),
        ("0:4,2:5", [0, 1, 2, 3, 2, 3, 4]),
        (" 3 , 1 ", [3, 1]),
        ("[0, 1, 1, 2]", [0, 1, 1, 2]),  # a Python list, pasted
    ],
)
def test_notation_is_lenient_where_it_is_clear(text: str, repeat_map: list[int]) -> None:
    assert Recipe.parse(text) == Recipe(repeat_map)


@pytest.mark.parametrize(
    "text", ["", ",", "0:4,", "a", "0:", ":4", "4:2", "3:3", "0:1:2", "-1", "1.5", "0*x", "0*nan", "0*inf", "0:2000000"]
)
def test_what_cannot_be_read_as_notation_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.parse(text)


# Recipe.of


def test_of_takes_everything_that_stands_for_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe([0, 1, 2, 1, 2, 3])
    recipe.save(tmp_path / "r.json")
    assert Recipe.of(recipe) is recipe
    for value in [
        *[tmp_path / "r.json", str(tmp_path / "r.json"), "0:3, 1:4", "[0, 1, 2, 1, 2, 3]"],
        *[[0, 1, 2, 1, 2, 3], (0, 1, 2, 1, 2, 3), np.array([0, 1, 2, 1, 2, 3])],
    ]:
        assert Recipe.of(value) == recipe
    assert Recipe.of(range(4)) == Recipe.identity(4)
    assert Recipe.of("0:2, 1*0.5") == Recipe([0, 1, 1], [1, 1, 0.5])


def test_of_takes_a_file_for_a_file_even_when_its_name_reads_as_notation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Recipe([4, 4]).save("0-1")
    Recipe([5, 5]).save("7")
    assert Recipe.of("0-1") == Recipe([4, 4])
    assert Recipe.of("7") == Recipe([5, 5])
    assert Recipe.of("8") == Recipe([8])


@pytest.mark.parametrize("value", [None, 3, 0.5, b"0:3", {"repeat_map": [0]}, "no such file.json", "", [], ["0:3"]])
def test_of_refuses_what_stands_for_no_recipe(value: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe.of(value)


# The file

TEXT = st.text(max_size=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 10**12)
MAYBE_TEXT = st.none() | TEXT
DATA = st.builds(
    Data,
    source=TEXT,
    slice=MAYBE_TEXT,
    sha256=TEXT,
    windows=st.sampled_from([None, "", "7", "0:12", "7, 3, 20:22"]),
    tokens_sha256=MAYBE_TEXT,
    documents=st.none() | COUNT,
)
MEASUREMENT = st.builds(
    Measurement,
    metric=TEXT,
    value=FINITE,
    base=FINITE,
    nll_difference=FINITE,
    interval95=st.none() | st.tuples(FINITE, FINITE),
    tokens=COUNT,
    held_out=st.booleans(),
    convention=st.builds(Convention, name=TEXT, window=st.integers(1, 10**6), bos=st.booleans()),
    data=DATA,
)
BASE = st.builds(
    Base,
    model=MAYBE_TEXT,
    revision=MAYBE_TEXT,
    architecture=MAYBE_TEXT,
    num_layers=st.integers(300, 1000),
    fingerprint=MAYBE_TEXT,
)
ORIGIN = st.builds(
    Origin, study=TEXT, trial=COUNT, space=TEXT, sampler=TEXT, trials=COUNT, seed=st.none() | st.integers()
)
VERSIONS = st.builds(Versions, david=TEXT, torch=MAYBE_TEXT, transformers=MAYBE_TEXT, created=TEXT)
FULL = st.builds(
    lambda recipe, **known: Recipe(recipe.repeat_map, recipe.scales, **known),
    RECIPES,
    base=st.none() | BASE,
    written_as=MAYBE_TEXT,
    scores=st.lists(MEASUREMENT, max_size=2).map(tuple),
    search=st.none() | ORIGIN,
    made_with=st.none() | VERSIONS,
)


def known(recipe: Recipe) -> tuple[Any, ...]:
    """All that a recipe holds: equality looks at the first two alone."""
    return (
        *(recipe.repeat_map, recipe.scales, recipe.base, recipe.written_as),
        *(recipe.scores, recipe.search, recipe.made_with),
    )


@unhurried
@given(FULL)
def test_json_reads_back_equal_in_every_field(recipe: Recipe) -> None:
    assert known(Recipe.from_json(recipe.to_json())) == known(recipe)


def test_the_layout_of_the_design_is_read_and_written() -> None:
    recipe = Recipe.from_json(DESIGN_FILE)
    assert recipe == Recipe([0, 1, 1, 2, 3], [1, 1, 0.25, 1, 1])
    assert recipe.base is not None
    assert (recipe.base.num_layers, recipe.base.architecture) == (4, "LlamaForCausalLM")
    assert (recipe.scores[0].interval95, recipe.scores[0].convention.window) == ((-0.02, 0.0), 512)
    assert recipe.search == Origin(study="night", trial=17, space="blocks", sampler="TPESampler", trials=200, seed=0)
    written = json.loads(recipe.to_json())
    for key in ("windows", "tokens_sha256", "documents", "scored_sha256"):  # which the design's example lacks
        assert written["scores"][0]["data"].pop(key) is None
    for key in ("accuracy", "base_accuracy"):
        assert written["scores"][0].pop(key) is None
    assert written["search"].pop("strategy") is None
    assert written == json.loads(DESIGN_FILE)
    assert list(written) == list(json.loads(DESIGN_FILE))


def test_windows_as_two_numbers_are_read_as_the_range_that_they_were() -> None:
    written = json.loads(DESIGN_FILE)
    written["scores"][0]["data"]["windows"] = [0, 12]
    assert Recipe.from_json(json.dumps(written)).scores[0].data.windows == "0:12"


def test_a_file_needs_no_more_than_a_map() -> None:
    recipe = Recipe.from_json(file_with())
    assert known(recipe) == ((0, 1, 2), (1.0, 1.0, 1.0), None, None, (), None, None)


@pytest.mark.parametrize("text", [DESIGN_FILE.strip()[:-1], DESIGN_FILE[:100], "", "null", "[]", "{}", "0:3"])
def test_what_is_no_whole_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"r\.json: not a valid david\.recipe version 1: "):
        Recipe.load(tmp_path / "r.json")


MEASURED = json.loads(DESIGN_FILE)["scores"][0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 2}, "version: "),
        ({"version": "1"}, "version: "),
        ({"format": "mergekit"}, "format: "),
        ({"surprise": 1}, "surprise: Extra"),
        ({"base": {"num_layers": 3, "surprise": 1}}, r"base\.surprise: Extra"),
        ({"scores": [MEASURED | {"surprise": 1}]}, r"scores\.0\.surprise: Extra"),
        ({"repeat_map": ["0", 1, 2]}, r"repeat_map\.0: "),
        ({"repeat_map": "0:3"}, "repeat_map: "),
        ({"repeat_map": [0, True, 2]}, r"repeat_map\.1: "),
        ({"repeat_map": [0, 1.5, 2]}, r"repeat_map\.1: "),
        ({"repeat_map": [0, None, 2]}, r"repeat_map\.1: "),
        ({"repeat_map": [0, float("nan"), 2]}, r"repeat_map\.1: "),
        ({"repeat_map": [0, -1, 2]}, "from 0 on; got -1"),
        ({"repeat_map": []}, "at least one visit"),
        ({"repeat_map": None}, "repeat_map: "),
        ({"scales": [1, "0.5", 1]}, r"scales\.1: "),
        ({"scales": [1, True, 1]}, r"scales\.1: "),
        ({"scales": [1, float("nan"), 1]}, r"scales\.1: "),
        ({"scales": [1, 1, float("inf")]}, r"scales\.2: "),
        ({"scales": [1, 1, float("-inf")]}, r"scales\.2: "),
        ({"scales": [1, 1]}, "3 visits, 2 scales"),
        ({"scales": []}, "3 visits, 0 scales"),
        ({"base": {"num_layers": 2}}, "layer 2 is out of range"),
        ({"base": {"num_layers": 0}}, r"base\.num_layers: "),
        ({"base": {"num_layers": "3"}}, r"base\.num_layers: "),
        ({"base": {}}, r"base\.num_layers: "),
        ({"scores": [MEASURED | {"value": "20.1"}]}, r"scores\.0\.value: "),
        ({"scores": [MEASURED | {"value": float("nan")}]}, r"scores\.0\.value: "),
        ({"scores": [MEASURED | {"interval95": [0.0, float("inf")]}]}, r"scores\.0\.interval95\.1: "),
        ({"scores": [MEASURED | {"interval95": [0.0]}]}, r"scores\.0\.interval95"),
        ({"scores": [MEASURED | {"held_out": 1}]}, r"scores\.0\.held_out: "),
        ({"search": {"study": "s"}}, r"search\."),
        ({"made_with": {"david": 1, "created": ""}}, r"made_with\.david: "),
        ({"written_as": 3}, "written_as: "),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_place(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    (tmp_path / "r.json").write_text(file_with(**changes), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"r\.json: .*{told}"):
        Recipe.load(tmp_path / "r.json")


@pytest.mark.parametrize("name", ["missing.json", "folder"])
def test_a_place_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match=f"cannot read recipe .*{name}"):
        Recipe.load(tmp_path / name)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"r\.json"):
        Recipe.load(tmp_path / "r.json")


def test_a_file_of_over_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(file_with().ljust(1_000_000), encoding="utf-8")
    assert Recipe.load(tmp_path / "r.json") == Recipe.identity(3)
    (tmp_path / "r.json").write_text(file_with().ljust(1_000_001), encoding="utf-8")
    with pytest.raises(RecipeError, match="over 1000000 bytes"):
        Recipe.load(tmp_path / "r.json")


@pytest.mark.parametrize("name", ["r.json", "größer als 0 ∞.json"])
def test_save_and_load_give_the_same_recipe_and_leave_nothing_beside(tmp_path: Path, name: str) -> None:
    recipe = Recipe.from_json(DESIGN_FILE)
    recipe.save(tmp_path / name)
    recipe.save(str(tmp_path / name))
    assert known(Recipe.load(tmp_path / name)) == known(Recipe.load(str(tmp_path / name))) == known(recipe)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    old, new = Recipe.identity(3), Recipe([0] * 1000)
    old.save(path)
    with path.open(encoding="utf-8") as reader:
        new.save(path)
        assert reader.read() == old.to_json()  # whoever had it open goes on reading the old one, whole
    assert Recipe.load(path) == new


@pytest.mark.parametrize("place", ["missing/r.json", "file/r.json", f"{'x' * 300}.json"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot write recipe"):
        Recipe.identity(3).save(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_reads_a_long_notation() -> None:
    text = ", ".join(f"{layer}*0.12345" for layer in range(40))
    assert Recipe.of(text) == Recipe.parse(text)


@pytest.mark.parametrize("n_layers", [0, -3])
@pytest.mark.parametrize(
    "make", [Recipe.identity, lambda n: Recipe.from_ratios(n, [(0, 1)]), lambda n: Recipe.from_blocks(n, [])]
)
def test_a_base_without_layers_is_refused(make: Any, n_layers: int) -> None:
    with pytest.raises(RecipeError):
        make(n_layers)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe([0], [10**400]),
        lambda: Recipe.from_ratios(9, [(0, 10**400)]),
        lambda: Recipe.parse("0:" + "9" * 30),
    ],
)
def test_numbers_too_large_are_refused(make: Any) -> None:
    with pytest.raises(RecipeError):
        make()


def test_a_full_disk_leaves_nothing_beside(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # bytes of a file
    try:
        with pytest.raises(RecipeError, match="cannot write recipe"):
            Recipe((0, 1)).save(tmp_path / "recipe.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError):
        Recipe.identity(3).save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("place", ["", ".", "a\0b"])
def test_a_place_without_a_name_is_refused(place: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.identity(3).save(place)


@pytest.mark.parametrize("ratio", [("0", "0.5"), "01"])
def test_texts_are_no_ratios(ratio: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_ratios(10, [ratio])


@pytest.mark.parametrize("text", ["0:3*", "]0:3[", "0:1_0"])
def test_sloppy_notation_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.parse(text)


def test_an_error_shows_a_text_as_a_text() -> None:
    with pytest.raises(RecipeError, match="got '0'"):
        Recipe(["0"])


@pytest.mark.parametrize("text", ["~a\0b", "~\ud800", "~nobody-has-this-name/x", "~"])
def test_a_home_that_nobody_has_is_no_recipe(text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.of(text)


def _measured(interval: list[float] | None, *, held_out: bool = True, **other: Any) -> dict[str, Any]:
    """Return a score as a file holds it."""
    score = json.loads(DESIGN_FILE)["scores"][0]
    return (
        score
        | {"interval95": interval, "held_out": held_out, "value": 58.8, "base": 38.9, "nll_difference": 0.41}
        | other
    )


@pytest.mark.parametrize(
    ("scores", "word", "sentence"),
    [
        ([], None, None),
        ([_measured(None, held_out=False)], "not judged", "not judged: it has no score on data"),
        (
            [_measured(None, held_out=False), _measured([0.1, 0.7])],
            "worse",
            "worse than its base on held-out data: perplexity 58.8, base 38.9; difference +0.4100 nats, 95% interval "
            "+0.1000 to +0.7000",
        ),
        ([_measured([-0.1, 0.7])], "not told apart", "not shown to be better than its base on held-out data (inconc"),
        ([_measured(None)], "not told apart", "not shown to be better"),
        ([_measured([-0.7, -0.1])], "better", "better than its base on held-out data: perplexity 58.8, base 38.9;"),
        ([_measured([-0.7, -0.1]), _measured([0.1, 0.2])], "worse", "worse than its base"),
        (
            [_measured([0.1, 0.2], accuracy=0.25, base_accuracy=0.5)],
            "worse",
            "worse than its base on held-out data: acc",
        ),
        (
            [_measured([0.1, 0.2], metric="<b>mine</b>")],
            "worse",
            "worse than its base on held-out data: score 58.8",
        ),
    ],
)
def test_a_file_says_in_words_whether_its_recipe_was_better(
    scores: list[dict[str, Any]], word: str | None, sentence: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.from_json(json.dumps(json.loads(DESIGN_FILE) | {"scores": scores}))
    assert recipe.verdict == word
    first_line = str(explain(recipe)).splitlines()[0]
    assert first_line.startswith(f"verdict     {sentence}" if sentence else "recipe ")
    assert explain(recipe).to_dict()["verdict"] == verdict_sentence(recipe)
    note_verdict(recipe, "its\nname")
    note = capsys.readouterr().err
    assert note.startswith(f"note: its\\nname was {sentence}") if word not in (None, "better") else note == ""

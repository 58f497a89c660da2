"""A recipe in words, and what it costs."""

import json

import pytest

from david.errors import RecipeError
from david.recipe.explain import Costs, explain
from david.recipe.recipe import Recipe, Segment

FOUR = Costs(layer_parameters=(10, 20, 30, 40), layer_kv_bytes=(1, 2, 3, 4), end_parameters=50)


@pytest.mark.parametrize(
    ("notation", "segments"),
    [
        ("0:4", [(0, 4, 1)]),
        ("0:8, 4:12", [(0, 8, 1), (4, 12, 1)]),
        ("0, 0, 0", [(0, 1, 1), (0, 1, 1), (0, 1, 1)]),
        ("3, 2, 1", [(3, 4, 1), (2, 3, 1), (1, 2, 1)]),
        ("0:2, 2:4*0.5, 4", [(0, 2, 1), (2, 4, 0.5), (4, 5, 1)]),
        ("0:2, 2:4", [(0, 4, 1)]),
    ],
)
def test_segments_are_the_longest_runs_at_one_scale(notation: str, segments: list[tuple[int, int, float]]) -> None:
    assert Recipe.parse(notation).segments == tuple(Segment(*segment) for segment in segments)


@pytest.mark.parametrize(
    ("notation", "path"),
    [
        ("0:8", ["layers 0–7"]),
        ("0:1", ["layer 0"]),
        ("0:5, 2:8", ["layers 0–4", "back to layer 2 (3 again): layers 2–7"]),
        ("0:4, 3:8", ["layers 0–3", "back to layer 3 (1 again): layers 3–7"]),
        ("0, 0:3", ["layer 0", "back to layer 0 (1 again): layers 0–2"]),
        ("0:3, 4:8", ["layers 0–2", "over 3: layers 4–7"]),
        ("0:3, 6, 7*2.5", ["layers 0–2", "over 3–5: layer 6", "layer 7 at scale 2.5"]),
        ("0:4, 4:6*0.5, 6:8", ["layers 0–3", "layers 4–5 at scale 0.5", "layers 6–7"]),
        ("0:4, 2:4*0.5, 4:8", ["layers 0–3", "back to layer 2 (2 again): layers 2–3 at scale 0.5", "layers 4–7"]),
    ],
)
def test_the_path_reads_as_a_person_would_tell_it(notation: str, path: list[str]) -> None:
    assert explain(Recipe.parse(notation)).path == tuple(path)


def test_a_repeated_block_costs_what_its_layers_cost() -> None:
    told = explain(Recipe([0, 1, 2, 1, 2, 3]), FOUR)
    assert (told.visits, told.base_layers, told.skipped) == (6, 4, ())
    assert told.extra_depth == pytest.approx(2 / 4)
    assert told.weights_per_token == 10 + 20 + 30 + 20 + 30 + 40 + 50
    assert told.extra_compute == pytest.approx(200 / 150 - 1)
    assert told.kv_bytes_per_token == 1 + 2 + 3 + 2 + 3 + 4
    assert told.extra_kv_cache == pytest.approx(15 / 10 - 1)


def test_skipped_layers_are_named_and_saved() -> None:
    told = explain(Recipe([0, 3]), FOUR)
    assert told.skipped == (1, 2)
    assert told.extra_depth == pytest.approx(-1 / 2)
    assert told.extra_compute == pytest.approx(100 / 150 - 1)
    assert told.extra_kv_cache == pytest.approx(5 / 10 - 1)


def test_layers_above_the_deepest_visit_count_as_skipped() -> None:
    told = explain(Recipe([0, 1]), FOUR)
    assert told.skipped == (2, 3)
    assert told.base_layers == 4
    assert told.extra_depth == pytest.approx(-1 / 2)


def test_a_scaled_visit_costs_as_much_as_a_plain_one() -> None:
    plain, scaled = (explain(Recipe([0, 1, 1, 2, 3], scales), FOUR) for scales in (None, [1, 1, 0, 1, 1]))
    assert scaled.weights_per_token == plain.weights_per_token
    assert scaled.kv_bytes_per_token == plain.kv_bytes_per_token


def test_without_costs_every_layer_counts_alike_and_nothing_is_made_up() -> None:
    told = explain(Recipe.from_blocks(8, [(2, 4, 2)]))
    assert told.extra_depth == told.extra_compute == told.extra_kv_cache == pytest.approx(2 / 8)
    assert told.weights_per_token is told.kv_bytes_per_token is None


def test_the_base_costs_nothing_extra() -> None:
    told = explain(Recipe.identity(4), FOUR)
    assert (told.extra_depth, told.extra_compute, told.extra_kv_cache) == (0, 0, 0)


def test_a_model_without_a_cache_has_no_extra_cache() -> None:
    assert explain(Recipe([0, 1, 1]), Costs((1, 1), (0, 0), 0)).extra_kv_cache == 0


@pytest.mark.parametrize("recipe", [Recipe([0, 4]), Recipe.identity(3), Recipe.identity(5)])
def test_costs_of_another_base_are_an_error(recipe: Recipe) -> None:
    with pytest.raises(RecipeError):
        explain(recipe, FOUR)


def test_to_dict_survives_json() -> None:
    told = explain(Recipe([0, 1, 1, 3], [1, 1, 0.5, 1]), FOUR)
    read = json.loads(json.dumps(told.to_dict()))
    assert read == told.to_dict() | {"path": list(told.path), "skipped": [2]}
    assert read["recipe"] == "0:2, 1*0.5, 3"
    assert read["weights_per_token"] == 140


def test_the_text_holds_the_figures() -> None:
    costs = Costs((1_000_000,) * 4, (1024,) * 4, 6_000_000)
    text = str(explain(Recipe([0, 1, 0, 1, 3]), costs))
    for figure in [
        "0:2, 0:2, 3",
        "▁▃▁▃█",
        "5 on a base of 4 layers (+25.0% depth)",
        "not visited 2",
        "+10.0% compute, 11.0 M weights",
        "+25.0% KV cache, 5,120 bytes",
        "+0 bytes",
    ]:
        assert figure in text
    assert "not visited none" in str(explain(Recipe.identity(4)))


def test_the_picture_of_an_explanation_has_the_base_s_height() -> None:
    assert explain(Recipe([0, 1]), Costs((1,) * 8, (1,) * 8, 0)).picture == "▁▂"


@pytest.mark.parametrize(("notation", "again"), [("0:5, 2, 5:8", 1), ("0:3, 5:8, 1:8", 5)])
def test_again_counts_the_layers_that_run_again(notation: str, again: int) -> None:
    assert f"({again} again)" in "".join(explain(Recipe.parse(notation)).path)


def test_a_depth_that_nobody_states_is_not_told_as_the_bases() -> None:
    lines = str(explain(Recipe.parse("0:12, 8:20"))).splitlines()
    assert "visits      24 on a base of at least 20 layers (at most +20.0% depth)" in lines
    assert "per token   at most +20.0% compute of the layers; at most +20.0% KV cache" in lines
    assert "not visited none of layers 0–19" in lines
    assert not explain(Recipe.parse("0:12, 8:20")).depth_stated
    stated = Recipe.from_blocks(20, [(8, 12, 2)])
    assert "visits      24 on a base of 20 layers (+20.0% depth)" in str(explain(stated))
    assert "visits      3 on a base of 4 layers (-25.0% depth)" in str(explain(Recipe.parse("0:3"), FOUR))

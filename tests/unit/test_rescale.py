"""A recipe moved to a model of another depth keeps its segments, seams and strengths."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from david.errors import RecipeError
from david.notation.rescale import moved
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from tests.helpers.generated import DEPTH, recipes, unhurried

# ---- to a sibling of another depth


def shape(recipe: Recipe) -> list[tuple[float, int]]:
    """The strength of each segment, and whether the next one goes back (−1), on (0) or over layers (1)."""
    bounds = list(pairwise(recipe.segments))
    turns = [(after.start > before.stop) - (after.start < before.stop) for before, after in bounds]
    return [(segment.scale, turn) for segment, turn in zip(recipe.segments, [*turns, 0], strict=True)]


@unhurried
@given(recipes(), st.integers(1, 40))
def test_a_moved_recipe_has_every_segment_seam_and_strength(recipe: Recipe, n_layers: int) -> None:
    try:
        found = moved(recipe, n_layers)
    except RecipeError:
        with pytest.raises(RecipeError, match=f"{n_layers} layers are too few"):
            moved(recipe, n_layers)
        assert n_layers < DEPTH
        return
    assert shape(found) == shape(recipe)
    assert found.n_layers == n_layers
    assert (min(found.repeat_map) > 0) >= (min(recipe.repeat_map) > 0)  # what is left out at an end stays so
    assert (max(found.repeat_map) < n_layers - 1) >= (max(recipe.repeat_map) < DEPTH - 1)
    for before, after in zip(recipe.segments, found.segments, strict=True):
        if n_layers >= 2 * DEPTH:  # with room, every place is the nearest
            assert abs(after.start - before.start * n_layers / DEPTH) <= 0.5
            assert abs(after.stop - before.stop * n_layers / DEPTH) <= 0.5


@unhurried
@given(st.integers(1, 60), st.integers(1, 60))
def test_the_base_moves_to_the_base(depth: int, n_layers: int) -> None:
    assert moved(Recipe.identity(depth), n_layers).is_base


@unhurried
@given(recipes(), st.integers(1, 9))
def test_as_many_layers_change_nothing_and_there_and_back_is_the_same(recipe: Recipe, times: int) -> None:
    assert moved(recipe, DEPTH) == recipe
    assert moved(moved(recipe, times * DEPTH), DEPTH) == recipe


def test_what_is_told_of_a_moved_recipe() -> None:
    recipe = Recipe.from_blocks(30, [(8, 12, 2, 0.5)])
    found = moved(recipe, 48)
    assert str(found) == "0:19, 13:19*0.5, 19:48"
    assert found.written_as == "blocks (8, 12) ×2 at 0.5 of 30 layers, moved to 48"
    assert found.base == Base(num_layers=48)
    assert (found.scores, found.search) == ((), None)
    assert str(moved(Recipe.from_blocks(30, [(10, 11, 2)]), 5)) == "0:2, 1:5"  # the seam stays
    assert str(moved(Recipe(range(1, 30), base=Base(num_layers=30)), 8)) == "1:8"  # and what is left out
    assert str(moved(Recipe(range(29), base=Base(num_layers=30)), 8)) == "0:7"
    for wrong, told in (
        (lambda: moved(Recipe.parse("0:12, 8:30"), 48), "--model"),
        (lambda: moved(Recipe([0, 2, 4], base=Base(num_layers=5)), 4), "4 layers are too few"),
        (lambda: moved(recipe, 0), "at least one layer"),
        (lambda: moved(Recipe([0, 1] * 20, base=Base(num_layers=2)), 1000), f"more than the {LONGEST} visits"),
    ):
        with pytest.raises(RecipeError, match=told):
            wrong()

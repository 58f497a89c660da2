"""Many recipes on one model: each score is the one that slinging by hand gives, and the model stays what it was."""

from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY

from david.corpus import Corpus
from david.engine import score_recipes
from david.errors import DavidError
from david.layers import find
from david.recipe import Recipe
from david.score import Score, perplexity
from david.sling import reset, sling, slung

RECIPES = [
    Recipe.identity(6),
    Recipe.from_blocks(6, [(1, 4, 2)]),
    Recipe((0, 1, 2, 3, 4, 5, 5), (1, 1, 1, 1, 1, 1, 0.25)),
    Recipe((5, 0, 0, 3)),
    Recipe((2,)),
]


@pytest.fixture
def corpus() -> Corpus:
    windows = torch.randint(3, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(windows, (0, 0, 1), source="random", slice=None, sha256="", bos=False)


def standing(model: Any) -> tuple[Any, ...]:
    """What a model is: its layers, its configuration and what it says."""
    layers = list(map(id, find(model).layers))
    return layers, model.config.to_dict(), model(torch.arange(3, 20)[None], use_cache=False).logits.tolist()


def test_each_recipe_has_the_score_that_slinging_by_hand_gives(tiny: Any, corpus: Corpus) -> None:
    expected = []
    for recipe in RECIPES:
        sling(tiny, recipe)
        expected.append(perplexity(tiny, corpus).window_nll)
        reset(tiny)
    scores = score_recipes(tiny, RECIPES, corpus)
    assert [score.window_nll for score in scores] == [pytest.approx(nll, rel=1e-6) for nll in expected]
    assert {(score.window_tokens, score.documents, score.convention) for score in scores} == {
        ((15, 15, 15), (0, 0, 1), "window")
    }
    assert scores[0] == perplexity(tiny, corpus)
    assert len({round(score.nll, 4) for score in scores}) == len(RECIPES)


def test_the_order_of_the_recipes_makes_no_difference(tiny: Any, corpus: Corpus) -> None:
    forwards = score_recipes(tiny, RECIPES, corpus)
    assert score_recipes(tiny, RECIPES[::-1], corpus) == forwards[::-1]


@pytest.mark.parametrize("before", [None, Recipe((3, 1, 1))], ids=["base", "slung"])
def test_the_model_is_afterwards_what_it_was(before: Recipe | None, tiny: Any, corpus: Corpus) -> None:
    base_score = perplexity(tiny, corpus)
    if before is not None:
        sling(tiny, before)
    was = standing(tiny)
    assert score_recipes(tiny, RECIPES[:2], corpus)[0] == base_score  # a map speaks of the base, slung or not
    assert standing(tiny) == was


def test_the_model_is_what_it_was_when_an_objective_raises(tiny: Any, corpus: Corpus) -> None:
    was, done = standing(tiny), []

    def fails_on_the_second(model: Any, corpus: Corpus) -> Score:
        if done:
            raise RuntimeError("no memory left")
        done.append(0)
        return perplexity(model, corpus)

    with pytest.raises(RuntimeError, match="no memory left"):
        score_recipes(tiny, RECIPES[1:4], corpus, objective=fails_on_the_second)
    assert done == [0]
    assert standing(tiny) == was


def test_the_model_is_what_it_was_when_a_recipe_does_not_fit(tiny: Any, corpus: Corpus) -> None:
    was = standing(tiny)
    with pytest.raises(DavidError, match="layer 6 is out of range"):
        score_recipes(tiny, [RECIPES[1], Recipe((0, 6))], corpus)
    assert standing(tiny) == was


def test_an_objective_sees_the_slung_model_and_the_corpus(tiny: Any, corpus: Corpus) -> None:
    def depth(model: Any, data: Corpus) -> Score:
        assert data is corpus
        return Score((float(model.config.num_hidden_layers),), (1,), (0,), "depth")

    assert [score.nll for score in score_recipes(tiny, RECIPES, corpus, objective=depth)] == [6, 9, 7, 4, 1]


def test_an_objective_of_another_convention_is_its_own(tiny: Any, corpus: Corpus) -> None:
    def second_half(model: Any, data: Corpus) -> Score:
        return perplexity(model, data, convention="llamacpp")

    (score,) = score_recipes(tiny, [RECIPES[1]], corpus, objective=second_half)
    with slung(tiny, RECIPES[1]):
        assert score == perplexity(tiny, corpus, convention="llamacpp")


def test_no_recipes_are_no_scores(tiny: Any, corpus: Corpus) -> None:
    assert score_recipes(tiny, [], corpus) == []

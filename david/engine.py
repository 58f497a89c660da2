"""Scores many recipes of one model on one corpus."""

from collections.abc import Callable, Sequence

from torch import nn

from david.corpus import Corpus
from david.recipe import Recipe
from david.score import Objective, Score, perplexity
from david.sling import slung


def score_recipes(
    model: nn.Module,
    recipes: Sequence[Recipe],
    corpus: Corpus,
    *,
    objective: Objective = perplexity,
    done: Callable[[int], object] = lambda _index: None,
) -> list[Score]:
    """The score of each recipe, in their order: sling, score, reset, one after the other.

    `done` is called with the index of each recipe when its score is known. The model is afterwards what it was.
    """
    scores = []
    for index, recipe in enumerate(recipes):
        with slung(model, recipe):
            scores.append(objective(model, corpus))
        done(index)
    return scores

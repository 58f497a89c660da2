"""Scores many recipes of one model on one corpus."""

from collections.abc import Sequence

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
) -> list[Score]:
    """The score of each recipe, in their order: sling, score, reset, one after the other.

    The model is afterwards what it was, also when a score raises.
    """
    scores = []
    for recipe in recipes:
        with slung(model, recipe):
            scores.append(objective(model, corpus))
    return scores

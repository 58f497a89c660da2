"""What a search minimises beside its objective: a cost of a recipe, or a score on another corpus."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from david.corpus import Corpus
from david.engine import Engine, Outcome
from david.errors import DavidError, ScoreError, SearchError
from david.recipe import Recipe
from david.score import Objective, perplexity

Also = Corpus | tuple[Objective, Corpus] | Callable[[Recipe], float]
Measure = Callable[[Sequence[Recipe]], list[float | DavidError]]


def measures_of(model: nn.Module, also: Mapping[str, Also], memory_budget: int | None) -> dict[str, Measure]:
    """How each of these is measured, by its name.

    A corpus is scored by perplexity, or by the objective that comes with it; a function is called with the recipe.
    """
    return {name: _measure(model, name, what, memory_budget) for name, what in also.items()}


def values_of(measures: Mapping[str, Measure], recipes: Sequence[Recipe]) -> list[list[float] | DavidError]:
    """What each recipe has by these measures, in their order; or why it has not."""
    found: list[list[float] | DavidError] = [[] for _ in recipes]
    for measure in measures.values():
        left = {i: its for i, its in enumerate(found) if isinstance(its, list)}
        for (i, before), value in zip(left.items(), measure([recipes[i] for i in left]), strict=True):
            found[i] = value if isinstance(value, DavidError) else [*before, value]
    return found


def _measure(model: nn.Module, name: str, what: Also, memory_budget: int | None) -> Measure:
    if isinstance(what, Corpus):
        what = perplexity, what
    if isinstance(what, tuple):
        objective, corpus = what
        return partial(_scored, Engine(model, corpus, objective=objective, memory_budget=memory_budget, keeps=True))
    if callable(what):
        return partial(_told, name, what)
    raise SearchError(
        f"also[{name!r}] must be a corpus, (objective, corpus) or a function of a recipe; got {type(what).__name__}"
    )


def _scored(engine: Engine, recipes: Sequence[Recipe]) -> list[float | DavidError]:
    def value(outcome: Outcome) -> float | DavidError:
        return outcome if isinstance(outcome, DavidError) else outcome.nll

    return [value(outcome) for outcome in engine.outcomes(recipes)]


def _told(name: str, cost: Callable[[Recipe], float], recipes: Sequence[Recipe]) -> list[float | DavidError]:
    values = [float(cost(recipe)) for recipe in recipes]
    return [ScoreError(f"also[{name!r}] is not a number") if math.isnan(value) else value for value in values]

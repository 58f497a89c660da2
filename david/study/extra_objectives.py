"""What a search minimises beside its objective: a cost of a recipe, or a score on another corpus."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from david.engine.engine import Engine
from david.engine.one_by_one import Outcome, error_as_outcome
from david.errors import DavidError, ScoreError, SearchError
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity
from david.sling.forward import input_device
from david.support import memory

ExtraObjective = Corpus | tuple[Objective, Corpus] | Callable[[Recipe], float]
ExtraMeasure = Callable[[Sequence[Recipe]], list[float | DavidError]]


def check_extra_objectives(also: Mapping[str, ExtraObjective], held_out: Corpus | None) -> None:
    """`SearchError` for a name that cannot stand for a column and a file, or windows that are to be held out."""
    if any(re.fullmatch(r"\w[\w -]{0,39}", name) is None for name in also):
        raise SearchError(f"names in also must be up to 40 letters, digits, _, - or spaces; got {', '.join(also)}")
    if len({name.casefold().replace(" ", "-") for name in also}) < len(also):
        raise SearchError(f"names in also must differ in more than case and spaces; got {', '.join(also)}")
    visits: object = also.get("visits", len)
    if visits is not len:
        raise SearchError("also['visits'] is the number of visits, `len`: give it, or another name")
    for name, corpus in corpora_of(also).items():
        if held_out is not None and (both := corpus.shared_tokens(held_out)):
            raise SearchError(f"also[{name!r}] and the held-out windows overlap in {both} tokens")


def corpora_of(also: Mapping[str, ExtraObjective]) -> dict[str, Corpus]:
    """The corpora that something is scored on, by their names."""
    found = {name: what[1] if isinstance(what, tuple) else what for name, what in also.items()}
    return {name: what for name, what in found.items() if isinstance(what, Corpus)}


def memory_share(model: nn.Module, also: Mapping[str, ExtraObjective], memory_budget: int | None) -> int | None:
    """What each engine may hold, where there is one for each corpus and the search's own."""
    engines = 1 + len(corpora_of(also))
    if engines == 1:
        return memory_budget
    return (memory_budget or memory.free(input_device(model)) // 4) // engines


def measures_of(
    model: nn.Module, also: Mapping[str, ExtraObjective], memory_budget: int | None
) -> dict[str, ExtraMeasure]:
    """How each of these is measured, by its name.

    A corpus is scored by the mean NLL of its tokens, or by the objective that comes with it; a function is called with
    the recipe.
    """
    return {name: _measure(model, name, what, memory_budget) for name, what in also.items()}


def extra_values(measures: Mapping[str, ExtraMeasure], recipes: Sequence[Recipe]) -> list[list[float] | DavidError]:
    """What each recipe has by these measures, in their order; or why it has not."""
    found: list[list[float] | DavidError] = [[] for _ in recipes]
    for measure in measures.values():
        left = {i: its for i, its in enumerate(found) if isinstance(its, list)}
        for (i, before), value in zip(left.items(), measure([recipes[i] for i in left]), strict=True):
            found[i] = value if isinstance(value, DavidError) else [*before, value]
    return found


def _measure(model: nn.Module, name: str, what: ExtraObjective, memory_budget: int | None) -> ExtraMeasure:
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
    def value(recipe: Recipe) -> float | DavidError:
        try:
            found = float(cost(recipe))
        except DavidError as error:
            return error
        except Exception as error:  # any kind: the caller's own code
            return error_as_outcome(f"also[{name!r}]", error)
        return ScoreError(f"also[{name!r}] is not a number") if math.isnan(found) else found

    return [value(recipe) for recipe in recipes]

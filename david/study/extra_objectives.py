"""Extra objectives (the option `also`): what a search minimises beside the NLL, a cost or a score on other data."""

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
    """Check the names and the data of extra objectives.

    Args:
        also: Extra objectives by name. A name becomes a column of tables and a part of file names.
        held_out: The held-out windows of the search; None for none.

    Raises:
        SearchError: If a name cannot be a column and a file name, two names differ in case and spaces only, `visits`
            is not the number of visits, or a corpus shares tokens or copies with the held-out windows.
    """
    if any(re.fullmatch(r"\w[\w -]{0,39}", name) is None for name in also):
        raise SearchError(f"names in also must be up to 40 letters, digits, _, - or spaces; got {', '.join(also)}")
    if len({name.casefold().replace(" ", "-") for name in also}) < len(also):
        raise SearchError(f"names in also must differ in more than case and spaces; got {', '.join(also)}")
    visits: object = also.get("visits", len)
    if visits is not len:
        raise SearchError("also['visits'] is the number of visits, `len`: give it, or another name")
    for name, corpus in corpora_of(also).items():
        if held_out is not None and (shared := corpus.shared_tokens(held_out)):
            raise SearchError(f"also[{name!r}] and the held-out windows overlap in {shared} tokens")
        if held_out is not None and corpus.shares_copies(held_out):
            raise SearchError(f"also[{name!r}] and the held-out windows hold copies of one text, or rows of one group")


def corpora_of(also: Mapping[str, ExtraObjective]) -> dict[str, Corpus]:
    """Return, by name, the corpora that extra objectives are scored on."""
    data = {name: extra[1] if isinstance(extra, tuple) else extra for name, extra in also.items()}
    return {name: corpus for name, corpus in data.items() if isinstance(corpus, Corpus)}


def memory_share(model: nn.Module, also: Mapping[str, ExtraObjective], memory_budget: int | None) -> int | None:
    """Return how many bytes each engine may hold: one engine for the search windows, and one for each corpus.

    Args:
        model: The model, whose device the engines use.
        also: Extra objectives by name.
        memory_budget: Bytes for all engines together; None for a quarter of the free memory.
    """
    engines = 1 + len(corpora_of(also))
    if engines == 1:
        return memory_budget
    return (memory_budget or memory.free(input_device(model)) // 4) // engines


def measures_of(
    model: nn.Module, also: Mapping[str, ExtraObjective], memory_budget: int | None
) -> dict[str, ExtraMeasure]:
    """Return, by name, the function that measures each extra objective.

    A corpus is scored by the mean NLL of its tokens, or by the objective that comes with it; a function is called with
    the recipe.

    Args:
        model: The model that recipes are slung on.
        also: Extra objectives by name.
        memory_budget: Bytes that the engine of each corpus may hold.

    Raises:
        SearchError: If an extra objective is of another kind.
    """
    return {name: _measure(model, name, extra, memory_budget) for name, extra in also.items()}


def extra_values(measures: Mapping[str, ExtraMeasure], recipes: Sequence[Recipe]) -> list[list[float] | DavidError]:
    """Measure recipes by all extra objectives.

    Returns:
        For each recipe its values in the order of `measures`, or the first error; a recipe that failed is not measured
        further.
    """
    values: list[list[float] | DavidError] = [[] for _ in recipes]
    for measure in measures.values():
        valid = {i: row for i, row in enumerate(values) if isinstance(row, list)}
        for (i, row), value in zip(valid.items(), measure([recipes[i] for i in valid]), strict=True):
            values[i] = value if isinstance(value, DavidError) else [*row, value]
    return values


def _measure(model: nn.Module, name: str, extra: ExtraObjective, memory_budget: int | None) -> ExtraMeasure:
    if isinstance(extra, Corpus):
        extra = perplexity, extra
    if isinstance(extra, tuple) and len(extra) == 2:
        objective, corpus = extra
        return partial(_score_each, Engine(model, corpus, objective=objective, memory_budget=memory_budget, keeps=True))
    if callable(extra):
        return partial(_call_each, name, extra)
    raise SearchError(
        f"also[{name!r}] must be a corpus, (objective, corpus) or a function of a recipe; got {type(extra).__name__}"
    )


def _score_each(engine: Engine, recipes: Sequence[Recipe]) -> list[float | DavidError]:
    def value(outcome: Outcome) -> float | DavidError:
        return outcome if isinstance(outcome, DavidError) else outcome.nll

    return [value(outcome) for outcome in engine.outcomes(recipes)]


def _call_each(name: str, cost: Callable[[Recipe], float], recipes: Sequence[Recipe]) -> list[float | DavidError]:
    def value(recipe: Recipe) -> float | DavidError:
        try:
            number = float(cost(recipe))
        except DavidError as error:
            return error
        except Exception as error:  # any kind: the caller's own code
            return error_as_outcome(f"also[{name!r}]", error)
        return ScoreError(f"also[{name!r}] is not a number") if math.isnan(number) else number

    return [value(recipe) for recipe in recipes]

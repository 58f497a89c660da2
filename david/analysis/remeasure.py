"""A study's recipes by another measure: on another text, on answers, or by any objective; and whether both agree."""

from collections.abc import Sequence

from optuna import Study
from optuna.trial import FrozenTrial
from torch import nn
from tqdm.auto import tqdm

from david.engine.engine import Engine
from david.errors import DavidError, SearchError
from david.metrics.paired_test import Correlation
from david.models.describe import describe_base
from david.recipe.recipe import Recipe
from david.report import tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity
from david.storage import results
from david.study.signature import same_weights


def measure(
    study: Study,
    model: nn.Module,
    corpus: Corpus,
    *,
    name: str,
    objective: Objective = perplexity,
    most: int = 100,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Correlation:
    """Score a study's recipes by another measure, keep that in the study under a name, and tell how alike both rank.

    Of more than `most` recipes so many are taken, evenly from the best to the worst of the search: with the best alone
    no ranking could be told. What is measured already is not measured again; `report` and `page` tell the correlation.
    A recipe that cannot be scored is left out.

    Raises `SearchError` for a study that was made on another model.

    Example:
        >>> answers = Corpus.load("gsm8k.jsonl", tokenizer, prompt="question", column="answer")
        >>> found = measure(study, model, answers.take(4), name="gsm8k")
        >>> -1 <= found.rho <= 1, found.pairs
        (True, 6)
    """
    if most < 2:
        raise SearchError(f"most must be at least 2; got {most}")
    found = results.StudyResults.read(study)
    base = found.metadata.base.model_dump()
    if not same_weights(base, here := describe_base(model).model_dump()):
        raise SearchError(f"the study {study.study_name!r} was made on another model: {base}; this is {here}")
    known = found.measured.get(name, {})
    wanted = [trial for trial in _spread(found.fully_scored, most) if trial.number not in known]
    engine = Engine(model, corpus, objective=objective, memory_budget=memory_budget)
    recipes = [Recipe.parse(trial.user_attrs["recipe"]) for trial in wanted]
    whole = engine.work(recipes)
    with tqdm(total=whole, desc=name, unit="visit", unit_scale=True, disable=not progress or not wanted) as bar:
        outcomes = engine.outcomes(recipes, done=lambda work: bar.update(min(work, whole - bar.n)))
    scored = {t.number: its.nll for t, its in zip(wanted, outcomes, strict=True) if not isinstance(its, DavidError)}
    results.store_measured(study, name, known | scored)
    return tables.rank_correlations(study)[name]


def _spread(trials: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """So many trials, evenly from the first to the last."""
    last = len(trials) - 1
    if last < most:
        return list(trials)
    return [trials[round(i * last / (most - 1))] for i in range(most)]

"""Score a study's recipes by another measure (`measure`), and correlate the rankings."""

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
from david.sling.in_place import base_depth
from david.storage import results, trial_attributes
from david.study.signature import same_weights
from david.support.arguments import check_type, check_whole


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
    """Score a study's recipes by another measure, store that in the study, and correlate both rankings.

    Recipes that are measured already are not measured again; one that cannot be scored is left out. `report` and `page`
    show the correlation.

    Args:
        study: A study of `search`.
        model: The model that the study was made on.
        corpus: The data to measure on.
        name: The name of the measure in the study.
        objective: What scores a model on the corpus.
        most: At most so many recipes are measured, evenly spaced from the best to the worst of the search: a ranking
            cannot be judged by the best alone.
        memory_budget: How many bytes of hidden states may be held (see `score_recipes`).
        progress: Whether to show a progress bar.

    Returns:
        The rank correlation of the search's NLL and the new measure, with its interval.

    Raises:
        SearchError: If the study was made on another model, or `most` is below 2.

    Example:
        >>> answers = Corpus.load("gsm8k.jsonl", tokenizer, prompt="question", column="answer")
        >>> found = measure(study, model, answers.take(4), name="gsm8k")
        >>> -1 <= found.rho <= 1, found.pairs
        (True, 6)
    """
    check_whole("most", most, SearchError, least=2)
    check_type("study", study, Study, SearchError)  # not its results: the measure is stored in it
    check_type("name", name, str, SearchError)
    base_depth(model)  # refuses what is no model
    snapshot = results.StudyResults.read(study)
    base = snapshot.metadata.base.model_dump()
    if not same_weights(base, current := describe_base(model).model_dump()):
        raise SearchError(f"the study {study.study_name!r} was made on another model: {base}; this is {current}")
    stored = snapshot.measured.get(name, {})
    unmeasured = [trial for trial in _evenly_spaced(snapshot.fully_scored, most) if trial.number not in stored]
    engine = Engine(model, corpus, objective=objective, memory_budget=memory_budget)
    recipes = [Recipe.parse(trial.user_attrs[trial_attributes.RECIPE]) for trial in unmeasured]
    total = engine.work(recipes)
    with tqdm(total=total, desc=name, unit="visit", unit_scale=True, disable=not progress or not unmeasured) as bar:
        outcomes = engine.outcomes(recipes, done=lambda work: bar.update(min(work, total - bar.n)))
    scored = {
        trial.number: score.nll
        for trial, score in zip(unmeasured, outcomes, strict=True)
        if not isinstance(score, DavidError)
    }
    results.store_measured(study, name, stored | scored)
    return tables.rank_correlations(study)[name]


def _evenly_spaced(trials: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """Return at most `most` trials, evenly spaced from the first to the last."""
    last = len(trials) - 1
    if last < most:
        return list(trials)
    return [trials[round(i * last / (most - 1))] for i in range(most)]

"""Judge the finalists of a search (`judge_finalists`): score them on held-out windows, with random recipes beside."""

import math
from dataclasses import replace
from random import Random

from optuna import Study
from optuna.trial import FrozenTrial
from tqdm.auto import tqdm

from david.engine.engine import Engine
from david.errors import DavidError
from david.metrics.score import Score
from david.models.load import changed
from david.recipe.blocks import scattered
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.storage import results, trial_attributes
from david.storage.lock import exclusive_lock
from david.study.run import Run
from david.support import signals
from david.support.console import say

_DRAWS_PER_RECIPE = 20  # tries for each random recipe: a short recipe has few to draw from


def judge_finalists(study: Study, run: Run, held_out: Corpus, *, top: int, baseline: int, progress: bool) -> None:
    """Score the base, the best recipes and a random baseline on held-out windows, each once, and store that.

    Only one worker judges at a time; what is stored already is not scored again.

    Args:
        study: The study.
        run: What the trials of the search share.
        held_out: Windows that the search has not seen.
        top: How many of the best recipes to judge.
        baseline: How many random recipes, as deep as the best finalist, to score beside it; 0 for none.
        progress: Whether to show a progress bar.

    Raises:
        DavidError: If the base cannot be scored.
        KeyboardInterrupt: If a signal asks to end.
    """
    with exclusive_lock(study, run.heartbeat, "judging"):
        _judge(study, run, held_out, top, baseline, progress)


def _judge(study: Study, run: Run, held_out: Corpus, top: int, baseline: int, progress: bool) -> None:
    snapshot = results.StudyResults.read(study)
    base = snapshot.base_trial
    finalists = [*([base] if base is not None else []), *snapshot.best_of_search(top)]
    unjudged = [trial for trial in finalists if snapshot.held_out(trial) is None]
    if not unjudged and not _needs_baseline(study, baseline):
        return
    if difference := changed(run.model):
        say(f"the model's files have changed since it was loaded ({difference}); the loaded weights are used")
    run.engine.clear_cache()
    engine = run.engine_on(held_out)
    if unjudged:
        results.log_evaluation(study, finalists)
    with tqdm(total=len(unjudged), desc="held-out", unit="recipe", disable=not progress) as bar:
        for trial in unjudged:
            signals.raise_if_asked()
            results.store_held_out(study, trial, _held_out_score(study, engine, trial, base))
            bar.update()
        if _needs_baseline(study, baseline):
            bar.set_description_str("held-out, random recipes")
            _score_baseline(study, run, engine, baseline)


def _held_out_score(study: Study, engine: Engine, trial: FrozenTrial, base: FrozenTrial | None) -> Score:
    """Return a finalist's score on the held-out windows; an infinite one if it cannot be scored and the base can."""
    [score] = engine.outcomes([Recipe.parse(trial.user_attrs[trial_attributes.RECIPE])])
    if not isinstance(score, DavidError):
        return score
    base_score = None if base is None else results.StudyResults.read(study).held_out(base)
    if base_score is None:
        raise score
    say(f"trial {trial.number} cannot be scored on held-out data, and counts as infinitely worse: {score}")
    n_windows, n_questions = len(base_score.window_nll), len(base_score.right)
    return replace(base_score, window_nll=(math.inf,) * n_windows, right=(False,) * n_questions, cut=())


def _needs_baseline(study: Study, n: int) -> bool:
    """Return whether the best finalist has fewer than `n` random recipes beside it."""
    snapshot = results.StudyResults.read(study)
    best, stored = snapshot.judged_best, snapshot.baseline
    return best is not None and n > (0 if stored is None or stored.trial != best.number else stored.asked)


def _score_baseline(study: Study, run: Run, engine: Engine, n: int) -> None:
    """Draw `n` random recipes as deep as the best finalist, score those that are new, and store the NLL of all."""
    snapshot = results.StudyResults.read(study)
    best, stored = snapshot.judged_best, snapshot.baseline
    assert best is not None
    recipe = Recipe.parse(best.user_attrs[trial_attributes.RECIPE])
    rng, drawn = Random(f"{run.seed} {recipe}"), dict[Recipe, None]()
    for _ in range(_DRAWS_PER_RECIPE * n):
        other = scattered(recipe, run.n_layers, rng)
        if other not in (recipe, Recipe.identity(run.n_layers)) and len(drawn) < n:
            drawn[other] = None
    nll = dict(stored.nll) if stored is not None and stored.trial == best.number else {}
    new = [other for other in drawn if str(other) not in nll]
    scores = zip(new, engine.outcomes(new), strict=True)
    nll |= {str(other): score.nll for other, score in scores if not isinstance(score, DavidError)}
    results.store_baseline(study, results.Baseline(best.number, n, nll))

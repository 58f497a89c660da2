"""Judges the best of a search on windows that it has not seen, with random recipes beside them."""

import math
from dataclasses import replace
from random import Random

from optuna import Study
from tqdm.auto import tqdm

from david.engine.engine import Engine
from david.errors import DavidError
from david.models.load import changed
from david.recipe.blocks import scattered
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.storage import results
from david.storage.lock import exclusive_lock
from david.study.run import Run
from david.support import signals
from david.support.console import say


def judge_finalists(study: Study, run: Run, held_out: Corpus, *, top: int, baseline: int, progress: bool) -> None:
    """Score the base, the `top` best and a random baseline on held-out windows, and keep that; each once."""
    with exclusive_lock(study, run.heart, "judging"):
        _judge(study, run, held_out, top, baseline, progress)


def _judge(study: Study, run: Run, held_out: Corpus, top: int, baseline: int, progress: bool) -> None:
    found = results.StudyResults.read(study)
    base = found.base_trial
    picked = [*([base] if base is not None else []), *found.best_of_search(top)]
    wanted = [trial for trial in picked if found.held_out(trial) is None]
    if not wanted and not _baseline_is_due(study, baseline):
        return
    if said := changed(run.model):
        say(f"the model's files are not what they were when it was loaded ({said}): the study goes by what was loaded")
    run.engine.clear_cache()
    engine = run.engine_on(held_out)
    if wanted:
        results.log_evaluation(study, picked)
    with tqdm(total=len(wanted), desc="held-out", unit="recipe", disable=not progress) as bar:
        for trial in wanted:
            signals.raise_if_asked()
            [score] = engine.outcomes([Recipe.parse(trial.user_attrs["recipe"])])
            if isinstance(score, DavidError):
                base_score = None if base is None else results.StudyResults.read(study).held_out(base)
                if base_score is None:
                    raise score
                say(f"trial {trial.number} cannot be judged, and counts as infinitely worse: {score}")
                n_windows, n_questions = len(base_score.window_nll), len(base_score.right)
                score = replace(base_score, window_nll=(math.inf,) * n_windows, right=(False,) * n_questions)
            results.store_held_out(study, trial, score)
            bar.update()
        if _baseline_is_due(study, baseline):
            bar.set_description_str("held-out, random recipes")
            _measure_baseline(study, run, engine, baseline)


def _baseline_is_due(study: Study, n: int) -> bool:
    """Whether the best finalist has no random recipes beside it yet."""
    found = results.StudyResults.read(study)
    best, known = found.judged_best, found.baseline
    return best is not None and n > (0 if known is None or known.trial != best.number else known.asked)


def _measure_baseline(study: Study, run: Run, engine: Engine, n: int) -> None:
    found = results.StudyResults.read(study)
    best, known = found.judged_best, found.baseline
    assert best is not None
    recipe = Recipe.parse(best.user_attrs["recipe"])
    draw, drawn = Random(f"{run.seed} {recipe}"), dict[Recipe, None]()
    for _ in range(20 * n):  # a short recipe has few to draw from
        other = scattered(recipe, run.n_layers, draw)
        if other not in (recipe, Recipe.identity(run.n_layers)) and len(drawn) < n:
            drawn[other] = None
    nll = dict(known.nll) if known is not None and known.trial == best.number else {}
    new = [other for other in drawn if str(other) not in nll]
    scores = zip(new, engine.outcomes(new), strict=True)
    nll |= {str(other): score.nll for other, score in scores if not isinstance(score, DavidError)}
    results.store_baseline(study, results.Baseline(best.number, n, nll))

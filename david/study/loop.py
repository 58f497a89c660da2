"""The search loop: ask, score, tell, until enough recipes are scored."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from tqdm.auto import tqdm

from david.candidates.spaces import params_of
from david.errors import DavidError, SearchError
from david.metrics import units
from david.recipe.recipe import Recipe
from david.storage import results, trial_attributes
from david.storage.backend import cached_reads
from david.storage.queue import QueuedTrial, enqueue, first_queued, requeue_orphaned
from david.study import create, signature
from david.study.extra_objectives import extra_values
from david.study.rounds import run_step
from david.study.run import Run, in_hand
from david.support import signals
from david.support.console import say, set_bar_total

_REPEATS_BEFORE_RANDOM = 5  # proposals in a row with nothing new, before one is drawn at random, not by the sampler
_REPEATS_BEFORE_END = 200  # … and before the space counts as used up
_FAILURES_BEFORE_END = 20
_WAIT = 0.5  # seconds between two looks at what other workers do


def run_loop(study: Study, run: Run, n_trials: int, progress: bool) -> None:
    """Ask, score and tell until `n_trials` distinct recipes are scored."""
    stale = failures = here = 0
    scored = len(results.scored_trials(study))
    with tqdm(unit="visit", unit_scale=True, smoothing=0.1, disable=not progress or scored >= n_trials) as bar:
        while True:
            signals.raise_if_asked()
            with cached_reads(study):
                requeue_orphaned(study, run.heart, unsigned=not run.by_hand)
                if (scored := len(results.scored_trials(study))) >= n_trials:
                    break
                if stale >= _REPEATS_BEFORE_END:
                    say(f"the space is used up: nothing new in {stale} proposals, {scored} recipes scored")
                    return
                elsewhere = len(in_hand(study, run))
                room = n_trials - scored - elsewhere
                has_next = room > 0 and _has_next(study, run, room)
                if not has_next and not elsewhere:
                    say(f"the strategy is at its end, {scored} recipes scored")
                    return
                n = min(run.recipes_at_once(study), -(-room // run.heart.workers()))
                bar.set_description_str(f"search {scored}/{n_trials} recipes", refresh=False)
                bar.set_postfix_str(_standing(study))
            if not has_next:  # what others have in hand may fail, or they may die; or what comes next hangs on it
                signals.interruptible_sleep(_WAIT)
                continue
            each = bar.n / here if here else run.engine.work([Recipe.identity(run.n_layers)])
            own = study.sampler
            if stale >= _REPEATS_BEFORE_RANDOM:
                study.sampler = create.sampler_named("random", run.seed, len(study.get_trials(deepcopy=False)))
            try:
                later = each * (n_trials - scored - n)
                outcomes = run_step(study, run, n, until=n_trials, expect=partial(_expect, bar, later), done=bar.update)
            finally:
                study.sampler = own
            stale = stale + len(outcomes) if set(outcomes) == {"duplicate"} else 0
            for outcome in outcomes:
                if run.strategy is not None and outcome == "refused":
                    continue  # a strategy asks for whatever comes next, and learns from this
                failures = failures + 1 if outcome in ("failed", "refused") else failures * (outcome == "duplicate")
                here += outcome == "scored"
            if failures >= _FAILURES_BEFORE_END:
                raise SearchError(f"{failures} recipes in a row failed; the last one's reason stands above")
        set_bar_total(bar, bar.n)
        bar.set_description_str(f"search {scored}/{n_trials} recipes")


def _has_next(study: Study, run: Run, room: int) -> bool:
    """Whether there is something to ask for now; a strategy fills an empty queue, as far as there is room."""
    if run.strategy is None or first_queued(study) is not None:
        return True
    _enqueue(study, run, run.strategy(study, run.n_layers), signature.name_of(run.strategy), room)
    return first_queued(study) is not None


def await_others(study: Study, run: Run) -> None:
    """Wait until the others have finished what they have in hand: one of it may be the best."""
    told = False
    while running := len(in_hand(study, run)):
        signals.raise_if_asked()
        if not told:
            say(f"waiting for {running} recipes that other workers have in hand")
            told = True
        signals.interruptible_sleep(_WAIT)
        requeue_orphaned(study, run.heart, unsigned=not run.by_hand)


def _expect(bar: Any, later: float, work: float) -> None:
    """Let a bar end where this much work, and what comes later, is done."""
    set_bar_total(bar, bar.n + work + later)


def _asked(run: Run, recipe: Recipe, strategy: str | None = None) -> QueuedTrial:
    """How a recipe is queued: by its parameters where the space can say it, else as it is."""
    params = params_of(run.space, recipe, run.n_layers)
    return QueuedTrial({}, str(recipe), strategy) if params is None else QueuedTrial(params, None, strategy)


def begin_study(study: Study, run: Run, queue: Sequence[Recipe]) -> None:
    """Put the base first and the queue behind it, where the study does not have them yet."""
    base = Recipe.identity(run.n_layers)
    running = {trial.user_attrs.get("recipe") for trial in in_hand(study, run)}
    waits = str(base) in running or first_queued(study) in (None, _asked(run, base))
    if results.StudyResults.read(study).base_trial is None and not waits:
        _score_base(study, run, base)  # a queue that was left behind would come before it
    _enqueue(study, run, [base, *queue])
    finished = (TrialState.COMPLETE, TrialState.WAITING)
    bare = sum(_bare(trial) for trial in study.get_trials(deepcopy=False, states=finished))
    if bare and run.strategy is None and create.models_parameters_alone(study.sampler):
        sampler = type(study.sampler).__name__
        say(f"{sampler} draws at random here, since the space cannot say {bare} of the recipes: tpe goes by the others")


def _bare(trial: FrozenTrial) -> bool:
    return not (trial.params or trial.system_attrs.get("fixed_params"))


def _score_base(study: Study, run: Run, base: Recipe) -> None:
    [score] = run.engine.outcomes([base])
    if isinstance(score, DavidError):
        raise score
    means = {i: nll / score.window_tokens[i] for i, nll in enumerate(score.window_nll)}
    about = {"recipe": str(base), **score.to_attributes()}
    [values] = extra_values(run.also, [base])
    if isinstance(values, DavidError):
        raise values
    values = [score.nll, *values]
    study.add_trial(create_trial(values=values, user_attrs=about, intermediate_values={} if run.also else means))


def _enqueue(
    study: Study, run: Run, recipes: Sequence[Recipe], strategy: str | None = None, room: int | None = None
) -> None:
    """Queue the recipes that are not scored yet, as far as there is room."""
    known = {trial.user_attrs["recipe"] for trial in results.scored_trials(study)}
    new = [recipe for recipe in recipes if str(recipe) not in known]
    enqueue(study, [_asked(run, recipe, strategy) for recipe in new[:room]])


def scored_text(study: Study) -> str:
    """Say how many recipes are scored."""
    try:
        return f"{len(results.scored_trials(study))} recipes are scored"
    except DavidError as error:  # the storage is gone
        return str(error)


def _standing(study: Study) -> str:
    found = results.StudyResults.read(study)
    base, best = found.base_trial, found.best_of_search(1)
    parts = [f"base {trial_attributes.value_of(base):.4f}"] if base is not None else []
    unit = found.unit
    parts += [f"best {trial_attributes.value_of(trial):.4f}" for trial in best]
    return ", ".join(parts) + (" nats" if units.is_nll(unit) else f" {unit}")

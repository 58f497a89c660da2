"""The search loop (`run_loop`): ask, score, tell, until enough recipes are scored or nothing new comes.

`begin_study` queues the base and the caller's recipes before it; `await_others` waits for other workers behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from tqdm.auto import tqdm

from david.candidates.spaces import params_of
from david.errors import DavidError, SearchError
from david.metrics import units
from david.recipe.recipe import Recipe
from david.report.formatting import plain_figure, plain_share
from david.storage import results, trial_attributes
from david.storage.backend import cached_reads
from david.storage.queue import QueuedTrial, enqueue, first_queued, requeue_orphaned
from david.study import create, signature
from david.study.extra_objectives import extra_values
from david.study.rounds import run_step
from david.study.run import ReportWork, Run, running_trials
from david.study.tell import DUPLICATE, FAILED, REFUSED, SCORED
from david.support import signals
from david.support.arguments import checked_list
from david.support.console import say, set_bar_total

_DUPLICATES_BEFORE_RANDOM = 5  # in a row, before a recipe is drawn at random instead of by the sampler
_DUPLICATES_BEFORE_END = 200  # … before the search space counts as exhausted
_FAILURES_BEFORE_END = 20
_POLL_SECONDS = 0.5  # between two reads of what other workers do


@dataclass
class _Progress:
    """Counts of one worker's loop: duplicates and failures in a row, and recipes scored by this worker."""

    duplicates: int = 0
    failures: int = 0
    scored: int = 0

    def add(self, outcomes: Sequence[str], *, has_strategy: bool) -> None:
        """Count the outcomes of one round."""
        self.duplicates = self.duplicates + len(outcomes) if set(outcomes) == {DUPLICATE} else 0
        for outcome in outcomes:
            if has_strategy and outcome == REFUSED:
                continue  # a strategy proposes whatever comes next, and learns from a refusal
            self.failures = (
                self.failures + 1 if outcome in (FAILED, REFUSED) else self.failures * (outcome == DUPLICATE)
            )
            self.scored += outcome == SCORED


def run_loop(study: Study, run: Run, n_trials: int, progress: bool) -> None:
    """Ask, score and tell until the study has `n_trials` scored recipes, or nothing new comes.

    Args:
        study: The study, which other workers may share.
        run: What the trials of the search share.
        n_trials: Distinct recipes to score, those of before and of other workers included.
        progress: Whether to show a progress bar.

    Raises:
        SearchError: If `_FAILURES_BEFORE_END` recipes in a row fail.
        KeyboardInterrupt: If a signal asks to end.
    """
    counts = _Progress()
    scored = len(results.scored_trials(study))
    with tqdm(unit="visit", unit_scale=True, smoothing=0.1, disable=not progress or scored >= n_trials) as bar:
        while True:
            signals.raise_if_asked()
            with cached_reads(study):
                requeue_orphaned(study, run.heartbeat, unsigned=not run.external_study)
                if (scored := len(results.scored_trials(study))) >= n_trials:
                    break
                running = len(running_trials(study, run))
                room = n_trials - scored - running
                has_next = counts.duplicates < _DUPLICATES_BEFORE_END and room > 0 and _has_next(study, run, room)
                if end := _reason_to_end(counts, has_next=has_next, running=running):
                    say(f"{end}; {scored} recipes scored")
                    return
                n = min(run.batch_size(study), -(-room // run.heartbeat.workers()))
                bar.set_description_str(f"search {scored}/{n_trials} recipes", refresh=False)
                bar.set_postfix_str(_standing(study))
            if not has_next:  # recipes of other workers may fail, or decide what a strategy proposes next
                signals.interruptible_sleep(_POLL_SECONDS)
                continue
            work = bar.n / counts.scored if counts.scored else run.engine.work([Recipe.identity(run.n_layers)])
            expect = partial(_set_expected_work, bar, work * (n_trials - scored - n))
            outcomes = _run_one_round(study, run, n, n_trials, counts, expect, bar.update)
            counts.add(outcomes, has_strategy=run.strategy is not None)
            if counts.failures >= _FAILURES_BEFORE_END:
                raise SearchError(f"{counts.failures} recipes in a row failed; the last reason is printed above")
        set_bar_total(bar, bar.n)
        bar.set_description_str(f"search {scored}/{n_trials} recipes")


def await_others(study: Study, run: Run) -> None:
    """Wait until the other workers have finished their recipes: one of them may be the best.

    Raises:
        KeyboardInterrupt: If a signal asks to end.
    """
    is_announced = False
    while running := len(running_trials(study, run)):
        signals.raise_if_asked()
        if not is_announced:
            say(f"waiting for {running} recipes that other workers are scoring")
            is_announced = True
        signals.interruptible_sleep(_POLL_SECONDS)
        requeue_orphaned(study, run.heartbeat, unsigned=not run.external_study)


def begin_study(study: Study, run: Run, queue: Sequence[Recipe]) -> None:
    """Queue the base, then the recipes of `queue`, where the study does not have them yet.

    A base that would come behind a queue that an earlier search left is scored at once.
    """
    base = Recipe.identity(run.n_layers)
    running = {trial.user_attrs.get(trial_attributes.RECIPE) for trial in running_trials(study, run)}
    is_next = str(base) in running or first_queued(study) in (None, _request(run, base))
    if results.StudyResults.read(study).base_trial is None and not is_next:
        _score_base(study, run, base)
    _enqueue_new(study, run, [base, *queue])
    finished = (TrialState.COMPLETE, TrialState.WAITING)
    without = sum(_has_no_parameters(trial) for trial in study.get_trials(deepcopy=False, states=finished))
    if without and run.strategy is None and create.ignores_trials_without_params(study.sampler):
        sampler = type(study.sampler).__name__
        say(
            f"{sampler} samples at random here: {without} of the recipes have no parameters in this space; "
            "tpe learns from the others"
        )


def scored_text(study: Study) -> str:
    """Return how many recipes are scored, as a text; or why the study cannot be read."""
    try:
        return f"{len(results.scored_trials(study))} recipes scored"
    except DavidError as error:  # the storage is gone
        return str(error)


def _reason_to_end(counts: _Progress, *, has_next: bool, running: int) -> str | None:
    """Return why the search ends before enough recipes are scored; None if it goes on."""
    if counts.duplicates >= _DUPLICATES_BEFORE_END:
        return f"search space exhausted: {counts.duplicates} duplicate proposals in a row"
    if not has_next and not running:
        return "strategy finished"
    return None


def _run_one_round(
    study: Study, run: Run, n: int, n_trials: int, counts: _Progress, expect: ReportWork, done: ReportWork
) -> list[str]:
    """Run one round, with a random sampler if the study's own has given nothing but duplicates for a while."""
    sampler = study.sampler
    if counts.duplicates >= _DUPLICATES_BEFORE_RANDOM:
        study.sampler = create.sampler_named("random", run.seed, len(study.get_trials(deepcopy=False)))
    try:
        return run_step(study, run, n, until=n_trials, expect=expect, done=done)
    finally:
        study.sampler = sampler


def _has_next(study: Study, run: Run, room: int) -> bool:
    """Return whether there is something to ask for now; a strategy fills an empty queue with up to `room` recipes."""
    if run.strategy is None or first_queued(study) is not None:
        return True
    proposed = checked_list("the recipes of the strategy", run.strategy(study, run.n_layers), Recipe, SearchError)
    _enqueue_new(study, run, proposed, signature.callable_name(run.strategy), room)
    return first_queued(study) is not None


def _set_expected_work(bar: Any, later: float, work: float) -> None:
    """Set a bar's end to where this round's work, and that of later rounds, is done; in visits of a window."""
    set_bar_total(bar, bar.n + work + later)


def _request(run: Run, recipe: Recipe, strategy: str | None = None) -> QueuedTrial:
    """Return how a recipe is queued: by its parameters in the space, or as it is if it has none."""
    params = params_of(run.space, recipe, run.n_layers)
    return QueuedTrial({}, str(recipe), strategy) if params is None else QueuedTrial(params, None, strategy)


def _has_no_parameters(trial: FrozenTrial) -> bool:
    return not (trial.params or trial.system_attrs.get("fixed_params"))


def _score_base(study: Study, run: Run, base: Recipe) -> None:
    """Score the base, and add its trial to the study as a finished one."""
    [score] = run.engine.outcomes([base])
    if isinstance(score, DavidError):
        raise score
    window_means = {i: nll / score.window_tokens[i] for i, nll in enumerate(score.window_nll)}
    attributes = {trial_attributes.RECIPE: str(base), **score.to_attributes()}
    [extra] = extra_values(run.extra_measures, [base])
    if isinstance(extra, DavidError):
        raise extra
    steps = {} if run.extra_measures else window_means  # Optuna keeps them for one objective alone
    study.add_trial(create_trial(values=[score.nll, *extra], user_attrs=attributes, intermediate_values=steps))


def _enqueue_new(
    study: Study, run: Run, recipes: Sequence[Recipe], strategy: str | None = None, room: int | None = None
) -> None:
    """Queue the recipes that are not scored yet, up to `room` of them."""
    scored = {trial.user_attrs[trial_attributes.RECIPE] for trial in results.scored_trials(study)}
    new = [recipe for recipe in recipes if str(recipe) not in scored]
    enqueue(study, [_request(run, recipe, strategy) for recipe in new[:room]])


def _standing(study: Study) -> str:
    """Return the scores of the base and of the best recipe, as the leaderboard shows them, for a progress bar."""
    snapshot = results.StudyResults.read(study)
    base, best = snapshot.base_trial, snapshot.best_of_search(1)
    named = ([("base", base)] if base is not None else []) + [("best", trial) for trial in best]
    return ", ".join(f"{name} {_figures(trial, snapshot.unit)}" for name, trial in named)


def _figures(trial: FrozenTrial, unit: str) -> str:
    """Return the figure that people read of a trial, and in brackets the NLL that is minimised, if it is one."""
    nll = trial_attributes.value_of(trial)
    nats = f" ({nll:.4f} nats)" if units.is_nll(unit) else ""
    if unit == units.QUESTION:
        return f"accuracy {plain_share(trial_attributes.accuracy(trial))}{nats}"
    name, value = units.readable(unit, nll)
    return f"{'ppl' if name == 'perplexity' else name} {plain_figure(value)}{nats}"

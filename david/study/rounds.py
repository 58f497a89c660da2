"""One round of a search (`run_step`): ask for recipes, claim them, score them together, tell the results."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from david.engine.one_by_one import Outcome, error_as_outcome
from david.errors import DavidError, ModelError, SearchError, StorageError
from david.metrics.score import Score
from david.models import file_stamps
from david.recipe.recipe import Recipe
from david.sling import locate
from david.storage import results, trial_attributes
from david.storage.backend import cached_reads
from david.storage.heartbeat import OWNER
from david.storage.queue import QUEUED_RECIPE, requeue, runs_isolated, was_queued
from david.storage.trial_claims import claim_recipes, trials_still_owned
from david.study.extra_objectives import extra_values
from david.study.race import Race
from david.study.run import ReportWork, Run, running_trials
from david.study.tell import DUPLICATE, SCORED, tell_duplicate, tell_failed, tell_once, tell_score
from david.support import signals
from david.support.arguments import check_type


@dataclass
class _Round:
    """The trials of one round.

    Attributes:
        trials: All trials that were asked for, to be given back if the round fails.
        to_score: The trials that this worker scores, by the notations of their recipes.
        duplicates: Trials whose recipes are scored already, or come twice in this round.
        outcomes: The outcomes of the trials that are told.
    """

    trials: list[Trial] = field(default_factory=list)
    to_score: dict[str, tuple[Trial, Recipe]] = field(default_factory=dict)
    duplicates: list[tuple[Trial, str]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)


def run_step(
    study: Study, run: Run, n: int, *, until: float = math.inf, expect: ReportWork, done: ReportWork
) -> list[str]:
    """Ask for trials, score their recipes together, and tell the results.

    Args:
        study: The study to ask and to tell.
        run: What the trials of the search share.
        n: How many trials to ask for. They are fewer if the queue ends.
        until: Ask for no more when so many recipes are scored or being scored.
        expect: Called with the work that is still to come in this round, as far as is known, in visits of a window.
        done: Called with the work that is done.

    Returns:
        The outcome of each trial: `SCORED`, `DUPLICATE`, `REFUSED` or `FAILED` (see `tell`).
    """
    current = _Round()
    try:
        _ask_for_trials(study, run, n, until, current)
        _claim(study, run, current)
        _score_and_tell(study, run, current, expect, done)
        with cached_reads(study):
            finished = _finished_trials(study) if current.duplicates else {}
        current.outcomes += [
            tell_once(tell_duplicate, study, trial, notation, finished) for trial, notation in current.duplicates
        ]
    except BaseException as error:
        by_recipe = isinstance(error, Exception) and not isinstance(error, StorageError | ModelError)
        with suppress(Exception):  # if it is the storage that fails
            _give_back(study, current.trials, was_lost=by_recipe)
        raise
    return current.outcomes


def _ask_for_trials(study: Study, run: Run, n: int, until: float, current: _Round) -> None:
    """Ask for up to `n` trials, and read the recipe of each."""
    for i in range(n):
        with cached_reads(study):
            if i and len(results.scored_trials(study)) + len(running_trials(study, run)) >= until:
                break  # other workers have asked meanwhile
        current.trials.append(trial := study.ask())
        if (run.strategy is not None or (i and run.batch is None)) and not was_queued(study, trial):
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)  # other workers emptied the queue
            break
        if i and runs_isolated(trial):
            _give_back(study, [trial], was_lost=False)
            break
        recipe = _recipe_of(study, run, trial)
        if isinstance(recipe, str):
            current.outcomes.append(recipe)
        elif str(recipe) in current.to_score:
            current.duplicates.append((trial, str(recipe)))
        else:
            current.to_score[str(recipe)] = trial, recipe
        if runs_isolated(trial):
            break


def _claim(study: Study, run: Run, current: _Round) -> None:
    """Claim the recipes; leave out those that other workers run, those that are scored, and trials that were lost."""
    others = claim_recipes(study, run.heartbeat, {notation: trial for notation, (trial, _) in current.to_score.items()})
    with cached_reads(study):
        finished = _finished_trials(study)  # read after the claim: what no worker runs any more is told by now
        current.trials[:] = trials_still_owned(study, run.heartbeat, current.trials)
    owned = {notation: racer for notation, racer in current.to_score.items() if racer[0] in current.trials}
    passed = [(trial, notation) for notation, (trial, _) in owned.items() if notation in others or notation in finished]
    duplicates = passed + [pair for pair in current.duplicates if pair[0] in current.trials]
    for trial, notation in duplicates:
        if notation in others:
            current.outcomes.append(tell_once(_leave_to_other, study, trial, notation, others[notation]))
    current.to_score = {
        notation: racer for notation, racer in owned.items() if notation not in others and notation not in finished
    }
    current.duplicates = [(trial, notation) for trial, notation in duplicates if notation not in others]


def _score_and_tell(study: Study, run: Run, current: _Round, expect: ReportWork, done: ReportWork) -> None:
    """Score the claimed recipes together, and tell each trial; what another worker told before is a duplicate."""
    racers = list(current.to_score.values())
    recipes = [recipe for _, recipe in racers]
    race = Race(study, run, racers, expect) if run.racing else None
    expect(run.engine.work(recipes) if race is None else race.remaining_work(0, recipes))
    scores = _score_recipes(run, recipes, race, done)
    all_values = _values(run, recipes, scores)
    with cached_reads(study):
        finished = _finished_trials(study)
    for i, (trial, recipe) in enumerate(racers):
        score, values, other = scores[i], all_values[i], finished.get(str(recipe))
        if race is not None and i in race.dropped:
            current.outcomes.append(SCORED)
        elif other is not None and (isinstance(values, DavidError) or trial_attributes.PARTIAL not in other.user_attrs):
            current.duplicates.append((trial, str(recipe)))  # another worker took this one for dead, and was faster
        elif isinstance(score, DavidError) or isinstance(values, DavidError):
            current.outcomes.append(tell_once(tell_failed, study, trial, values))
        else:
            current.outcomes.append(tell_once(tell_score, study, trial, score, values))


def _give_back(study: Study, trials: Sequence[Trial], *, was_lost: bool) -> None:
    """End those of these trials that are still running, and queue again what they were asked for."""
    numbers = {trial.number for trial in trials}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number in numbers:
            requeue(study, trial, was_lost=was_lost)


def _recipe_of(study: Study, run: Run, trial: Trial) -> Recipe | str:
    """Sign a trial, and return its recipe, from its parameters or the queue; or its outcome, if it has none."""
    try:
        trial.set_user_attr(OWNER, run.heartbeat.name)
        queued_recipe = trial.user_attrs.get(QUEUED_RECIPE)
        recipe = run.space(trial, run.n_layers) if queued_recipe is None else Recipe.parse(queued_recipe)
        check_type("the recipe that the space returns", recipe, Recipe, SearchError)
    except StorageError:
        raise
    except DavidError as error:
        return tell_once(tell_failed, study, trial, error)
    except UpdateFinishedTrialError:
        return DUPLICATE
    except Exception as error:  # any kind: the space may be the caller's own, and the sampler another's
        return tell_once(tell_failed, study, trial, error_as_outcome("asking for a recipe", error))
    return recipe


def _leave_to_other(study: Study, trial: Trial, notation: str, number: int) -> str:
    """Fail a trial whose recipe another worker runs, in the trial of that number; that trial will be told the score."""
    trial.set_user_attr(trial_attributes.DUPLICATE_OF, number)
    trial.set_user_attr(trial_attributes.RECIPE, notation)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return DUPLICATE


def _score_recipes(run: Run, recipes: Sequence[Recipe], race: Race | None, done: ReportWork) -> list[Outcome]:
    """Score recipes together. Between two batches of windows the race may drop some, and Ctrl-C ends the search."""

    def drop(windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        _check_weights(run.model)
        dropped = [] if race is None else race(windows, nll)
        if windows.stop < len(run.engine.corpus):
            signals.raise_if_asked()
        return dropped

    outcomes = run.engine.outcomes(recipes, drop=drop, done=done)
    _check_weights(run.model)
    return outcomes


def _check_weights(model: nn.Module) -> None:
    """Raise `ModelError` if weights on disk, which those in memory may be mapped from, were written over."""
    if name := file_stamps.overwritten_file(locate.unwrapped(model)):
        raise ModelError(
            f"{name} was written over while the search ran, and with it maybe the model in memory; earlier scores stay "
            "valid: load the model that the study was made on, and search again"
        )


def _values(run: Run, recipes: Sequence[Recipe], scores: Sequence[Outcome]) -> list[list[float] | DavidError]:
    """Return what the study minimises of each recipe, the NLL first; or the error that left it without."""
    scored = [i for i, score in enumerate(scores) if isinstance(score, Score)]
    extras = dict(zip(scored, extra_values(run.extra_measures, [recipes[i] for i in scored]), strict=True))
    values: list[list[float] | DavidError] = []
    for i, score in enumerate(scores):
        if isinstance(score, DavidError):
            values.append(score)
        else:
            extra = extras[i]
            values.append(extra if isinstance(extra, DavidError) else [score.nll, *extra])
    return values


def _finished_trials(study: Study) -> dict[str, FrozenTrial]:
    """Return, by recipe, the trial that has scored it, or has found that it cannot be scored."""
    snapshot = results.StudyResults.read(study)
    return snapshot.refused | {trial.user_attrs[trial_attributes.RECIPE]: trial for trial in snapshot.scored}

"""One round of a search: ask for recipes, score them together, tell what came out."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from david.engine.one_by_one import Outcome, error_as_outcome
from david.errors import DavidError, ModelError, StorageError
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
from david.study.run import Run, Tell, in_hand
from david.study.tell import DUPLICATE, tell_duplicate, tell_failed, tell_once, tell_score
from david.support import signals

_Fresh = dict[str, tuple[Trial, Recipe]]


def run_step(study: Study, run: Run, n: int, *, until: float = math.inf, expect: Tell, done: Tell) -> list[str]:
    """Ask, run and tell so many trials; of each, whether it was scored, a duplicate, refused by the model, or failed.

    They are fewer where the queue is at its end, or `until` so many recipes are scored or in hand. `expect` is told how
    much work is still to come, in visits of a window, as far as is known; `done` what is done.
    """
    trials: list[Trial] = []
    try:
        fresh, again, outcomes = _ask(study, run, n, until, trials)
        recipes = [recipe for _, recipe in fresh.values()]
        race = Race(study, run, list(fresh.values()), expect) if run.racing else None
        expect(run.engine.work(recipes) if race is None else race.to_come(0, recipes))
        scores = _scores(run, recipes, race, done)
        values = _values(run, recipes, scores)
        with cached_reads(study):
            known = _known(study)
        for i, ((notation, (trial, _)), score) in enumerate(zip(fresh.items(), scores, strict=True)):
            other, its = known.get(notation), values[i]
            if race is not None and i in race.told:
                outcomes.append("scored")
            elif other is not None and (
                isinstance(its, DavidError) or trial_attributes.PARTIAL not in other.user_attrs
            ):
                again.append((trial, notation))  # another worker took this one for dead, and was faster
            elif isinstance(score, DavidError) or isinstance(its, DavidError):
                outcomes.append(tell_once(tell_failed, study, trial, its))
            else:
                outcomes.append(tell_once(tell_score, study, trial, score, its))
        with cached_reads(study):
            known = _known(study) if again else {}
        return outcomes + [tell_once(tell_duplicate, study, trial, notation, known) for trial, notation in again]
    except BaseException as error:
        by_recipe = isinstance(error, Exception) and not isinstance(error, StorageError | ModelError)
        with suppress(Exception):  # where it is the storage that fails
            _let_go(study, trials, was_lost=by_recipe)
        raise


def _ask(
    study: Study, run: Run, n: int, until: float, trials: list[Trial]
) -> tuple[_Fresh, list[tuple[Trial, str]], list[str]]:
    """Ask for so many `trials`: which are to be scored, by their notations; which are known; what became of others."""
    fresh: _Fresh = {}
    again: list[tuple[Trial, str]] = []
    outcomes: list[str] = []
    for i in range(n):
        with cached_reads(study):
            if i and len(results.scored_trials(study)) + len(in_hand(study, run)) >= until:
                break  # others have asked meanwhile
        trials.append(trial := study.ask())
        if (run.strategy is not None or (i and run.batch is None)) and not was_queued(study, trial):
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)  # others took what was left of the queue
            break
        if i and runs_isolated(trial):
            _let_go(study, [trial], was_lost=False)
            break
        recipe = _proposal(study, run, trial)
        if isinstance(recipe, str):
            outcomes.append(recipe)
        elif str(recipe) in fresh:
            again.append((trial, str(recipe)))
        else:
            fresh[str(recipe)] = trial, recipe
        if runs_isolated(trial):
            break
    theirs = claim_recipes(study, run.heart, {notation: trial for notation, (trial, _) in fresh.items()})
    with cached_reads(study):
        known = _known(study)  # after the claim: what is not in hand any longer is told
        trials[:] = trials_still_owned(study, run.heart, trials)
    fresh = {notation: its for notation, its in fresh.items() if its[0] in trials}
    passed = {notation: fresh.pop(notation)[0] for notation in [*fresh] if notation in theirs or notation in known}
    again = [(trial, notation) for notation, trial in passed.items()] + [its for its in again if its[0] in trials]
    left = [(trial, notation) for trial, notation in again if notation in theirs]
    outcomes += [tell_once(_left_to, study, trial, notation, theirs[notation]) for trial, notation in left]
    return fresh, [(trial, notation) for trial, notation in again if notation not in theirs], outcomes


def _let_go(study: Study, trials: Sequence[Trial], *, was_lost: bool) -> None:
    """End what is not told yet of these trials, and queue again what they were asked for."""
    numbers = {trial.number for trial in trials}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number in numbers:
            requeue(study, trial, was_lost=was_lost)


def _proposal(study: Study, run: Run, trial: Trial) -> Recipe | str:
    """What a trial is to score: what the space makes of its parameters, or the recipe that was queued without any.

    Or else what became of it at once.
    """
    try:
        trial.set_user_attr(OWNER, run.heart.name)
        wanted = trial.user_attrs.get(QUEUED_RECIPE)
        return run.space(trial, run.n_layers) if wanted is None else Recipe.parse(wanted)
    except StorageError:
        raise
    except DavidError as error:
        return tell_once(tell_failed, study, trial, error)
    except UpdateFinishedTrialError:
        return DUPLICATE
    except Exception as error:  # any kind: the space may be the caller's own, and the sampler another's
        return tell_once(tell_failed, study, trial, error_as_outcome("asking for a recipe", error))


def _left_to(study: Study, trial: Trial, notation: str, number: int) -> str:
    """Leave a recipe to the worker that has it in hand: what comes of it is told of that trial."""
    trial.set_user_attr("duplicate_of", number)
    trial.set_user_attr("recipe", notation)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return DUPLICATE


def _scores(run: Run, recipes: Sequence[Recipe], race: "Race | None", done: Tell) -> list[Outcome]:
    """The score of each recipe; Ctrl-C ends it between two batches of windows."""

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
    """`ModelError` where weights on disk, which those in memory may be a view of, were written over."""
    if name := file_stamps.overwritten(locate.unwrapped(model)):
        raise ModelError(
            f"{name} was written over while the search ran, and with it maybe the model in memory: what was scored "
            "before stands; start again, on the model that the study was made on"
        )


def _values(run: Run, recipes: Sequence[Recipe], scores: Sequence[Outcome]) -> list[list[float] | DavidError]:
    """What a study minimises of each recipe, its NLL first; or why it has none."""
    scored = [i for i, score in enumerate(scores) if isinstance(score, Score)]
    further = dict(zip(scored, extra_values(run.also, [recipes[i] for i in scored]), strict=True))
    found: list[list[float] | DavidError] = []
    for i, score in enumerate(scores):
        its = score if isinstance(score, DavidError) else further[i]
        found.append(its if isinstance(its, DavidError) or isinstance(score, DavidError) else [score.nll, *its])
    return found


def _known(study: Study) -> dict[str, FrozenTrial]:
    """Of each recipe, the trial that has scored it, or found that it cannot be scored."""
    found = results.StudyResults.read(study)
    return found.refused | {trial.user_attrs["recipe"]: trial for trial in found.scored}

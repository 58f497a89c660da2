"""What is asked for next: trials that wait in the study, and those that a dead worker left."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from david.storage import results, trial_attributes
from david.storage.heartbeat import OWNER, WorkerHeartbeat
from david.support.console import say

WANTED = "wanted"  # of a trial: a recipe that its space cannot say
STRATEGY = "strategy"  # … what asked for it, where that was not the sampler
_LOST = "lost"  # … how many workers died while they had it in hand

_LOST_TOGETHER = 2  # so often it may be lost with others that were scored with it; then it comes alone
_LOST_FOR_GOOD = 3  # … and so often it may be lost at all, since it may be what kills them


@dataclass(frozen=True)
class QueuedTrial:
    """What a trial is queued for: parameters; or none, and a recipe that its space cannot say."""

    params: dict[str, Any]
    recipe: str | None = None
    strategy: str | None = field(default=None, compare=False)
    lost: int = field(default=0, compare=False)

    @property
    def runs_isolated(self) -> bool:
        """Whether it may have killed the workers that had it in hand, and others with it."""
        return self.lost >= _LOST_TOGETHER


def enqueue(study: Study, wanted: Sequence[QueuedTrial]) -> None:
    """Queue what is not waiting or running already; what failed may come again."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    queued = [_asked(trial) for trial in unfinished]
    for asked in wanted:
        if asked not in queued:
            _queue(study, asked)


def queued(study: Study) -> list[QueuedTrial]:
    """What waits, in its order."""
    return [_asked(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]


def first_queued(study: Study) -> QueuedTrial | None:
    """What is asked for next; None where nothing waits."""
    return next(iter(queued(study)), None)


def runs_isolated(trial: Trial) -> bool:
    """Whether what a trial was asked for may have killed the workers that had it in hand, and others with it."""
    return bool(trial.user_attrs.get(_LOST, 0) >= _LOST_TOGETHER)


def was_queued(study: Study, trial: Trial) -> bool:
    """Whether a trial waited in the study; else the sampler was asked for it."""
    return "fixed_params" in study._storage.get_trial_system_attrs(trial._trial_id)


def reclaim(study: Study, heart: WorkerHeartbeat, *, unsigned: bool) -> None:
    """Give up the trials whose worker has died, and queue again what they were asked for.

    With `unsigned`, also those that nobody signed in time; a study that others ask too may have such trials alive.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if (unsigned or OWNER in trial.user_attrs) and heart.is_left(trial):
            give_back(study, trial, was_lost=True)


def give_back(study: Study, trial: FrozenTrial, *, was_lost: bool) -> None:
    """Queue again what a running trial was asked for, and end it; one that was lost too often fails."""
    asked = _asked(trial)
    lost = asked.lost + was_lost
    recipe = trial.user_attrs.get("recipe")
    with suppress(UpdateFinishedTrialError):  # another worker may do the same at once
        if lost >= _LOST_FOR_GOOD and recipe not in (None, results.base_of(study)):
            why = f"{lost} workers ended while they scored it"
            study._storage.set_trial_user_attr(trial._trial_id, trial_attributes.ERROR, why)
            say(f"trial {trial.number} failed: {why}")
        elif asked != QueuedTrial({}):  # first, so that a kill between the two loses nothing
            _queue(study, replace(asked, lost=lost))
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _queue(study: Study, asked: QueuedTrial) -> None:
    told = {WANTED: asked.recipe, STRATEGY: asked.strategy, _LOST: asked.lost or None}
    study.enqueue_trial(asked.params, user_attrs={name: value for name, value in told.items() if value is not None})


def _asked(trial: FrozenTrial) -> QueuedTrial:
    told = trial.user_attrs
    params = trial.system_attrs.get("fixed_params") or trial.params
    return QueuedTrial(params, told.get(WANTED), told.get(STRATEGY), told.get(_LOST, 0))

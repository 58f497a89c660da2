"""What is asked for next: trials that wait in the study, and those that a dead worker left."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from david.workers import OWNER, Heart

WANTED = "wanted"  # of a trial: a recipe that its space cannot say
STRATEGY = "strategy"  # … what asked for it, where that was not the sampler


@dataclass(frozen=True)
class Asked:
    """What a trial is queued for: parameters; or none, and a recipe that its space cannot say."""

    params: dict[str, Any]
    recipe: str | None = None
    strategy: str | None = field(default=None, compare=False)


def enqueue(study: Study, wanted: Sequence[Asked]) -> None:
    """Queue what is not waiting or running already; what failed may come again."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    queued = [_asked(trial) for trial in unfinished]
    for asked in wanted:
        if asked not in queued:
            _queue(study, asked)


def first_queued(study: Study) -> Asked | None:
    """What is asked for next; None where nothing waits."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return _asked(waiting[0]) if waiting else None


def reclaim(study: Study, heart: Heart, *, unsigned: bool) -> None:
    """Give up the trials whose worker has died, and queue again what they were asked for.

    With `unsigned`, also those that nobody signed in time; a study that others ask too may have such trials alive.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if (unsigned or OWNER in trial.user_attrs) and heart.is_left(trial):
            give_back(study, trial)


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Queue again what a running trial was asked for, and end it."""
    asked = _asked(trial)
    if asked != Asked({}):  # first, so that a kill between the two loses nothing
        _queue(study, asked)
    with contextlib.suppress(UpdateFinishedTrialError):  # another worker may do the same at once
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _queue(study: Study, asked: Asked) -> None:
    told = {WANTED: asked.recipe, STRATEGY: asked.strategy}
    study.enqueue_trial(asked.params, user_attrs={name: value for name, value in told.items() if value is not None})


def _asked(trial: FrozenTrial) -> Asked:
    told = trial.user_attrs
    return Asked(trial.system_attrs.get("fixed_params") or trial.params, told.get(WANTED), told.get(STRATEGY))

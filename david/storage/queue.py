"""The queue of a study: recipes that wait to be scored, and those that a dead worker left.

Optuna's enqueued (waiting) trials are the queue. A queued trial has either fixed parameters, or, if the space has no
parameters for its recipe, the recipe itself in the attribute `QUEUED_RECIPE`. What a crashed worker was running is
queued again, with a count of the workers it was lost with: a recipe that was lost `_LOST_BEFORE_ISOLATION` times runs
alone, one that was lost `_LOST_BEFORE_FAILURE` times fails.
"""

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

QUEUED_RECIPE = "wanted"  # trial attribute: a queued recipe that the space has no parameters for
STRATEGY = "strategy"  # trial attribute: the strategy that queued it
_LOST = "lost"  # trial attribute: how many workers died while they ran it

_LOST_BEFORE_ISOLATION = 2  # losses, which may be due to others of the same batch, after which it runs alone
_LOST_BEFORE_FAILURE = 3  # losses after which it is given up, since it may be what kills the workers


@dataclass(frozen=True)
class QueuedTrial:
    """What a trial was queued for.

    Attributes:
        params: The parameters to fix; empty if the space has none for the recipe.
        recipe: The notation of a recipe that the space has no parameters for.
        strategy: The strategy that queued it, if one did. Does not count in a comparison.
        lost: How many workers died while they ran it. Does not count in a comparison.
    """

    params: dict[str, Any]
    recipe: str | None = None
    strategy: str | None = field(default=None, compare=False)
    lost: int = field(default=0, compare=False)

    @property
    def runs_isolated(self) -> bool:
        """Whether it has to run alone, since it may have killed its workers and failed others of its batch."""
        return self.lost >= _LOST_BEFORE_ISOLATION


def enqueue(study: Study, requests: Sequence[QueuedTrial]) -> None:
    """Queue each request that is not waiting or running already; what failed may be queued again."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    present = [_request_of(trial) for trial in unfinished]
    for request in requests:
        if request not in present:
            _enqueue_trial(study, request)


def queued(study: Study) -> list[QueuedTrial]:
    """Return what waits in the queue, first come first."""
    return [_request_of(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]


def first_queued(study: Study) -> QueuedTrial | None:
    """Return what is asked for next; None if nothing waits."""
    return next(iter(queued(study)), None)


def runs_isolated(trial: Trial) -> bool:
    """Return whether a trial has to run alone (see `QueuedTrial.runs_isolated`)."""
    return bool(trial.user_attrs.get(_LOST, 0) >= _LOST_BEFORE_ISOLATION)


def was_queued(study: Study, trial: Trial) -> bool:
    """Return whether a trial came from the queue; otherwise the sampler proposes it."""
    return "fixed_params" in study._storage.get_trial_system_attrs(trial._trial_id)


def requeue_orphaned(study: Study, heartbeat: WorkerHeartbeat, *, unsigned: bool) -> None:
    """End the running trials whose worker has died, and queue again what they were asked for.

    Args:
        study: The study that the workers share.
        heartbeat: This worker's, which knows which others are alive.
        unsigned: Whether to include trials that nobody has signed in time. In a study that its owner also asks for
            trials, unsigned trials may be alive.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if (unsigned or OWNER in trial.user_attrs) and heartbeat.is_orphaned(trial):
            requeue(study, trial, was_lost=True)


def requeue(study: Study, trial: FrozenTrial, *, was_lost: bool) -> None:
    """End a running trial, and queue again what it was asked for; fail it if it was lost too often.

    Args:
        study: The study of the trial.
        trial: The running trial.
        was_lost: Whether its worker died, or failed by what may be the recipe's fault.
    """
    request = _request_of(trial)
    lost = request.lost + was_lost
    recipe = trial.user_attrs.get(trial_attributes.RECIPE)
    with suppress(UpdateFinishedTrialError):  # another worker may do the same at once
        if lost >= _LOST_BEFORE_FAILURE and recipe not in (None, results.base_notation(study)):
            reason = f"{lost} workers ended while they scored it"
            study._storage.set_trial_user_attr(trial._trial_id, trial_attributes.ERROR, reason)
            say(f"trial {trial.number} failed: {reason}")
        elif request != QueuedTrial({}):  # first, so that a kill between the two loses nothing
            _enqueue_trial(study, replace(request, lost=lost))
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _enqueue_trial(study: Study, request: QueuedTrial) -> None:
    attributes = {QUEUED_RECIPE: request.recipe, STRATEGY: request.strategy, _LOST: request.lost or None}
    study.enqueue_trial(
        request.params, user_attrs={name: value for name, value in attributes.items() if value is not None}
    )


def _request_of(trial: FrozenTrial) -> QueuedTrial:
    attributes = trial.user_attrs
    params = trial.system_attrs.get("fixed_params") or trial.params
    return QueuedTrial(params, attributes.get(QUEUED_RECIPE), attributes.get(STRATEGY), attributes.get(_LOST, 0))

"""Claim recipes: of several workers that ask for the same recipe, exactly one runs it.

The protocol is Lamport's bakery algorithm (1974). Its shared variables are the attributes of running trials:

1. A worker writes the recipe on its trial (attribute `recipe`): it is now choosing a ticket.
2. It reads all running trials of living workers, and takes a ticket one higher than any other trial of that recipe has
   (attribute `TICKET`).
3. It reads the trials again. The lowest (ticket, trial number) runs the recipe; a worker that finds a lower one leaves
   the recipe to it.
4. While another worker is still choosing (its trial has the recipe, but no ticket), it waits `POLL_SECONDS` and reads
   again: that ticket may be lower.

So a worker that comes later finds the recipe taken, and of two that come at once exactly one takes it, in whatever
order their trials were asked for. A claim ends when the trial is told, or its worker dies (`heartbeat`): dead workers
are no rivals. A trial that is marked `duplicate_of` has left its recipe to another.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from david.storage.heartbeat import OWNER, WorkerHeartbeat
from david.storage.trial_attributes import DUPLICATE_OF, RECIPE
from david.support import signals

TICKET = "ticket"  # trial attribute: its turn among the trials of the same recipe
POLL_SECONDS = 0.05  # between two reads while another worker chooses its ticket


def claim_recipes(study: Study, heartbeat: WorkerHeartbeat, trials: Mapping[str, Trial]) -> dict[str, int]:
    """Claim the recipes of these trials for this worker.

    Args:
        study: The study that the trials belong to.
        heartbeat: This worker's.
        trials: By the notation of each recipe, the running trial that is to score it.

    Returns:
        The recipes that another worker runs, each with the number of that worker's trial. All other recipes are
        claimed by this worker until their trials are told.

    Raises:
        KeyboardInterrupt: If a signal asks to end while another worker is waited for.
    """
    for recipe, trial in trials.items():
        _set_attribute(trial, RECIPE, recipe)
    rivals, tickets = _rivals(study, heartbeat, trials), {}
    for recipe, trial in trials.items():
        tickets[recipe] = 1 + max((rival.user_attrs.get(TICKET, 0) for rival in rivals.get(recipe, ())), default=0)
        _set_attribute(trial, TICKET, tickets[recipe])
    taken: dict[str, int] = {}
    while True:
        undecided = {recipe: trial for recipe, trial in trials.items() if recipe not in taken}
        rivals = _rivals(study, heartbeat, undecided) if undecided else {}
        for recipe, others in rivals.items():
            turns = [(rival.user_attrs[TICKET], rival.number) for rival in others if TICKET in rival.user_attrs]
            if turns and min(turns) < (tickets[recipe], trials[recipe].number):
                taken[recipe] = min(turns)[1]
        open_rivals = [rival for recipe, others in rivals.items() if recipe not in taken for rival in others]
        if all(TICKET in rival.user_attrs for rival in open_rivals):
            return taken
        signals.raise_if_asked()
        signals.interruptible_sleep(POLL_SECONDS)


def trials_still_owned(study: Study, heartbeat: WorkerHeartbeat, trials: Sequence[Trial]) -> list[Trial]:
    """Return those of these trials that are running and signed by this worker.

    Optuna may hand one waiting trial to two workers at once: the last that signs it owns it.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    owned = {trial.number for trial in running if trial.user_attrs.get(OWNER) == heartbeat.name}
    return [trial for trial in trials if trial.number in owned]


def _set_attribute(trial: Trial, name: str, value: object) -> None:
    with suppress(UpdateFinishedTrialError):  # this worker was taken for dead, and can no longer tell the trial anyway
        trial.set_user_attr(name, value)


def _rivals(study: Study, heartbeat: WorkerHeartbeat, recipes: Mapping[str, Trial]) -> dict[str, Sequence[FrozenTrial]]:
    """Return, by recipe, the running trials of these recipes that other living workers own."""
    rivals: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        recipe, owner = str(trial.user_attrs.get(RECIPE)), trial.user_attrs.get(OWNER)
        if recipe not in recipes or owner in (None, heartbeat.name) or DUPLICATE_OF in trial.user_attrs:
            continue
        if heartbeat.is_alive(owner):
            rivals.setdefault(recipe, []).append(trial)
    return {recipe: tuple(others) for recipe, others in rivals.items()}

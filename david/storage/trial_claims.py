"""Which worker runs a recipe that several have asked for: Lamport's bakery (1974), kept in the trials of the study.

A worker names the recipe on its trial, then takes a ticket higher than all that it sees on other running trials of that
recipe, then looks again: it leaves the recipe to the lowest ticket, and waits for those that have none yet. So whoever
looks later finds the recipe taken, and of two that look at once exactly one takes it, whatever the order in which
their trials were asked for.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from david.storage.heartbeat import OWNER, WorkerHeartbeat
from david.support import signals

TICKET = "ticket"  # of a trial: its turn among those of the same recipe
_WAIT = 0.05  # seconds between two looks


def claim(study: Study, heart: WorkerHeartbeat, wanted: Mapping[str, Trial]) -> dict[str, int]:
    """Of the recipes that these trials are to score, those that another worker runs, and as which trial.

    The others are this worker's until their trials are told.
    """
    for recipe, trial in wanted.items():
        _write(trial, "recipe", recipe)
    rivals, tickets = _rivals(study, heart, wanted), {}
    for recipe, trial in wanted.items():
        tickets[recipe] = 1 + max((its.user_attrs.get(TICKET, 0) for its in rivals.get(recipe, ())), default=0)
        _write(trial, TICKET, tickets[recipe])
    taken: dict[str, int] = {}
    while True:
        open_ = {recipe: trial for recipe, trial in wanted.items() if recipe not in taken}
        rivals = _rivals(study, heart, open_) if open_ else {}
        for recipe, others in rivals.items():
            before = [(its.user_attrs[TICKET], its.number) for its in others if TICKET in its.user_attrs]
            if before and min(before) < (tickets[recipe], wanted[recipe].number):
                taken[recipe] = min(before)[1]
        undecided = [its for recipe, others in rivals.items() if recipe not in taken for its in others]
        if all(TICKET in its.user_attrs for its in undecided):
            return taken
        signals.raise_if_asked()
        signals.interruptible_sleep(_WAIT)


def held(study: Study, heart: WorkerHeartbeat, trials: Sequence[Trial]) -> list[Trial]:
    """Those of these trials that are this worker's: where Optuna gave one to two, the last that signed it has it."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    mine = {trial.number for trial in running if trial.user_attrs.get(OWNER) == heart.name}
    return [trial for trial in trials if trial.number in mine]


def _write(trial: Trial, name: str, value: object) -> None:
    with suppress(UpdateFinishedTrialError):  # taken for dead, this worker can no longer tell it anyway
        trial.set_user_attr(name, value)


def _rivals(study: Study, heart: WorkerHeartbeat, wanted: Mapping[str, Trial]) -> dict[str, Sequence[FrozenTrial]]:
    """Running trials of these recipes that other workers have in hand, by the recipe."""
    found: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        recipe, owner = str(trial.user_attrs.get("recipe")), trial.user_attrs.get(OWNER)
        if recipe not in wanted or owner in (None, heart.name) or "duplicate_of" in trial.user_attrs:
            continue
        if heart.is_alive(owner):
            found.setdefault(recipe, []).append(trial)
    return {recipe: tuple(trials) for recipe, trials in found.items()}

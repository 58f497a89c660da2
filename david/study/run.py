"""What the trials of a search share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from david.candidates.encoding import Space
from david.candidates.strategies import Strategy
from david.engine.engine import Engine
from david.scoring.corpus import Corpus
from david.storage.heartbeat import OWNER, WorkerHeartbeat
from david.storage.queue import queued
from david.storage.results import StudyResults
from david.study.extra_objectives import ExtraMeasure

Tell = Callable[[float], Any]
_QUEUED_AT_ONCE = 32  # recipes of a queue that are scored together


@dataclass(frozen=True)
class Run:
    """What the trials of a search share."""

    model: nn.Module
    engine_on: Callable[[Corpus], Engine]
    engine: Engine  # on the search windows
    space: Space
    strategy: Strategy | None
    seed: int
    batch: int | None
    racing: bool
    by_hand: bool  # the study is the caller's, who may ask it for trials too
    heart: WorkerHeartbeat
    also: Mapping[str, ExtraMeasure] = field(default_factory=dict)  # what is minimised beside the objective

    @property
    def n_layers(self) -> int:
        """Layers of the base."""
        return self.engine.n_layers

    def recipes_at_once(self, study: Study) -> int:
        """How many to ask for: the base comes alone, so that the others find its states."""
        waiting = queued(study)
        together = next((i for i, asked in enumerate(waiting) if asked.runs_isolated), None)
        if StudyResults.read(study).base_trial is None or together == 0:
            return 1
        n = self._recipes_at_once(len(waiting))
        return n if together is None else min(n, together)

    def _recipes_at_once(self, waiting: int) -> int:
        if self.batch is not None:
            return self.batch if self.strategy is None else max(1, min(self.batch, waiting))
        if self.racing or self.engine.streamed:
            return max(1, waiting)
        return max(1, min(waiting, _QUEUED_AT_ONCE)) if self.engine.shares else 1


def in_hand(study: Study, run: Run) -> list[FrozenTrial]:
    """The trials that workers have in hand; what a caller asks of a study of his own is none of them."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if OWNER in trial.user_attrs or not run.by_hand]

"""`Run`: what all trials of a search share, and how many of them are asked for at once."""

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

ReportWork = Callable[[float], Any]  # called with an amount of work, in visits of a window
_MAX_QUEUED_BATCH = 32  # recipes of a queue that are scored together


@dataclass(frozen=True)
class Run:
    """What all trials of a search share.

    Attributes:
        model: The model that recipes are slung on.
        engine_on: Makes an engine of the same objective on another corpus.
        engine: The engine on the search windows.
        space: Turns the parameters of a trial into a recipe.
        strategy: What proposes recipes in the sampler's place; None for the sampler.
        seed: Of what is drawn beside the sampler.
        batch: How many recipes are scored together; None for the default of `batch_size`.
        racing: Whether a pruner may drop recipes before the last window.
        external_study: Whether the caller made the study, and may ask it for trials that this search does not run.
        heartbeat: This worker's.
        extra_measures: What is minimised beside the objective, by name.
    """

    model: nn.Module
    engine_on: Callable[[Corpus], Engine]
    engine: Engine
    space: Space
    strategy: Strategy | None
    seed: int
    batch: int | None
    racing: bool
    external_study: bool
    heartbeat: WorkerHeartbeat
    extra_measures: Mapping[str, ExtraMeasure] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of layers of the base."""
        return self.engine.n_layers

    def batch_size(self, study: Study) -> int:
        """Return how many recipes to ask for at once.

        The base comes alone, so that the others find its cached states; so does a recipe that has killed its workers.
        """
        waiting = queued(study)
        before_isolated = next((i for i, request in enumerate(waiting) if request.runs_isolated), None)
        if StudyResults.read(study).base_trial is None or before_isolated == 0:
            return 1
        size = self._unrestricted_batch_size(len(waiting))
        return size if before_isolated is None else min(size, before_isolated)

    def _unrestricted_batch_size(self, waiting: int) -> int:
        if self.batch is not None:
            return self.batch if self.strategy is None else max(1, min(self.batch, waiting))
        if self.racing or self.engine.streamed:
            return max(1, waiting)
        return max(1, min(waiting, _MAX_QUEUED_BATCH)) if self.engine.shares else 1


def running_trials(study: Study, run: Run) -> list[FrozenTrial]:
    """Return the trials that workers are running; not those that the owner of an external study has asked for."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if OWNER in trial.user_attrs or not run.external_study]

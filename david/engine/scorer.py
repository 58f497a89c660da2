"""Score a schedule on one batch of windows: with shared visits, or one recipe at a time.

`Scorer.score_batch` holds fewer windows at once if memory runs out, and scores recipes alone if the model raises, so
that a recipe that fails takes no other with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from torch import nn

from david.engine.memory_budget import MemoryBudget, release_memory
from david.engine.meter import Meter
from david.engine.one_by_one import error_as_outcome, slung_window_nll
from david.engine.runner import Runner
from david.engine.schedule import RecipeGroup, Schedule
from david.engine.state_cache import StateCache
from david.engine.token_objective import TokenObjective
from david.errors import DavidError
from david.scoring.corpus import Corpus
from david.support.memory import lacks_memory

Count = Callable[[int, int, int], Any]  # called with the visits, the ends and the windows of work that is done
BatchNLL = dict[int, list[float] | DavidError]  # NLL of each window, by the recipe's place in its list
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Scorer:
    """Scores recipes on batches of windows.

    Attributes:
        model: A loaded model that runs its base in all calls.
        corpus: The windows to score.
        objective: What is scored; None if only `attempt` is used.
        runner: Runs prefix trees; if None, recipes are scored one at a time.
        budget: How many states fit.
        cache: States kept between calls.
        meter: Counts what runs cost.
    """

    model: nn.Module
    corpus: Corpus
    objective: TokenObjective | None
    runner: Runner | None
    budget: MemoryBudget
    cache: StateCache
    meter: Meter

    @property
    def streamed(self) -> bool:
        """Whether layers are loaded for each call, so that all recipes of a batch go through them together."""
        return self.runner is not None and self.runner.streamed

    def groups(self, schedule: Schedule, batch: range) -> tuple[RecipeGroup, ...]:
        """Return the groups of recipes that run together on a batch of windows."""
        if self.runner is None:
            return schedule.groups()
        return schedule.groups(self.budget.states_at_once(batch), layer_sweep=self.streamed)

    def score_batch(self, schedule: Schedule, batches: list[range], place: int, count: Count) -> BatchNLL:
        """Score the recipes of a schedule on a batch of windows.

        Args:
            schedule: The recipes.
            batches: The batches of windows; changed in place, from `place` on, if memory runs out.
            place: The batch to score.
            count: Called as work is done.

        Returns:
            The NLL in nats of each window of `batches[place]`, or why there is none, by the recipe's number.
        """
        while True:
            values = self.attempt(self._run, schedule, batches, place, count)
            if not isinstance(values, Exception):
                return values
            if self.runner is None or not lacks_memory(values) or not self.budget.reduce(batches, place):
                break
        alone: BatchNLL = {}
        for number in schedule.numbers:
            values = self.attempt(self._run, schedule.only([number]), batches, place, count)
            alone |= {number: error_as_outcome("scoring", values)} if isinstance(values, Exception) else values
        return alone

    def attempt(self, score: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
        """Call a function that runs the model; return what it raises, with no states held any longer.

        Raises:
            ScoreError: The accelerator itself has failed.
        """
        try:
            return score(*args, **kwargs)
        except Exception as error:  # any kind: the code of any model or objective
            self.cache.clear()
            release_memory(error)
            return error

    def _run(self, schedule: Schedule, batches: list[range], place: int, count: Count) -> BatchNLL:
        """Run a schedule on a batch, group by group, or one by one without a runner."""
        batch = batches[place]
        windows = self.corpus.part(batch.start, batch.stop)
        if self.runner is None:
            return {number: self._run_slung(schedule, number, windows, count) for number in schedule.numbers}
        by_number: dict[int, list[float]] = {}
        for group in self.groups(schedule, batch):
            cached, keep = self.cache.attach(group.tree, batch, len(batches))
            nll = self.runner.nll(
                group.tree,
                group.order(cached),
                windows,
                meter=self.meter,
                cached=cached,
                keep=keep,
                tick=lambda is_end: count(int(not is_end), int(is_end), len(batch)),
            )
            by_number |= {number: nll[end] for number, end in zip(group.numbers, group.tree.ends, strict=True)}
        return {number: by_number[number] for number in schedule.numbers}

    def _run_slung(self, schedule: Schedule, number: int, windows: Corpus, count: Count) -> list[float] | DavidError:
        """Sling one recipe, score it on a batch, reset."""
        recipe, options = schedule.recipes[number], self.objective.options if self.objective else {}
        nll = slung_window_nll(self.model, recipe, windows, options)
        if not isinstance(nll, DavidError):
            count(len(recipe), 1, len(windows))
        return nll

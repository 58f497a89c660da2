"""One round of a search: ask for recipes, score them together, tell what came out."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn
from tqdm.auto import tqdm

from david import store, table
from david.corpus import Corpus
from david.engine import Engine
from david.errors import DavidError
from david.recipe import Recipe
from david.score import Score
from david.space import Space

Tell = Callable[[float], Any]

_QUEUED_AT_ONCE = 32  # recipes of a queue that are scored together
_GO_ON = 0.55  # of a rung's recipes, as far as a bar can tell beforehand (experiments/engine: a landscape of blocks)


@dataclass(frozen=True)
class Run:
    """What the trials of a search share."""

    model: nn.Module
    engine_on: Callable[[Corpus], Engine]
    engine: Engine  # on the search windows
    space: Space
    seed: int
    batch: int | None
    racing: bool
    by_hand: bool  # the study is the caller's, who may ask it for trials too

    @property
    def n_layers(self) -> int:
        """Layers of the base."""
        return self.engine.n_layers

    def recipes_at_once(self, study: Study) -> int:
        """How many to ask for: the base comes alone, so that the others find its states."""
        queued = len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        if table.base_trial(study) is None:
            return 1
        if self.batch is not None:
            return self.batch
        return max(1, queued if self.engine.streamed or self.racing else min(queued, _QUEUED_AT_ONCE))


def play(study: Study, run: Run, n: int, *, expect: Tell, done: Tell) -> list[str]:
    """Ask, run and tell so many trials; of each, whether it was scored, a duplicate, or failed.

    `expect` is told how much work is still to come, in visits of a window, as far as is known; `done` what is done.
    """
    trials: list[Trial] = []
    fresh: dict[str, tuple[Trial, Recipe]] = {}
    again: list[tuple[Trial, str]] = []
    outcomes: list[str] = []
    try:
        known = _known(study)
        for _ in range(n):
            trials.append(trial := study.ask())
            trial.set_user_attr("worker", store.worker())
            try:
                recipe = run.space(trial, run.n_layers)
            except DavidError as error:
                outcomes.append(_failed(study, trial, error))
                continue
            notation = str(recipe)
            trial.set_user_attr("recipe", notation)
            if notation in fresh or notation in known:
                again.append((trial, notation))
            else:
                fresh[notation] = trial, recipe
        recipes = [recipe for _, recipe in fresh.values()]
        race = _Race(study, run, list(fresh.values()), expect) if run.racing else None
        expect(run.engine.work(recipes) if race is None else race.to_come(0, recipes))
        scores = run.engine.outcomes(recipes, drop=race, done=done)
        known = _known(study)
        for (notation, (trial, _)), score in zip(fresh.items(), scores, strict=True):
            its = known.get(notation, trial)
            if its.number != trial.number:  # another worker was faster
                again.append((trial, notation))
            elif isinstance(score, DavidError):
                outcomes.append(_failed(study, trial, score))
            else:
                if its is trial:  # it was not dropped
                    _tell(study, run, trial, score)
                outcomes.append("scored")
        known = _known(study) if again else {}
        return outcomes + [_told_again(study, trial, known[notation]) for trial, notation in again]
    except BaseException:
        for trial in trials:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


class _Race:
    """Shows the study's pruner what a round's recipes have on each rung, and tells those that it drops at once."""

    def __init__(self, study: Study, run: Run, racers: Sequence[tuple[Trial, Recipe]], expect: Tell) -> None:
        self._study, self._run, self._racers, self._expect = study, run, racers, expect
        self._nll: list[list[float]] = [[] for _ in racers]

    def __call__(self, windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        """The numbers of the recipes that end here."""
        engine, dropped = self._run.engine, []
        for i, its in nll.items():
            self._nll[i] += its
            for window, value in zip(windows, its, strict=True):
                self._racers[i][0].report(value / engine.window_tokens, window)
        if windows.stop == len(engine.corpus):
            return []
        base = Recipe.identity(engine.n_layers)
        for i in nll:
            trial, recipe = self._racers[i]
            if recipe != base and trial.should_prune():
                dropped.append(i)
        for i in dropped:
            score = engine.score_of(self._nll[i])
            if isinstance(score, Score):
                _tell(self._study, self._run, self._racers[i][0], score)
        self._expect(self.to_come(windows.stop, [self._racers[i][1] for i in nll if i not in set(dropped)]))
        return dropped

    def to_come(self, seen: int, recipes: Sequence[Recipe]) -> float:
        """How much work is still to come, in visits of a window, where of each rung's recipes about half go on."""
        engine, work = self._run.engine, 0.0
        later = [batch for batch in engine.batches if batch.start >= seen]
        for rung, batch in enumerate(later):
            work += len(batch) * _GO_ON**rung
        return work * engine.work(recipes) / len(engine.corpus)


def _tell(study: Study, run: Run, trial: Trial, score: Score) -> None:
    """Tell a trial the mean NLL; of a dropped recipe, what its first windows make of the base's."""
    for name, value in kept(score).items():
        trial.set_user_attr(name, value)
    seen, base, told = len(score.window_nll), table.base_trial(study), score.nll
    if run.racing and seen < len(run.engine.corpus) and base is not None:
        trial.set_user_attr(table.PARTIAL, seen)
        its = base.user_attrs["window_nll"][:seen]
        best = min(table.value_of(trial) for trial in (base, *table.best_of_search(study, 1)))
        told = max(best, table.value_of(base) + (sum(score.window_nll) - sum(its)) / score.tokens)
    study.tell(trial, float(told))


def _failed(study: Study, trial: Trial, error: DavidError) -> str:
    trial.set_user_attr("error", str(error))
    study.tell(trial, state=TrialState.FAIL)
    say(f"trial {trial.number} failed: {error}")
    return "failed"


def _told_again(study: Study, trial: Trial, known: FrozenTrial) -> str:
    """Tell a trial what is known of its recipe."""
    trial.set_user_attr("duplicate_of", known.number)
    study.tell(trial, known.value, state=known.state)
    return "duplicate"


def _known(study: Study) -> dict[str, FrozenTrial]:
    """Of each recipe, the trial that has scored it, or found that it cannot be scored."""
    found: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        scored = trial.state == TrialState.COMPLETE or "error" in trial.user_attrs
        if scored and "recipe" in trial.user_attrs and "duplicate_of" not in trial.user_attrs:
            found.setdefault(trial.user_attrs["recipe"], trial)
    return found


def kept(score: Score) -> dict[str, Any]:
    """What a trial keeps of its score."""
    return {
        "window_nll": list(score.window_nll),
        "window_tokens": list(score.window_tokens),
        "convention": score.convention,
    }


def say(line: str) -> None:
    """A line to stderr, above a bar."""
    tqdm.write(line, file=sys.stderr)

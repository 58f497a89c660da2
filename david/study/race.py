"""Racing: drop recipes that are hopeless after the first windows."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from david.candidates.pruner import RacingPruner
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.storage import trial_attributes
from david.storage.results import StudyResults
from david.study.run import Run, Tell
from david.study.tell import estimate_nll, tell_once, tell_score

_GO_ON = 0.55  # of a rung's recipes, as far as a bar can tell beforehand (experiments/engine: a landscape of blocks)


class Race:
    """Shows the study's pruner what a round's recipes have on each rung, and tells those that it drops at once."""

    def __init__(self, study: Study, run: Run, racers: Sequence[tuple[Trial, Recipe]], expect: Tell) -> None:
        self._study, self._run, self._racers, self._expect = study, run, racers, expect
        self._nll: list[list[float]] = [[] for _ in racers]
        self.told: set[int] = set()  # the numbers of those that were dropped

    def __call__(self, windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        """The numbers of the recipes that end here."""
        engine, dropped = self._run.engine, []
        for i, its in nll.items():
            self._nll[i] += its
            with suppress(UpdateFinishedTrialError):
                self._report(self._racers[i][0], windows, self._nll[i])
        results = StudyResults.read(self._study)
        base = results.base_trial
        if windows.stop == len(engine.corpus) or base is None:
            return []
        base_recipe = Recipe.identity(engine.n_layers)
        best = min(trial_attributes.value_of(trial) for trial in (base, *results.best_of_search(1)))
        for i in nll:
            trial, recipe = self._racers[i]
            score = engine.score_of(self._nll[i])
            if isinstance(score, Score) and recipe != base_recipe and trial.should_prune():
                tell_once(tell_score, self._study, trial, score, [estimate_nll(score, base, best)], is_partial=True)
                dropped.append(i)
        self.told |= set(dropped)
        self._expect(self.to_come(windows.stop, [self._racers[i][1] for i in nll if i not in self.told]))
        return dropped

    def _report(self, trial: Trial, windows: range, nll: Sequence[float]) -> None:
        tokens = self._run.engine.window_tokens
        if isinstance(self._study.pruner, RacingPruner):
            if windows.start == 0:  # first: another worker may read the trial between the two
                trial.set_user_attr(trial_attributes.WINDOW_TOKENS, list(tokens))
            trial.set_user_attr(trial_attributes.WINDOW_NLL, list(nll))
        else:
            for window in windows:
                trial.report(nll[window] / tokens[window], window)

    def to_come(self, seen: int, recipes: Sequence[Recipe]) -> float:
        """How much work is still to come, in visits of a window, where of each rung's recipes about half go on."""
        engine = self._run.engine
        later = [len(batch) for batch in engine.batches if batch.start >= seen]
        windows = sum(size * _GO_ON**rung for rung, size in enumerate(later))
        return windows * engine.work(recipes) / len(engine.corpus)

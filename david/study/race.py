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
from david.study.run import ReportWork, Run
from david.study.tell import estimate_nll, tell_once, tell_score

_SURVIVAL = 0.55  # expected share of recipes that pass a rung (experiments/engine: a landscape of blocks)


class Race:
    """Reports the NLL of a batch of recipes to the study's pruner on each rung, and tells those that it drops.

    Args:
        study: The study, with its pruner.
        run: What the trials of the search share.
        racers: The trials of the batch and their recipes.
        expect: Called on each rung with the work that is still to come, in visits of a window.

    Attributes:
        dropped: Indices in `racers` of the recipes that were dropped, and told.
    """

    def __init__(self, study: Study, run: Run, racers: Sequence[tuple[Trial, Recipe]], expect: ReportWork) -> None:
        self._study, self._run, self._racers, self._expect = study, run, racers, expect
        self._window_nll: list[list[float]] = [[] for _ in racers]
        self.dropped: set[int] = set()

    def __call__(self, windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        """Report the NLL of one rung, and drop recipes.

        Args:
            windows: The windows of the rung.
            nll: By index in `racers`, the NLL of each of these windows, nats.

        Returns:
            Indices of the recipes that end here.
        """
        engine, dropped = self._run.engine, []
        for i, rung_nll in nll.items():
            self._window_nll[i] += rung_nll
            with suppress(UpdateFinishedTrialError):
                self._report(self._racers[i][0], windows, self._window_nll[i])
        results = StudyResults.read(self._study)
        base = results.base_trial
        if windows.stop == len(engine.corpus) or base is None:
            return []
        base_recipe = Recipe.identity(engine.n_layers)
        best = min(trial_attributes.value_of(trial) for trial in (base, *results.best_of_search(1)))
        for i in nll:
            trial, recipe = self._racers[i]
            score = engine.score_of(self._window_nll[i])
            if isinstance(score, Score) and recipe != base_recipe and trial.should_prune():
                tell_once(tell_score, self._study, trial, score, [estimate_nll(score, base, best)], is_partial=True)
                dropped.append(i)
        self.dropped |= set(dropped)
        self._expect(self.remaining_work(windows.stop, [self._racers[i][1] for i in nll if i not in self.dropped]))
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

    def remaining_work(self, seen: int, recipes: Sequence[Recipe]) -> float:
        """Estimate the work that is left behind the first `seen` windows, if about half of the recipes pass each rung.

        Returns:
            Work in visits of a window.
        """
        engine = self._run.engine
        rung_sizes = [len(batch) for batch in engine.batches if batch.start >= seen]
        windows = sum(size * _SURVIVAL**rung for rung, size in enumerate(rung_sizes))
        return windows * engine.work(recipes) / len(engine.corpus)

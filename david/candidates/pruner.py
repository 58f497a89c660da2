"""Racing: recipes that are hopeless on the first windows are given up, told by paired tests against the best so far."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from david.storage.trial_attributes import PARTIAL, WINDOW_NLL, WINDOW_TOKENS

_LEVEL = 0.005  # how often a test may give up a recipe as good as the one it is held against; see experiments/engine
_PRIOR = 2.0  # for how many windows the spread of all recipes' differences counts beside a recipe's own


def hopeless(nll: NDArray[Any], finalists: int, *, level: float = _LEVEL, prior: float = _PRIOR) -> NDArray[Any]:
    """Which recipes are worse than the last of the `finalists` best, `[R]`, of NLLs of the same windows `[R, W]`.

    By a t-test of one side on the paired differences. Since two windows tell little of a spread, its variance is
    moderated: the median variance of all recipes' differences counts as `prior` more degrees of freedom (Smyth, Linear
    models and empirical Bayes methods, 2004).
    """
    n_recipes, n_windows = nll.shape
    ranked = np.argsort(nll.mean(axis=1), kind="stable")  # an infinite NLL is last
    if n_recipes <= finalists or n_windows < 2 or not np.all(np.isfinite(nll[ranked[finalists - 1]])):
        return np.zeros(n_recipes, dtype=bool)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        differences = nll - nll[ranked[finalists - 1]]
        means, variances = differences.mean(axis=1), differences.var(axis=1, ddof=1)
    others = np.delete(variances, ranked[finalists - 1])
    others = others[np.isfinite(others)]
    freedom = n_windows - 1 + prior
    moderated = (prior * (np.median(others) if others.size else 0) + (n_windows - 1) * variances) / freedom
    worse: NDArray[Any] = means > stats.t.ppf(1 - level, freedom) * np.sqrt(moderated / n_windows)
    worse |= means == np.inf
    worse[ranked[:finalists]] = False
    return worse


class RacingPruner(BasePruner):
    """An Optuna pruner that gives up a trial when it is worse than the `finalists` best, as `hopeless` tells it.

    For studies that minimise: a trial reports the NLL of each window with the window's number for the step (David's own
    searches keep them as `window_nll`, since each report is a transaction). It is held against all trials that have
    seen the same windows and were not given up, running ones too: so recipes that are scored together race with one
    another. With at most `finalists` such trials none is given up.

    Example:
        >>> study = optuna.create_study(pruner=RacingPruner(finalists=5))
    """

    def __init__(self, finalists: int = 6, *, level: float = _LEVEL) -> None:
        if finalists < 1:
            raise ValueError(f"finalists must be at least 1; got {finalists}")
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        self._finalists, self._level = finalists, level
        # of a study's running trials by their numbers: how many windows they have seen, and the verdict
        self._told: WeakKeyDictionary[Study, dict[int, tuple[int, bool]]] = WeakKeyDictionary()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to give a trial up."""
        if study.direction != StudyDirection.MINIMIZE:
            raise ValueError("RacingPruner is for studies that minimise")
        told, seen = self._told.setdefault(study, {}), _seen(trial)
        if told.get(trial.number, (0, False))[0] != len(seen):
            self._judge(study, set(seen), told)
        return told.get(trial.number, (0, False))[1]

    def _judge(self, study: Study, windows: set[int], told: dict[int, tuple[int, bool]]) -> None:
        """Reach the verdict on all trials that have seen these windows: reading a study from a storage is slow."""
        trials = [
            (trial, seen)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
            if PARTIAL not in trial.user_attrs and windows <= (seen := _seen(trial)).keys()
        ]
        nll = np.array([[seen[window] for window in sorted(windows)] for _, seen in trials])
        if not nll.size:
            return
        for (trial, seen), verdict in zip(trials, hopeless(nll, self._finalists, level=self._level), strict=True):
            if trial.state == TrialState.RUNNING and len(seen) == len(windows):
                told[trial.number] = len(windows), bool(verdict)


def _seen(trial: FrozenTrial) -> dict[int, float]:
    """The mean NLL of each window that a trial has seen, by its number."""
    kept = trial.user_attrs.get(WINDOW_NLL)
    if kept is None:
        return trial.intermediate_values
    tokens = trial.user_attrs[WINDOW_TOKENS]
    return {window: nll / scored for window, (nll, scored) in enumerate(zip(kept, tokens, strict=False))}

"""Racing: stop recipes that paired tests on their first windows show to be worse than the best so far.

`RacingPruner` is an Optuna pruner; `hopeless` is the test.
"""

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

_LEVEL = 0.005  # how often a test may stop a recipe as good as the one it is compared with; see experiments/engine
_PRIOR = 2.0  # degrees of freedom of all recipes' variance beside a recipe's own


def hopeless(nll: NDArray[Any], finalists: int, *, level: float = _LEVEL, prior: float = _PRIOR) -> NDArray[Any]:
    """Test which recipes are worse than the last of the `finalists` best.

    One-sided t-test on the paired differences. Since two windows say little about the variance, it is moderated: the
    median variance of all recipes' differences counts as `prior` more degrees of freedom (Smyth, Linear models and
    empirical Bayes methods, 2004).

    Args:
        nll: Mean NLL of each recipe on the same windows `[R, W]`, in nats per token.
        finalists: How many recipes are never stopped.
        level: How often the test may stop a recipe as good as the one it is compared with.
        prior: Degrees of freedom of the common variance.

    Returns:
        For each recipe `[R]`, whether it is hopeless.
    """
    n_recipes, n_windows = nll.shape
    ranked = np.argsort(nll.mean(axis=1), kind="stable")  # an infinite NLL comes last
    if n_recipes <= finalists or n_windows < 2 or not np.all(np.isfinite(nll[ranked[finalists - 1]])):
        return np.zeros(n_recipes, dtype=bool)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
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
    """An Optuna pruner that stops a trial if `hopeless` shows it to be worse than the `finalists` best.

    For studies that minimise. A trial reports the NLL of each window, with the window's number as the step (David's own
    searches store them as `window_nll`, since each report is a transaction). It is compared with all trials that have
    seen the same windows and were not stopped, running ones too, so recipes that are scored together race with one
    another. With at most `finalists` such trials none is stopped.

    Args:
        finalists: How many of the best trials are never stopped.
        level: How often a test may stop a recipe as good as the one it is compared with.

    Raises:
        ValueError: `finalists` is below 1, or `level` is not between 0 and 1.

    Example:
        >>> study = optuna.create_study(pruner=RacingPruner(finalists=5))
    """

    def __init__(self, finalists: int = 6, *, level: float = _LEVEL) -> None:
        if finalists < 1:
            raise ValueError(f"finalists must be at least 1; got {finalists}")
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        self._finalists, self._level = finalists, level
        # of a study's running trials, by number: how many windows they have seen, and the verdict
        self._verdicts: WeakKeyDictionary[Study, dict[int, tuple[int, bool]]] = WeakKeyDictionary()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether to stop a trial.

        Raises:
            ValueError: The study does not minimise.
        """
        if study.direction != StudyDirection.MINIMIZE:
            raise ValueError("RacingPruner is for studies that minimise")
        verdicts, window_nll = self._verdicts.setdefault(study, {}), _window_nll(trial)
        if verdicts.get(trial.number, (0, False))[0] != len(window_nll):
            self._judge(study, set(window_nll), verdicts)
        return verdicts.get(trial.number, (0, False))[1]

    def _judge(self, study: Study, windows: set[int], verdicts: dict[int, tuple[int, bool]]) -> None:
        """Store the verdict on all trials that have seen these windows: reading a study from a storage is slow."""
        trials = [
            (trial, window_nll)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
            if PARTIAL not in trial.user_attrs and windows <= (window_nll := _window_nll(trial)).keys()
        ]
        nll = np.array([[window_nll[window] for window in sorted(windows)] for _, window_nll in trials])
        if not nll.size:
            return
        for (trial, window_nll), verdict in zip(trials, hopeless(nll, self._finalists, level=self._level), strict=True):
            if trial.state == TrialState.RUNNING and len(window_nll) == len(windows):
                verdicts[trial.number] = len(windows), bool(verdict)


def _window_nll(trial: FrozenTrial) -> dict[int, float]:
    """Return the mean NLL of each window that a trial has seen, by the window's number."""
    sums = trial.user_attrs.get(WINDOW_NLL)
    if sums is None:
        return trial.intermediate_values
    tokens = trial.user_attrs[WINDOW_TOKENS]
    return {window: nll / scored for window, (nll, scored) in enumerate(zip(sums, tokens, strict=False))}

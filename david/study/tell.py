"""Tell a study the result of a trial: a score, a failure, or that its recipe is a duplicate."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from david.errors import DavidError, RecipeError, SearchError, SlingError
from david.metrics.score import Score
from david.storage import results, trial_attributes
from david.support.console import say
from david.support.memory import lacks_memory

SCORED, DUPLICATE, REFUSED, FAILED = "scored", "duplicate", "refused", "failed"  # the outcomes of a trial


def estimate_nll(score: Score, base: FrozenTrial, best: float) -> float:
    """Estimate the NLL of a dropped recipe on all windows: the base's NLL plus the difference on the windows seen.

    Args:
        score: The recipe's score on the first windows.
        base: The trial of the base.
        best: The lowest NLL so far; the estimate is always higher, so that a dropped recipe is never the best.

    Returns:
        Mean NLL in nats a token.
    """
    base_nll = base.user_attrs[trial_attributes.WINDOW_NLL][: len(score.window_nll)]
    value = trial_attributes.value_of(base) + (sum(score.window_nll) - sum(base_nll)) / score.tokens
    return max(math.nextafter(best, math.inf), score.nll if math.isnan(value) else value)


def tell_once(tell: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """Call `tell`, and return its outcome, or `DUPLICATE` if another worker has told the trial before.

    Optuna may hand one trial to two workers, and a worker that was taken for dead may be alive.
    """
    try:
        return tell(*args, **kwargs)
    except UpdateFinishedTrialError:
        return DUPLICATE


def tell_score(study: Study, trial: Trial, score: Score, values: Sequence[float], *, is_partial: bool = False) -> str:
    """Tell a trial its score.

    Args:
        study: The study of the trial.
        trial: The running trial.
        score: The score of its recipe.
        values: What the study minimises, the NLL first.
        is_partial: Whether the recipe was dropped before the last window.

    Returns:
        `SCORED`.
    """
    if is_partial:
        trial.set_user_attr(trial_attributes.PARTIAL, len(score.window_nll))
    for name, value in score.to_attributes().items():
        trial.set_user_attr(name, value)
    study.tell(trial, [float(value) for value in values], skip_if_finished=True)
    return SCORED


def tell_failed(study: Study, trial: Trial, error: DavidError) -> str:
    """Fail a trial, store the reason, and print it.

    Returns:
        `REFUSED` if the model cannot run the recipe, else `FAILED`.

    Raises:
        SearchError: If it is the trial of the base itself.
    """
    trial.set_user_attr(trial_attributes.ERROR, str(error))
    if error.__cause__ is not None and lacks_memory(error.__cause__):
        trial.set_user_attr(trial_attributes.NO_MEMORY, True)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    if trial.user_attrs.get(trial_attributes.RECIPE) == results.base_notation(study):
        raise SearchError(f"the base itself cannot be scored: {error}") from error
    say(f"trial {trial.number} failed: {error}")
    return REFUSED if isinstance(error, RecipeError | SlingError) else FAILED


def tell_duplicate(study: Study, trial: Trial, notation: str, finished: Mapping[str, FrozenTrial]) -> str:
    """Give a trial the result of the finished trial of the same recipe.

    Args:
        study: The study of the trial.
        trial: The running trial.
        notation: Its recipe.
        finished: Finished trials by their recipes. If the recipe is missing, the worker that ran it was taken for dead,
            and the trial fails.

    Returns:
        `DUPLICATE`.
    """
    original = finished.get(notation)
    if original is not None:
        trial.set_user_attr(trial_attributes.DUPLICATE_OF, original.number)
    trial.set_user_attr(trial_attributes.RECIPE, notation)
    values, state = (None, TrialState.FAIL) if original is None else (original.values, original.state)
    study.tell(trial, values, state=state, skip_if_finished=True)
    return DUPLICATE

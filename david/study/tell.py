"""Tell a study what became of its trials."""

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

DUPLICATE = "duplicate"


def estimate_nll(score: Score, base: FrozenTrial, best: float) -> float:
    """What a dropped recipe's first windows make of the base's NLL; never as low as the best."""
    its = base.user_attrs[trial_attributes.WINDOW_NLL][: len(score.window_nll)]
    value = trial_attributes.value_of(base) + (sum(score.window_nll) - sum(its)) / score.tokens
    return max(math.nextafter(best, math.inf), score.nll if math.isnan(value) else value)


def tell_once(tell: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """What becomes of a trial that is told; a duplicate where another worker has told it.

    Optuna may give one trial to two workers, and one that was taken for dead may be alive.
    """
    try:
        return tell(*args, **kwargs)
    except UpdateFinishedTrialError:
        return DUPLICATE


def tell_score(study: Study, trial: Trial, score: Score, values: Sequence[float], *, is_partial: bool = False) -> str:
    """Tell a trial its score."""
    if is_partial:
        trial.set_user_attr(trial_attributes.PARTIAL, len(score.window_nll))
    for name, its in score.to_attributes().items():
        trial.set_user_attr(name, its)
    study.tell(trial, [float(value) for value in values], skip_if_finished=True)
    return "scored"


def tell_failed(study: Study, trial: Trial, error: DavidError) -> str:
    """Mark a trial as failed, with the reason."""
    trial.set_user_attr(trial_attributes.ERROR, str(error))
    if error.__cause__ is not None and lacks_memory(error.__cause__):
        trial.set_user_attr(trial_attributes.NO_MEMORY, True)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    if trial.user_attrs.get("recipe") == results.base_notation(study):
        raise SearchError(f"the base itself cannot be scored: {error}") from error
    say(f"trial {trial.number} failed: {error}")
    return "refused" if isinstance(error, RecipeError | SlingError) else "failed"


def tell_duplicate(study: Study, trial: Trial, notation: str, known: Mapping[str, FrozenTrial]) -> str:
    """Tell a trial what is known of its recipe; or nothing, where a worker that was taken for dead had it in hand."""
    its = known.get(notation)
    if its is not None:
        trial.set_user_attr("duplicate_of", its.number)
    trial.set_user_attr("recipe", notation)
    values, state = (None, TrialState.FAIL) if its is None else (its.values, its.state)
    study.tell(trial, values, state=state, skip_if_finished=True)
    return DUPLICATE

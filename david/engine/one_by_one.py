"""Score one recipe at a time: sling, score, reset. The engine falls back to it where visits cannot be shared.

An `Outcome` is a score, or the error that says why there is none.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from david.errors import DavidError, ScoreError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import windows_score
from david.sling.in_place import slung
from david.support.text import one_line

Outcome = Score | DavidError


def slung_window_nll(
    model: nn.Module, recipe: Recipe, windows: Corpus, options: Mapping[str, Any]
) -> list[float] | DavidError:
    """Return the NLL in nats of each window under the slung model, or why there is none.

    Args:
        model: A loaded model; afterwards it is what it was.
        recipe: A recipe that the model can run.
        windows: The windows to score.
        options: Options of `windows_score`.

    Raises:
        Exception: What the model raises, if it is not a `DavidError`; that is returned.
    """
    try:
        with slung(model, recipe):
            return list(windows_score(model, windows, **options).window_nll)
    except DavidError as error:
        return error


def error_as_outcome(action: str, error: Exception) -> ScoreError:
    """Return an error of code that is not David's as a `ScoreError`, with the error as its cause.

    Args:
        action: What was done when it was raised, such as "scoring".
        error: The error.
    """
    failure = ScoreError(f"{action} raised {type(error).__name__}: {one_line(error)}")
    failure.__cause__ = error
    return failure

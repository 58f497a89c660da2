"""The best recipe of a study with its scores and origin, as `best.json` stores it."""

import math
from datetime import UTC, datetime

import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from david.metrics.paired_test import BETTER, Difference
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.recipe.schema import Convention, Data, Measurement, Origin, Versions
from david.report import sentences, tables
from david.storage import trial_attributes
from david.storage.queue import STRATEGY
from david.storage.results import StudyResults
from david.storage.study_metadata import PERPLEXITY
from david.storage.trial_attributes import RECIPE

_LARGEST_NLL = 700  # the exponential of more is no number for a file


def best_recipe(study: Study | StudyResults, *, top: int = 5, board: pd.DataFrame | None = None) -> Recipe | None:
    """Return the best recipe of the leaderboard that is not the base, with its scores, its origin and the verdict.

    That is the first that is better than the base on the held-out data, or the first of all if none is: `verdict` says
    which, and `written_as` gives the verdict of the study in words.

    Args:
        study: The study.
        top: As in `tables.leaderboard`.
        board: That table, if it is there already.

    Returns:
        The recipe; None if there is none, or the base has no score.

    Raises:
        SearchError: No search has run on the study.
    """
    results = StudyResults.read(study)
    finalists, base = results.finalists(top), results.base_trial
    if not finalists or base is None:
        return None
    board = tables.leaderboard(results, top) if board is None else board
    better = set(board.loc[board["verdict"] == BETTER, "trial"])
    best = next((trial for trial in finalists if trial.number in better), finalists[0])
    metadata = results.metadata
    recipe = Recipe.parse(best.user_attrs[RECIPE])
    return Recipe(
        recipe.repeat_map,
        recipe.scales,
        base=metadata.base,
        written_as=f"trial {best.number} of the study {results.name}; {sentences.verdict(board)}",
        scores=tuple(_measurements(results, best, base)),
        search=Origin.model_validate(
            {
                "study": results.name,
                "trial": best.number,
                "space": metadata.space_name,
                "sampler": metadata.sampler,
                "strategy": best.user_attrs.get(STRATEGY),
                "trials": len(results.scored),
                "seed": metadata.seed,
            }
        ),
        made_with=Versions(**metadata.made_with, created=datetime.now(UTC).isoformat(timespec="seconds")),
    )


def _measurements(results: StudyResults, trial: FrozenTrial, base: FrozenTrial) -> list[Measurement]:
    """Return the scores of a recipe beside the base's, on the search windows and on the held-out data."""
    metadata = results.metadata
    search_nll = trial_attributes.value_of(trial), trial_attributes.value_of(base)
    search = Score.from_attributes(trial.user_attrs), Score.from_attributes(base.user_attrs)
    measurements = [_measurement(results, search, search_nll, metadata.search_data, None)]
    score, base_score = results.held_out(trial), results.held_out(base)
    difference = tables.difference_to_base(results, trial)
    if score is not None and base_score is not None and difference is not None and metadata.held_out_data is not None:
        nll = score.nll, base_score.nll
        measurements += [_measurement(results, (score, base_score), nll, metadata.held_out_data, difference)]
    return [measurement for measurement in measurements if measurement is not None]


def _measurement(
    results: StudyResults,
    scores: tuple[Score, Score],
    nll: tuple[float, float],
    data: Data,
    difference: Difference | None,
) -> Measurement | None:
    """Return a recipe's score beside the base's; None if one is too high for a file.

    Args:
        results: The study.
        scores: The scores of the recipe and of the base.
        nll: Their mean NLL as the study tells it.
        data: What they were scored on.
        difference: Their difference on held-out data; None on the search windows.
    """
    if max(nll) >= _LARGEST_NLL:
        return None
    metadata = results.metadata
    is_perplexity = metadata.objective_kind == PERPLEXITY
    value, base_value = map(math.exp, nll) if is_perplexity else nll
    accuracy, base_accuracy = (None if math.isnan(score.accuracy) else score.accuracy for score in scores)
    return Measurement(
        metric=metadata.objective_name,
        value=value,
        base=base_value,
        nll_difference=nll[0] - nll[1],
        interval95=_finite_interval(difference),
        accuracy=accuracy,
        base_accuracy=base_accuracy,
        tokens=scores[0].tokens,
        held_out=difference is not None,
        convention=Convention(name=scores[0].convention, window=metadata.window, bos=metadata.bos),
        data=data,
    )


def _finite_interval(difference: Difference | None) -> tuple[float, float] | None:
    if difference is None or not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return None
    return difference.low, difference.high

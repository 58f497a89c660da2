"""The best recipe of a study, with its scores and origin."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from david.metrics.paired_test import Difference
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import Convention, Data, Measurement, Origin, Versions
from david.report import tables
from david.storage import results, trial_attributes


def best_recipe(study: Study, *, top: int = 5) -> Recipe | None:
    """The first of the leaderboard that is not the base, with its scores and origin; None where there is none."""
    found = results.finalists(study, top)
    base = results.base_trial(study)
    if not found or base is None:
        return None
    best = found[0]
    about = results.about(study)
    recipe = Recipe.parse(best.user_attrs["recipe"])
    return Recipe(
        recipe.repeat_map,
        recipe.scales,
        base=Base(**about["base"]),
        scores=tuple(_measurements(study, best, base)),
        search=Origin(
            study=study.study_name,
            trial=best.number,
            space=about["space_name"],
            sampler=about["sampler"],
            strategy=best.user_attrs.get("strategy"),
            trials=len(results.complete(study)),
            seed=about["seed"],
        ),
        made_with=Versions(**about["made_with"], created=datetime.now(UTC).isoformat(timespec="seconds")),
    )


def _measurements(study: Study, trial: FrozenTrial, base: FrozenTrial) -> list[Measurement]:
    about = results.about(study)
    convention = Convention(name=trial.user_attrs["convention"], window=about["window"], bos=about["bos"])
    metric = about["objective"].partition("(")[0]
    measured = []

    def _add(
        mine: float,
        its: float,
        tokens: int,
        kept: Mapping[str, Any],
        accuracies: tuple[float, float],
        *,
        held_out: bool,
        difference: Difference | None,
    ) -> None:
        if max(mine, its) < 700:  # exp of more is no number for a file
            measured.append(
                Measurement(
                    metric=metric,
                    value=math.exp(mine) if metric == "perplexity" else mine,
                    base=math.exp(its) if metric == "perplexity" else its,
                    nll_difference=mine - its,
                    interval95=_interval(difference),
                    accuracy=_known(accuracies[0]),
                    base_accuracy=_known(accuracies[1]),
                    tokens=tokens,
                    held_out=held_out,
                    convention=convention,
                    data=Data(**kept),
                )
            )

    searched = sum(trial.user_attrs["window_tokens"])
    right = trial_attributes.accuracy(trial), trial_attributes.accuracy(base)
    nll = trial_attributes.value_of(trial), trial_attributes.value_of(base)
    _add(*nll, searched, about["search_data"], right, held_out=False, difference=None)
    ours, theirs = results.held_out(study, trial), results.held_out(study, base)
    difference = tables.difference_to_base(study, trial)
    if ours is not None and theirs is not None and difference is not None:
        tokens, right = sum(ours.window_tokens), (ours.accuracy, theirs.accuracy)
        _add(ours.nll, theirs.nll, tokens, about["held_out_data"], right, held_out=True, difference=difference)
    return measured


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _interval(difference: Difference | None) -> tuple[float, float] | None:
    if difference is None or not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return None
    return difference.low, difference.high

"""What a search keeps in a study, besides Optuna's own, and how it is read back.

On the study: `david` (see `study.search`); a finalist's score on the held-out windows as `held_out:<trial>` (Optuna
closes a finished trial), and how often they were looked at as `held_out_looks`. On a trial: `recipe` (its notation),
`window_nll`, `window_tokens` and `convention` of its score on the search windows, `duplicate_of` where another
trial had the recipe before, and `error` where it failed. What workers keep of themselves, `workers` and `claims` tell.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.errors import SearchError
from david.metrics import units
from david.recipe.recipe import Recipe
from david.storage.trial_attributes import ERROR, NO_MEMORY, PARTIAL, UNIT, HeldOut, unbeaten, value_of, values_of

_NO_MEMORY_TWICE = 2  # times that recipes are tried which lack memory
_LOOKS = "held_out_looks"  # of a study
_BASELINE = "baseline"
_MEASURED = "measured:"  # … behind which the name of another measure stands


def about(study: Study) -> Mapping[str, Any]:
    """What a search wrote of itself into the study: base, space, data, versions."""
    found: Mapping[str, Any] | None = study.user_attrs.get("david")
    if found is None:
        raise SearchError(f"the study {study.study_name!r} is not one of David's: no search has run on it")
    return found


def depth_of(study: Study) -> int:
    """Layers of the base that a study was made on."""
    return int(about(study)["base"]["num_layers"])


def also(study: Study) -> list[str]:
    """The names of what a study minimises beside the NLL."""
    return [name for name, _ in about(study).get("also", [])]


def traded(study: Study) -> list[str]:
    """Of these, the ones that the tables do not have anyway, as they have the visits."""
    return [name for name in also(study) if name != "visits"]


def unit_of(study: Study) -> str:
    """What is minimised: nats a token, of multiple choice a question; or what the scores themselves say."""
    if about(study)["objective"].partition("(")[0] == "multiple_choice":
        return units.QUESTION  # studies of before do not say it
    base = base_trial(study)
    return units.TOKEN if base is None else str(base.user_attrs.get(UNIT, units.TOKEN))


def item_of(study: Study) -> str:
    """What its data are counted in: windows, questions, or the documents of tasks."""
    objective = about(study)["objective"].partition("(")[0]
    return {"multiple_choice": "question", "tasks": "document"}.get(objective, "window")


def complete(study: Study) -> list[FrozenTrial]:
    """The finished trials with a recipe of their own: of one recipe the first that saw all windows, or the first."""
    first: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "recipe" in trial.user_attrs and "duplicate_of" not in trial.user_attrs:
            before = first.setdefault(trial.user_attrs["recipe"], trial)
            if PARTIAL in before.user_attrs and PARTIAL not in trial.user_attrs:
                first[trial.user_attrs["recipe"]] = trial
    return list(first.values())


def refused(study: Study) -> dict[str, FrozenTrial]:
    """By its recipe, the first trial that found why that cannot be scored; for want of memory, where several did.

    The base is never one of these: without it nothing can be compared.
    """
    first: dict[str, FrozenTrial] = {}
    times = Counter[str]()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if {"recipe", ERROR} <= trial.user_attrs.keys():
            recipe = trial.user_attrs["recipe"]
            first.setdefault(recipe, trial)
            times[recipe] += 1 if NO_MEMORY in trial.user_attrs else _NO_MEMORY_TWICE
    base = base_of(study)
    return {recipe: trial for recipe, trial in first.items() if times[recipe] >= _NO_MEMORY_TWICE and recipe != base}


def base_of(study: Study) -> str:
    """The notation of the base itself."""
    return str(Recipe.identity(depth_of(study)))


def base_trial(study: Study) -> FrozenTrial | None:
    """The finished trial of the base itself."""
    base = base_of(study)
    return next((trial for trial in complete(study) if trial.user_attrs["recipe"] == base), None)


def whole(study: Study) -> list[FrozenTrial]:
    """The trials that saw all search windows, the base among them, lowest NLL first; none with an infinite one."""
    scored = [t for t in complete(study) if PARTIAL not in t.user_attrs and math.isfinite(value_of(t))]
    return sorted(scored, key=lambda trial: (value_of(trial), trial.number))


def best_of_search(study: Study, top: int) -> list[FrozenTrial]:
    """The `top` recipes with the lowest NLL on all search windows, the base left out, lowest first.

    Where more than the NLL is minimised, of those that no other one of them beats in all of it.
    """
    base = base_of(study)
    scored = [trial for trial in whole(study) if trial.user_attrs["recipe"] != base]
    if scored and also(study):
        best = unbeaten(np.array([values_of(trial) for trial in scored]))
        scored = [trial for trial, is_best in zip(scored, best, strict=True) if is_best]
    return scored[:top]


def held_out(study: Study, trial: FrozenTrial) -> HeldOut | None:
    """The held-out score of a trial, where it has one."""
    kept = study.user_attrs.get(f"held_out:{trial.number}")
    return None if kept is None else HeldOut(**{name: tuple(values) for name, values in kept.items()})


def keep_held_out(study: Study, trial: FrozenTrial, score: HeldOut) -> None:
    """Keep a trial's held-out score in the study."""
    study.set_user_attr(f"held_out:{trial.number}", {name: list(values) for name, values in vars(score).items()})


def log_evaluation(study: Study, picked: Sequence[FrozenTrial]) -> None:
    """Remember that held-out windows are looked at once more, for these; the same again is a broken look going on."""
    before, now = study.user_attrs.get(_LOOKS, []), [trial.number for trial in picked]
    if before[-1:] != [now]:
        study.set_user_attr(_LOOKS, [*before, now])


def evaluations(study: Study) -> int:
    """How often a study's held-out windows have been looked at: the more often, the less they are held out."""
    return len(study.user_attrs.get(_LOOKS, []))


def judged(study: Study) -> list[FrozenTrial]:
    """The recipes that have been measured on held-out windows, the base left out."""
    base, kept = base_of(study), study.user_attrs  # read once: Optuna copies all of it each time
    return [
        trial for trial in complete(study) if trial.user_attrs["recipe"] != base and f"held_out:{trial.number}" in kept
    ]


def judged_best(study: Study) -> FrozenTrial | None:
    """The recipe that is lowest on the held-out windows, the base left out; None where none was judged."""
    return min(judged(study), key=lambda trial: (_held_out_nll(study, trial), trial.number), default=None)


def finalists(study: Study, top: int = 5) -> list[FrozenTrial]:
    """The recipes judged on held-out windows, best there first; behind them those of the `top` best not judged yet.

    Never the base.
    """
    done = sorted(judged(study), key=lambda trial: (_held_out_nll(study, trial), trial.number))
    numbers = {trial.number for trial in done}
    return done + [trial for trial in best_of_search(study, top) if trial.number not in numbers]


def picked(study: Study) -> int:
    """How many recipes were ever picked to be judged, the base left out: what intervals are corrected for."""
    base = base_trial(study)
    numbers = {number for look in study.user_attrs.get(_LOOKS, []) for number in look}
    numbers |= {trial.number for trial in judged(study)}
    return len(numbers - ({base.number} if base is not None else set()))


@dataclass(frozen=True)
class Baseline:
    """The mean NLL on the held-out windows of random recipes as deep as the finalist `trial`; `asked` were drawn."""

    trial: int
    asked: int
    nll: Mapping[str, float]


def baseline(study: Study) -> Baseline | None:
    """What random recipes as deep as the best finalist have, where that was measured."""
    kept = study.user_attrs.get(_BASELINE)
    return None if kept is None else Baseline(**kept)


def keep_baseline(study: Study, found: Baseline) -> None:
    """Keep what random recipes have."""
    study.set_user_attr(_BASELINE, vars(found))


def measured(study: Study) -> dict[str, dict[int, float]]:
    """By each measure that `measures.measure` made, the NLL of trials by their numbers."""
    attrs = study.user_attrs
    names = [key.removeprefix(_MEASURED) for key in attrs if key.startswith(_MEASURED)]
    return {name: {int(number): nll for number, nll in attrs[_MEASURED + name].items()} for name in names}


def keep_measured(study: Study, name: str, nll: Mapping[int, float]) -> None:
    """Keep what a measure found."""
    study.set_user_attr(_MEASURED + name, {str(number): value for number, value in nll.items()})


def _held_out_nll(study: Study, trial: FrozenTrial) -> float:
    kept = held_out(study, trial)
    return math.inf if kept is None else kept.nll

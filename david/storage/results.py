"""The results of a study: `StudyResults.read(study)` reads all of them at once, the other functions store them.

Attributes of a study: `david` (its metadata), `held_out:<trial>` (the held-out score of a finalist; Optuna closes a
finished trial), `held_out_looks` (the trials of each evaluation of the held-out data), `baseline`, `measured:<name>`.
Attributes of a trial: see `trial_attributes`. What workers store of themselves: see `heartbeat` and `trial_claims`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.errors import SearchError
from david.metrics import units
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.storage.study_metadata import METADATA, MULTIPLE_CHOICE, TASKS, StudyMetadata
from david.storage.trial_attributes import (
    CONVENTION,
    CUT,
    DUPLICATE_OF,
    ERROR,
    NO_MEMORY,
    PARTIAL,
    RECIPE,
    UNIT,
    unbeaten,
    value_of,
    values_of,
)
from david.support.arguments import check_type

_TRIES_WITHOUT_MEMORY = 2  # trials that a recipe gets which lacks memory
_HELD_OUT = "held_out:"  # before the number of a trial
_EVALUATIONS = "held_out_looks"
_BASELINE = "baseline"
_MEASURED = "measured:"  # before the name of a measure


@dataclass(frozen=True)
class Baseline:
    """Random recipes as deep as a finalist, scored on the held-out data.

    Attributes:
        trial: Number of the finalist's trial.
        asked: How many recipes were to be drawn.
        nll: Mean NLL of each recipe, by its notation.
    """

    trial: int
    asked: int
    nll: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """The results of a study at one moment: read from its storage once, then only computed from.

    Attributes:
        name: The study's name.
        metadata: What the study was made on.
        trials: All trials, in order.
        attributes: The study's attributes.
    """

    name: str
    metadata: StudyMetadata
    trials: Sequence[FrozenTrial]
    attributes: Mapping[str, Any]

    @classmethod
    def read(cls, study: "Study | StudyResults") -> "StudyResults":
        """Read a study; results that were read already are returned as they are.

        Raises:
            SearchError: No search has run on the study.
            ValueError: Its metadata are damaged.
        """
        if isinstance(study, StudyResults):
            return study
        check_type("study", study, Study, SearchError)
        attributes = study.user_attrs  # before the trials, so that no score is of a trial that is not there
        metadata = _parse_metadata(study.study_name, attributes)
        return cls(study.study_name, metadata, study.get_trials(deepcopy=False), attributes)

    @property
    def n_layers(self) -> int:
        """Number of layers of the base."""
        return self.metadata.n_layers

    @property
    def extra_columns(self) -> list[str]:
        """Names of the extra objectives that need a column: the tables have the visits anyway."""
        return [name for name in self.metadata.extra_objectives if name != "visits"]

    @cached_property
    def unit(self) -> str:
        """Unit of what is minimised: nats a token, nats a question, or what the scores themselves name."""
        if self.metadata.objective_kind == MULTIPLE_CHOICE:
            return units.QUESTION  # old studies do not store it
        return units.TOKEN if self.base_trial is None else str(self.base_trial.user_attrs.get(UNIT, units.TOKEN))

    @property
    def generates(self) -> bool:
        """Whether the model generates answers to what the study scores, some of which may be cut."""
        return self.base_trial is not None and CUT in self.base_trial.user_attrs

    @property
    def item(self) -> str:
        """What the data are counted in: `window`, `question` or `document`."""
        return {MULTIPLE_CHOICE: "question", TASKS: "document"}.get(self.metadata.objective_kind, "window")

    @cached_property
    def base_notation(self) -> str:
        """Notation of the base's own recipe."""
        return _base_notation(self.metadata)

    @cached_property
    def scored(self) -> list[FrozenTrial]:
        """One complete trial of each recipe: the first that scored all windows, else the first."""
        return _first_of_each_recipe(self.trials)

    @cached_property
    def base_trial(self) -> FrozenTrial | None:
        """The complete trial of the base."""
        return next((trial for trial in self.scored if trial.user_attrs[RECIPE] == self.base_notation), None)

    @cached_property
    def fully_scored(self) -> list[FrozenTrial]:
        """The trials that scored all search windows with a finite NLL, the base among them, lowest NLL first."""
        whole = [t for t in self.scored if PARTIAL not in t.user_attrs and math.isfinite(value_of(t))]
        return sorted(whole, key=lambda trial: (value_of(trial), trial.number))

    @cached_property
    def refused(self) -> dict[str, FrozenTrial]:
        """By its recipe, the first trial that found that the recipe cannot be scored.

        A recipe that lacked memory counts once several trials have failed. The base never counts: nothing can be
        compared without it.
        """
        first: dict[str, FrozenTrial] = {}
        times = Counter[str]()
        for trial in self.trials:
            if trial.state == TrialState.FAIL and {RECIPE, ERROR} <= trial.user_attrs.keys():
                recipe = trial.user_attrs[RECIPE]
                first.setdefault(recipe, trial)
                times[recipe] += 1 if NO_MEMORY in trial.user_attrs else _TRIES_WITHOUT_MEMORY
        return {
            recipe: trial
            for recipe, trial in first.items()
            if times[recipe] >= _TRIES_WITHOUT_MEMORY and recipe != self.base_notation
        }

    def best_of_search(self, top: int) -> list[FrozenTrial]:
        """Return the best recipes on the search windows without the base, lowest NLL first.

        If the study has extra objectives, these are of the recipes that no other beats in all objectives.

        Args:
            top: How many to return at most.
        """
        candidates = [trial for trial in self.fully_scored if trial.user_attrs[RECIPE] != self.base_notation]
        if candidates and self.metadata.also:
            is_best = unbeaten(np.array([values_of(trial) for trial in candidates]))
            candidates = [trial for trial, best in zip(candidates, is_best, strict=True) if best]
        return candidates[:top]

    def held_out(self, trial: FrozenTrial) -> Score | None:
        """Return the held-out score of a trial, if it has one."""
        return self._held_out_scores.get(trial.number)

    @cached_property
    def judged(self) -> list[FrozenTrial]:
        """The recipes with a held-out score, without the base."""
        scores = self._held_out_scores
        return [t for t in self.scored if t.user_attrs[RECIPE] != self.base_notation and t.number in scores]

    @property
    def judged_best(self) -> FrozenTrial | None:
        """The recipe with the lowest held-out NLL, without the base."""
        return next(iter(self._judged_by_nll), None)

    def finalists(self, top: int = 5) -> list[FrozenTrial]:
        """Return the recipes of the leaderboard, without the base.

        Args:
            top: How many of the search's best stand behind the judged ones, if they are not judged yet.

        Returns:
            The judged recipes, lowest held-out NLL first, then those of the `top` best that are not judged.
        """
        numbers = {trial.number for trial in self.judged}
        return self._judged_by_nll + [trial for trial in self.best_of_search(top) if trial.number not in numbers]

    @property
    def evaluations(self) -> int:
        """How many times the held-out data were evaluated: the more often, the less they are held out."""
        return len(self.attributes.get(_EVALUATIONS, []))

    @cached_property
    def n_picked(self) -> int:
        """How many recipes were ever picked to be judged, without the base: intervals are corrected for this number."""
        numbers = {number for evaluation in self.attributes.get(_EVALUATIONS, []) for number in evaluation}
        numbers |= {trial.number for trial in self.judged}
        return len(numbers - ({self.base_trial.number} if self.base_trial is not None else set()))

    @cached_property
    def baseline(self) -> Baseline | None:
        """The random recipes beside the best finalist, if they were scored."""
        stored = self.attributes.get(_BASELINE)
        return None if stored is None else Baseline(**stored)

    @cached_property
    def measured(self) -> dict[str, dict[int, float]]:
        """The NLL of trials, by their numbers, for each measure of `analysis.remeasure`."""
        names = [key.removeprefix(_MEASURED) for key in self.attributes if key.startswith(_MEASURED)]
        return {name: {int(n): nll for n, nll in self.attributes[_MEASURED + name].items()} for name in names}

    @cached_property
    def _held_out_scores(self) -> dict[int, Score]:
        scores = {}
        for trial in self.trials:
            stored = self.attributes.get(f"{_HELD_OUT}{trial.number}")
            if stored is not None:
                convention = trial.user_attrs.get(CONVENTION, "")
                unit = trial.user_attrs.get(UNIT, units.TOKEN)
                scores[trial.number] = Score.from_attributes(stored, convention=convention, unit=unit)
        return scores

    @cached_property
    def _judged_by_nll(self) -> list[FrozenTrial]:
        return sorted(self.judged, key=lambda trial: (self._held_out_scores[trial.number].nll, trial.number))


def read_metadata(study: Study) -> StudyMetadata:
    """Return what a study was made on, without reading its trials.

    Raises:
        SearchError: No search has run on the study.
        ValueError: The metadata are damaged.
    """
    return _parse_metadata(study.study_name, study.user_attrs)


def base_notation(study: Study) -> str:
    """Return the notation of the base's own recipe, without reading the study's trials."""
    return _base_notation(read_metadata(study))


def scored_trials(study: Study) -> list[FrozenTrial]:
    """Return `StudyResults.scored` of a study; reads its complete trials alone."""
    return _first_of_each_recipe(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def store_held_out(study: Study, trial: FrozenTrial, score: Score) -> None:
    """Store the held-out score of a trial in the study."""
    study.set_user_attr(f"{_HELD_OUT}{trial.number}", score.to_attributes(held_out=True))


def log_evaluation(study: Study, trials: Sequence[FrozenTrial]) -> None:
    """Record one more evaluation of the held-out data.

    Args:
        study: The study.
        trials: What is evaluated. The same trials as the last time mean that an interrupted evaluation goes on.
    """
    before, now = study.user_attrs.get(_EVALUATIONS, []), [trial.number for trial in trials]
    if before[-1:] != [now]:
        study.set_user_attr(_EVALUATIONS, [*before, now])


def store_baseline(study: Study, baseline: Baseline) -> None:
    """Store the scores of random recipes in the study."""
    study.set_user_attr(_BASELINE, vars(baseline))


def store_measured(study: Study, name: str, nll: Mapping[int, float]) -> None:
    """Store the NLL of trials by another measure in the study.

    Args:
        study: The study.
        name: Name of the measure.
        nll: NLL by the number of the trial.
    """
    study.set_user_attr(_MEASURED + name, {str(number): value for number, value in nll.items()})


def _parse_metadata(name: str, attributes: Mapping[str, Any]) -> StudyMetadata:
    stored = attributes.get(METADATA)
    if stored is None:
        raise SearchError(f"the study {name!r} is not one of David's: no search has run on it")
    return StudyMetadata.model_validate(stored)


def _base_notation(metadata: StudyMetadata) -> str:
    return str(Recipe.identity(metadata.n_layers))


def _first_of_each_recipe(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    first: dict[str, FrozenTrial] = {}
    for trial in trials:
        attributes = trial.user_attrs
        if trial.state == TrialState.COMPLETE and RECIPE in attributes and DUPLICATE_OF not in attributes:
            before = first.setdefault(attributes[RECIPE], trial)
            if PARTIAL in before.user_attrs and PARTIAL not in attributes:
                first[attributes[RECIPE]] = trial
    return list(first.values())

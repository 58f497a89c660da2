"""What the slots of search spaces share: scales on their grid, the cap on depth, options that are in range."""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

from optuna.trial import BaseTrial

from david.errors import RecipeError, SearchError
from david.recipe.recipe import Recipe
from david.support.text import brief

Space = Callable[[BaseTrial, int], Recipe]
Params = dict[str, Any]
Scales = tuple[float, float] | None
BlockPart = tuple[int, int, int, float]  # start, stop, times, scale

_SCALE_STEP = 0.05
_HIGHEST = 1000  # of scales: a strength beyond it is nothing but a mistake


def suggest_scale(trial: BaseTrial, name: str, scales: Scales) -> float:
    """A scale of the grid; 1, and nothing is asked, where a space has none."""
    if scales is None:
        return 1.0
    return _on_grid(trial.suggest_float(name, *scales, step=_SCALE_STEP))


def scale_slot(name: str, scale: float | None, scales: Scales) -> Params:
    """What to enqueue for a scale.

    None is any: the slot is off, and the step nearest below a plain visit stands in its place.
    """
    if scales is None:
        return {}
    low, high = scales
    if scale is None:
        steps = math.floor((min(max(1.0, low), high) - low) / _SCALE_STEP + 1e-9)
        scale = _on_grid(low + steps * _SCALE_STEP)
    return {name: scale}


def if_made(space: Space, params: Params, recipe: Recipe, n_layers: int) -> Params | None:
    """The parameters, where they are all in a space's ranges and give the recipe; None otherwise."""
    try:
        made = space(cast(BaseTrial, _Given(params)), n_layers)
    except _OutOfRangeError:
        return None
    return params if made == recipe else None


def if_lowest(space: Space, recipe: Recipe, n_layers: int) -> Params | None:
    """The lowest values that a space suggests, where they give the recipe; None otherwise."""
    probe = _Lowest()
    try:
        made = space(cast(BaseTrial, probe), n_layers)
    except (AttributeError, RecipeError):
        return None
    return probe.params if made == recipe else None


def spare_visits(max_visits: int | None, n_layers: int) -> int:
    """How many visits a cap leaves beside the base's; `SearchError` where it leaves the base itself no room."""
    if max_visits is None:
        return sys.maxsize
    if max_visits < n_layers:
        raise SearchError(
            f"max_visits must be at least {n_layers}, the base's layers, since every search has the base in it; "
            f"got {max_visits}"
        )
    return max_visits - n_layers


def fitting(parts: Iterable[BlockPart], n_layers: int, max_visits: int | None) -> list[BlockPart]:
    """Blocks with as many of their repeats as a cap has room for: along the path, what comes too late is left out."""
    spare = spare_visits(max_visits, n_layers)
    kept = []
    for start, stop, times, scale in sorted(parts, key=lambda part: (part[1], part[0])):
        repeats = min(times - 1, spare // (stop - start))
        spare -= repeats * (stop - start)
        if repeats:
            kept.append((start, stop, 1 + repeats, scale))
    return kept


def check_least(name: str, value: int | None, least: int, why: str = "") -> None:
    """`SearchError` where an option is given and less than it can be."""
    if value is not None and value < least:
        raise SearchError(f"{name} must be at least {least}{why}; got {value}")


def check_scales(scales: Scales) -> None:
    """`SearchError` unless the range of scales is none, or goes up by whole steps of the grid."""
    if scales is None:
        return
    whole = len(scales) == 2 and -_HIGHEST <= scales[0] < scales[1] <= _HIGHEST
    if not whole or not _is_whole((scales[1] - scales[0]) / _SCALE_STEP):
        raise SearchError(
            f"scales must be a range (low, high) within ±{_HIGHEST}, a multiple of {_SCALE_STEP} apart; "
            f"got {brief(scales)}"
        )


class _Lowest:
    """Answers every suggestion with its lowest or first value, and remembers it."""

    def __init__(self) -> None:
        self.params: Params = {}

    def suggest_int(self, name: str, low: int, high: int, **_options: Any) -> int:  # noqa: ARG002
        return cast(int, self.params.setdefault(name, low))

    def suggest_float(self, name: str, low: float, high: float, **_options: Any) -> float:  # noqa: ARG002
        return cast(float, self.params.setdefault(name, low))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params.setdefault(name, choices[0])


class _OutOfRangeError(Exception):
    """A parameter that its space never suggests."""


class _Given:
    """Answers every suggestion with the value given for it, if that is one that could come."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def suggest_int(self, name: str, low: int, high: int) -> int:
        value = cast(int, self._params[name])
        if not low <= value <= high:
            raise _OutOfRangeError
        return value

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        value = cast(float, self._params[name])
        if not low <= value <= high or not _is_whole((value - low) / step):
            raise _OutOfRangeError
        return value


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and abs(number - round(number)) < 1e-6


def _on_grid(scale: float) -> float:
    return round(scale, 4) + 0.0  # never −0.0, which would be a second notation of one recipe

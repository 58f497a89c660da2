"""How search spaces encode a recipe as parameters: scales on a grid, the cap on visits, checks of options.

`suggest_scale` and `scale_slot` are a scale's two directions; `params_if_exact` and `params_if_lowest` prove that
parameters give the recipe; `fit_visits` applies the cap.
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from david.errors import RecipeError, SearchError
from david.recipe.recipe import Recipe
from david.support.arguments import check_type
from david.support.text import brief

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Space = Callable[["BaseTrial", int], Recipe]
Params = dict[str, Any]
Scales = tuple[float, float] | None
BlockPart = tuple[int, int, int, float]  # start, stop, times, scale

_SCALE_STEP = 0.05
_MAX_SCALE = 1000  # a strength beyond it can only be a mistake


def suggest_scale(trial: "BaseTrial", name: str, scales: Scales) -> float:
    """Ask a trial for a scale on the grid; without a range, return 1 and ask nothing."""
    if scales is None:
        return 1.0
    return _on_grid(trial.suggest_float(name, *scales, step=_SCALE_STEP))


def scale_slot(name: str, scale: float | None, scales: Scales) -> Params:
    """Return the parameter that gives a scale.

    Args:
        name: The parameter's name.
        scale: The scale; None if any would do, since what it scales is off: then it is the grid's nearest step at or
            below a plain visit.
        scales: Range of scales of the space; without one there is no parameter.
    """
    if scales is None:
        return {}
    low, high = scales
    if scale is None:
        steps = math.floor((min(max(1.0, low), high) - low) / _SCALE_STEP + 1e-9)
        scale = _on_grid(low + steps * _SCALE_STEP)
    return {name: scale}


def params_if_exact(space: Space, params: Params, recipe: Recipe, n_layers: int) -> Params | None:
    """Return parameters if all are in the space's ranges and give the recipe, else None."""
    try:
        result = space(cast("BaseTrial", _FixedTrial(params)), n_layers)
    except _OutOfRangeError:
        return None
    return params if result == recipe else None


def params_if_lowest(space: Space, recipe: Recipe, n_layers: int) -> Params | None:
    """Return the lowest values that a space suggests if they give the recipe, else None."""
    trial = _LowestTrial()
    try:
        result = space(cast("BaseTrial", trial), n_layers)
    except (AttributeError, RecipeError):
        return None
    check_type("the recipe that the space returns", result, Recipe, SearchError)
    return trial.params if result == recipe else None


def spare_visits(max_visits: int | None, n_layers: int) -> int:
    """Return how many visits a cap allows beside the base's.

    Raises:
        SearchError: The cap does not even allow the base.
    """
    if max_visits is None:
        return sys.maxsize
    if max_visits < n_layers:
        raise SearchError(
            f"max_visits must be at least {n_layers}, the base's layers, since every search scores the base; "
            f"got {max_visits}"
        )
    return max_visits - n_layers


def fit_visits(parts: Iterable[BlockPart], n_layers: int, max_visits: int | None) -> list[BlockPart]:
    """Limit the repeats of blocks to a cap on visits: those that come too late along the path are left out.

    Args:
        parts: Blocks (start, stop, times, scale).
        n_layers: Layers of the base.
        max_visits: The most visits of a recipe; None for no limit.

    Returns:
        The blocks that still repeat, in the order of their ends.
    """
    spare = spare_visits(max_visits, n_layers)
    limited = []
    for start, stop, times, scale in sorted(parts, key=lambda part: (part[1], part[0])):
        repeats = min(times - 1, spare // (stop - start))
        spare -= repeats * (stop - start)
        if repeats:
            limited.append((start, stop, 1 + repeats, scale))
    return limited


def check_least(name: str, value: int | None, least: int, why: str = "") -> None:
    """Refuse an option below its least value, with the reason `why`; None is accepted."""
    if value is not None and value < least:
        raise SearchError(f"{name} must be at least {least}{why}; got {value}")


def check_scales(scales: Scales) -> None:
    """Refuse a range of scales unless it spans whole steps of the grid; None is accepted."""
    if scales is None:
        return
    in_bounds = len(scales) == 2 and -_MAX_SCALE <= scales[0] < scales[1] <= _MAX_SCALE
    if not in_bounds or not _is_whole((scales[1] - scales[0]) / _SCALE_STEP):
        raise SearchError(
            f"scales must be a range (low, high) within ±{_MAX_SCALE}, a multiple of {_SCALE_STEP} apart; "
            f"got {brief(scales)}"
        )


class _LowestTrial:
    """A trial that answers every suggestion with its lowest or first value, and remembers it."""

    def __init__(self) -> None:
        self.params: Params = {}

    def suggest_int(self, name: str, low: int, high: int, **_options: Any) -> int:  # noqa: ARG002
        return cast(int, self.params.setdefault(name, low))

    def suggest_float(self, name: str, low: float, high: float, **_options: Any) -> float:  # noqa: ARG002
        return cast(float, self.params.setdefault(name, low))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params.setdefault(name, choices[0])


class _OutOfRangeError(Exception):
    """A parameter has a value that its space never suggests."""


class _FixedTrial:
    """A trial that answers every suggestion with its parameter, if the suggestion could give that value."""

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

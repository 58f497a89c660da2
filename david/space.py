"""Search spaces: an Optuna trial → a Recipe, and a Recipe → the parameters that give it.

Any function `(trial, n_layers) → Recipe` is a space. Those here also have `params`, so that a search can begin with the
base and a scan can be written as trials. Their slots are static: a block that is off is still suggested, which
keeps one joint space for samplers that model it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, cast

from optuna.trial import BaseTrial

from david.errors import RecipeError, SearchError
from david.recipe import Recipe

Space = Callable[[BaseTrial, int], Recipe]
Params = dict[str, Any]

_SCALE_STEP = 0.05


@dataclass(frozen=True)
class Block:
    """One block of up to `max_length` layers that runs 2 … `max_times` times; length 0 is the base.

    `max_length` left out is a quarter of the base's layers: longer repeats of a trained model only ruin it.

    `scales` is the range (low, high) of the strength of the repeats, in steps of 0.05; left out, they are plain.
    """

    max_length: int | None = None
    max_times: int = 2
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_options(1, self.max_length, self.max_times, self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        start = trial.suggest_int("start", 0, n_layers - 1)
        length = trial.suggest_int("length", 0, longest_block(self.max_length, n_layers))
        times = trial.suggest_int("times", 2, self.max_times) if self.max_times > 2 else 2
        scale = _suggest_scale(trial, "scale", self.scales)
        stop = min(start + length, n_layers)
        return Recipe.from_blocks(n_layers, [(start, stop, times, scale)] if length else [])

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None or len(parts) > 1:
            return None
        start, stop, times, scale = parts[0] if parts else (0, 0, 2, None)
        if stop - start > longest_block(self.max_length, n_layers) or times > self.max_times:
            return None
        params = {"start": start, "length": stop - start} | ({"times": times} if self.max_times > 2 else {})
        return _with_scale(params, "scale", scale, self.scales)


@dataclass(frozen=True)
class Blocks:
    """`count` blocks of up to `max_length` layers that run 1 … `max_times` times each; 1 is off. They may overlap.

    `max_length` left out is a quarter of the base's layers.

    `scales` is the range (low, high) of the strength of a block's repeats, in steps of 0.05; left out, they are plain.
    """

    count: int = 3
    max_length: int | None = None
    max_times: int = 3
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_options(self.count, self.max_length, self.max_times, self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        parts = []
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, n_layers - 1)
            length = trial.suggest_int(f"length_{slot}", 1, longest_block(self.max_length, n_layers))
            times = trial.suggest_int(f"times_{slot}", 1, self.max_times)
            scale = _suggest_scale(trial, f"scale_{slot}", self.scales)
            if times > 1:
                parts.append((start, min(start + length, n_layers), times, scale))
        return Recipe.from_blocks(n_layers, parts)

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None:
            return None
        slots: list[tuple[int, int, int, float | None]] = []
        for start, stop, times, scale in parts:
            while times > 1:  # a slot holds max_times − 1 further runs; a block of more takes several
                here = min(times, self.max_times)
                slots.append((start, stop, here, scale))
                times -= here - 1
        slots += [(0, 1, 1, None)] * (self.count - len(slots))
        if len(slots) > self.count:
            return None
        params: Params = {}
        for slot, (start, stop, times, strength) in enumerate(slots):
            scaled = _with_scale({}, f"scale_{slot}", strength, self.scales)
            if scaled is None or stop - start > longest_block(self.max_length, n_layers):
                return None
            params |= {f"start_{slot}": start, f"length_{slot}": stop - start, f"times_{slot}": times} | scaled
        return params


def named(name: str, scales: tuple[float, float] | None = None, max_length: int | None = None) -> Block | Blocks:
    """The space that a name on the command line stands for: `block` or `blocks`."""
    if name == "block":
        return Block(max_length=max_length, scales=scales)
    if name == "blocks":
        return Blocks(max_length=max_length, scales=scales)
    raise SearchError(f"unknown space {name!r}: expected block or blocks")


def params_of(space: Space, recipe: Recipe, n_layers: int) -> Params | None:
    """The parameters with which a space gives a recipe, where it can tell them.

    A plain function is asked with its lowest values, which give the base in a space whose slots can be off.
    """
    if hasattr(space, "params"):
        return cast("Block | Blocks", space).params(recipe, n_layers)
    probe = _Lowest()
    try:
        found = space(cast(BaseTrial, probe), n_layers)
    except (AttributeError, RecipeError):
        return None
    return probe.params if found == recipe else None


def all_blocks(n_layers: int, max_length: int | None = None) -> list[Recipe]:
    """Every block (i, j) of up to `max_length` layers, run twice: what a scan scores.

    Example:
        >>> [str(recipe) for recipe in all_blocks(3, max_length=1)]
        ['0, 0:3', '0:2, 1:3', '0:3, 2']
    """
    longest = max_length or n_layers
    return [
        Recipe.from_blocks(n_layers, [(start, stop, 2)])
        for start in range(n_layers)
        for stop in range(start + 1, min(start + longest, n_layers) + 1)
    ]


def blocks_of(recipe: Recipe, n_layers: int) -> list[tuple[int, int, int, float]] | None:
    """The blocks (i, j, times, scale) that `Recipe.from_blocks` makes a recipe from; None where none do."""
    runs: list[tuple[int, int]] = []  # half-open ranges of layers, whatever their scale
    for layer in recipe.repeat_map:
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    backs = [(after[0], before[1]) for before, after in pairwise(runs)]
    starts = [sum(stop - start for start, stop in runs[: i + 1]) for i in range(len(backs))]
    scales = [recipe.scales[visit] for visit in starts]
    parts = []
    for (start, stop, scale), same in groupby((*back, scale) for back, scale in zip(backs, scales, strict=True)):
        parts.append((start, stop, 1 + len(list(same)), scale))
    try:
        return parts if Recipe.from_blocks(n_layers, parts) == recipe else None
    except RecipeError:
        return None


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


def longest_block(max_length: int | None, n_layers: int) -> int:
    """The length of the longest block where `max_length` is left out: a quarter of the base's layers."""
    return min(max_length or max(1, n_layers // 4), n_layers)


def _suggest_scale(trial: BaseTrial, name: str, scales: tuple[float, float] | None) -> float:
    if scales is None:
        return 1.0
    return round(trial.suggest_float(name, *scales, step=_SCALE_STEP), 4)


def _with_scale(params: Params, name: str, scale: float | None, scales: tuple[float, float] | None) -> Params | None:
    """A scale of None is any: the slot is off, and the step nearest below a plain visit stands in its place."""
    if scales is None:
        return params if scale in (None, 1.0) else None
    low, high = scales
    if scale is None:
        steps = math.floor((min(max(1.0, low), high) - low) / _SCALE_STEP + 1e-9)
        return params | {name: round(low + steps * _SCALE_STEP, 4)}
    off_grid = abs((scale - low) / _SCALE_STEP - round((scale - low) / _SCALE_STEP))
    return params | {name: scale} if low <= scale <= high and off_grid < 1e-6 else None


def _check_options(count: int, max_length: int | None, max_times: int, scales: tuple[float, float] | None) -> None:
    if count < 1:
        raise SearchError(f"a space needs at least one block; got count={count}")
    if max_length is not None and max_length < 1:
        raise SearchError(f"max_length must be at least 1; got {max_length}")
    if max_times < 2:
        raise SearchError(f"max_times must be at least 2, one repeat; got {max_times}")
    if scales is not None:
        whole = len(scales) == 2 and all(map(math.isfinite, scales)) and scales[0] < scales[1]
        if not whole or abs((steps := (scales[1] - scales[0]) / _SCALE_STEP) - round(steps)) > 1e-6:
            raise SearchError(f"scales must be a range (low, high), a multiple of {_SCALE_STEP} apart; got {scales}")

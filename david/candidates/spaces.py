"""Search spaces: an Optuna trial → a Recipe, and a Recipe → the parameters that give it.

Any function `(trial, n_layers) → Recipe` is a space. Those here also have `params`, so that a search can begin with the
base and a scan can be written as trials. Their slots are static: a block that is off is still suggested, which
keeps one joint space for samplers that model it.

`scales` is the range (low, high) of strengths, in steps of 0.05: under 1 is damped, over 1 over-driven, below zero
turned round; left out, every visit is plain. `max_visits` is the most visits a recipe may have, at least the base's:
in a trial that would be deeper, the repeats that come too late along the path are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import compress, product
from math import inf
from typing import Any, Protocol, cast, runtime_checkable

from optuna.trial import BaseTrial

from david.candidates.encoding import (
    Params,
    Scales,
    Space,
    check_least,
    check_scales,
    fitting,
    if_lowest,
    if_made,
    scale_slot,
    spare_visits,
    suggest_scale,
)
from david.errors import SearchError
from david.recipe.base_model import Base
from david.recipe.blocks import again, all_blocks, blocks_of, longest_block, slices_of
from david.recipe.recipe import Recipe

__all__ = [
    "Block",
    "Blocks",
    "InvertibleSpace",
    "Params",
    "Ratios",
    "Removal",
    "Space",
    "Visits",
    "Windows",
    "all_blocks",
    "blocks_of",
    "longest_block",
    "params_of",
    "space_named",
]


@runtime_checkable
class InvertibleSpace(Protocol):
    """A space that also tells what to enqueue for a recipe."""

    def __call__(self, trial: BaseTrial, n_layers: int, /) -> Recipe:
        """The recipe of a trial."""

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where the space cannot say it."""


@dataclass(frozen=True)
class Block:
    """One block of up to `max_length` layers that runs 2 … `max_times` times; length 0 is the base.

    `max_length` left out is a quarter of the base's layers: longer repeats of a trained model only ruin it.

    `scales` is for the repeats. Of these, as many are made as `max_visits` has room for.

    Example:
        >>> str(Block()(optuna.trial.FixedTrial({"start": 1, "length": 2}), 8))
        '0:3, 1:8'
    """

    max_length: int | None = None
    max_times: int = 2
    scales: Scales = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        check_least("max_length", self.max_length, 1)
        check_least("max_times", self.max_times, 2, ", one repeat")
        check_least("max_visits", self.max_visits, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        start = trial.suggest_int("start", 0, n_layers - 1)
        length = trial.suggest_int("length", 0, longest_block(self.max_length, n_layers))
        times = trial.suggest_int("times", 2, self.max_times) if self.max_times > 2 else 2
        scale = suggest_scale(trial, "scale", self.scales)
        parts = [(start, min(start + length, n_layers), times, scale)] if length else []
        return Recipe.from_blocks(n_layers, fitting(parts, n_layers, self.max_visits))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None or len(parts) > 1:
            return None
        start, stop, times, scale = parts[0] if parts else (0, 0, 2, None)
        if times > self.max_times:
            return None
        params = {"start": start, "length": stop - start} | ({"times": times} if self.max_times > 2 else {})
        return if_made(self, params | scale_slot("scale", scale, self.scales), recipe, n_layers)


@dataclass(frozen=True)
class Blocks:
    """`count` blocks of up to `max_length` layers that run 1 … `max_times` times each; 1 is off. They may overlap.

    `max_length` left out is a quarter of the base's layers.

    `scales` is for a block's repeats. Of these, as many are made as `max_visits` has room for: first those of the
    block that ends first.

    Example:
        >>> slot = {"start_0": 1, "length_0": 2, "times_0": 3}
        >>> str(Blocks(count=1)(optuna.trial.FixedTrial(slot), 8))
        '0:3, 1:3, 1:8'
    """

    count: int = 3
    max_length: int | None = None
    max_times: int = 3
    scales: Scales = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        check_least("count", self.count, 1)
        check_least("max_length", self.max_length, 1)
        check_least("max_times", self.max_times, 2, ", one repeat")
        check_least("max_visits", self.max_visits, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        parts = []
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, n_layers - 1)
            length = trial.suggest_int(f"length_{slot}", 1, longest_block(self.max_length, n_layers))
            times = trial.suggest_int(f"times_{slot}", 1, self.max_times)
            scale = suggest_scale(trial, f"scale_{slot}", self.scales)
            parts.append((start, min(start + length, n_layers), times, scale))
        return Recipe.from_blocks(n_layers, fitting(parts, n_layers, self.max_visits))

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
            params |= {f"start_{slot}": start, f"length_{slot}": stop - start, f"times_{slot}": times}
            params |= scale_slot(f"scale_{slot}", strength, self.scales)
        return if_made(self, params, recipe, n_layers)


@dataclass(frozen=True)
class Windows:
    """Overlapping windows, Goliath's way: each of `width` layers, from `overlap` before the end of the one before.

    They go on until one reaches the last layer. Overlap 0 is the base; more than half the width counts as half, so that
    no layer runs more than twice. `max_length`, of a window, left out is half the base's layers.

    `scales` is for the second visits. Where `max_visits` has no room for one more overlap, no more are made.

    Example:
        >>> str(Windows()(optuna.trial.FixedTrial({"width": 4, "overlap": 2}), 8))
        '0:4, 2:6, 4:8'
    """

    max_length: int | None = None
    scales: Scales = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        check_least("max_length", self.max_length, 2, ", for windows that overlap")
        check_least("max_visits", self.max_visits, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        narrowest, widest = self._widths(n_layers)
        width = trial.suggest_int("width", narrowest, widest)
        overlap = min(trial.suggest_int("overlap", 0, widest // 2), width // 2)
        scale = suggest_scale(trial, "scale", self.scales)
        ends = range(width, n_layers, width - overlap) if overlap else ()
        parts = [(end - overlap, end, 2, scale) for end in ends]
        return Recipe.from_blocks(n_layers, fitting(parts, n_layers, self.max_visits))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None:
            return None
        narrowest, _ = self._widths(n_layers)
        start, stop, _, scale = parts[0] if parts else (narrowest, narrowest, 1, None)
        params = {"width": stop, "overlap": stop - start} | scale_slot("scale", scale, self.scales)
        return if_made(self, params, recipe, n_layers)

    def _widths(self, n_layers: int) -> tuple[int, int]:
        widest = min(self.max_length or max(2, n_layers // 2), n_layers)
        return min(2, widest), widest


@dataclass(frozen=True)
class Ratios:
    """`count` slices of the depth, as `Recipe.from_ratios` reads them, in the order of their starts.

    A slice is a start and a width, each a whole number of `steps`-ths of the depth; width 0 is off. Gaps are
    filled, so what a slice does is to go back where it begins before the end of the one before it. `max_width`, in
    steps, left out is a quarter of the depth.

    `scales` is one strength for every visit of a layer but its first. A slice that `max_visits` has no room for is
    left out.

    Example:
        >>> slots = {"start_0": 2, "width_0": 4, "start_1": 4, "width_1": 4}
        >>> str(Ratios(count=2)(optuna.trial.FixedTrial(slots), 20))
        '0:7, 4:20'
    """

    count: int = 4
    steps: int = 20
    max_width: int | None = None
    scales: Scales = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        check_least("count", self.count, 2, ", since one slice alone goes nowhere back")
        check_least("steps", self.steps, 1)
        check_least("max_width", self.max_width, 1)
        check_least("max_visits", self.max_visits, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        slices = []
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, self.steps - 1)
            width = trial.suggest_int(f"width_{slot}", 0, self._widest)
            if width:
                slices.append((start, min(start + width, self.steps)))
        scale = suggest_scale(trial, "scale", self.scales)
        spare = spare_visits(self.max_visits, n_layers)
        recipe = Recipe.identity(n_layers)
        kept: list[tuple[float, float]] = []
        for start, stop in sorted(slices):
            deeper = Recipe.from_ratios(n_layers, [*kept, (start / self.steps, stop / self.steps)])
            if len(deeper) - n_layers <= spare:
                recipe = deeper
                kept.append((start / self.steps, stop / self.steps))
        return replace(recipe, scales=tuple(scale if repeat else 1.0 for repeat in again(recipe.repeat_map)))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        slices = slices_of(recipe.repeat_map, n_layers, self.steps, self._widest)
        if slices is None or len(slices) > self.count:
            return None
        params: Params = {}
        for slot, (start, stop) in enumerate([*slices, *[(0, 0)] * (self.count - len(slices))]):
            params |= {f"start_{slot}": start, f"width_{slot}": stop - start}
        scale = next(compress(recipe.scales, again(recipe.repeat_map)), None)
        return if_made(self, params | scale_slot("scale", scale, self.scales), recipe, n_layers)

    @property
    def _widest(self) -> int:
        return min(self.max_width or max(1, self.steps // 4), self.steps)


@dataclass(frozen=True)
class Visits:
    """How often each layer runs, 0 … `most` times in a row: skips and repeats. Where none would run, layer 0 does once.

    `scales` is for the visits of a layer but its first, a strength for each layer. Repeats that `max_visits` has no
    room for are left out, from the first layer up.

    Example:
        >>> str(Visits()(optuna.trial.FixedTrial({"visits_0": 1, "visits_1": 2, "visits_2": 0, "visits_3": 1}), 4))
        '0:2, 1, 3'
    """

    most: int = 2
    scales: Scales = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        check_least("most", self.most, 1)
        check_least("max_visits", self.max_visits, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        counts, strengths = [], []
        for layer in range(n_layers):
            counts.append(trial.suggest_int(f"visits_{layer}", 0, self.most))
            strengths.append(suggest_scale(trial, f"scale_{layer}", self.scales))
        if not any(counts):
            counts[0] = 1
        room = spare_visits(self.max_visits, n_layers) + counts.count(0)
        visits: list[tuple[int, float]] = []
        for layer, (count, scale) in enumerate(zip(counts, strengths, strict=True)):
            repeats = min(max(count - 1, 0), room)
            room -= repeats
            visits += [(layer, 1.0)] * min(count, 1) + [(layer, scale)] * repeats
        return Recipe(*zip(*visits, strict=True), base=Base(num_layers=n_layers))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        params: Params = {}
        for layer in range(n_layers):
            scales = [scale for visited, scale in recipe if visited == layer]
            repeated = scales[1] if len(scales) > 1 else None
            params |= {f"visits_{layer}": len(scales)} | scale_slot(f"scale_{layer}", repeated, self.scales)
        return if_made(self, params, recipe, n_layers)


@dataclass(frozen=True)
class Removal:
    """`count` blocks of up to `max_length` layers that are left out (depth pruning); length 0 is off. They may overlap.

    `max_length` left out is a quarter of the base's layers. Where no layer would be left, layer 0 is.

    With `scales` the blocks are not left out but damped to a strength each; where two overlap, the lower one counts.
    No recipe is deeper than the base, so there is nothing to cap.

    Example:
        >>> str(Removal(count=1)(optuna.trial.FixedTrial({"start_0": 3, "length_0": 2}), 8))
        '0:3, 5:8'
    """

    count: int = 3
    max_length: int | None = None
    scales: Scales = None

    def __post_init__(self) -> None:
        check_least("count", self.count, 1)
        check_least("max_length", self.max_length, 1)
        check_scales(self.scales)

    def __call__(self, trial: BaseTrial, n_layers: int) -> Recipe:
        """The recipe of a trial."""
        strengths: dict[int, float] = {}
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, n_layers - 1)
            length = trial.suggest_int(f"length_{slot}", 0, longest_block(self.max_length, n_layers))
            scale = suggest_scale(trial, f"scale_{slot}", self.scales)
            for layer in range(start, min(start + length, n_layers)):
                strengths[layer] = min(scale, strengths.get(layer, inf))
        layers = range(n_layers)
        if self.scales is None:
            kept = tuple(layer for layer in layers if layer not in strengths) or (0,)
            return Recipe(kept, base=Base(num_layers=n_layers))
        return Recipe(tuple(layers), tuple(strengths.get(i, 1.0) for i in layers), base=Base(num_layers=n_layers))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """What to enqueue for a recipe; None where this space cannot say it."""
        strengths = {layer: scale for layer, scale in recipe if scale != 1}
        if self.scales is None:
            strengths = dict.fromkeys(set(range(n_layers)) - set(recipe.repeat_map), 1.0)
        slots: list[tuple[int, int, float | None]] = []
        longest = longest_block(self.max_length, n_layers)
        for scale, start in product(sorted(set(strengths.values())), range(n_layers)):
            if strengths.get(start) == scale and not any(
                other == scale and first <= start < first + length for first, length, other in slots
            ):
                stop = start + 1  # a slot may reach over layers that another one damps further
                while stop < min(start + longest, n_layers) and strengths.get(stop, inf) <= scale:
                    stop += 1
                slots.append((start, stop - start, scale))
        slots += [(0, 0, None)] * (self.count - len(slots))
        if len(slots) > self.count:
            return None
        params: Params = {}
        for slot, (start, length, strength) in enumerate(slots):
            params |= {f"start_{slot}": start, f"length_{slot}": length}
            params |= scale_slot(f"scale_{slot}", strength, self.scales)
        return if_made(self, params, recipe, n_layers)


_NAMED: dict[str, Callable[..., InvertibleSpace]] = {
    "block": Block,
    "blocks": Blocks,
    "windows": Windows,
    "ratios": Ratios,
    "visits": Visits,
    "removal": Removal,
}


def space_named(
    name: str,
    *,
    scales: Scales = None,
    max_length: int | None = None,
    max_visits: int | None = None,
) -> InvertibleSpace:
    """The space that a name on the command line stands for; `SearchError` for an option that it does not have.

    Example:
        >>> named("block", scales=(0.1, 1.0)).scales
        (0.1, 1.0)
    """
    if name not in _NAMED:
        *others, last = _NAMED
        raise SearchError(f"unknown space {name!r}: expected {', '.join(others)} or {last}")
    options = {"scales": scales, "max_length": max_length, "max_visits": max_visits}
    given = {option: value for option, value in options.items() if value is not None}
    known = {field.name for field in fields(cast(Any, _NAMED[name]))}
    for option in given:
        if option not in known:
            raise SearchError(f"the space {name} has no {option}: leave it out")
    return _NAMED[name](**given)


def is_built_in(space: Space) -> bool:
    """Whether a space is one of those above, whose name in a study is its class's."""
    return type(space) in _NAMED.values()


def params_of(space: Space, recipe: Recipe, n_layers: int) -> Params | None:
    """The parameters with which a space gives a recipe, where it can tell them.

    A plain function is asked with its lowest values, which give the base in a space whose slots can be off.

    Example:
        >>> params_of(Block(), Recipe.parse("0:3, 1:8"), 8)
        {'start': 1, 'length': 2}
    """
    if isinstance(space, InvertibleSpace):
        return space.params(recipe, n_layers)
    return if_lowest(space, recipe, n_layers)

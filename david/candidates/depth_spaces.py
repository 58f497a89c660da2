"""Search spaces over the whole depth: `Windows` overlap, `Ratios` are slices, `Visits` counts each layer's visits."""

from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

from david.candidates.encoding import (
    Params,
    Scales,
    check_least,
    check_scales,
    fit_visits,
    params_if_exact,
    scale_slot,
    spare_visits,
    suggest_scale,
)
from david.recipe.base_model import Base
from david.recipe.blocks import blocks_of, repeat_flags, slices_of
from david.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Windows:
    """Overlapping windows, as in Goliath: each of `width` layers begins `overlap` layers before the last one ends.

    They go on until one reaches the last layer. Overlap 0 is the base; an overlap above half the width counts as half,
    so that no layer runs more than twice.

    Attributes:
        max_length: Layers of the longest window; left out, half the base's layers.
        scales: Range of the strength of second visits; left out, every visit is plain.
        max_visits: Visits of the deepest recipe; overlaps that it does not allow are left out.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
        narrowest, widest = self._widths(n_layers)
        width = trial.suggest_int("width", narrowest, widest)
        overlap = min(trial.suggest_int("overlap", 0, widest // 2), width // 2)
        scale = suggest_scale(trial, "scale", self.scales)
        ends = range(width, n_layers, width - overlap) if overlap else ()
        parts = [(end - overlap, end, 2, scale) for end in ends]
        return Recipe.from_blocks(n_layers, fit_visits(parts, n_layers, self.max_visits))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if this space cannot express it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None:
            return None
        narrowest, _ = self._widths(n_layers)
        start, stop, _, scale = parts[0] if parts else (narrowest, narrowest, 1, None)
        params = {"width": stop, "overlap": stop - start} | scale_slot("scale", scale, self.scales)
        return params_if_exact(self, params, recipe, n_layers)

    def _widths(self, n_layers: int) -> tuple[int, int]:
        widest = min(self.max_length or max(2, n_layers // 2), n_layers)
        return min(2, widest), widest


@dataclass(frozen=True)
class Ratios:
    """Several slices of the depth, as `Recipe.from_ratios` reads them, in the order of their starts.

    A slice has a start and a width, each a whole number of `steps`-ths of the depth; a slice of width 0 is off. Gaps
    are filled, so a slice changes the base by beginning before the end of the slice before it.

    Attributes:
        count: Slices.
        steps: Steps that the depth is divided into.
        max_width: Steps of the widest slice; left out, a quarter of the depth.
        scales: Range of one strength for every visit of a layer but its first; left out, every visit is plain.
        max_visits: Visits of the deepest recipe; a slice that it does not allow is left out.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
        slices = []
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, self.steps - 1)
            width = trial.suggest_int(f"width_{slot}", 0, self._widest)
            if width:
                slices.append((start, min(start + width, self.steps)))
        scale = suggest_scale(trial, "scale", self.scales)
        spare = spare_visits(self.max_visits, n_layers)
        recipe = Recipe.identity(n_layers)
        accepted: list[tuple[float, float]] = []
        for start, stop in sorted(slices):
            deeper = Recipe.from_ratios(n_layers, [*accepted, (start / self.steps, stop / self.steps)])
            if len(deeper) - n_layers <= spare:
                recipe = deeper
                accepted.append((start / self.steps, stop / self.steps))
        return replace(recipe, scales=tuple(scale if repeat else 1.0 for repeat in repeat_flags(recipe.repeat_map)))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if this space cannot express it."""
        slices = slices_of(recipe.repeat_map, n_layers, self.steps, self._widest)
        if slices is None or len(slices) > self.count:
            return None
        params: Params = {}
        for slot, (start, stop) in enumerate([*slices, *[(0, 0)] * (self.count - len(slices))]):
            params |= {f"start_{slot}": start, f"width_{slot}": stop - start}
        scale = next(compress(recipe.scales, repeat_flags(recipe.repeat_map)), None)
        return params_if_exact(self, params | scale_slot("scale", scale, self.scales), recipe, n_layers)

    @property
    def _widest(self) -> int:
        return min(self.max_width or max(1, self.steps // 4), self.steps)


@dataclass(frozen=True)
class Visits:
    """How often each layer runs, 0 … `most` times in a row: skips and repeats. If none would run, layer 0 does once.

    Attributes:
        most: The most visits of a layer.
        scales: Range of the strength, one for each layer, of its visits but the first; left out, every visit is plain.
        max_visits: Visits of the deepest recipe; of the deepest layers, repeats that it does not allow are left out.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
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
        """Return the parameters that give a recipe, or None if this space cannot express it."""
        params: Params = {}
        for layer in range(n_layers):
            scales = [scale for visited, scale in recipe if visited == layer]
            repeated = scales[1] if len(scales) > 1 else None
            params |= {f"visits_{layer}": len(scales)} | scale_slot(f"scale_{layer}", repeated, self.scales)
        return params_if_exact(self, params, recipe, n_layers)

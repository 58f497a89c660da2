"""Search spaces of blocks: `Block` repeats one, `Blocks` several, `Removal` leaves some out."""

from dataclasses import dataclass
from itertools import product
from math import inf
from typing import TYPE_CHECKING

from david.candidates.encoding import (
    Params,
    Scales,
    check_least,
    check_scales,
    fit_visits,
    params_if_exact,
    scale_slot,
    suggest_scale,
)
from david.recipe.base_model import Base
from david.recipe.blocks import blocks_of, longest_block
from david.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Block:
    """One block that runs 2 … `max_times` times.

    Attributes:
        max_length: Layers of the longest block; left out, a quarter of the base's layers: longer repeats of a trained
            model only ruin it. A length of 0 is the base.
        max_times: The most runs of the block.
        scales: Range of the repeats' strength; left out, every visit is plain.
        max_visits: Visits of the deepest recipe; only as many repeats are made as it allows.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
        start = trial.suggest_int("start", 0, n_layers - 1)
        length = trial.suggest_int("length", 0, longest_block(self.max_length, n_layers))
        times = trial.suggest_int("times", 2, self.max_times) if self.max_times > 2 else 2
        scale = suggest_scale(trial, "scale", self.scales)
        parts = [(start, min(start + length, n_layers), times, scale)] if length else []
        return Recipe.from_blocks(n_layers, fit_visits(parts, n_layers, self.max_visits))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if this space cannot express it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None or len(parts) > 1:
            return None
        start, stop, times, scale = parts[0] if parts else (0, 0, 2, None)
        if times > self.max_times:
            return None
        params = {"start": start, "length": stop - start} | ({"times": times} if self.max_times > 2 else {})
        return params_if_exact(self, params | scale_slot("scale", scale, self.scales), recipe, n_layers)


@dataclass(frozen=True)
class Blocks:
    """Several blocks that run 1 … `max_times` times each. They may overlap.

    Attributes:
        count: Blocks.
        max_length: Layers of the longest block; left out, a quarter of the base's layers.
        max_times: The most runs of a block; a block that runs once is off.
        scales: Range of the strength of a block's repeats; left out, every visit is plain.
        max_visits: Visits of the deepest recipe; only as many repeats are made as it allows, first those of the block
            that ends first.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
        parts = []
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, n_layers - 1)
            length = trial.suggest_int(f"length_{slot}", 1, longest_block(self.max_length, n_layers))
            times = trial.suggest_int(f"times_{slot}", 1, self.max_times)
            scale = suggest_scale(trial, f"scale_{slot}", self.scales)
            parts.append((start, min(start + length, n_layers), times, scale))
        return Recipe.from_blocks(n_layers, fit_visits(parts, n_layers, self.max_visits))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if this space cannot express it."""
        parts = blocks_of(recipe, n_layers)
        if parts is None:
            return None
        slots: list[tuple[int, int, int, float | None]] = []
        for start, stop, times, scale in parts:
            while times > 1:  # a slot holds max_times − 1 further runs; a block of more takes several
                slot_times = min(times, self.max_times)
                slots.append((start, stop, slot_times, scale))
                times -= slot_times - 1
        slots += [(0, 1, 1, None)] * (self.count - len(slots))
        if len(slots) > self.count:
            return None
        params: Params = {}
        for slot, (start, stop, times, strength) in enumerate(slots):
            params |= {f"start_{slot}": start, f"length_{slot}": stop - start, f"times_{slot}": times}
            params |= scale_slot(f"scale_{slot}", strength, self.scales)
        return params_if_exact(self, params, recipe, n_layers)


@dataclass(frozen=True)
class Removal:
    """Several blocks that are left out (depth pruning). They may overlap. If no layer would run, layer 0 does.

    No recipe is deeper than the base, so this space has no `max_visits`.

    Attributes:
        count: Blocks.
        max_length: Layers of the longest block; left out, a quarter of the base's layers. A length of 0 is off.
        scales: Range of strengths: the blocks are damped, each to its own, instead of left out; if two overlap, the
            lower strength counts.

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

    def __call__(self, trial: "BaseTrial", n_layers: int) -> Recipe:
        """Return the recipe of a trial."""
        strengths: dict[int, float] = {}
        for slot in range(self.count):
            start = trial.suggest_int(f"start_{slot}", 0, n_layers - 1)
            length = trial.suggest_int(f"length_{slot}", 0, longest_block(self.max_length, n_layers))
            scale = suggest_scale(trial, f"scale_{slot}", self.scales)
            for layer in range(start, min(start + length, n_layers)):
                strengths[layer] = min(scale, strengths.get(layer, inf))
        layers = range(n_layers)
        if self.scales is None:
            remaining = tuple(layer for layer in layers if layer not in strengths) or (0,)
            return Recipe(remaining, base=Base(num_layers=n_layers))
        return Recipe(tuple(layers), tuple(strengths.get(i, 1.0) for i in layers), base=Base(num_layers=n_layers))

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if this space cannot express it."""
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
        return params_if_exact(self, params, recipe, n_layers)

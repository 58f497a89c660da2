"""The parts of a recipe: blocks that repeat, slices of the depth, runs between seams, visits that come again."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from random import Random

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe


def longest_block(max_length: int | None, n_layers: int) -> int:
    """The length of the longest block where `max_length` is left out: a quarter of the base's layers."""
    return min(max_length or max(1, n_layers // 4), n_layers)


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
    runs = upward_runs(recipe.repeat_map)
    backs = [(after.start, before.stop) for before, after in pairwise(runs)]
    starts = [sum(map(len, runs[: i + 1])) for i in range(len(backs))]
    scales = [recipe.scales[visit] for visit in starts]
    parts = []
    for (start, stop, scale), same in groupby((*back, scale) for back, scale in zip(backs, scales, strict=True)):
        parts.append((start, stop, 1 + len(list(same)), scale))
    try:
        return parts if Recipe.from_blocks(n_layers, parts) == recipe else None
    except RecipeError:
        return None


def upward_runs(path: tuple[int, ...]) -> list[range]:
    """A repeat map, cut at its seams: each run goes up layer by layer.

    Example:
        >>> upward_runs((0, 1, 2, 1, 2, 3))
        [range(0, 3), range(1, 4)]
    """
    runs: list[range] = []
    for layer in path:
        if runs and runs[-1].stop == layer:
            runs[-1] = range(runs[-1].start, layer + 1)
        else:
            runs.append(range(layer, layer + 1))
    return runs


def again(path: tuple[int, ...]) -> list[bool]:
    """For each visit, whether its layer was visited before."""
    first: dict[int, int] = {}
    return [first.setdefault(layer, visit) < visit for visit, layer in enumerate(path)]


def slices_of(path: tuple[int, ...], n_layers: int, steps: int, widest: int) -> list[tuple[int, int]] | None:
    """The fewest slices of the depth from which `Recipe.from_ratios` makes a repeat map; None where none do.

    A slice is a start and an end in `steps`-ths of the depth, up to `widest` apart; their order is the sorted one.
    """
    slices: list[tuple[int, int]] = []
    layer = [min(int(step / steps * n_layers + 1e-9), n_layers - 1) for step in range(steps + 1)]
    grid = [(start, stop) for start in range(steps) for stop in range(start + 1, min(start + widest, steps) + 1)]

    def later(begin: range, end: range) -> Iterator[tuple[int, int]]:
        """Slices from one of these layers to one of those, behind the slices so far."""
        wanted = (cell for cell in grid if layer[cell[0]] in begin and layer[cell[1]] in end)
        return (cell for cell in wanted if not slices or cell >= slices[-1])

    runs, anywhere = upward_runs(path), range(n_layers)
    for number, run in enumerate(runs if len(runs) > 1 else []):
        begin = run[:1] if number else anywhere  # what comes before the first slice is filled,
        end = run[-1:] if number < len(runs) - 1 else anywhere  # and what comes behind the last
        found = next(later(begin, end), None)
        if found is None and (opening := next(later(begin, anywhere), None)) is not None:
            slices.append(opening)  # too wide for one slice: two, with a gap between them that is filled
            found = next(later(range(layer[opening[1]] + 1, n_layers), end), None)
        if found is None:
            return None
        slices.append(found)
    made = Recipe.from_ratios(n_layers, [(start / steps, stop / steps) for start, stop in slices or [(0, steps)]])
    return slices if made.repeat_map == path else None


def scattered(recipe: Recipe, n_layers: int, draw: Random) -> Recipe:
    """A recipe of the same depth that changes the base at random places: a baseline for what the places are worth.

    Wherever the recipe adds visits, leaves some out or gives some another strength, this one does that to as many
    layers somewhere else: those that are added are those just before them, run again.

    Example:
        >>> str(scattered(Recipe.parse("0:8, 6:8*0.5, 8:12"), 12, Random(1)))
        '0:4, 2:4*0.5, 4:12'
    """
    visits, theirs = [(layer, 1.0) for layer in range(n_layers)], list(recipe)
    changes = [
        (stop - start, [scale for _, scale in theirs[low:high]])
        for code, start, stop, low, high in SequenceMatcher(None, visits, theirs, autojunk=False).get_opcodes()
        if code != "equal"
    ]
    for left_out, scales in changes:
        least = left_out or min(len(visits), len(scales))
        at = draw.randrange(least, len(visits) + 1)
        layers = [layer for layer, _ in visits[at - least : at]]
        again = [layers[i % len(layers)] for i in range(len(scales))]
        visits[at - left_out : at] = zip(again, scales, strict=True)
    path, strengths = zip(*visits, strict=True)
    return Recipe(path, strengths, base=Base(num_layers=n_layers))

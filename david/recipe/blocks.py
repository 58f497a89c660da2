"""Take recipes apart and make them of parts: blocks that repeat, slices of the depth, runs between seams."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from random import Random

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.support.arguments import check_type


def longest_block(max_length: int | None, n_layers: int) -> int:
    """Return the layers of the longest block: `max_length`, or a quarter of the base's layers if that is None."""
    return min(max_length or max(1, n_layers // 4), n_layers)


def all_blocks(n_layers: int, max_length: int | None = None) -> list[Recipe]:
    """Return every recipe that runs one block (i, j) twice: the recipes of a scan.

    Args:
        n_layers: Layers of the base.
        max_length: Layers of the longest block; left out, all.

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
    """Return the blocks (i, j, times, scale) from which `Recipe.from_blocks` makes a recipe, or None."""
    check_type("recipe", recipe, Recipe, RecipeError)
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
    """Cut a repeat map at its seams into runs that go up layer by layer.

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


def repeat_flags(path: tuple[int, ...]) -> list[bool]:
    """Return for each visit whether its layer was visited before."""
    first: dict[int, int] = {}
    return [first.setdefault(layer, visit) < visit for visit, layer in enumerate(path)]


def slices_of(path: tuple[int, ...], n_layers: int, steps: int, widest: int) -> list[tuple[int, int]] | None:
    """Find the fewest slices of the depth from which `Recipe.from_ratios` makes a repeat map.

    Args:
        path: The repeat map.
        n_layers: Layers of the base.
        steps: Steps that the depth is divided into.
        widest: Steps of the widest slice.

    Returns:
        The slices (start, end) in steps, sorted; None if there are none.
    """
    slices: list[tuple[int, int]] = []
    layer = [min(int(step / steps * n_layers + 1e-9), n_layers - 1) for step in range(steps + 1)]
    grid = [(start, stop) for start in range(steps) for stop in range(start + 1, min(start + widest, steps) + 1)]

    def later(begin: range, end: range) -> Iterator[tuple[int, int]]:
        """Return the slices that begin and end in these layers and sort after the slices so far."""
        matches = (cell for cell in grid if layer[cell[0]] in begin and layer[cell[1]] in end)
        return (cell for cell in matches if not slices or cell >= slices[-1])

    runs, anywhere = upward_runs(path), range(n_layers)
    for number, run in enumerate(runs if len(runs) > 1 else []):
        begin = run[:1] if number else anywhere  # layers before the first slice are filled,
        end = run[-1:] if number < len(runs) - 1 else anywhere  # and layers after the last
        cell = next(later(begin, end), None)
        if cell is None and (opening := next(later(begin, anywhere), None)) is not None:
            slices.append(opening)  # too wide for one slice: two, with a gap between them that is filled
            cell = next(later(range(layer[opening[1]] + 1, n_layers), end), None)
        if cell is None:
            return None
        slices.append(cell)
    recipe = Recipe.from_ratios(n_layers, [(start / steps, stop / steps) for start, stop in slices or [(0, steps)]])
    return slices if recipe.repeat_map == path else None


def scattered(recipe: Recipe, n_layers: int, draw: Random) -> Recipe:
    """Make a recipe of the same depth that changes the base at random places: a baseline for the choice of places.

    Wherever the recipe adds visits, leaves some out or gives some another strength, this one does that to as many
    layers somewhere else; added visits repeat the layers just before them.

    Args:
        recipe: The recipe.
        n_layers: Layers of the base.
        draw: Random numbers.

    Example:
        >>> str(scattered(Recipe.parse("0:8, 6:8*0.5, 8:12"), 12, Random(1)))
        '0:4, 2:4*0.5, 4:12'
    """
    visits, recipe_visits = [(layer, 1.0) for layer in range(n_layers)], list(recipe)
    changes = [
        (stop - start, [scale for _, scale in recipe_visits[low:high]])
        for code, start, stop, low, high in SequenceMatcher(None, visits, recipe_visits, autojunk=False).get_opcodes()
        if code != "equal"
    ]
    for left_out, scales in changes:
        least = left_out or min(len(visits), len(scales))
        at = draw.randrange(least, len(visits) + 1)
        layers = [layer for layer, _ in visits[at - least : at]]
        repeats = [layers[i % len(layers)] for i in range(len(scales))]
        visits[at - left_out : at] = zip(repeats, scales, strict=True)
    path, strengths = zip(*visits, strict=True)
    return Recipe(path, strengths, base=Base(num_layers=n_layers))

"""The neighbours of a recipe: every recipe that is one step away from it, for a search that refines a recipe.

The steps, by name:

    shift    move a seam up or down by one layer on both sides, at the same depth
    grow     add one layer to a block at a seam: the one after its end, or the one before its start
    shrink   remove one layer from a block at a seam: the last before it, or the first after it
    scale    give one visit, or one run of visits, another strength
    add      repeat a visit directly after itself
    drop     leave out a visit
    move     exchange a visit with the next, together with their strengths
    swap     exchange the layers of two successive visits, while the strengths stay in their places
    cut      leave out consecutive visits together
    repeat   repeat consecutive visits directly after themselves

A run is visits of consecutive layers at one strength, all of layers not visited before, or all of layers that were.
If the strength changes along a block, the change moves with the seam beside it: `0:8, 4:8*0.5, 8:12` grows to
`0:9, 4:9*0.5, 9:12`. A start after layer 0 and an end before the last layer are seams too, with one side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from david.errors import RecipeError, SearchError
from david.recipe.base_model import Base
from david.recipe.blocks import repeat_flags
from david.recipe.recipe import Recipe, Segment
from david.support.arguments import check_type

Path = tuple[tuple[int, float], ...]  # the layer and the scale of each visit

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STEPS = ("shift", "grow", "shrink", "scale", "add", "drop", "move", "swap", "cut", "repeat")

# At a seam: by how many layers the end before it moves up, and the start after it.
_SHIFT, _GROW, _SHRINK = ((1, 1), (-1, -1)), ((1, 0), (0, -1)), ((-1, 0), (0, 1))


def neighbours(
    recipe: Recipe,
    n_layers: int,
    *,
    steps: Iterable[str] | None = None,
    scales: Sequence[float] = SCALES,
    max_length: int = 8,
    max_visits: int | None = None,
) -> list[Recipe]:
    """Return every other recipe that is one step away from a recipe.

    Args:
        recipe: The recipe.
        n_layers: Layers of the base.
        steps: Names of the steps to use, or one name; left out, all of `STEPS`.
        scales: Strengths that a visit or a run may get.
        max_length: The most visits that are cut or repeated together.
        max_visits: The most visits of a neighbour.

    Returns:
        The neighbours, each once, in a fixed order.

    Raises:
        SearchError: A step is unknown, or an option is below 1.
        RecipeError: The recipe does not run on such a base, or a scale is not finite.

    Example:
        >>> [str(recipe) for recipe in neighbours(Recipe.parse("0:3, 2:4"), 4, steps={"shift", "grow"})]
        ['0:4, 3', '0:2, 1:4', '0:4, 2:4', '0:3, 1:4']
    """
    check_type("recipe", recipe, Recipe, RecipeError)
    recipe.check(n_layers)
    selected = set(STEPS) if steps is None else {steps} if isinstance(steps, str) else set(steps)
    if unknown := sorted(selected - set(STEPS)):
        raise SearchError(f"unknown step {unknown[0]!r}: expected some of {', '.join(STEPS)}")
    for option, value in {"max_length": max_length, "max_visits": max_visits}.items():
        if value is not None and value < 1:
            raise SearchError(f"{option} must be at least 1; got {value}")
    path = tuple(recipe)
    generators: dict[str, Callable[[], Iterator[Path]]] = {
        "shift": partial(_move_seams, recipe.segments, n_layers, _SHIFT),
        "grow": partial(_move_seams, recipe.segments, n_layers, _GROW),
        "shrink": partial(_move_seams, recipe.segments, n_layers, _SHRINK),
        "scale": partial(_scale, path, scales),
        "add": partial(_repeat, path, 1),
        "drop": partial(_cut, path, 1),
        "move": partial(_move, path),
        "swap": partial(_swap, path),
        "cut": partial(_cut, path, max_length),
        "repeat": partial(_repeat, path, max_length),
    }
    paths = dict.fromkeys(chain.from_iterable(generators[name]() for name in STEPS if name in selected))
    base = recipe.base or Base(num_layers=n_layers)
    base = base if base.num_layers else base.model_copy(update={"num_layers": n_layers})
    return [
        Recipe(*zip(*other, strict=True), base=base)
        for other in paths
        if other and other != path and (max_visits is None or len(other) <= max_visits)
    ]


def _move_seams(segments: Sequence[Segment], n_layers: int, steps: Iterable[tuple[int, int]]) -> Iterator[Path]:
    for seam in range(len(segments) + 1):
        is_first, is_last = seam == 0, seam == len(segments)
        before = 0 if is_first else segments[seam - 1].stop
        after = n_layers if is_last else segments[seam].start
        for end, front in steps if before != after else ():
            if not (end and is_first) and not (front and is_last):
                yield from _resize(segments, seam, end, front, n_layers)


def _resize(segments: Sequence[Segment], seam: int, end: int, front: int, n_layers: int) -> Iterator[Path]:
    """Yield the path with the two sides of a seam moved, if its layers are in the base; a shift keeps every segment."""
    ends = [segment.stop for segment in segments]
    starts = [segment.start for segment in segments]
    if end:
        ends[seam - 1] += end
        # two segments without a seam between them: only the strength changes there
        if seam + 1 < len(segments) and segments[seam].stop == segments[seam + 1].start:
            ends[seam] += end
            starts[seam + 1] += end
    if front:
        starts[seam] += front
        if seam > 1 and segments[seam - 2].stop == segments[seam - 1].start:
            starts[seam - 1] += front
            ends[seam - 2] += front
    is_empty = [start >= stop for start, stop in zip(starts, ends, strict=True)]
    if min(starts) >= 0 and max(ends) <= n_layers and not (end and front and any(is_empty)):
        parts = zip(starts, ends, segments, strict=True)
        yield tuple((layer, part.scale) for start, stop, part in parts for layer in range(start, stop))


def _scale(path: Path, scales: Sequence[float]) -> Iterator[Path]:
    runs: list[range] = []
    repeats = repeat_flags(tuple(layer for layer, _ in path))
    for visit, (layer, scale) in enumerate(path):
        if visit and path[visit - 1] == (layer - 1, scale) and repeats[visit - 1] == repeats[visit]:
            runs[-1] = range(runs[-1].start, visit + 1)
        else:
            runs.append(range(visit, visit + 1))
    for run in chain((range(visit, visit + 1) for visit in range(len(path))), runs):
        for scale in scales:
            yield (*path[: run.start], *((layer, scale) for layer, _ in path[run.start : run.stop]), *path[run.stop :])


def _move(path: Path) -> Iterator[Path]:
    for i in range(len(path) - 1):
        yield (*path[:i], path[i + 1], path[i], *path[i + 2 :])


def _swap(path: Path) -> Iterator[Path]:
    for i in range(len(path) - 1):
        (first, scale), (second, next_scale) = path[i : i + 2]
        yield (*path[:i], (second, scale), (first, next_scale), *path[i + 2 :])


def _cut(path: Path, longest: int) -> Iterator[Path]:
    for start, stop in _spans(path, longest):
        yield path[:start] + path[stop:]


def _repeat(path: Path, longest: int) -> Iterator[Path]:
    for start, stop in _spans(path, longest):
        yield path[:stop] + path[start:]


def _spans(path: Path, longest: int) -> Iterator[tuple[int, int]]:
    for start in range(len(path)):
        for stop in range(start + 1, min(start + longest, len(path)) + 1):
            yield start, stop

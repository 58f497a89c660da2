"""The neighbours of a recipe: every recipe that is one step away from it, for a search that refines what it has.

The steps, by name:

    shift    a seam goes up or down by one layer on both sides, at the same depth
    grow     a block takes in one more layer at a seam: the one behind its end, or the one before its beginning
    shrink   a block gives up a layer at a seam: the last before it, or the first behind it
    scale    one visit, or one run of visits, gets another strength
    add      a visit is made once more, directly behind itself
    drop     a visit is left out
    move     a visit changes places with the next, and takes its strength along
    swap     two neighbouring visits exchange their layers, while the strengths stay in their places
    cut      consecutive visits are left out together
    repeat   consecutive visits are made once more, directly behind themselves

A run is visits of layer after layer at one strength, all of layers not visited before, or all of layers that were.
Where the strength changes along a block, the change goes with the seam beside it: `0:8, 4:8*0.5, 8:12` grows to
`0:9, 4:9*0.5, 9:12`. A beginning behind layer 0 and an end before the last layer are seams too, with one side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from david.errors import SearchError
from david.recipe.base_model import Base
from david.recipe.blocks import repeat_flags
from david.recipe.recipe import Recipe, Segment

Path = tuple[tuple[int, float], ...]  # the layer and the scale of each visit

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STEPS = ("shift", "grow", "shrink", "scale", "add", "drop", "move", "swap", "cut", "repeat")

# At a seam: by how many layers the end before it goes up, and the beginning behind it.
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
    """Every other recipe that one of the `steps` (left out, any) makes of a recipe; each once, in a fixed order.

    `scales` are the strengths that a visit or a run may get, `max_length` is the most visits that are cut or repeated
    together, `max_visits` the most that a neighbour may have.

    Raises `SearchError` for an unknown step or an option that is too low, `RecipeError` for a recipe of another base
    or a scale that is not finite.

    Example:
        >>> [str(recipe) for recipe in neighbours(Recipe.parse("0:3, 2:4"), 4, steps={"shift", "grow"})]
        ['0:4, 3', '0:2, 1:4', '0:4, 2:4', '0:3, 1:4']
    """
    recipe.check(n_layers)
    wanted = set(STEPS) if steps is None else {steps} if isinstance(steps, str) else set(steps)
    if unknown := sorted(wanted - set(STEPS)):
        raise SearchError(f"unknown step {unknown[0]!r}: expected some of {', '.join(STEPS)}")
    for option, value in {"max_length": max_length, "max_visits": max_visits}.items():
        if value is not None and value < 1:
            raise SearchError(f"{option} must be at least 1; got {value}")
    path = tuple(recipe)
    makers: dict[str, Callable[[], Iterator[Path]]] = {
        "shift": partial(_at_seams, recipe.segments, n_layers, _SHIFT),
        "grow": partial(_at_seams, recipe.segments, n_layers, _GROW),
        "shrink": partial(_at_seams, recipe.segments, n_layers, _SHRINK),
        "scale": partial(_scaled, path, scales),
        "add": partial(_repeated, path, 1),
        "drop": partial(_cut, path, 1),
        "move": partial(_moved, path),
        "swap": partial(_swapped, path),
        "cut": partial(_cut, path, max_length),
        "repeat": partial(_repeated, path, max_length),
    }
    found = dict.fromkeys(chain.from_iterable(makers[name]() for name in STEPS if name in wanted))
    base = recipe.base or Base(num_layers=n_layers)
    return [
        Recipe(*zip(*other, strict=True), base=base)
        for other in found
        if other and other != path and (max_visits is None or len(other) <= max_visits)
    ]


def _at_seams(segments: Sequence[Segment], n_layers: int, steps: Iterable[tuple[int, int]]) -> Iterator[Path]:
    for seam in range(len(segments) + 1):
        opens, closes = seam == 0, seam == len(segments)
        before = 0 if opens else segments[seam - 1].stop
        behind = n_layers if closes else segments[seam].start
        for end, front in steps if before != behind else ():
            if not (end and opens) and not (front and closes):
                yield from _resized(segments, seam, end, front, n_layers)


def _resized(segments: Sequence[Segment], seam: int, end: int, front: int, n_layers: int) -> Iterator[Path]:
    """The path with the two sides of a seam moved, if its layers are the base's; a shift keeps every segment."""
    ends = [segment.stop for segment in segments]
    starts = [segment.start for segment in segments]
    if end:
        ends[seam - 1] += end
        if (
            seam + 1 < len(segments) and segments[seam].stop == segments[seam + 1].start
        ):  # no seam: the strength alone changes there
            ends[seam] += end
            starts[seam + 1] += end
    if front:
        starts[seam] += front
        if seam > 1 and segments[seam - 2].stop == segments[seam - 1].start:
            starts[seam - 1] += front
            ends[seam - 2] += front
    left_out = [start >= stop for start, stop in zip(starts, ends, strict=True)]
    if min(starts) >= 0 and max(ends) <= n_layers and not (end and front and any(left_out)):
        parts = zip(starts, ends, segments, strict=True)
        yield tuple((layer, part.scale) for start, stop, part in parts for layer in range(start, stop))


def _scaled(path: Path, scales: Sequence[float]) -> Iterator[Path]:
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


def _moved(path: Path) -> Iterator[Path]:
    for i in range(len(path) - 1):
        yield (*path[:i], path[i + 1], path[i], *path[i + 2 :])


def _swapped(path: Path) -> Iterator[Path]:
    for i in range(len(path) - 1):
        (first, scale), (second, other) = path[i : i + 2]
        yield (*path[:i], (second, scale), (first, other), *path[i + 2 :])


def _cut(path: Path, longest: int) -> Iterator[Path]:
    for start, stop in _spans(path, longest):
        yield path[:start] + path[stop:]


def _repeated(path: Path, longest: int) -> Iterator[Path]:
    for start, stop in _spans(path, longest):
        yield path[:stop] + path[start:]


def _spans(path: Path, longest: int) -> Iterator[tuple[int, int]]:
    for start in range(len(path)):
        for stop in range(start + 1, min(start + longest, len(path)) + 1):
            yield start, stop

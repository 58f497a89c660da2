"""A recipe: which layers of a base run, in which order, how strongly. A value, never changed in place."""

import codecs
import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, FailFast, Field, ValidationError

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.picture import svg_picture, text_picture
from david.recipe.schema import LONGEST, Measurement, Origin, Part, Versions
from david.support.files import expand_home, reason
from david.support.text import brief

_MAX_FILE_BYTES = 1_000_000
_MAX_ERRORS = 1000  # of a file: they are told by the first, but take a kilobyte each


class _File(Part):
    format: Literal["david.recipe"]
    version: Annotated[int, Field(ge=1, le=1)]
    base: Base | None = None
    repeat_map: Annotated[list[int], FailFast()]
    scales: Annotated[list[float] | None, FailFast()] = None
    written_as: str | None = None
    scores: Annotated[tuple[Measurement, ...], FailFast()] = ()
    search: Origin | None = None
    made_with: Versions | None = None


class Segment(NamedTuple):
    """Visits of the half-open range of layers `start … stop − 1`, one after the other, all at one scale."""

    start: int
    stop: int
    scale: float


@dataclass(frozen=True, repr=False)
class Recipe:
    """Base layers in the order of their visits, and the strength of each visit.

    Two recipes are equal when their maps and scales are. Errors: `RecipeError` for an empty map, a negative or
    non-integer layer, a scale that is not finite, scales of another length than the map, or more visits than `LONGEST`.

    Example:
        >>> recipe = Recipe.from_blocks(12, [(4, 8, 2)])
        >>> recipe.repeat_map
        (0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11)
        >>> str(recipe), recipe == Recipe.parse("0:8, 4:12")
        ('0:8, 4:12', True)
    """

    repeat_map: tuple[int, ...]
    scales: tuple[float, ...] = None  # type: ignore[assignment]  # None stands for all 1 until __post_init__
    base: Base | None = field(default=None, compare=False, kw_only=True)
    written_as: str | None = field(default=None, compare=False, kw_only=True)
    scores: tuple[Measurement, ...] = field(default=(), compare=False, kw_only=True)
    search: Origin | None = field(default=None, compare=False, kw_only=True)
    made_with: Versions | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        repeat_map = tuple(_as_layer(layer) for layer in _as_sequence(self.repeat_map, "repeat map", "visits"))
        if not repeat_map:
            raise RecipeError("a repeat map needs at least one visit; got an empty one")
        scales = self.scales
        given = (1.0,) * len(repeat_map) if scales is None else _as_sequence(scales, "scales", "scales")
        scales = tuple(map(_as_scale, given))
        if len(scales) != len(repeat_map):
            raise RecipeError(f"scales must be as many as visits: {len(repeat_map)} visits, {len(scales)} scales")
        object.__setattr__(self, "repeat_map", repeat_map)
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "scores", tuple(self.scores))
        if self.base is not None:
            self.check(self.base.num_layers)

    @classmethod
    def identity(cls, n_layers: int) -> "Recipe":
        """The base itself: layers 0 … n_layers − 1, each once."""
        n_layers = _as_depth(n_layers)
        return cls(tuple(range(n_layers)), base=Base(num_layers=n_layers))

    @classmethod
    def from_ratios(cls, n_layers: int, ratios: Iterable[tuple[float, float]]) -> "Recipe":
        """Slices of the depth, each `(start, end)` in [0, 1], as the seed's `ratio_repeat` writes them.

        A slice runs from layer `floor(start·N + 1e-9)` to layer `floor(end·N + 1e-9)`, both included, each capped at
        N − 1: from the layer that holds depth `start` to the one that holds depth `end`. Gaps before the first slice,
        between two slices and after the last are filled. The seed's code leaves the last layer of a slice out
        where `end·N` is whole, which contradicts its own first example; here it is in.

        Example:
            >>> Recipe.from_ratios(10, [(0, 0.3), (0.2, 0.4), (0.4, 0.5), (0.4, 1)]).repeat_map
            (0, 1, 2, 3, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9)
        """
        n_layers = _as_depth(n_layers)
        visits: list[int] = []
        reached = 0
        slices = [_as_ratio(ratio) for ratio in _as_sequence(ratios, "ratios")]
        if not slices:
            raise RecipeError("ratios need at least one (start, end) slice; got none")
        for start, end in slices:
            first, last = (min(int(depth * n_layers + 1e-9), n_layers - 1) for depth in (start, end))
            visits += range(reached, first)
            visits += range(first, last + 1)
            _check_length(len(visits))
            reached = last + 1
        visits += range(reached, n_layers)
        written = "ratios " + ", ".join(f"({start:g}, {end:g})" for start, end in slices)
        return cls(tuple(visits), base=Base(num_layers=n_layers), written_as=written)

    @classmethod
    def from_blocks(
        cls, n_layers: int, blocks: Iterable[tuple[int, int, int] | tuple[int, int, int, float]]
    ) -> "Recipe":
        """Repeat blocks `(i, j, times)` of layers i … j − 1, so that each runs `times` times; 1 leaves it alone.

        A fourth number is the scale of the repeats (the first run stays plain). The path walks up the base; whenever
        it has come to the end j of a block (in the order of the ends) it goes back to i. Blocks may overlap.
        """
        n_layers = _as_depth(n_layers)
        visits: list[int] = []
        scales: list[float] = []
        reached = 0
        parts = [_as_block(block, n_layers) for block in _as_sequence(blocks, "blocks")]
        for start, stop, times, scale in sorted(parts, key=lambda part: (part[1], part[0])):
            _check_length(len(visits) + (stop - start) * times)
            visits += range(reached, stop)
            scales += [1.0] * (stop - reached)
            visits += list(range(start, stop)) * (times - 1)
            scales += [scale] * (stop - start) * (times - 1)
            reached = stop
        visits += range(reached, n_layers)
        scales += [1.0] * (n_layers - reached)
        written = "blocks " + ", ".join(_block_text(*part) for part in parts) if parts else None
        return cls(tuple(visits), tuple(scales), base=Base(num_layers=n_layers), written_as=written)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Read what `str(recipe)` writes: `"0:12, 8:30"`; half-open ranges or single layers, `*s` for a scale.

        Example:
            >>> Recipe.parse("0:4, 2:4*0.5, 7").scales
            (1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0)
        """
        visits: list[int] = []
        scales: list[float] = []
        if len(text) > _MAX_FILE_BYTES:
            raise RecipeError(f"a notation of {len(text)} characters is too long: it can have {_MAX_FILE_BYTES}")
        for part in text.strip().removeprefix("[").removesuffix("]").split(","):
            match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?\s*+(?:\*\s*(\S+))?", part.strip(), re.ASCII)
            if match is None or text.strip().startswith("[") != text.strip().endswith("]"):
                raise RecipeError(
                    f"cannot read {brief(part.strip())} in {brief(text)}: expected the path of a recipe JSON, or "
                    "ranges of layers such as '0:12, 8:30' (half-open, as in Python), single layers, and '*0.5' behind "
                    "one for a scale"
                )
            start, stop = int(match[1]), int(match[2] or int(match[1]) + 1)
            if start >= stop:
                raise RecipeError(f"the range {start}:{stop} must go upwards: its end is not in it, as in Python")
            _check_length(len(visits) + stop - start)
            visits += range(start, stop)
            scales += [_as_scale(match[3] or 1.0, text=True)] * (stop - start)
        return cls(tuple(visits), tuple(scales))

    @classmethod
    def of(cls, value: "Recipe | str | os.PathLike[str] | Sequence[int]") -> "Recipe":
        """A recipe from whatever stands for one: itself, the path of its JSON, its notation, or a plain repeat map."""
        if isinstance(value, Recipe):
            return value
        if isinstance(value, str) and not value.endswith(".json") and not os.path.exists(expand_home(value)):
            return cls.parse(value)
        if isinstance(value, str | os.PathLike):
            return cls.load(value)
        return cls(value)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe file; `RecipeError` when it is missing, or not valid `david.recipe` version 1."""
        try:
            with open(expand_home(path), "rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read recipe {os.fspath(path)}: {reason(error)}") from None
        try:
            return cls.from_json(text.removeprefix(codecs.BOM_UTF8))
        except RecipeError as error:
            raise RecipeError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> "Recipe":
        """The recipe that a `david.recipe` JSON document holds, of a megabyte at most."""
        if len(text) > _MAX_FILE_BYTES:
            raise RecipeError(f"over {_MAX_FILE_BYTES} bytes: not a recipe")
        try:
            file = _File.model_validate_json(text)
        except ValidationError as error:
            if error.error_count() > _MAX_ERRORS:
                raise RecipeError(f"not a david.recipe: {error.error_count()} places in it are wrong") from None
            first = error.errors(include_url=False)[0]
            where = brief(".".join(map(str, first["loc"]))).strip("'\"") or "the document"
            raise RecipeError(f"not a valid david.recipe version 1: {where}: {first['msg']}") from None
        return cls(
            tuple(file.repeat_map),
            None if file.scales is None else tuple(file.scales),  # type: ignore[arg-type]
            base=file.base,
            written_as=file.written_as,
            scores=file.scores,
            search=file.search,
            made_with=file.made_with,
        )

    def to_json(self) -> str:
        """The recipe as a `david.recipe` version 1 JSON document; `from_json` reads it back equal."""

        def dump(part: BaseModel | None) -> dict[str, Any] | None:
            return None if part is None else part.model_dump(mode="json")

        document = {
            "format": "david.recipe",
            "version": 1,
            "base": dump(self.base),
            "repeat_map": list(self.repeat_map),
            "scales": [int(scale) if scale == int(scale) else scale for scale in self.scales],
            "written_as": self.written_as,
            "scores": [dump(score) for score in self.scores],
            "search": dump(self.search),
            "made_with": dump(self.made_with),
        }
        return "{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in document.items()) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe file, beside first and then renamed, so that no reader sees half of one."""
        target = Path(path)
        text = self.to_json()
        if len(text) > _MAX_FILE_BYTES:
            raise RecipeError(f"this recipe would be {len(text)} bytes; a recipe file has at most {_MAX_FILE_BYTES}")
        try:
            descriptor, beside = tempfile.mkstemp(dir=target.parent)
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                os.chmod(beside, 0o644)
                os.replace(beside, target)
            except BaseException:
                os.unlink(beside)
                raise
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot write recipe {target}: {reason(error)}") from None

    def check(self, n_layers: int) -> None:
        """`RecipeError` unless every layer of the map exists in a base of `n_layers` layers."""
        deepest = max(self.repeat_map)
        if deepest >= n_layers:
            raise RecipeError(
                f"layer {deepest} is out of range: the base has {n_layers} layers, 0 … {n_layers - 1}; "
                "this recipe was made for another model"
            )
        if self.base is not None and self.base.num_layers != n_layers:
            raise RecipeError(
                f"this recipe was made for a base of {self.base.num_layers} layers; this one has {n_layers}"
            )

    @property
    def n_layers(self) -> int:
        """Layers of the base; where the recipe does not say, as many as its deepest visit needs."""
        return self.base.num_layers if self.base is not None else max(self.repeat_map) + 1

    @property
    def is_base(self) -> bool:
        """Whether this is the base itself: every layer once, in order, at full strength."""
        return self.repeat_map == tuple(range(self.n_layers)) and set(self.scales) == {1.0}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The map as runs of neighbouring layers at one scale, in the order of the visits."""
        runs: list[Segment] = []
        for layer, scale in zip(self.repeat_map, self.scales, strict=True):
            if runs and runs[-1].stop == layer and runs[-1].scale == scale:
                runs[-1] = runs[-1]._replace(stop=layer + 1)
            else:
                runs.append(Segment(layer, layer + 1, scale))
        return tuple(runs)

    @property
    def picture(self) -> str:
        """One line of text, a character a visit, its height the depth of the layer."""
        return text_picture(self.repeat_map, self.n_layers)

    def __len__(self) -> int:
        return len(self.repeat_map)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(zip(self.repeat_map, self.scales, strict=True))

    def __str__(self) -> str:
        return ", ".join(map(_segment_text, self.segments))

    def __repr__(self) -> str:
        return f"Recipe({self}: {len(self)} visits of {self.n_layers} layers)"

    def _repr_html_(self) -> str:
        return svg_picture(self.repeat_map, self.scales, self.n_layers, brief(str(self)).strip("'"))


def _segment_text(segment: Segment) -> str:
    layers = str(segment.start) if segment.stop == segment.start + 1 else f"{segment.start}:{segment.stop}"
    return layers if segment.scale == 1 else f"{layers}*{segment.scale!r}"


def _block_text(start: int, stop: int, times: int, scale: float) -> str:
    return f"({start}, {stop}) ×{times}" + ("" if scale == 1 else f" at {scale:g}")


def _as_sequence(value: Any, name: str, of: str = "parts") -> Sequence[Any]:
    if isinstance(value, (str, bytes, dict)):
        raise RecipeError(f"{name} must be a sequence; got {brief(value)}")
    try:
        parts = list(islice(value, LONGEST + 1))
    except TypeError:
        raise RecipeError(f"{name} must be a sequence; got {brief(value)}") from None
    if len(parts) > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} {of}; this one has more")
    return parts


def _check_length(visits: int) -> None:
    if visits > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} visits; this one has more")


def _as_layer(value: Any) -> int:
    try:
        layer = operator.index(value)
    except TypeError:
        raise RecipeError(f"a layer must be a whole number from 0 on; got {brief(value)}") from None
    if isinstance(value, bool) or layer < 0:
        raise RecipeError(f"a layer must be a whole number from 0 on; got {brief(value)}")
    if layer > LONGEST:
        raise RecipeError(f"a base has at most {LONGEST} layers; got {layer if layer < 10**18 else 'a number beyond'}")
    return layer


def _as_depth(n_layers: Any) -> int:
    depth = _as_layer(n_layers)
    if depth < 1:
        raise RecipeError(f"a base needs at least one layer; got {depth}")
    return depth


def _as_scale(value: Any, *, text: bool = False) -> float:
    try:
        scale = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's of several numbers
        raise RecipeError(f"a scale must be a number; got {brief(value)}") from None
    if isinstance(value, bool) or (isinstance(value, str) and not text) or not math.isfinite(scale):
        raise RecipeError(f"a scale must be a finite number; got {brief(value)}")
    return scale


def _as_ratio(value: Any) -> tuple[float, float]:
    try:
        start, end = (math.nan if isinstance(bound, bool | str) else float(bound) for bound in value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise RecipeError(f"a ratio slice must be two numbers (start, end); got {brief(value)}") from None
    if not 0 <= start <= end <= 1:
        raise RecipeError(f"a ratio slice needs two numbers 0 ≤ start ≤ end ≤ 1; got {brief(tuple(value))}")
    return start, end


def _as_block(value: Any, n_layers: int) -> tuple[int, int, int, float]:
    parts = _as_sequence(value, "a block")
    if len(parts) not in (3, 4):
        raise RecipeError(f"a block must be (i, j, times) or (i, j, times, scale); got {brief(value)}")
    start, stop, times = map(_as_layer, parts[:3])
    if not start < stop <= n_layers or times < 1:
        raise RecipeError(f"a block needs 0 ≤ i < j ≤ {n_layers} and times ≥ 1; got {brief(value)}")
    return start, stop, times, _as_scale(parts[3]) if len(parts) == 4 else 1.0

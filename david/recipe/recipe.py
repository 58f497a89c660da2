"""A recipe: which layers of a base run, in which order, how strongly. A value, never changed in place.

`Recipe` is made from a repeat map, from ratios, blocks or notation, or from a recipe file.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.parsing import (
    check_length,
    checked_block,
    checked_depth,
    checked_layer,
    checked_ratio,
    checked_scale,
    checked_sequence,
    parse_notation,
)
from david.recipe.picture import svg_picture, text_picture
from david.recipe.recipe_file import document_json, parse_document, read_recipe_file, write_recipe_file
from david.recipe.schema import Measurement, Origin, Versions
from david.recipe.verdict import verdict_of
from david.support.arguments import check_type, checked_list
from david.support.files import expand_home
from david.support.text import brief


class Segment(NamedTuple):
    """Visits of the layers `start … stop − 1`, one after the other, all at one scale."""

    start: int
    stop: int
    scale: float


_PARTS = {"base": Base, "written_as": str, "search": Origin, "made_with": Versions}  # what may be None


@dataclass(frozen=True, repr=False)
class Recipe:
    """Base layers in the order of their visits, and the strength of each visit.

    Recipes are equal if their repeat maps and scales are; the other fields are not compared. Iteration yields
    (layer, scale) of each visit, `len` is the number of visits, and `str` is the notation that `parse` reads.

    Attributes:
        repeat_map: The layers, at least one and at most 10,000 visits.
        scales: The strength s of each visit, `h + s·(layer(h) − h)`; left out, all are 1.
        base: The model it was made for.
        written_as: How the user wrote it, if not as a repeat map; for the recipe of a study, the study's verdict.
        scores: What was measured.
        search: The trial that it comes from.
        made_with: Versions of the libraries that made it.

    Raises:
        RecipeError: The repeat map is empty or too long, a layer is no whole number from 0 on, a scale is not finite,
            scales and visits differ in number, or a layer is not in the base.

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
        repeat_map = tuple(checked_layer(layer) for layer in checked_sequence(self.repeat_map, "repeat map", "visits"))
        if not repeat_map:
            raise RecipeError("a repeat map needs at least one visit; got an empty one")
        scales = self.scales
        values = (1.0,) * len(repeat_map) if scales is None else checked_sequence(scales, "scales", "scales")
        scales = tuple(map(checked_scale, values))
        if len(scales) != len(repeat_map):
            raise RecipeError(f"scales must be as many as visits: {len(repeat_map)} visits, {len(scales)} scales")
        object.__setattr__(self, "repeat_map", repeat_map)
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "scores", tuple(checked_list("scores", self.scores, Measurement, RecipeError)))
        for name, kind in _PARTS.items():
            if getattr(self, name) is not None:
                check_type(name, getattr(self, name), kind, RecipeError)
        if self.depth is not None:
            self.check(self.depth)

    @classmethod
    def identity(cls, n_layers: int) -> "Recipe":
        """Make the recipe of the base itself: layers 0 … n_layers − 1, each once."""
        n_layers = checked_depth(n_layers)
        return cls(tuple(range(n_layers)), base=Base(num_layers=n_layers))

    @classmethod
    def from_ratios(cls, n_layers: int, ratios: Iterable[tuple[float, float]]) -> "Recipe":
        """Make a recipe from slices of the depth, as `ratio_repeat` of EGjoni/David writes them.

        With N layers, a slice runs from layer `floor(start·N + 1e-9)` to layer `floor(end·N + 1e-9)`, both included,
        each capped at N − 1: from the layer that holds depth `start` to the one that holds depth `end`. Gaps before the
        first slice, between two slices and after the last are filled. EGjoni/David leaves out the last layer of a slice
        if `end·N` is whole, which contradicts its own first example; here that layer is included.

        Args:
            n_layers: Layers N of the base.
            ratios: Slices (start, end), 0 ≤ start ≤ end ≤ 1.

        Raises:
            RecipeError: A slice is not such a pair, there is none, or there would be too many visits.

        Example:
            >>> Recipe.from_ratios(10, [(0, 0.3), (0.2, 0.4), (0.4, 0.5), (0.4, 1)]).repeat_map
            (0, 1, 2, 3, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9)
        """
        n_layers = checked_depth(n_layers)
        visits: list[int] = []
        reached = 0
        slices = [checked_ratio(ratio) for ratio in checked_sequence(ratios, "ratios")]
        if not slices:
            raise RecipeError("ratios need at least one (start, end) slice; got none")
        for start, end in slices:
            first, last = (min(int(depth * n_layers + 1e-9), n_layers - 1) for depth in (start, end))
            visits += range(reached, first)
            visits += range(first, last + 1)
            check_length(len(visits))
            reached = last + 1
        visits += range(reached, n_layers)
        written = "ratios " + ", ".join(f"({start:g}, {end:g})" for start, end in slices)
        return cls(tuple(visits), base=Base(num_layers=n_layers), written_as=written)

    @classmethod
    def from_blocks(
        cls, n_layers: int, blocks: Iterable[tuple[int, int, int] | tuple[int, int, int, float]]
    ) -> "Recipe":
        """Make a recipe that repeats blocks of layers.

        The path goes up the base; whenever it reaches the end j of a block (in the order of the ends) it goes back to
        i, until the block has run `times` times. Blocks may overlap.

        Args:
            n_layers: Layers of the base.
            blocks: Blocks `(i, j, times)` or `(i, j, times, scale)` of layers i … j − 1. 1 time changes nothing; the
                scale is that of the repeats, the first run stays plain.

        Raises:
            RecipeError: A block is not in the base, or there would be too many visits.

        Example:
            >>> str(Recipe.from_blocks(12, [(4, 8, 2, 0.5)]))
            '0:8, 4:8*0.5, 8:12'
        """
        n_layers = checked_depth(n_layers)
        visits: list[int] = []
        scales: list[float] = []
        reached = 0
        parts = [checked_block(block, n_layers) for block in checked_sequence(blocks, "blocks")]
        for start, stop, times, scale in sorted(parts, key=lambda part: (part[1], part[0])):
            check_length(len(visits) + (stop - start) * times)
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
        """Parse the short notation, which `str(recipe)` writes.

        Args:
            text: Half-open ranges or single layers, with `*s` after one for a scale: `"0:12, 8:12*0.5, 12:30"`.

        Raises:
            RecipeError: The text is not in the notation, or has too many visits.

        Example:
            >>> Recipe.parse("0:4, 2:4*0.5, 7").scales
            (1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0)
        """
        check_type("notation", text, str, RecipeError)
        return cls(*parse_notation(text))

    @classmethod
    def of(cls, value: "Recipe | str | os.PathLike[str] | Sequence[int]") -> "Recipe":
        """Make a recipe from any of its forms.

        Args:
            value: A recipe, the path of a recipe file, a notation, or a repeat map.

        Raises:
            RecipeError: The value is none of these.

        Example:
            >>> Recipe.of("0:2, 1:4") == Recipe.of([0, 1, 1, 2, 3])
            True
        """
        if isinstance(value, Recipe):
            return value
        if isinstance(value, str) and not value.endswith(".json") and not os.path.exists(expand_home(value)):
            return cls.parse(value)
        if isinstance(value, str | os.PathLike):
            return cls.load(value)
        return cls(value)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe file.

        Raises:
            RecipeError: The file is missing, or not valid `david.recipe` version 1.
        """
        check_type("path", path, (str, os.PathLike), RecipeError)
        text = read_recipe_file(path)
        try:
            return cls.from_json(text)
        except RecipeError as error:
            raise RecipeError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> "Recipe":
        """Read the JSON of a recipe file.

        Raises:
            RecipeError: It is longer than a megabyte, or not valid `david.recipe` version 1.
        """
        check_type("JSON", text, (bytes, str), RecipeError)
        document = parse_document(text)
        return cls(
            tuple(document.repeat_map),
            None if document.scales is None else tuple(document.scales),  # type: ignore[arg-type]
            base=document.base,
            written_as=document.written_as,
            scores=document.scores,
            search=document.search,
            made_with=document.made_with,
        )

    def to_json(self) -> str:
        """Return the recipe as the JSON of a recipe file, `david.recipe` version 1; `from_json` reads it back equal."""
        return document_json(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe file; a reader sees the old file or the new one, never half of one.

        Raises:
            RecipeError: The recipe is longer than a megabyte, or the file cannot be written.
        """
        check_type("path", path, (str, os.PathLike), RecipeError)
        write_recipe_file(path, self.to_json())

    def check(self, n_layers: int) -> None:
        """Check that the recipe runs on a base of `n_layers` layers.

        Raises:
            RecipeError: A layer is not in that base, or the recipe was made for a base of another depth.
        """
        deepest = max(self.repeat_map)
        if deepest >= n_layers:
            raise RecipeError(
                f"layer {deepest} is out of range: the base has {n_layers} layers, 0 … {n_layers - 1}; "
                "this recipe was made for another model"
            )
        if self.depth not in (None, n_layers):
            raise RecipeError(f"this recipe was made for a base of {self.depth} layers; this one has {n_layers}")

    @property
    def depth(self) -> int | None:
        """Layers of the base, None if the recipe does not state them."""
        return None if self.base is None else self.base.num_layers

    @property
    def n_layers(self) -> int:
        """Layers of the base; if the recipe does not state them, as many as its deepest visit needs."""
        return self.depth or max(self.repeat_map) + 1

    @property
    def verdict(self) -> str | None:
        """What the held-out scores of the recipe's own file say of it: `better`, `worse` or `not told apart`.

        `not judged` if it has scores of the search alone, None if it has none. With several held-out scores, the least
        good word counts.
        """
        return verdict_of(self)

    @property
    def is_base(self) -> bool:
        """Whether this is the base itself: every layer once, in order, at full strength."""
        return self.repeat_map == tuple(range(self.n_layers)) and set(self.scales) == {1.0}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The repeat map as segments of consecutive layers at one scale, in the order of the visits."""
        segments: list[Segment] = []
        for layer, scale in zip(self.repeat_map, self.scales, strict=True):
            if segments and segments[-1].stop == layer and segments[-1].scale == scale:
                segments[-1] = segments[-1]._replace(stop=layer + 1)
            else:
                segments.append(Segment(layer, layer + 1, scale))
        return tuple(segments)

    @property
    def picture(self) -> str:
        """The path as one line of text: a character for each visit, as high as the layer is deep."""
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

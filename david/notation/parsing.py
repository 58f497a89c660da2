"""What the files of the formats share: the `Format` that each defines, and the checks that their readers use.

A reader takes a text and the `BaseHints` of its caller and returns a `ParsedRecipe`. Every check raises `RecipeError`
with the value it refuses.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from david.errors import RecipeError
from david.recipe.base_model import DEMO
from david.recipe.parsing import check_length
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from david.support.text import brief


class BaseHints(NamedTuple):
    """What the caller knows of the base and the text does not state.

    Attributes:
        n_layers: Layers of the base.
        architecture: Class name of the base, such as `"LlamaForCausalLM"`.
        rank: Which of several recipes in one file to read; 1 is the best.
    """

    n_layers: int | None = None
    architecture: str | None = None
    rank: int = 1


class ParsedRecipe(NamedTuple):
    """What a text states: the visits and, if it has them, their strengths and the base's depth, name and revision."""

    visits: Sequence[int]
    scales: Sequence[float] | None = None
    n_layers: int | None = None
    model: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Format:
    """A recipe language: how to read, write and recognise it.

    Attributes:
        name: The name by which `read`, `write` and the command know it.
        describes: What a text in it is, with the version of the tool.
        read: Parse a text. A reader that returns a `Recipe` states all of it; of any other the base is filled in.
        write: Write a recipe, given the base's name for the tool (None for the one that the recipe states); None for a
            language that David only reads.
        range_end: Whether a range's end belongs to it, in words; empty for a language without ranges.
        limits: What it cannot express, in words.
        json_keys: Keys by which a JSON object is recognised.
        json_priority: The format with the highest one is taken if the keys of several are there.
        looks_like: Recognise a text that is no JSON object.
        text_priority: The format with the highest one is taken if several recognise a text.
        has_ranks: Whether a file holds several recipes, which `rank` selects from.
        names_base: Whether a text names the base in a way that the tool follows.
        keeps_layer_settings: Whether the tool leaves per-layer settings of the base (`layer_types`) unchanged.
    """

    name: str
    describes: str
    read: Callable[[str, BaseHints], ParsedRecipe | Recipe]
    write: Callable[[Recipe, str | None], str] | None
    range_end: str = ""
    limits: str = ""
    json_keys: tuple[str, ...] = ()
    json_priority: int = 0
    looks_like: Callable[[str], bool] | None = None
    text_priority: int = 0
    has_ranks: bool = False
    names_base: bool = False
    keeps_layer_settings: bool = False


def as_json(text: str, what: str) -> Any:
    """Parse a JSON text.

    Args:
        text: The text.
        what: What it should be, for the error.

    Raises:
        RecipeError: It is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise RecipeError(f"cannot read {what}: it is nested too deeply") from None
    except ValueError as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RecipeError(f"cannot read {what}: it is not valid JSON{place}") from None


def json_field(value: Any, key: str, what: str) -> Any:
    """Return the value of a key of a JSON object, which must have it."""
    if not isinstance(value, Mapping) or key not in value:
        raise RecipeError(f"{what} must have {key!r}; got {brief(value)}")
    return value[key]


def text_or_none(value: Any) -> str | None:
    """Return a value if it is printable text, else None."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def as_layer(value: Any) -> int:
    """Check that a value is the number of a layer."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST:
        raise RecipeError(f"a layer must be a whole number from 0 to {LONGEST}; got {brief(value)}")
    return value


def layer_from_text(text: str) -> int:
    """Read the number of a layer."""
    if re.fullmatch(r"\s*\+?\d{1,9}\s*", text, re.ASCII) is None:
        raise RecipeError(f"a layer must be a whole number from 0 to {LONGEST}; got {brief(text)}")
    return as_layer(int(text))


def as_depth(value: Any) -> int:
    """Check that a value is the number of layers of a base."""
    if as_layer(value) == 0:
        raise RecipeError("a base must have at least one layer; got 0")
    return int(value)


def half_open_ranges(value: Any, what: str) -> list[range]:
    """Read a list of pairs `[start, end]` with start < end as ranges without their ends.

    Raises:
        RecipeError: The value is no such list, or a range is empty or goes downwards.
    """
    ranges = []
    for pair in bounded_list(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecipeError(f"{what} must be [start, end], end excluded; got {brief(pair)}")
        start, stop = map(as_layer, pair)
        if start >= stop:
            raise RecipeError(f"{what} [{start}, {stop}] has no layer: expected start < end, end excluded")
        ranges.append(range(start, stop))
    return ranges


def bounded_list(values: Any) -> list[Any]:
    """Check that a value is a list of at least one entry, and of at most as many as a recipe can have visits."""
    if not isinstance(values, list) or not values:
        raise RecipeError(f"expected a list with at least one entry; got {brief(values)}")
    check_length(len(values))
    return values


def extend_map(visits: list[int], layers: range) -> None:
    """Append layers to a repeat map in place, up to the most visits that a recipe can have."""
    check_length(len(visits) + len(layers))
    visits += layers


def refuse_scales(recipe: Recipe, name: str) -> None:
    """Refuse a recipe with a strength other than 1, for a language without strengths; the error names the visit."""
    for visit, (layer, scale) in enumerate(recipe):
        if scale != 1:
            raise RecipeError(f"{name} has no strengths: visit {visit}, of layer {layer}, has the scale {scale:g}")


def require_depth(recipe: Recipe, what: str) -> int:
    """Return the number of layers of the recipe's base, which the recipe must state."""
    if recipe.depth is None:
        raise RecipeError(f"{what} states the base's depth and the recipe does not: name the base (--model)")
    return recipe.depth


def require_tool_name(name: str, tool: str) -> str:
    """Return a base's name unless it is David's demo model, which no other tool finds by that name."""
    if name == DEMO:
        raise RecipeError(
            f"{tool} does not know David's demo model: give its folder (on the command line --model demo)"
        )
    return name

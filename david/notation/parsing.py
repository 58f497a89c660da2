"""What the parsers of the recipe languages share: checked numbers, ranges and lists."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from david.errors import RecipeError
from david.recipe.base_model import DEMO
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from david.support.text import brief


class BaseHints(NamedTuple):
    """What is known beside a text: the base's depth and architecture, and which of several results is meant."""

    n_layers: int | None = None
    architecture: str | None = None
    rank: int = 1


class ParsedRecipe(NamedTuple):
    """What a text says: the visits, and where it tells them too, their strengths, the base's depth and its name."""

    visits: Sequence[int]
    scales: Sequence[float] | None = None
    n_layers: int | None = None
    model: str | None = None


def as_json(text: str, what: str) -> Any:
    """What a JSON text holds; `RecipeError` where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise RecipeError(f"cannot read {what}: it is nested too deeply") from None
    except ValueError as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RecipeError(f"cannot read {what}: it is not valid JSON{place}") from None


def repeated(blocks: Iterable[tuple[int, int]], n_layers: int) -> list[int]:
    """The base with blocks inserted one after the other, each behind the last visit of its last layer, as RYS does."""
    visits = list(range(n_layers))
    for start, stop in blocks:
        if (start, stop) == (0, 0):  # RYS writes the base so
            continue
        if not start < stop <= n_layers:
            raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ start < end ≤ {n_layers}, the base's layers")
        check_layers(len(visits) + stop - start)
        behind = len(visits) - visits[::-1].index(stop - 1)
        visits[behind:behind] = range(start, stop)
    return visits


def json_field(found: Any, key: str, what: str) -> Any:
    """Return the value of a key of a JSON object."""
    if not isinstance(found, Mapping) or key not in found:
        raise RecipeError(f"{what} must have {key!r}; got {brief(found)}")
    return found[key]


def text_or_none(value: Any) -> str | None:
    """Return a value if it is printable text."""
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


def depth_from_text(value: Any) -> int:
    """Check that a value is the depth of a base."""
    if as_layer(value) == 0:
        raise RecipeError("a base has at least one layer; got 0")
    return int(value)


def half_open_ranges(value: Any, what: str) -> list[range]:
    """Ranges `[start, end)` with start < end, of pairs of whole numbers."""
    ranges = []
    for pair in bounded_list(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecipeError(f"{what} must be [start, end], the end not in it; got {brief(pair)}")
        start, stop = map(as_layer, pair)
        if start >= stop:
            raise RecipeError(f"{what} [{start}, {stop}] holds no layer: it must go upwards, and its end is not in it")
        ranges.append(range(start, stop))
    return ranges


def bounded_list(values: Any) -> list[Any]:
    """A list with something in it, and not more than a recipe can have visits."""
    if not isinstance(values, list) or not values:
        raise RecipeError(f"expected a list with something in it; got {brief(values)}")
    check_layers(len(values))
    return values


def extend_map(visits: list[int], layers: range) -> None:
    """Append layers to a map, up to the most visits that a recipe may have."""
    check_layers(len(visits) + len(layers))
    visits += layers


def check_layers(visits: int) -> None:
    """Refuse more visits than a recipe may have."""
    if visits > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} visits; this one has more")


def known_base_name(name: str, tool: str) -> str:
    """Return a base name that the other tool can find."""
    if name == DEMO:
        raise RecipeError(
            f"{tool} does not know David's demo model: give its folder (on the command line --model demo)"
        )
    return name


def split_stretches(repeat_map: tuple[int, ...]) -> list[range]:
    """The map as the longest ranges upwards or downwards, from the left."""
    found: list[range] = []
    for layer in repeat_map:
        last = found[-1] if found else range(0)
        if len(last) == 1 and abs(layer - last.start) == 1:
            step = layer - last.start
            found[-1] = range(last.start, layer + step, step)
        elif len(last) > 1 and layer == last.stop:
            found[-1] = range(last.start, layer + last.step, last.step)
        else:
            found.append(range(layer, layer + 1))
    return found


def plain_only(recipe: Recipe, name: str) -> None:
    """`RecipeError`, naming the first visit that is not plain, for a language without strengths."""
    for visit, (layer, scale) in enumerate(recipe):
        if scale != 1:
            raise RecipeError(f"{name} has no strengths: visit {visit}, of layer {layer}, has the scale {scale:g}")


def base_needed(recipe: Recipe, what: str) -> int:
    """Return the depth of the recipe's base."""
    if recipe.base is None:
        raise RecipeError(f"{what} tells the base's depth, and the recipe does not: say which base it is of (--model)")
    return recipe.n_layers

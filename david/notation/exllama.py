"""`layer_map` of exllamav3 and `--repeats` of exllamav2's pull request 275."""

import re

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_json,
    as_layer,
    bounded_list,
    extend_map,
    refuse_scales,
)
from david.recipe.recipe import Recipe
from david.support.text import brief


def read_exllamav3(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read a `layer_map` by exllamav3's `parse_int_list` (util/misc.py, 4f8ad01): ends included, also downwards."""
    visits: list[int] = []
    if text.startswith("["):
        layers = as_json(text, "a layer_map")
        return ParsedRecipe([as_layer(value) for value in bounded_list(layers)])
    for part in text.split(","):
        match = re.fullmatch(r"\+?(\d{1,9})|(?:\+?(\d{1,9}))?\s*\.\.\s*(?:\+?(\d{1,9}))?", part.strip(), re.ASCII)
        if match is None:
            raise RecipeError(
                f"cannot read {brief(part.strip())} in the layer_map {brief(text)}: expected layers and ranges of "
                "layers with both ends included, such as '0..11,8..29'"
            )
        single, first, last = match.groups()
        if single is None and last is None and hints.n_layers is None:
            raise RecipeError(f"{brief(part.strip())} runs to the base's last layer: name the base (--model)")
        start = int(single or first or 0)
        stop = int(single or last or (hints.n_layers or 1) - 1)
        extend_map(visits, range(start, stop + 1) if start <= stop else range(start, stop - 1, -1))
    return ParsedRecipe(visits)


def read_exllamav2(text: str, _hints: BaseHints) -> ParsedRecipe:
    """Read `--repeats` as the head of the pull request (63e5c34) does: each tuple is `range(*tuple)`.

    The first commits of the pull request (3afecf7) included the end and ran on to the last layer; David does not read
    that meaning.
    """
    body = text.strip()
    shape = r"[\[(]\s*+(\([^()]*+\)\s*+,\s*+)*+(\([^()]*+\)\s*+)?[\])]"
    tuples = re.findall(r"\(([^()]*)\)", body[1:-1])
    if re.fullmatch(shape, body) is None or not tuples:
        raise RecipeError(f"cannot read repeats {brief(text)}: expected a list of tuples, such as '[(0, 12), (8, 30)]'")
    visits: list[int] = []
    for content in tuples:
        numbers = [part.strip() for part in content.removesuffix(",").split(",")]
        if len(numbers) > 3 or not all(re.fullmatch(r"-?\d{1,9}", part, re.ASCII) for part in numbers):
            raise RecipeError(f"a tuple of repeats is (start, end) or (start, end, step); got {brief(f'({content})')}")
        if len(numbers) == 3 and int(numbers[2]) == 0:
            raise RecipeError(f"the step of {brief(f'({content})')} must not be 0")
        layers = range(*map(int, numbers))
        if not layers or min(layers[0], layers[-1]) < 0:
            raise RecipeError(f"{brief(f'({content})')} has no layer, or one below 0: its end is excluded")
        extend_map(visits, layers)
    return ParsedRecipe(visits)


def write_exllamav3(recipe: Recipe, _model: str | None) -> str:
    """Write a `layer_map`: three layers or more in a row, up or down, as a range with both ends included."""
    refuse_scales(recipe, "exllamav3")
    return ",".join(
        f"{stretch[0]}..{stretch[-1]}" if len(stretch) > 2 else ",".join(map(str, stretch))
        for stretch in _split_stretches(recipe.repeat_map)
    )


def write_exllamav2(recipe: Recipe, _model: str | None) -> str:
    """Write tuples for `--repeats`, each one of Python's ranges; one that goes downwards has a step of −1."""
    refuse_scales(recipe, "exllamav2")
    tuples = [
        (layers.start, layers.stop) if layers.step == 1 else (layers.start, layers.stop, layers.step)
        for layers in _split_stretches(recipe.repeat_map)
    ]
    return str(tuples)


EXLLAMAV3 = Format(
    name="exllamav3",
    describes="its `layer_map`: `0..11,8..29`",
    read=read_exllamav3,
    write=write_exllamav3,
    range_end="included, also downwards",
    limits="strengths",
    looks_like=lambda text: ".." in text,
)

EXLLAMAV2 = Format(
    name="exllamav2",
    describes="`--repeats` of its pull request 275: `[(0, 12), (8, 30)]`",
    read=read_exllamav2,
    write=write_exllamav2,
    range_end="excluded",
    limits="strengths",
    looks_like=lambda text: re.match(r"[\[(]\s*\(", text) is not None,
    text_priority=1,
)


def _split_stretches(repeat_map: tuple[int, ...]) -> list[range]:
    """Split a repeat map into the longest ranges upwards or downwards, from the left."""
    stretches: list[range] = []
    for layer in repeat_map:
        last = stretches[-1] if stretches else range(0)
        if len(last) == 1 and abs(layer - last.start) == 1:
            step = layer - last.start
            stretches[-1] = range(last.start, layer + step, step)
        elif len(last) > 1 and layer == last.stop:
            stretches[-1] = range(last.start, layer + last.step, last.step)
        else:
            stretches.append(range(layer, layer + 1))
    return stretches

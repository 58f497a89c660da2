"""`layer_map` of exllamav3 and `--repeats` of exllamav2, read and written."""

import re

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    ParsedRecipe,
    as_json,
    as_layer,
    bounded_list,
    extend_map,
    plain_only,
    split_stretches,
)
from david.recipe.recipe import Recipe
from david.support.text import brief


def read_exllamav3(text: str, known: BaseHints) -> ParsedRecipe:
    """`layer_map`, by exllamav3's `parse_int_list` in util/misc.py (4f8ad01): both ends included, also downwards."""
    visits: list[int] = []
    if text.startswith("["):
        listed = as_json(text, "a layer_map")
        return ParsedRecipe([as_layer(value) for value in bounded_list(listed)])
    for part in text.split(","):
        match = re.fullmatch(r"\+?(\d{1,9})|(?:\+?(\d{1,9}))?\s*\.\.\s*(?:\+?(\d{1,9}))?", part.strip(), re.ASCII)
        if match is None:
            raise RecipeError(
                f"cannot read {brief(part.strip())} in the layer_map {brief(text)}: expected layers, and ranges of "
                "them with both ends included, such as '0..11,8..29'"
            )
        single, first, last = match.groups()
        if single is None and last is None and known.n_layers is None:
            raise RecipeError(f"{brief(part.strip())} runs to the base's last layer: say which base it is (--model)")
        start = int(single or first or 0)
        stop = int(single or last or (known.n_layers or 1) - 1)
        extend_map(visits, range(start, stop + 1) if start <= stop else range(start, stop - 1, -1))
    return ParsedRecipe(visits)


def read_exllamav2(text: str, _known: BaseHints) -> ParsedRecipe:
    """`--repeats` of exllamav2's pull request 275, as its head (63e5c34) reads it: each tuple is `range(*tuple)`.

    The pull request's first commits (3afecf7) took the end in and ran on to the last layer: that meaning is gone.
    """
    body = text.strip()
    shape = r"[\[(]\s*+(\([^()]*+\)\s*+,\s*+)*+(\([^()]*+\)\s*+)?[\])]"
    tuples = re.findall(r"\(([^()]*)\)", body[1:-1])
    if re.fullmatch(shape, body) is None or not tuples:
        raise RecipeError(f"cannot read repeats {brief(text)}: expected a list of tuples, such as '[(0, 12), (8, 30)]'")
    visits: list[int] = []
    for found in tuples:
        numbers = [part.strip() for part in found.removesuffix(",").split(",")]
        if len(numbers) > 3 or not all(re.fullmatch(r"-?\d{1,9}", part, re.ASCII) for part in numbers):
            raise RecipeError(f"a tuple of repeats is (start, end) or (start, end, step); got {brief(f'({found})')}")
        if len(numbers) == 3 and int(numbers[2]) == 0:
            raise RecipeError(f"the step of {brief(f'({found})')} must not be 0")
        layers = range(*map(int, numbers))
        if not layers or min(layers[0], layers[-1]) < 0:
            raise RecipeError(f"{brief(f'({found})')} holds no layer, or one below 0: its end is not in it")
        extend_map(visits, layers)
    return ParsedRecipe(visits)


def write_exllamav3(recipe: Recipe, _model: str | None) -> str:
    """A layer_map: stretches of three layers and more, up or down, as ranges with both ends included."""
    plain_only(recipe, "exllamav3")
    return ",".join(
        f"{stretch[0]}..{stretch[-1]}" if len(stretch) > 2 else ",".join(map(str, stretch))
        for stretch in split_stretches(recipe.repeat_map)
    )


def write_exllamav2(recipe: Recipe, _model: str | None) -> str:
    """Tuples for `--repeats`, each one of Python's ranges; one that goes downwards has a step of −1."""
    plain_only(recipe, "exllamav2")
    tuples = [
        (layers.start, layers.stop) if layers.step == 1 else (layers.start, layers.stop, layers.step)
        for layers in split_stretches(recipe.repeat_map)
    ]
    return str(tuples)

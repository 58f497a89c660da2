"""David's own two formats: the recipe file and the short notation."""

from david.notation.parsing import BaseHints, Format, ParsedRecipe
from david.recipe.recipe import Recipe


def read_david(text: str, _hints: BaseHints) -> Recipe:
    """Read a `david.recipe` JSON."""
    return Recipe.from_json(text)


def write_david(recipe: Recipe, _model: str | None) -> str:
    """Write a `david.recipe` JSON."""
    return recipe.to_json()


def read_notation(text: str, _hints: BaseHints) -> ParsedRecipe:
    """Read the short notation."""
    recipe = Recipe.parse(text)
    return ParsedRecipe(recipe.repeat_map, recipe.scales)


def write_notation(recipe: Recipe, _model: str | None) -> str:
    """Write the short notation."""
    return str(recipe)


DAVID = Format(
    name="david",
    describes="a `david.recipe` JSON",
    read=read_david,
    write=write_david,
    json_keys=("format",),
    json_priority=5,
)

NOTATION = Format(
    name="notation",
    describes="David's own: `0:12, 8:30`",
    read=read_notation,
    write=write_notation,
    range_end="excluded",
    looks_like=lambda _text: True,
    text_priority=-1,
)

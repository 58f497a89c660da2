"""The recipe file, `david.recipe` version 1: parse and write its JSON, read and replace the file on disk.

Files are at most a megabyte. Nothing in a file is executed. `Recipe.load`, `save`, `from_json` and `to_json` are the
ways to it.
"""

import codecs
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, FailFast, Field, ValidationError

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.schema import MAX_FILE_BYTES, Measurement, Origin, Part, Versions
from david.support.files import expand_home, reason
from david.support.text import brief

if TYPE_CHECKING:
    from david.recipe.recipe import Recipe

_MAX_ERRORS = 1000  # in one file: only the first is reported, but each takes a kilobyte


class RecipeDocument(Part):
    """The content of a recipe file, read strictly."""

    format: Literal["david.recipe"]
    version: Annotated[int, Field(ge=1, le=1)]
    base: Base | None = None
    repeat_map: Annotated[list[int], FailFast()]
    scales: Annotated[list[float] | None, FailFast()] = None
    written_as: str | None = None
    scores: Annotated[tuple[Measurement, ...], FailFast()] = ()
    search: Origin | None = None
    made_with: Versions | None = None


def parse_document(text: str | bytes) -> RecipeDocument:
    """Parse the JSON of a recipe file.

    Raises:
        RecipeError: It is longer than a megabyte, or not valid `david.recipe` version 1.
    """
    if len(text) > MAX_FILE_BYTES:
        raise RecipeError(f"over {MAX_FILE_BYTES} bytes: not a recipe")
    try:
        return RecipeDocument.model_validate_json(text)
    except ValidationError as error:
        if error.error_count() > _MAX_ERRORS:
            raise RecipeError(f"not a david.recipe: {error.error_count()} places in it are wrong") from None
        first = error.errors(include_url=False)[0]
        where = brief(".".join(map(str, first["loc"]))).strip("'\"") or "the document"
        raise RecipeError(f"not a valid david.recipe version 1: {where}: {first['msg']}") from None


def document_json(recipe: "Recipe") -> str:
    """Return a recipe as the JSON of a recipe file, a line for each key."""

    def dump(part: BaseModel | None) -> dict[str, Any] | None:
        return None if part is None else part.model_dump(mode="json")

    document = {
        "format": "david.recipe",
        "version": 1,
        "base": dump(recipe.base),
        "repeat_map": list(recipe.repeat_map),
        "scales": [int(scale) if scale == int(scale) else scale for scale in recipe.scales],
        "written_as": recipe.written_as,
        "scores": [dump(score) for score in recipe.scores],
        "search": dump(recipe.search),
        "made_with": dump(recipe.made_with),
    }
    return "{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in document.items()) + "\n}\n"


def read_recipe_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a recipe file without a byte-order mark, at most one more than a file may have.

    Raises:
        RecipeError: The file is missing or cannot be read.
    """
    try:
        with open(expand_home(path), "rb") as file:
            return file.read(MAX_FILE_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read recipe {os.fspath(path)}: {reason(error)}") from None


def write_recipe_file(path: str | os.PathLike[str], text: str) -> None:
    """Write a recipe file: to a temporary file beside it, then rename, so that no reader sees half of one.

    Raises:
        RecipeError: The text is longer than a file may be, or the file cannot be written.
    """
    target = Path(path)
    if len(text) > MAX_FILE_BYTES:
        raise RecipeError(f"a recipe file has at most {MAX_FILE_BYTES} bytes; this recipe has {len(text)}")
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

"""Read and write recipes in the languages of other tools: with exactly their meaning, or refused with the reason.

`read` and `write` take the name of a format, one of `FORMATS`; without one, `read` recognises it. A format is a
`Format` in the file of its tool and a line in `FORMAT_TABLE`. mergekit and PEFT leave the base's per-layer settings
(`layer_types`) as they were, whatever the map: of a base that has some, their model fails or is another model
(experiments/notation measures it).
"""

import os
import re
from collections.abc import Collection

from david.errors import RecipeError
from david.notation.drllm import DRLLM
from david.notation.exllama import EXLLAMAV2, EXLLAMAV3
from david.notation.layer_scan import LAYER_SCAN
from david.notation.mergekit import MERGEKIT
from david.notation.own import DAVID, NOTATION
from david.notation.parsing import BaseHints, Format, ParsedRecipe, as_json
from david.notation.peft import PEFT
from david.notation.polar import MOST_TEXT, POLAR, has_paths
from david.notation.rys import RYS, RYS_RELAYER
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import MAX_FILE_BYTES
from david.support.arguments import check_type
from david.support.files import expand_home, reason
from david.support.text import brief

FORMAT_TABLE = (DAVID, NOTATION, MERGEKIT, RYS, RYS_RELAYER, EXLLAMAV3, EXLLAMAV2, PEFT, LAYER_SCAN, DRLLM, POLAR)
FORMATS = tuple(entry.name for entry in FORMAT_TABLE)  # all of them can be read
WRITABLE = tuple(entry.name for entry in FORMAT_TABLE if entry.write is not None)


def _markdown_table() -> str:
    rows = [("format", "what it is", "a range's end", "what it cannot express"), ("---",) * 4]
    rows += [(f"`{entry.name}`", entry.describes, entry.range_end, entry.limits) for entry in FORMAT_TABLE]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


__doc__ = f"{__doc__}\n{_markdown_table()}\n"


def read(
    source: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002  # the word for it
    *,
    n_layers: int | None = None,
    architecture: str | None = None,
    rank: int = 1,
) -> Recipe:
    """Read a recipe in any format, from a file or a text.

    Args:
        source: The text, or the path of a file of at most a megabyte, or 200 for PoLar's paths.
        format: One of `FORMATS`; left out, the text is recognised. A bare list of numbers is read as layers: it is a
            vector of Dr.LLM only if `format` is `"drllm"`.
        n_layers: Layers of the base, for a text that does not state them and whose meaning depends on them.
        architecture: Class name of the base, such as `"LlamaForCausalLM"`, for the same reason.
        rank: Which recipe to read of a file that holds several (`layer-scan`, `polar`), from 1, the best.

    Returns:
        The recipe, with its base if the depth is known.

    Raises:
        RecipeError: The source cannot be read, is not in the format, means something that a recipe cannot express, or
            contradicts `n_layers`.

    Example:
        >>> str(read("0..11,8..29"))
        '0:12, 8:30'
        >>> str(read("blocks:8,12;20,22", n_layers=30))
        '0:12, 8:22, 20:30'
        >>> str(read("[1, 1, 2, 0, 1]", "drllm"))
        '0:3, 2, 4'
    """
    text = _text_of(source, format)
    entry = _recognised(text) if format is None else format_named(format)
    if rank != 1 and not entry.has_ranks:
        ranked = ", ".join(other.name for other in FORMAT_TABLE if other.has_ranks)
        raise RecipeError(f"rank requires a format whose files hold several recipes ({ranked}); this is {entry.name}")
    parsed = entry.read(text, BaseHints(n_layers, architecture, rank))
    if isinstance(parsed, Recipe):
        if n_layers is not None:
            parsed.check(n_layers)
        return parsed
    return _with_base(parsed, n_layers, architecture)


def write(recipe: Recipe, format: str, *, model: str | None = None) -> str:  # noqa: A002
    """Write a recipe in a format, such that `read` returns an equal recipe.

    Args:
        recipe: The recipe. Its `base` gives the depth and architecture that some formats need.
        format: One of `FORMATS` but `"layer-scan"`.
        model: The name by which the tool finds the base, a folder or a Hub id; left out, the one in the recipe.

    Returns:
        The text.

    Raises:
        RecipeError: The format cannot express the recipe, in which case the message names the visit; or it needs to
            know something of the base that the recipe does not state.

    Example:
        >>> recipe = Recipe.from_blocks(30, [(8, 12, 2)])
        >>> write(recipe, "exllamav3"), write(recipe, "rys")
        ('0..11,8..29', 'blocks:8,12')
        >>> print(write(recipe, "mergekit", model="owner/name"), end="")
        merge_method: passthrough
        slices:
        - sources:
          - model: owner/name
            layer_range: [0, 12]
        - sources:
          - model: owner/name
            layer_range: [8, 30]
    """
    check_type("recipe", recipe, Recipe, RecipeError)
    entry = format_named(format, WRITABLE)
    if entry.write is None:
        raise RecipeError(f"{entry.name} can only be read: write one of {', '.join(WRITABLE)}")
    return entry.write(recipe, model)


def format_named(name: str, expected: Collection[str] = FORMATS) -> Format:
    """Return the format of a name.

    Args:
        name: The name.
        expected: The names to list in the error.

    Raises:
        RecipeError: There is no format of this name.

    Example:
        >>> format_named("exllamav3").range_end
        'included, also downwards'
    """
    entry = next((entry for entry in FORMAT_TABLE if entry.name == name), None)
    if entry is None:
        raise RecipeError(f"unknown format {brief(name)}: expected one of {', '.join(expected)}")
    return entry


def _text_of(source: str | os.PathLike[str], name: str | None) -> str:
    """Return the text itself, or the content of the file that it names."""
    check_type("source", source, (str, os.PathLike), RecipeError)
    if isinstance(source, str) and not os.path.exists(expand_home(source)):
        if re.fullmatch(r"\S+\.(json|ya?ml)", source):
            raise RecipeError(f"cannot read {brief(source)}: there is no such file")
        text = source
    else:
        try:
            with open(expand_home(source), "rb") as file:
                text = file.read(MOST_TEXT + 1).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read {brief(os.fspath(source))}: {reason(error)}") from None
    holds_paths = name == POLAR.name or (name is None and has_paths(text))
    if len(text) > (MOST_TEXT if holds_paths else MAX_FILE_BYTES):
        raise RecipeError(f"a recipe in any format has at most {MAX_FILE_BYTES} characters; this text has more")
    return text.strip()


def _recognised(text: str) -> Format:
    if text.startswith("{"):
        keys = as_json(text, "a JSON object")
        candidates = [entry for entry in FORMAT_TABLE if not keys.keys().isdisjoint(entry.json_keys)]
        if not candidates and has_paths(text):
            return POLAR
        if not candidates:
            raise RecipeError(f"no format has this JSON's keys {brief(list(keys))}: name its format (--from)")
        return max(candidates, key=lambda entry: entry.json_priority)
    candidates = [entry for entry in FORMAT_TABLE if entry.looks_like is not None and entry.looks_like(text)]
    return max(candidates, key=lambda entry: entry.text_priority)


def _with_base(parsed: ParsedRecipe, n_layers: int | None, architecture: str | None) -> Recipe:
    """Make a recipe, with what the text and the caller know of its base."""
    if parsed.n_layers is not None and n_layers not in (None, parsed.n_layers):
        raise RecipeError(f"this recipe is for a base of {parsed.n_layers} layers; the base given has {n_layers}")
    scales = None if parsed.scales is None else tuple(parsed.scales)
    recipe = Recipe(tuple(parsed.visits), scales)  # type: ignore[arg-type]
    depth = parsed.n_layers or n_layers
    if depth is None and parsed.model is None:
        return recipe
    base = Base(num_layers=depth, model=parsed.model, architecture=architecture, revision=parsed.revision)
    return Recipe(recipe.repeat_map, recipe.scales, base=base)

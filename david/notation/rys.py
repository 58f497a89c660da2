"""Specs of dnhkng/RYS and its `rys_relayer` entries, read and written."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    ParsedRecipe,
    as_json,
    as_layer,
    base_needed,
    bounded_list,
    depth_from_text,
    json_field,
    known_base_name,
    layer_from_text,
    plain_only,
    repeated,
    text_or_none,
)
from david.recipe.recipe import Recipe
from david.support.text import brief

_SPEC_KEYS = ("layers", "layer_indices", "blocks", "key", "spec")  # of a RYS entry, in the order RYS looks for them


def read_rys(text: str, known: BaseHints) -> ParsedRecipe:
    """Block and layer specs of dnhkng/RYS, by its `normalize_to_layers` in src/core/layer_config.py (3e75aca)."""
    spec = _rys_spec(as_json(text, "a RYS entry") if text.startswith(("{", "[")) else text)
    if isinstance(spec, list):
        return ParsedRecipe([as_layer(value) for value in bounded_list(spec)])
    kind, _, rest = spec.strip().rpartition(":")
    if kind.strip().lower() == "layers":
        parts = [part for part in rest.split(",") if part.strip()]
        return ParsedRecipe([layer_from_text(part) for part in bounded_list(parts)])
    if kind.strip().lower() not in ("", "blocks"):
        raise RecipeError(f"a RYS spec begins with 'blocks:' or 'layers:'; got {brief(spec)}")
    if known.n_layers is None:
        raise RecipeError("a RYS block spec does not tell the base's depth: say which base it is of (--model)")
    pairs = [part.strip() for part in rest.split(";") if part.strip()]
    return ParsedRecipe(
        repeated([_block(pair) for pair in bounded_list(pairs)], known.n_layers), n_layers=known.n_layers
    )


def _rys_spec(found: Any) -> str | list[Any]:
    """A spec as text, or as a list of layers: what RYS takes out of an entry of its queues and results."""
    for _ in range(2):  # an entry may hold its spec, which is read in turn
        if isinstance(found, Mapping):
            key = next((key for key in _SPEC_KEYS if key in found), None)
            if key is None:
                raise RecipeError(f"a RYS entry has one of {', '.join(_SPEC_KEYS)}; got {brief(found)}")
            if key in ("layers", "layer_indices"):
                return bounded_list(found[key])
            found = f"blocks:{found[key]}" if key == "blocks" else found[key]
    if isinstance(found, list) and len(found) == 2:  # outside an entry's layers, two numbers are a block
        return f"{as_layer(found[0])},{as_layer(found[1])}"
    if not isinstance(found, str | list):
        raise RecipeError(f"expected a RYS spec such as 'blocks:8,12;20,24' or 'layers:0,1,1,2'; got {brief(found)}")
    return found


def _block(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\(?\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)?", text, re.ASCII)
    if found is None or text.startswith("(") != text.endswith(")"):
        raise RecipeError(f"a RYS block must be 'start,end'; got {brief(text)}")
    return int(found[1]), int(found[2])


def read_relayer(text: str, _known: BaseHints) -> ParsedRecipe:
    """`rys_relayer`, which RYS's export leaves in a config.json (hf_export/common.py); nothing there reads it back."""
    found = as_json(text, "a config.json")
    found = json_field(found, "rys_relayer", "a configuration that RYS exported")
    depth = depth_from_text(json_field(found, "source_num_layers", "rys_relayer"))
    layers = json_field(found, "layer_indices", "rys_relayer")
    if not isinstance(layers, list):
        raise RecipeError(f"layer_indices must be a list of layers; got {brief(layers)}")
    visits = [as_layer(value) for value in bounded_list(layers)]
    if found.get("target_num_layers", len(visits)) != len(visits):
        raise RecipeError(
            f"rys_relayer contradicts itself: {len(visits)} layer_indices, but target_num_layers "
            f"{brief(found['target_num_layers'])}"
        )
    return ParsedRecipe(visits, n_layers=depth, model=text_or_none(found.get("source_repo_id")))


def write_rys(recipe: Recipe, _model: str | None) -> str:
    """A block spec where RYS reads that as the same visits, else a layer spec."""
    plain_only(recipe, "RYS")
    if recipe.base is not None:
        runs = recipe.segments
        blocks = [(after.start, before.stop) for before, after in pairwise(runs) if after.start < before.stop]
        if blocks and len(blocks) == len(runs) - 1:
            try:
                same = tuple(repeated(blocks, recipe.n_layers)) == recipe.repeat_map
            except RecipeError:  # longer than any recipe
                same = False
            if same:
                return "blocks:" + ";".join(f"{start},{stop}" for start, stop in blocks)
    return "layers:" + ",".join(map(str, recipe.repeat_map))


def write_relayer(recipe: Recipe, model: str | None) -> str:
    """The entry that RYS's export puts into a config.json."""
    plain_only(recipe, "rys_relayer")
    base = base_needed(recipe, "rys_relayer")
    name = model or (recipe.base.model if recipe.base else None)
    again = {str(layer): count for layer, count in sorted(Counter(recipe.repeat_map).items()) if count > 1}
    entry = {
        "source_repo_id": name and known_base_name(name, "rys_relayer"),
        "source_num_layers": base,
        "target_num_layers": len(recipe),
        "spec": write_rys(recipe, None),
        "layer_indices": list(recipe.repeat_map),
        "duplication_counts": again,
    }
    return json.dumps({"rys_relayer": entry}) + "\n"

"""Block and layer specs of dnhkng/RYS, and the `rys_relayer` entries of its export (3e75aca)."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_depth,
    as_json,
    as_layer,
    bounded_list,
    json_field,
    layer_from_text,
    refuse_scales,
    require_depth,
    require_tool_name,
    text_or_none,
)
from david.recipe.parsing import check_length
from david.recipe.recipe import Recipe
from david.support.text import brief

_SPEC_KEYS = ("layers", "layer_indices", "blocks", "key", "spec")  # of a RYS entry, in the order RYS looks for them
_RYS_TEXT = r"\(?\s*+\d++\s*+,\s*+\d++\s*+\)?\s*+;|(layers|blocks)\s*+:\s*+[\d(]"  # how a spec begins


def read_rys(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read a block or layer spec, by RYS's `normalize_to_layers` in src/core/layer_config.py."""
    spec = _rys_spec(as_json(text, "a RYS entry") if text.startswith(("{", "[")) else text)
    if isinstance(spec, list):
        return ParsedRecipe([as_layer(value) for value in bounded_list(spec)])
    kind, _, rest = spec.strip().rpartition(":")
    if kind.strip().lower() == "layers":
        parts = [part for part in rest.split(",") if part.strip()]
        return ParsedRecipe([layer_from_text(part) for part in bounded_list(parts)])
    if kind.strip().lower() not in ("", "blocks"):
        raise RecipeError(f"a RYS spec begins with 'blocks:' or 'layers:'; got {brief(spec)}")
    if hints.n_layers is None:
        raise RecipeError("a RYS block spec does not state the base's depth: name the base (--model)")
    pairs = [part.strip() for part in rest.split(";") if part.strip()]
    return ParsedRecipe(
        _insert_blocks([_block(pair) for pair in bounded_list(pairs)], hints.n_layers), n_layers=hints.n_layers
    )


def _rys_spec(entry: Any) -> str | list[Any]:
    """Extract the spec, as text or as a list of layers, as RYS does from an entry of its queues and results."""
    for _ in range(2):  # an entry may hold its spec, which is read in turn
        if isinstance(entry, Mapping):
            key = next((key for key in _SPEC_KEYS if key in entry), None)
            if key is None:
                raise RecipeError(f"a RYS entry must have one of {', '.join(_SPEC_KEYS)}; got {brief(entry)}")
            if key in ("layers", "layer_indices"):
                return bounded_list(entry[key])
            entry = f"blocks:{entry[key]}" if key == "blocks" else entry[key]
    if isinstance(entry, list) and len(entry) == 2:  # outside an entry's layers, two numbers are a block
        return f"{as_layer(entry[0])},{as_layer(entry[1])}"
    if not isinstance(entry, str | list):
        raise RecipeError(f"expected a RYS spec such as 'blocks:8,12;20,24' or 'layers:0,1,1,2'; got {brief(entry)}")
    return entry


def _block(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\(?\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)?", text, re.ASCII)
    if match is None or text.startswith("(") != text.endswith(")"):
        raise RecipeError(f"a RYS block must be 'start,end'; got {brief(text)}")
    return int(match[1]), int(match[2])


def read_relayer(text: str, _hints: BaseHints) -> ParsedRecipe:
    """Read `rys_relayer` from a config.json of RYS's export (hf_export/common.py), which RYS does not read back."""
    entry = json_field(as_json(text, "a config.json"), "rys_relayer", "a configuration that RYS exported")
    depth = as_depth(json_field(entry, "source_num_layers", "rys_relayer"))
    layers = json_field(entry, "layer_indices", "rys_relayer")
    if not isinstance(layers, list):
        raise RecipeError(f"layer_indices must be a list of layers; got {brief(layers)}")
    visits = [as_layer(value) for value in bounded_list(layers)]
    if entry.get("target_num_layers", len(visits)) != len(visits):
        raise RecipeError(
            f"rys_relayer contradicts itself: {len(visits)} layer_indices, but target_num_layers "
            f"{brief(entry['target_num_layers'])}"
        )
    return ParsedRecipe(visits, n_layers=depth, model=text_or_none(entry.get("source_repo_id")))


def write_rys(recipe: Recipe, _model: str | None) -> str:
    """Write a block spec if RYS reads it as the same visits, else a layer spec."""
    refuse_scales(recipe, "RYS")
    if recipe.depth is not None:
        runs = recipe.segments
        blocks = [(after.start, before.stop) for before, after in pairwise(runs) if after.start < before.stop]
        if blocks and len(blocks) == len(runs) - 1:
            try:
                same = tuple(_insert_blocks(blocks, recipe.n_layers)) == recipe.repeat_map
            except RecipeError:  # longer than any recipe
                same = False
            if same:
                return "blocks:" + ";".join(f"{start},{stop}" for start, stop in blocks)
    return "layers:" + ",".join(map(str, recipe.repeat_map))


def write_relayer(recipe: Recipe, model: str | None) -> str:
    """Write the entry that RYS's export puts into a config.json."""
    refuse_scales(recipe, "rys_relayer")
    depth = require_depth(recipe, "rys_relayer")
    name = model or (recipe.base.model if recipe.base else None)
    repeat_counts = {str(layer): count for layer, count in sorted(Counter(recipe.repeat_map).items()) if count > 1}
    entry = {
        "source_repo_id": name and require_tool_name(name, "rys_relayer"),
        "source_num_layers": depth,
        "target_num_layers": len(recipe),
        "spec": write_rys(recipe, None),
        "layer_indices": list(recipe.repeat_map),
        "duplication_counts": repeat_counts,
    }
    return json.dumps({"rys_relayer": entry}) + "\n"


RYS = Format(
    name="rys",
    describes="`blocks:8,12;20,24` or `layers:0,1,1,2`, dnhkng/RYS",
    read=read_rys,
    write=write_rys,
    range_end="excluded",
    limits="strengths",
    json_keys=("layers", "layer_indices", "blocks"),
    looks_like=lambda text: re.match(_RYS_TEXT, text, re.IGNORECASE | re.ASCII) is not None,
    text_priority=3,
)

RYS_RELAYER = Format(
    name="rys_relayer",
    describes="the entry of RYS's export in a `config.json`",
    read=read_relayer,
    write=write_relayer,
    limits="strengths",
    json_keys=("rys_relayer",),
    json_priority=4,
    names_base=True,
)


def _insert_blocks(blocks: Iterable[tuple[int, int]], n_layers: int) -> list[int]:
    """Insert blocks into the base as RYS does: in order, each after the last visit of the block's last layer.

    Args:
        blocks: Pairs (start, end), end excluded; (0, 0) is how RYS writes the base.
        n_layers: Layers of the base.

    Returns:
        The layers in the order of their visits.

    Raises:
        RecipeError: A block is not in the base, or there would be too many visits.
    """
    visits = list(range(n_layers))
    for start, stop in blocks:
        if (start, stop) == (0, 0):
            continue
        if not start < stop <= n_layers:
            raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ start < end ≤ {n_layers}, the base's layers")
        check_length(len(visits) + stop - start)
        end = len(visits) - visits[::-1].index(stop - 1)
        visits[end:end] = range(start, stop)
    return visits

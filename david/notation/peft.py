"""`layer_replication` of a LoRA configuration, as PEFT 0.21 reads it."""

import json
import re
from collections.abc import Mapping

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_json,
    extend_map,
    half_open_ranges,
    json_field,
    refuse_scales,
    text_or_none,
)
from david.recipe.recipe import Recipe


def read_peft(text: str, _hints: BaseHints) -> ParsedRecipe:
    """Read `layer_replication`, alone or in a configuration, by PEFT's `replicate_layers`: half-open ranges."""
    config = as_json(text, "a layer_replication")
    ranges, name = config, None
    if isinstance(config, Mapping):
        name = text_or_none(config.get("base_model_name_or_path"))
        ranges = json_field(config, "layer_replication", "a PEFT configuration")
        if ranges is None:
            raise RecipeError("this adapter has no layer_replication: it runs the base unchanged")
    visits: list[int] = []
    for layers in half_open_ranges(ranges, "layer_replication"):
        extend_map(visits, layers)
    return ParsedRecipe(visits, model=name)


def write_peft(recipe: Recipe, _model: str | None) -> str:
    """Write a JSON object with `layer_replication`."""
    refuse_scales(recipe, "PEFT")
    return json.dumps({"layer_replication": [[start, stop] for start, stop, _ in recipe.segments]}) + "\n"


PEFT = Format(
    name="peft",
    describes="`layer_replication` of a LoRA configuration",
    read=read_peft,
    write=write_peft,
    range_end="excluded",
    limits="strengths",
    json_keys=("layer_replication",),
    json_priority=3,
    looks_like=lambda text: re.match(r"\[\s*\[", text) is not None,
    text_priority=1,
    keeps_layer_settings=True,
)

"""PEFT's `layer_replication`, read and written."""

import json
from collections.abc import Mapping

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    ParsedRecipe,
    as_json,
    extend_map,
    half_open_ranges,
    json_field,
    plain_only,
    text_or_none,
)
from david.recipe.recipe import Recipe


def read_peft(text: str, _known: BaseHints) -> ParsedRecipe:
    """`layer_replication` of a LoRA configuration, by PEFT 0.21's `replicate_layers`: half-open ranges."""
    found = as_json(text, "a layer_replication")
    name = None
    if isinstance(found, Mapping):
        name = text_or_none(found.get("base_model_name_or_path"))
        found = json_field(found, "layer_replication", "a PEFT configuration")
        if found is None:
            raise RecipeError("this adapter has no layer_replication: it is for the base as it is")
    visits: list[int] = []
    for layers in half_open_ranges(found, "layer_replication"):
        extend_map(visits, layers)
    return ParsedRecipe(visits, model=name)


def write_peft(recipe: Recipe, _model: str | None) -> str:
    """The `layer_replication` of a LoRA configuration."""
    plain_only(recipe, "PEFT")
    return json.dumps({"layer_replication": [[start, stop] for start, stop, _ in recipe.segments]}) + "\n"

"""Vectors of Dr.LLM: how often each layer runs, 0, 1 or 2 times in a row.

parameterlab/dr-llm (14e8837): `layer_decisions` in train.py, and `for _ in range(decision)` in its models.
"""

import json
from collections import Counter
from itertools import pairwise

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_json,
    bounded_list,
    refuse_scales,
    require_depth,
)
from david.recipe.recipe import Recipe
from david.support.text import brief


def read_drllm(text: str, _hints: BaseHints) -> ParsedRecipe:
    """Read a vector of counts, with or without brackets."""
    counts = as_json(text if text.startswith("[") else f"[{text}]", "a vector of Dr.LLM")
    for layer, count in enumerate(bounded_list(counts)):
        if isinstance(count, bool) or count not in (0, 1, 2):
            raise RecipeError(f"Dr.LLM has 0 (skip), 1 (execute) or 2 (repeat) for layer {layer}; got {brief(count)}")
    visits = [layer for layer, count in enumerate(counts) for _ in range(int(count))]
    return ParsedRecipe(visits, n_layers=len(counts))


def write_drllm(recipe: Recipe, _model: str | None) -> str:
    """Write a vector of counts; refuse a recipe that goes back, or visits a layer three times."""
    refuse_scales(recipe, "Dr.LLM")
    depth = require_depth(recipe, "a vector of Dr.LLM")
    for visit, (before, layer) in enumerate(pairwise(recipe.repeat_map), start=1):
        if layer < before:
            raise RecipeError(f"Dr.LLM never goes back: visit {visit} goes from layer {before} to layer {layer}")
    counts = Counter(recipe.repeat_map)
    for visit, layer in enumerate(recipe.repeat_map):
        if counts[layer] > 2:
            raise RecipeError(
                f"Dr.LLM runs a layer at most twice: visit {visit + 2} would run layer {layer} a third time"
            )
    return json.dumps([counts[layer] for layer in range(depth)])


DRLLM = Format(
    name="drllm",
    describes="0 skip, 1 execute, 2 repeat for each layer, Dr.LLM",
    read=read_drllm,
    write=write_drllm,
    limits="strengths, going back, three times",
)

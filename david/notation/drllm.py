"""Vectors of Dr.LLM, read and written."""

import json
from collections import Counter
from itertools import pairwise

from david.errors import RecipeError
from david.notation.parsing import BaseHints, ParsedRecipe, as_json, base_needed, bounded_list, plain_only
from david.recipe.recipe import Recipe
from david.support.text import brief


def read_drllm(text: str, _known: BaseHints) -> ParsedRecipe:
    """A vector of Dr.LLM: how often each layer runs, one time behind the other, 0, 1 or 2.

    parameterlab/dr-llm (14e8837): `layer_decisions` in train.py, and `for _ in range(decision)` in its models.
    """
    counts = as_json(text if text.startswith("[") else f"[{text}]", "a vector of Dr.LLM")
    for layer, count in enumerate(bounded_list(counts)):
        if isinstance(count, bool) or count not in (0, 1, 2):
            raise RecipeError(f"Dr.LLM has 0 (skip), 1 (execute) or 2 (repeat) for layer {layer}; got {brief(count)}")
    visits = [layer for layer, count in enumerate(counts) for _ in range(int(count))]
    return ParsedRecipe(visits, n_layers=len(counts))


def write_drllm(recipe: Recipe, _model: str | None) -> str:
    """A vector of Dr.LLM, which knows of a layer only how often it runs, one time behind the other."""
    plain_only(recipe, "Dr.LLM")
    depth = base_needed(recipe, "a vector of Dr.LLM")
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

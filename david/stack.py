"""The same recipe with its layers really stacked: a second model with its own weights, in plain transformers.

Nothing here is shared with `layers` or `sling`, so that it can stand as the reference of a proof.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from david.errors import SlingError
from david.recipe import Recipe


def stacked(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """A deep copy of an unslung model whose layers are those of the recipe, each visit with its own weights.

    The model is built anew from a configuration of the map's depth, and the base's weights are copied into it.
    Raises `RecipeError` where the recipe has layers that the model lacks.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    n_layers = text.num_hidden_layers
    recipe.check(n_layers)
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = [text.layer_types[layer] for layer in recipe.repeat_map]
    text.num_hidden_layers = len(recipe)

    weights = model.state_dict()
    prefix = _layer_prefix(list(weights), n_layers)
    of_layers = [key for key in weights if key.startswith(prefix)]
    stack = {key: value.clone() for key, value in weights.items() if not key.startswith(prefix)}
    for visit, layer in enumerate(recipe.repeat_map):
        here, there = f"{prefix}{layer}.", f"{prefix}{visit}."
        stack |= {there + key.removeprefix(here): weights[key].clone() for key in of_layers if key.startswith(here)}

    copied = type(model)._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    copied.load_state_dict(stack)
    copied.tie_weights()
    copied.to(model.device).eval()
    copied.generation_config = copy.deepcopy(model.generation_config)
    for visit, scale in enumerate(recipe.scales):
        if scale != 1:
            _damp(copied.get_submodule(f"{prefix}{visit}"), scale)
    return copied


def _layer_prefix(keys: Sequence[str], n_layers: int) -> str:
    """The part of the weights' names before the layers' numbers, such as `model.layers.`."""
    numbers: dict[str, set[int]] = {}
    for key in keys:
        if match := re.match(r"(.*?\.)(\d+)\.", key):
            numbers.setdefault(match[1], set()).add(int(match[2]))
    whole = [prefix for prefix, found in numbers.items() if found == set(range(n_layers)) and "vision" not in prefix]
    if len(whole) != 1:
        raise SlingError(f"expected one list of {n_layers} layers among the weights' names; found {whole}")
    return whole[0]


def _damp(layer: nn.Module, scale: float) -> None:
    run = layer.forward

    def damped(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = run(hidden_states.clone(), *args, **kwargs)
        if isinstance(output, tuple):
            return (hidden_states + scale * (output[0] - hidden_states), *output[1:])
        return hidden_states + scale * (output - hidden_states)

    layer.forward = damped

"""The same recipe with its layers really stacked: a second model with its own weights, in plain transformers.

Its mechanism shares nothing with `layers` and `sling`, so that it can stand as the reference of a proof.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from david.errors import SlingError
from david.recipe import Recipe
from david.sling import is_slung


def stacked(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """A deep copy of an unslung model whose layers are those of the recipe, each visit with its own weights.

    The model is built anew from a configuration of the map's depth, and the base's weights are copied into it.
    Raises `RecipeError` where the recipe has layers that the model lacks.
    """
    if is_slung(model):
        raise SlingError("stacked() copies a base: this model is slung, so reset it first")
    config = copy.deepcopy(model.config)
    _follow(config.get_text_config(decoder=True), recipe)

    weights = model.state_dict()
    prefix = _layer_prefix(list(weights), model.config.get_text_config(decoder=True).num_hidden_layers)
    copied = type(model)._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    copied.load_state_dict(_stacked_tensors(weights, prefix, recipe))
    copied.tie_weights()
    copied.to(model.device).eval()
    for name, buffer in _stacked_tensors(dict(model.named_buffers()), prefix, recipe).items():
        owner, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(owner), leaf, buffer)  # those that no checkpoint holds, rotary frequencies say
    copied.generation_config = copy.deepcopy(model.generation_config)
    for visit, scale in enumerate(recipe.scales):
        if scale != 1:
            _damp(copied.get_submodule(f"{prefix}{visit}"), scale)
    return copied


def _follow(text: Any, recipe: Recipe) -> None:
    """Make a text configuration build the layers of the map: what it says by a layer's number follows."""
    n_layers = text.num_hidden_layers
    recipe.check(n_layers)
    if getattr(text, "scale_attn_by_inverse_layer_idx", False):
        raise SlingError("a model that scales attention by the layer's number cannot be stacked: the number changes")
    for name in ("layer_types", "no_rope_layers"):
        if getattr(text, name, None) is not None:
            setattr(text, name, [getattr(text, name)[layer] for layer in recipe.repeat_map])
    if (step := getattr(text, "decoder_sparse_step", None)) is not None:
        dense = {layer for layer in range(n_layers) if layer in text.mlp_only_layers or (layer + 1) % step}
        text.mlp_only_layers = [visit for visit, layer in enumerate(recipe.repeat_map) if layer in dense]
        text.decoder_sparse_step = 1
    text.num_hidden_layers = len(recipe)


def _stacked_tensors(tensors: Mapping[str, Tensor], prefix: str, recipe: Recipe) -> dict[str, Tensor]:
    """A copy of each tensor under the name it has in the stack; a layer's once for each visit."""
    copies = {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith(prefix)}
    for visit, layer in enumerate(recipe.repeat_map):
        here, there = f"{prefix}{layer}.", f"{prefix}{visit}."
        for name, tensor in tensors.items():
            if name.startswith(here):
                copies[there + name.removeprefix(here)] = tensor.clone()
    return copies


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

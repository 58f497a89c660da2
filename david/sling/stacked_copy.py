"""The independent reference: a deep copy of a model whose layers are really stacked, in plain transformers.

Its mechanism shares nothing with `locate`, `remap` and `views`, on purpose, so that it can prove them right. It copies
each layer whole, names by rules of its own what a configuration says per layer, and has its own formula of a strength.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling.install import is_slung

_DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks")
_LISTS = (
    *("attention_layers", "attn_layers", "indexer_types", "layer_rope_theta", "layer_types", "layers_block_type"),
    *("mlp_layer_types", "no_rope_layers", "num_attention_heads_per_layer"),
)
_COMPUTED = ("kv_sharing_modes", "layer_types", "layers_block_type")  # by classes, from a pattern


def stacked(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Return a deep copy of a model whose layers are those of a recipe, each visit with weights of its own.

    Args:
        model: A transformers causal language model that runs its base.
        recipe: The recipe.

    Returns:
        The copy, an ordinary model.

    Raises:
        RecipeError: The recipe has layers that the model lacks.
        SlingError: The model runs a recipe now.
    """
    if is_slung(model):
        raise SlingError("stacked() copies a base: this model is slung, so reset it first")
    prefix = _layer_prefix(model)
    base: Any = model.get_submodule(prefix)
    recipe.check(len(base))
    configs: dict[int, Any] = {}
    for module in model.modules():
        copy.deepcopy(module.__dict__.get("config"), configs)
    visits = [_visit(base[layer], layer, place, dict(configs)) for place, layer in enumerate(recipe.repeat_map)]
    batches = vars(model).get("_cached_continuous_batching_manager")  # has a thread's locks, and the base's cache
    copied = copy.deepcopy(model, configs | {id(base): nn.ModuleList(visits), id(batches): None})
    kind = model.config.get_text_config(decoder=True).model_type
    seen = set()
    for module in copied.modules():
        module.__dict__.pop("_compiled_call", None)  # compiled of the base, which it would still run
        config = module.__dict__.get("config")
        if getattr(config, "model_type", None) == kind and id(config) not in seen:
            seen.add(id(config))
            _follow(config, len(base), recipe.repeat_map)
    text = copied.config.get_text_config(decoder=True)
    if id(text) not in seen:
        _follow(text, len(base), recipe.repeat_map)
    _follow_beside(copied.get_submodule(prefix.rpartition(".")[0]), len(base), recipe.repeat_map)
    for visit, scale in zip(visits, recipe.scales, strict=True):
        if scale != 1:
            _damp(visit, scale)
    return copied.eval()


def _layer_prefix(model: PreTrainedModel) -> str:
    """Return the part of the weights' names before the layer numbers, such as `model.layers`."""
    other = r"altup|audio|depth_decoder|embed_tokens|image|lm_heads|mtp|rotary|vision|visual|vq"
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))  # a `state_dict` would repack some
    keys = [match[1] for name in names if (match := re.match(r"(.*?)\.\d+\.", name))]
    prefixes = {prefix for prefix in keys if not re.search(other, prefix)}
    if len(prefixes) > 1:  # a composite model: those of the part that writes
        decoder = model.get_decoder()
        path = next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")
        prefixes = {prefix for prefix in prefixes if prefix.startswith(path)}
    if len(prefixes) != 1:
        raise SlingError(f"expected one list of layers among the weights' names; found {sorted(prefixes) or 'none'}")
    return prefixes.pop()


def _visit(layer: nn.Module, number: int, place: int, configs: dict[int, Any]) -> Any:
    """Return a copy of a layer, with the place in the cache that it has in the stack."""
    copied: Any = copy.deepcopy(layer, configs)
    modules: list[Any] = list(copied.modules())
    for module in modules:
        if type(module).__name__ == "RwkvBlock":
            continue  # its number says that it is the first, which it remains
        for name in ("layer_idx", "layer_id"):
            if getattr(module, name, None) == number:
                setattr(module, name, place)
        if hasattr(module, "layer_dic"):
            module.layer_dic = {place: module.layer_dic[number]}
    if type(layer).__name__ == "LongcatFlashDecoderLayer":
        for half, attention in enumerate(copied.self_attn):
            attention.layer_idx = 2 * place + half
    return copied


def _follow(config: Any, n_layers: int, repeat_map: Sequence[int]) -> None:
    """Make a configuration say of each visit what it said of the visit's layer."""
    lists = {name: getattr(config, name) for name in _LISTS if name in vars(config)}
    computed = {name: getattr(config, name) for name in _COMPUTED if name not in vars(config) and hasattr(config, name)}
    special = vars(config).get("_heterogeneity_spec")
    numbers = {
        name: vars(config)[name] for name in ("attn_layer_indices", "cross_attention_layers") if vars(config).get(name)
    }
    if "num_layers" in vars(config) and vars(config)["num_layers"] == n_layers:
        config.num_layers = len(repeat_map)
    else:
        for name in _DEPTHS:
            if name in vars(config) or name in type(config).attribute_map:
                setattr(config, name, len(repeat_map))
    for name, value in lists.items():
        if value is not None and len(value) >= n_layers:  # longer if it was loaded with fewer layers
            setattr(config, name, type(value)([value[layer] for layer in repeat_map]))
    for name, value in numbers.items():
        setattr(config, name, [place for place, layer in enumerate(repeat_map) if layer in value])
    if special is not None:
        overrides = special.per_layer_overrides
        config.per_layer_config = {
            k: dict(overrides[layer]) for k, layer in enumerate(repeat_map) if layer in overrides
        }
    as_mapped = {
        name: [value[layer] for layer in repeat_map]
        for name, value in computed.items()
        if isinstance(value, list) and len(value) >= n_layers and name not in type(config).attribute_map
    }
    if as_mapped:
        config.__class__ = type(type(config).__name__, (type(config),), as_mapped)


def _follow_beside(owner: Any, n_layers: int, repeat_map: Sequence[int]) -> None:
    """Reorder what a model keeps per layer outside its layers."""
    for name in ("embed_tokens_per_layer", "per_layer_model_projection"):
        packed = getattr(owner, name, None)
        if packed is not None:  # [V, N · p], or [N · p, D]
            weight = packed.weight.data if name == "per_layer_model_projection" else packed.weight.data.T
            parts = weight.unflatten(0, (n_layers, -1))[list(repeat_map)].flatten(0, 1)
            packed.weight = nn.Parameter(parts if name == "per_layer_model_projection" else parts.T.contiguous())
    if hasattr(owner, "first_kv_shared_layer_idx"):
        owner.first_kv_shared_layer_idx = len(repeat_map)  # nothing is dropped for the layers that share
    if hasattr(owner, "cross_attention_layers"):
        old = owner.cross_attention_layers
        owner.cross_attention_layers = [place for place, layer in enumerate(repeat_map) if layer in old]


def _damp(layer: nn.Module, scale: float) -> None:
    run = layer.forward

    def damped(*args: Any, **kwargs: Any) -> Any:
        before = (args[0] if args else kwargs["hidden_states"]).clone()
        output = run(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return before + scale * (output - before)
        return type(output)([before + scale * (output[0] - before), *output[1:]])

    layer.forward = damped

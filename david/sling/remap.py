"""What follows when layers are visited in another order: configuration lists, cache places, packed outputs.

The rule is generic: the depth and every list of the configuration with one entry per layer follow the map, and each
visit carries its own number as its place in the cache. `read_state`, `remap_state` and `write_state` are the three
steps; `check_map` refuses what cannot be right before anything is touched. `architectures` has the exceptions.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling.architectures import (
    CACHE_DEPTHS,
    DEPTHS,
    INDICES,
    KEPT_INDICES,
    LAYER_NUMBER_LISTS,
    OVERRIDES,
    PACKED,
    PER_LAYER_LISTS,
    SHARED_END,
    SLOTS,
    UNRELATED_PREFIXES,
    UNSCALED,
)
from david.sling.locate import Stack
from david.sling.views import HOOK_VALUE, add_output_hook, damp, module_view, own_tables, parts

Values = list[dict[str, Any]]  # attribute → value: of the owner of the layers, then of each configuration


def read_state(stack: Stack) -> Values:
    """Return everything that follows a map, as it is now: layers, what is packed per layer, configuration lists."""
    owner = {stack.name: stack.layers} | {name: child for name in PACKED if (child := stack.owner._modules.get(name))}
    owner |= {name: value for name, value in vars(stack.owner).items() if name in (*LAYER_NUMBER_LISTS, SHARED_END)}
    return [owner, *(per_layer(config, len(stack.layers)) for config in stack.configs)]


def write_state(stack: Stack, values: Values) -> None:
    """Set values that `read_state` or `remap_state` returned."""
    for holder, holder_values in zip((stack.owner, *stack.configs), values, strict=True):
        for name, value in holder_values.items():
            setattr(holder, name, value)


def remap_state(stack: Stack, base: Values, visits: nn.ModuleList, repeat_map: Sequence[int]) -> Values:
    """Return the base's values in the order of a map.

    Args:
        stack: Where the layers are.
        base: The values of the base, from `read_state`.
        visits: The modules that stand for the layers, one for each visit.
        repeat_map: The base layer of each visit.

    Returns:
        Values for `write_state`.
    """
    home = base[0][stack.name]
    owner: dict[str, Any] = {}
    for name, value in base[0].items():
        if name == stack.name:
            owner[name] = visits
        elif name in LAYER_NUMBER_LISTS:
            owner[name] = _numbers(value, repeat_map)
        elif name == SHARED_END:
            owner[name] = _shared_end(home, repeat_map)
        else:
            owner[name] = module_view(value, {})
            own_tables(owner[name])
            add_output_hook(owner[name], _reordered_parts, (len(home), *repeat_map))
    configs = zip(stack.configs, base[1:], strict=True)
    return [owner, *(_mapped(config, values, len(home), repeat_map) for config, values in configs)]


def per_layer(config: PreTrainedConfig, n_layers: int) -> dict[str, Any]:
    """Return what a configuration says per layer.

    That is its depth, over which the loops of transformers run (`layers[:config.num_hidden_layers]`); each list with
    one entry per layer (`layer_types`, `mlp_layer_types`, `no_rope_layers`, …), from which caches are built; what a
    heterogeneous configuration overrides; and the class, since some of these lists are computed.
    """
    depth = type(config).attribute_map.get(DEPTHS[-1], DEPTHS[-1])
    follow = (depth, OVERRIDES, *CACHE_DEPTHS, *LAYER_NUMBER_LISTS)
    return {"__class__": type(config)} | {
        name: value
        for name, value in vars(config).items()
        if name in follow or (name in DEPTHS and value == n_layers) or _has_each(name, value, n_layers)
    }


def _has_each(name: str, value: Any, n_layers: int) -> bool:
    """Return whether a value is a list with one entry per layer; a model may have been loaded with fewer layers."""
    named = ("layer" in name or name in PER_LAYER_LISTS) and not name.startswith(UNRELATED_PREFIXES)
    return named and isinstance(value, list | tuple) and len(value) >= n_layers


def _mapped(
    config: PreTrainedConfig, base: Mapping[str, Any], n_layers: int, repeat_map: Sequence[int]
) -> dict[str, Any]:
    """Return a configuration's values in the order of a map."""
    mapped: dict[str, Any] = {}
    for name, value in base.items():
        if name == "__class__":
            mapped[name] = _with_lists(config, base, n_layers, repeat_map)
        elif name == OVERRIDES:
            overrides = value.per_layer_overrides
            own = {visit: overrides[layer] for visit, layer in enumerate(repeat_map) if layer in overrides}
            mapped[name] = dataclasses.replace(value, per_layer_overrides=own)
        elif name in LAYER_NUMBER_LISTS:
            mapped[name] = _numbers(value, repeat_map)
        elif _has_each(name, value, n_layers):
            mapped[name] = type(value)(value[layer] for layer in repeat_map)
        else:
            mapped[name] = len(repeat_map)
    return mapped


def _with_lists(
    config: PreTrainedConfig, base: Mapping[str, Any], n_layers: int, repeat_map: Sequence[int]
) -> type[PreTrainedConfig]:
    """Return a configuration's class in which lists that are computed from a pattern are replaced by the map's."""
    kind: type[PreTrainedConfig] = base["__class__"]
    twin = copy.copy(config)
    for name, value in base.items():
        setattr(twin, name, value)
    lists = {}
    own = kind.__mro__[: kind.__mro__.index(PreTrainedConfig)]
    for name in {name for part in own for name, value in vars(part).items() if isinstance(value, property)}:
        try:
            value = getattr(twin, name)
        except Exception:  # the base's own model could not have read it either
            continue
        if isinstance(value, list | tuple) and len(value) >= n_layers:
            lists[name] = type(value)(value[layer] for layer in repeat_map)
    return _class_with(kind, lists) if lists else kind


def _class_with(kind: type[PreTrainedConfig], lists: dict[str, Any]) -> type[PreTrainedConfig]:
    """Return a subclass of a configuration's class with fixed lists."""

    def reduce(config: PreTrainedConfig) -> tuple[Any, ...]:  # pickle cannot find this class by its name
        return _empty_with, (kind, lists), vars(config)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__reduce__": reduce} | lists)


def _empty_with(kind: type[PreTrainedConfig], lists: dict[str, Any]) -> PreTrainedConfig:
    return object.__new__(_class_with(kind, lists))


def _numbers(old: Any, repeat_map: Sequence[int]) -> Any:
    """Return a list of layer numbers (or None) as the list of the visits of these layers."""
    return old and type(old)(visit for visit, layer in enumerate(repeat_map) if layer in old)


def visit_view(layer: nn.Module, index: int, slot: int, scale: float) -> nn.Module:
    """Return base layer `index` as visit `slot`: a view with its own place in the cache, at strength `scale`.

    Raises:
        SlingError: A module of the layer carries another number than the layer's.
    """
    view = module_view(layer, {})
    for module in parts(view):
        own = vars(module)
        for name in INDICES:
            carried = own.get(name)
            if carried is None or carried < 0 or (type(module).__name__, name) in KEPT_INDICES:
                continue
            places = 1 if module is view else SLOTS.get(type(layer).__name__, 1)
            if carried // places != index:
                raise SlingError(f"layer {index} is refused: its {type(module).__name__} carries {name} {carried}")
            own[name] = slot * places + carried % places
        if "layer_dic" in own:  # Zamba 2: layer number → its adapters in a block that layers share
            own["layer_dic"] = {slot: own["layer_dic"][index]}
    own_tables(view)
    damp(view, scale)
    return view


def check_map(stack: Stack, base: Values, recipe: Recipe) -> None:
    """Refuse a recipe that a model cannot run exactly, before anything is touched.

    Raises:
        SlingError: Names the layers and the reason.
    """
    kind = stack.configs[0].model_type
    if kind in UNSCALED and any(scale != 1 for scale in recipe.scales):
        raise SlingError(f"scales are refused for model type {kind!r}: {UNSCALED[kind]}. Without scales it works")
    home, values, first = base[0][stack.name], base[1], recipe.repeat_map[0]
    if _misleads(kind, values, first):
        raise SlingError(
            f"layer {first} cannot be the first visit of a {kind!r} model: the length of a cached text is read off the "
            "first visit, and this layer keeps no keys of the text. Begin with a layer of self-attention"
        )
    sources = _sources(home, values)
    for visit, layer in enumerate(recipe.repeat_map):
        if layer in sources and sources[layer][0] not in recipe.repeat_map[:visit]:
            source, shared = sources[layer]
            raise SlingError(
                f"layer {layer} of this {kind!r} model shares the {shared} of layer {source}: "
                f"a map must visit layer {source} before it"
            )


def _misleads(kind: str, values: Mapping[str, Any], layer: int) -> bool:
    """Return whether a cached text's length is misread if this layer is the first visit."""
    if kind == "minimax":
        return bool(values["layer_types"][layer] != "full_attention")
    return kind == "mllama_text_model" and layer in values["cross_attention_layers"]


def _sources(home: nn.ModuleList, values: Mapping[str, Any]) -> dict[int, tuple[int, str]]:
    """Return, for each layer that shares, the layer that it shares with, and what it shares."""
    sources: dict[int, tuple[int, str]] = {}
    stores: dict[str, int] = {}
    for index, layer in enumerate(home):
        attention: Any = getattr(layer, "self_attn", None)
        if getattr(attention, "store_full_length_kv", False):
            stores[attention.layer_type] = index
    for index, layer in enumerate(home):
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "is_kv_shared_layer", False):
            sources[index] = stores[attention.layer_type], "keys and values"
    kinds = values.get("indexer_types") or ()
    for index, kind in enumerate(kinds):
        if kind == "shared":
            sources[index] = max(i for i in range(index) if kinds[i] != "shared"), "choice of tokens"
    return sources


def _shared_end(home: nn.ModuleList, repeat_map: Sequence[int]) -> int:
    """Return the first visit after which all share keys and values (Gemma 4 drops tokens from there on)."""
    end = len(repeat_map)
    while end and home[repeat_map[end - 1]].self_attn.is_kv_shared_layer:  # type: ignore[union-attr]
        end -= 1
    return end


def _reordered_parts(module: nn.Module, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
    """Put the per-layer parts of an output into a map's order, `[…, N · p]` → `[…, M · p]`: a forward hook."""
    n_layers, *order = getattr(module, HOOK_VALUE)
    parts = output.view(*output.shape[:-1], n_layers, -1)
    return parts[..., order, :].flatten(-2)


def config_copies(model: nn.Module) -> dict[int, Any]:
    """Return, by the id of each configuration of a model, a copy for a second model."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            if module.__dict__.get(name) is not None:
                copy.deepcopy(module.__dict__[name], copies)
    return {key: value for key, value in copies.items() if isinstance(value, PreTrainedConfig | GenerationConfig)}

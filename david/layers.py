"""Where a transformers model keeps its layers; a view of a layer; the configuration that follows a map.

This is the one place that knows models. What it does not know to be right, it refuses before anything is touched.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from david.errors import SlingError
from david.explain import Costs

# Decoder types whose slung form the tests compare with really stacked layers: every entry is one row of test_sling.
KNOWN_TYPES = frozenset(
    {"bloom", "codegen", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj"}
    | {"granite", "llama", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"}
    | {"qwen3_moe", "smollm3", "stablelm", "starcoder2"}
)
Module = TypeVar("Module", bound=nn.Module)
_DEPTH = "num_hidden_layers"


@dataclass(frozen=True)
class Stack:
    """Where a model keeps its decoder layers: `getattr(owner, name)` is the ModuleList that its forward walks.

    `configs` are the configuration objects that speak of these layers (usually one, shared by every module).
    """

    owner: nn.Module
    name: str
    configs: tuple[PreTrainedConfig, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The layers in use now: the base's, or a sling's."""
        return self.owner._modules[self.name]  # type: ignore[return-value]


def find(model: nn.Module) -> Stack:
    """The decoder layers of a model; `SlingError` when they are not known to be slung exactly."""
    if not isinstance(model, PreTrainedModel):
        raise SlingError(f"expected a transformers model (PreTrainedModel); got {type(model).__name__}")
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if kind not in KNOWN_TYPES:
        raise SlingError(
            f"model type {kind!r} is refused: David does not know that slinging it is exact. "
            f"Known: {', '.join(sorted(KNOWN_TYPES))}"
        )
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise SlingError(f"{type(model).__name__} is refused: models with cross-attention cannot be slung exactly")
    found = [
        (owner, name)
        for owner in model.modules()
        if getattr(getattr(owner, "config", None), "model_type", None) == kind and isinstance(owner, PreTrainedModel)
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if len(found) != 1:
        raise SlingError(
            f"{type(model).__name__} is refused: expected one list of {config.num_hidden_layers} decoder layers, "
            f"found {len(found)}"
        )
    owner, name = found[0]
    if not type(owner).__module__.startswith("transformers."):
        raise SlingError(f"{type(owner).__name__} is refused: it is not transformers' own code, so its loop is unknown")
    configs = [config]
    for module in owner.modules():
        other = module.__dict__.get("config")
        if (
            isinstance(other, PreTrainedConfig)
            and other.model_type == kind
            and not _is_rotary(module)  # a view shares these with its base, whose configuration must not follow
            and all(other is not known for known in configs)
        ):
            configs.append(other)
    return Stack(owner, name, tuple(configs))


def is_known(model: nn.Module) -> bool:
    """Whether `find` finds its layers."""
    try:
        find(model)
    except SlingError:
        return False
    return True


def per_layer(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says layer by layer: their number, and each list that has an entry for every layer.

    The transformers loops run over `layers[:config.num_hidden_layers]`, and caches are built from the lists
    (`layer_types`, `mlp_layer_types`, `no_rope_layers`, …).
    """
    n_layers = config.num_hidden_layers
    lists = {
        name: value
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list | tuple) and len(value) == n_layers
    }
    return {_DEPTH: n_layers} | lists


def mapped(values: Mapping[str, Any], repeat_map: Sequence[int]) -> dict[str, Any]:
    """The base's `per_layer` values as they read for a map's visits."""
    lists = {name: type(value)(value[i] for i in repeat_map) for name, value in values.items() if name != _DEPTH}
    return {_DEPTH: len(repeat_map)} | lists


def layer_view(layer: nn.Module, index: int, slot: int, scale: float) -> nn.Module:
    """Base layer `index` as visit `slot`: its own module objects on the base layer's very parameters and buffers."""
    view = module_view(layer, {})
    for module in view.modules():
        carried = module.__dict__.get("layer_idx")
        if carried is None:
            continue
        if carried != index:
            raise SlingError(f"layer {index} is refused: its {type(module).__name__} carries layer_idx {carried}")
        module.layer_idx = slot  # type: ignore[assignment]
    if scale != 1:
        view.register_forward_hook(_Damping(scale), prepend=True, with_kwargs=True)
    return view


def now(stack: Stack) -> tuple[nn.ModuleList, list[dict[str, Any]]]:
    """The layers and the per-layer values of each configuration, as `put` takes them."""
    return stack.layers, [per_layer(config) for config in stack.configs]


def put(stack: Stack, modules: nn.ModuleList, values: Sequence[Mapping[str, Any]]) -> None:
    """Set a model's layers, and the per-layer values that go with them."""
    setattr(stack.owner, stack.name, modules)
    for config, its_values in zip(stack.configs, values, strict=True):
        for name, value in its_values.items():
            setattr(config, name, value)


def config_copies(model: nn.Module) -> dict[int, Any]:
    """The id of each configuration of a model → a copy of its own, as a second model needs them."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            if module.__dict__.get(name) is not None:
                copy.deepcopy(module.__dict__[name], copies)
    return {key: value for key, value in copies.items() if isinstance(value, PreTrainedConfig | GenerationConfig)}


def module_view(module: Module, replace: dict[int, Any]) -> Module:
    """A second module tree on the same parameters and buffers.

    `replace` maps the id of an object (a module, a configuration) to what stands in its place; each view made is
    added, so that shared modules stay shared.
    """
    if id(module) in replace:
        return replace[id(module)]  # type: ignore[no-any-return]
    if _is_rotary(module):
        return module
    _refuse_bound(module)
    view = object.__new__(type(module))
    replace[id(module)] = view
    state = dict(module.__dict__)
    for name, value in state.items():
        if isinstance(value, nn.Module):
            state[name] = module_view(value, replace)
        elif id(value) in replace:
            state[name] = replace[id(value)]
        elif "hooks" in name and isinstance(value, dict | set):
            state[name] = value.copy()
    state["_modules"] = {
        name: None if child is None else module_view(child, replace) for name, child in module._modules.items()
    }
    view.__dict__.update(state)
    return view


def costs(model: nn.Module) -> Costs:
    """What one token costs this base: weights multiplied a layer (the active share of experts), KV-cache bytes."""
    stack = find(model)
    config = stack.configs[0]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "multi_query", False):
        heads = config.num_kv_heads if getattr(config, "new_decoder_architecture", False) else 1
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = config.num_experts_per_tok / experts if experts else 1.0

    def weights(layer: nn.Module) -> int:
        return int(sum(p.numel() * (active if ".experts." in name else 1) for name, p in layer.named_parameters()))

    head = model.get_output_embeddings()  # type: ignore[operator]
    dtype = next(model.parameters()).dtype
    return Costs(
        layer_parameters=tuple(weights(layer) for layer in stack.layers),
        layer_kv_bytes=(2 * heads * width * torch.finfo(dtype).bits // 8,) * len(stack.layers),
        end_parameters=sum(p.numel() for p in head.parameters()) if head is not None else 0,
    )


class _Damping:
    """A forward hook that makes a visit `h + scale · (layer(h) − h)`."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        before = args[0] if args else kwargs["hidden_states"]  # [B, T, D]
        if isinstance(output, torch.Tensor):
            return before + self.scale * (output - before)
        return (before + self.scale * (output[0] - before), *output[1:])


def _is_rotary(module: nn.Module) -> bool:
    """A leaf with buffers and no weights keeps attributes in step with them as texts grow (rotary embeddings do).

    A view of it would share the buffers but not the attributes, so it is used as it is.
    """
    leaf = not module._modules and not any(p is not None for p in module._parameters.values())
    return leaf and bool(module._buffers) and "layer_idx" not in module.__dict__


def _refuse_bound(module: nn.Module) -> None:
    """A method stored on the instance would still run the base's module, with the base's place in the cache."""
    bound = {
        "_hf_hook": "it has accelerate hooks (device_map, offload)",
        "forward": "its forward was replaced on the instance",
        "_compiled_call_impl": "it is compiled; compile after slinging",
    }
    for name, reason in bound.items():
        if module.__dict__.get(name) is not None:
            raise SlingError(f"{type(module).__name__} is refused: {reason}, which a view cannot follow exactly yet")

"""Describe a base model: its origin and the cost of a token.

The main entry points are `describe_base` (for recipe files), `weight_type` and `token_costs`.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from david.gguf.blocks import named_weights
from david.models.cache_size import LayerCache, measure_cache
from david.models.fingerprints import fingerprint, has_packed_weights
from david.models.load_options import quantization_method
from david.recipe.base_model import Base
from david.recipe.explain import Costs
from david.sling import locate
from david.sling.in_place import base_depth

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_KINDS_WITHOUT_CACHE = ("conv", "linear_attention", "mlp", "moe")  # layer types without a KV cache


def token_costs(model: nn.Module) -> Costs:
    """Return the cost of one token for a base: weights multiplied and bytes of cache, for each layer.

    Args:
        model: A causal language model; its weights may be without values (on the `meta` device).

    Returns:
        For each layer, the number of weights that a token is multiplied with (of experts, the active share) and what
        its cache keeps; and the number of weights of the output head. The cache is measured; of a model whose forward
        pass needs values it is counted from the layers' projections, as if it grew with the text.
    """
    stack = locate.find(model)
    config = stack.configs[0]
    per_token = config.num_experts_per_tok if hasattr(config, "num_experts_per_tok") else None
    experts = next((vars(config)[name] for name in _EXPERTS if vars(config).get(name)), None)
    active = per_token / experts if experts and per_token else 1.0

    def weights(layer: nn.Module) -> int:
        return int(sum(p.numel() * (active if ".experts." in name else 1) for name, p in named_weights(layer)))

    head = model.get_output_embeddings()  # type: ignore[operator]
    caches = measure_cache(model)
    if caches is None:
        size = torch.finfo(next(model.parameters()).dtype).bits // 8
        counts = (_cached_values_per_token(config, index, layer) for index, layer in enumerate(stack.layers))
        caches = [LayerCache(size * count, None, 0) for count in counts]
    windows, states = tuple(cache.window for cache in caches), tuple(cache.state_bytes for cache in caches)
    return Costs(
        layer_parameters=tuple(weights(layer) for layer in stack.layers),
        layer_kv_bytes=tuple(cache.token_bytes for cache in caches),
        end_parameters=sum(weight.numel() for _, weight in named_weights(head)) if head is not None else 0,
        layer_windows=windows if any(windows) else (),
        layer_state_bytes=states if any(states) else (),
    )


def _cached_values_per_token(config: PreTrainedConfig, index: int, layer: nn.Module) -> int:
    """Return how many values a layer caches for each token: from its projections, or else from its configuration."""
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[index] in _KINDS_WITHOUT_CACHE:
        return 0
    modules = dict(layer.named_modules())
    if any(getattr(module, "is_kv_shared_layer", False) for module in modules.values()):
        return 0
    widths = {path: module.out_features for path, module in modules.items() if isinstance(module, nn.Linear)}
    latent = [width for path, width in widths.items() if path.endswith("kv_a_proj_with_mqa")]
    if latent:
        return sum(latent)
    keys = {path: width for path, width in widths.items() if path.endswith("self_attn.k_proj")}
    if keys:
        return sum(width + widths.get(path.replace("k_proj", "v_proj"), width) for path, width in keys.items())
    layer_config = config.per_layer_config[index]
    query_heads = getattr(layer_config, "num_attention_heads", None)
    if not query_heads:
        return 0
    heads = getattr(layer_config, "num_key_value_heads", None) or query_heads
    if getattr(layer_config, "multi_query", False):
        heads = layer_config.num_kv_heads if getattr(layer_config, "new_decoder_architecture", False) else 1
    return int(2 * heads * (getattr(layer_config, "head_dim", None) or layer_config.hidden_size // query_heads))


def weight_type(model: nn.Module) -> str:
    """Return in what type the weights of a model are held: `float32`, or `float32, quantised: bitsandbytes 4bit`.

    Args:
        model: The base, slung or not.
    """
    inner = locate.unwrapped(model)
    dtype = str(next(inner.parameters()).dtype).removeprefix("torch.")
    if not has_packed_weights(inner):
        return dtype
    return f"{dtype}, quantised: {quantization_method(inner.config) or 'in memory'}"


def describe_base(model: PreTrainedModel) -> Base:
    """Return the description of a base that a recipe file holds.

    Args:
        model: The base, slung or not.

    Returns:
        The name and revision that the model was loaded from (None if unknown), its architecture, its number of layers
        and its fingerprint.
    """
    return Base(
        model=getattr(model.config, "_name_or_path", None) or None,
        revision=getattr(model.config, "_commit_hash", None),
        architecture=type(model).__name__,
        num_layers=base_depth(model),
        fingerprint=fingerprint(model),
    )

"""What David tells of a base: where it came from, a fingerprint of its weights, and what a token costs it."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from david.recipe.base_model import Base
from david.recipe.explain import Costs
from david.sling import locate
from david.sling.in_place import base_depth, base_layers

_SAMPLES = 16  # values of each tensor that go into a fingerprint
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_KINDS_WITHOUT_CACHE = ("conv", "linear_attention", "mlp", "moe")  # kinds of layer that keep nothing of each token


def token_costs(model: nn.Module) -> Costs:
    """What one token costs this base: weights multiplied a layer (the active share of experts), KV-cache bytes."""
    stack = locate.find(model)
    config = stack.configs[0]
    per_token = config.num_experts_per_tok if hasattr(config, "num_experts_per_tok") else None
    experts = next((vars(config)[name] for name in _EXPERTS if vars(config).get(name)), None)
    active = per_token / experts if experts and per_token else 1.0

    def weights(layer: nn.Module) -> int:
        return int(sum(p.numel() * (active if ".experts." in name else 1) for name, p in layer.named_parameters()))

    head = model.get_output_embeddings()  # type: ignore[operator]
    size = torch.finfo(next(model.parameters()).dtype).bits // 8
    return Costs(
        layer_parameters=tuple(weights(layer) for layer in stack.layers),
        layer_kv_bytes=tuple(size * _cached_values_per_token(config, i, layer) for i, layer in enumerate(stack.layers)),
        end_parameters=sum(p.numel() for p in head.parameters()) if head is not None else 0,
    )


def _cached_values_per_token(config: PreTrainedConfig, index: int, layer: nn.Module) -> int:
    """How many numbers a layer keeps of each token: as its projections have it, or else its configuration."""
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[index] in _KINDS_WITHOUT_CACHE:
        return 0
    modules = dict(layer.named_modules())
    if any(getattr(module, "is_kv_shared_layer", False) for module in modules.values()):
        return 0
    wide = {path: module.out_features for path, module in modules.items() if isinstance(module, nn.Linear)}
    latent = [width for path, width in wide.items() if path.endswith("kv_a_proj_with_mqa")]
    if latent:
        return sum(latent)
    keys = {path: width for path, width in wide.items() if path.endswith("self_attn.k_proj")}
    if keys:
        return sum(width + wide.get(path.replace("k_proj", "v_proj"), width) for path, width in keys.items())
    own = config.per_layer_config[index]
    many = getattr(own, "num_attention_heads", None)
    if not many:
        return 0
    heads = getattr(own, "num_key_value_heads", None) or many
    if getattr(own, "multi_query", False):
        heads = own.num_kv_heads if getattr(own, "new_decoder_architecture", False) else 1
    return int(2 * heads * (getattr(own, "head_dim", None) or own.hidden_size // many))


def describe_base(model: PreTrainedModel) -> Base:
    """What a recipe file says of its base: where the model came from, its architecture, depth and fingerprint."""
    return Base(
        model=getattr(model.config, "_name_or_path", None) or None,
        revision=getattr(model.config, "_commit_hash", None),
        architecture=type(model).__name__,
        num_layers=base_depth(model),
        fingerprint=fingerprint(model),
    )


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of the base's weights: names, shapes, and a few values of each tensor, rounded to bfloat16.

    Cheap for any size, and the same for float32 and bfloat16 loads of one checkpoint. Slung or not makes no difference.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(_base_weights(model)):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        if weight.device.type == "meta" or weight.numel() == 0:
            continue
        at = torch.arange(_SAMPLES, device=weight.device) * (weight.numel() - 1) // (_SAMPLES - 1)
        values = weight.detach().flatten()[at].to("cpu", torch.bfloat16)
        digest.update(values.view(torch.int16).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _base_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    current = locate.find(model).layers
    prefix = next(name for name, module in model.named_modules() if module is current)
    for name, weight in model.named_parameters():
        if not name.startswith(f"{prefix}."):
            yield name, weight
    for name, weight in base_layers(model).named_parameters():
        yield f"{prefix}.{name}", weight

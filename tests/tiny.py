"""Tiny random models, built from configurations, with weights large enough that layers matter."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Gemma3ForConditionalGeneration

VOCABULARY = 97
WINDOW = 8  # tokens that a sliding-window layer sees
_COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
_COMMON |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

_MIXED = {
    "sliding_window": WINDOW,
    "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding", "full")],
}
_QWEN = _MIXED | {"use_sliding_window": True}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": False}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_EXPERTS |= {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 2}

# For every type in david.layers.KNOWN_TYPES, the settings that exercise what it does layer by layer.
TINY: dict[str, dict[str, Any]] = {
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": _MIXED,
    "falcon": {},
    "gemma": {"head_dim": 8},
    "gemma2": _MIXED | _GEMMA,
    "gemma3_text": _MIXED | _GEMMA,
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 4},
    "olmo": {},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": _QWEN,
    "qwen2_moe": _QWEN | _EXPERTS,
    "qwen3": _QWEN | {"head_dim": 8},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": WINDOW, "head_dim": 8} | _EXPERTS,
    "smollm3": _QWEN | {"no_rope_layers": [1, 1, 0, 1, 0, 1]},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
}

# Further settings of these types that change what a layer does.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt2-layer-scaling": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2_moe-dense-first": ("qwen2_moe", _QWEN | _EXPERTS | {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
}


def tiny_model(model_type: str, **settings: Any) -> Any:
    """A model of a type of transformers' mapping; `settings` go to its configuration over the common ones."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**(_COMMON | settings))
    return _made_large(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def tiny_named(name: str) -> Any:
    """The model of a row of `TINY` or `VARIANTS`, or the composite `gemma3` (text and vision, equally deep)."""
    if name == "gemma3":
        return _tiny_gemma3()
    model_type, settings = VARIANTS[name] if name in VARIANTS else (name, TINY[name])
    return tiny_model(model_type, **settings)


def deep_copied(model: Any, recipe: Any) -> Any:
    """A deep copy of an unslung model with the recipe's layers really stacked: copies of the base's, in a new list."""
    copied = copy.deepcopy(model)
    text = copied.config.get_text_config()
    name, layers = next(
        (name, module)
        for name, module in copied.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == text.num_hidden_layers and "vision" not in name
    )
    visits = []
    for slot, (index, scale) in enumerate(recipe):
        layer = copy.deepcopy(layers[index])
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = slot
        visits.append(layer if scale == 1 else _damped(layer, scale))
    copied.set_submodule(name, nn.ModuleList(visits))
    if "layer_types" in vars(text):
        text.layer_types = [text.layer_types[index] for index, _ in recipe]
    text.num_hidden_layers = len(recipe)
    return copied


def _damped(layer: nn.Module, scale: float) -> nn.Module:
    run = layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = run(hidden_states.clone(), *args, **kwargs)
        if isinstance(output, tuple):
            return (hidden_states + scale * (output[0] - hidden_states), *output[1:])
        return hidden_states + scale * (output - hidden_states)

    layer.forward = forward  # type: ignore[method-assign]
    return layer


def _tiny_gemma3() -> Any:
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    config = CONFIG_MAPPING["gemma3"](
        text_config=_COMMON | _MIXED | _GEMMA,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=93,
        eoi_token_index=94,
        image_token_index=95,
        tie_word_embeddings=False,
    )
    return _made_large(Gemma3ForConditionalGeneration(config))


def _made_large(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()

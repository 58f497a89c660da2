"""The architectures that can be read from GGUF: their keys, and how llama.cpp stores their tensors.

A new architecture is a row of `ARCHITECTURES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedConfig


def _unchanged(_name: str, weight: np.ndarray, _config: PreTrainedConfig) -> np.ndarray:
    return weight


def _rotated_rows(name: str, weight: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Queries and keys of a Llama: llama.cpp keeps the two halves of each head's rotation interleaved."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _norms_plus_one(name: str, weight: np.ndarray, _config: PreTrainedConfig) -> np.ndarray:
    return weight - 1 if name.endswith("norm.weight") else weight


def _transposed(name: str, weight: np.ndarray, _config: PreTrainedConfig) -> np.ndarray:
    """The products of GPT-2, whose transformers model keeps them as inputs × outputs."""
    products = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return weight.T if name.endswith(products) else weight


def _heads_apart(name: str, weight: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Query, key and value of Bloom: all queries, then all keys, then all values, instead of head by head."""
    if ".attn_qkv." not in name:
        return weight
    split = weight.reshape(3, config.num_attention_heads, -1, *weight.shape[1:])
    return split.swapaxes(0, 1).reshape(weight.shape)


def _value_heads_by_key_head(name: str, weight: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Qwen 3.5: llama.cpp keeps the first value head of each key head, then the second of each, and so on."""
    keys, per_key = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    part = name.split(".", 2)[2] if name.startswith("blk.") else name

    def grouped(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(per_key, keys, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    if part.endswith("norm.weight"):
        return weight if part == "ssm_norm.weight" else weight - 1
    if part == "ssm_a":
        return grouped(np.log(-weight))
    if part in ("ssm_dt.bias", "ssm_alpha.weight", "ssm_beta.weight", "attn_gate.weight"):
        return grouped(weight)
    if part in ("attn_qkv.weight", "ssm_conv1d.weight"):
        start = 2 * keys * config.linear_key_head_dim
        return np.concatenate([weight[:start], grouped(weight[start:])])
    return grouped(weight.T).T if part == "ssm_out.weight" else weight


def _log_of_decay(name: str, weight: np.ndarray, _config: PreTrainedConfig) -> np.ndarray:
    return np.log(-weight) if name.endswith(".ssm_a") else weight


@dataclass(frozen=True)
class Architecture:
    """How the keys of an architecture become a configuration of transformers.

    Attributes:
        model_type: Its type in transformers.
        epsilon: The setting for the epsilon of its norms.
        keys: Keys and the settings that they are, beside `_KEYS`.
        expected: Keys with the values that transformers' model computes with: no other value can be said to it.
        settings: What llama.cpp computes without a key.
        biases: The setting that says whether the file holds biases of these tensors.
        head_size: Whether the model takes a size of heads that is not the width divided by their number.
        rotates: How much of a head turns with its place in the text: `"all"`, `"part"`, or None.
        keeps_blocks: Whether its weights can stay in blocks: not where transformers' model reads them itself, or where
            columns change their places.
        undo: Takes the name of a stored tensor, its values and the configuration; returns the values of transformers.
    """

    model_type: str
    epsilon: str = "rms_norm_eps"
    keys: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    head_size: bool = True
    rotates: str | None = "all"
    keeps_blocks: bool = True
    undo: Callable[[str, np.ndarray, PreTrainedConfig], np.ndarray] = _unchanged


_ATTENTION_BIAS = {"attn_q.bias": "attention_bias"}
_LLAMA_BIASES = _ATTENTION_BIAS | {"ffn_up.bias": "mlp_bias"}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
_LOCAL_EXPERTS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "intermediate_size",
}
_SLIDING = {"attention.sliding_window": "sliding_window"}
_GEMMA = partial(Architecture, biases=_ATTENTION_BIAS, undo=_norms_plus_one)
_SSM = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
_SHARED_EXPERT = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
_QWEN_35 = partial(Architecture, keys=_SSM, rotates="part", keeps_blocks=False, undo=_value_heads_by_key_head)
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "bloom": Architecture(
        "bloom",
        "layer_norm_epsilon",
        expected={"attention.max_alibi_bias": (8.0,)},
        head_size=False,
        rotates=None,
        undo=_heads_apart,
    ),
    "falcon": Architecture(
        "falcon",
        "layer_norm_epsilon",
        head_size=False,
        keys={"attention.head_count_kv": "num_kv_heads", "feed_forward_length": "ffn_hidden_size"},
        expected={"attention.head_count_kv": (1,)},
        biases={"attn_qkv.bias": "bias"},
    ),
    "gemma": _GEMMA("gemma"),
    "gemma2": _GEMMA("gemma2", keys=_SLIDING | _CAPS),
    "gemma3": _GEMMA("gemma3_text", keys=_SLIDING | _CAPS),
    "gpt-oss": Architecture(
        "gpt_oss",
        keys=_SLIDING | _LOCAL_EXPERTS,
    ),
    "gpt2": Architecture(
        "gpt2",
        "layer_norm_epsilon",
        keys={"feed_forward_length": "n_inner"},
        head_size=False,
        rotates=None,
        undo=_transposed,
    ),
    "lfm2": Architecture(
        "lfm2",
        "norm_eps",
        keys={"shortconv.l_cache": "conv_L_cache"},
        settings={"block_auto_adjust_ff_dim": False},
        biases={"shortconv.in_proj.bias": "conv_bias"},
    ),
    "llama": Architecture("llama", biases=_LLAMA_BIASES, undo=_rotated_rows),
    "mamba": Architecture(
        "mamba",
        "layer_norm_epsilon",
        keys={
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "ssm.inner_size": "intermediate_size",
        },
        head_size=False,
        rotates=None,
        keeps_blocks=False,
        undo=_log_of_decay,
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        keys=_LOCAL_EXPERTS,
        expected={"expert_gating_func": (2,)},
        rotates="part",
    ),
    "nemotron": Architecture("nemotron", "norm_eps", biases=_LLAMA_BIASES, rotates="part", undo=_norms_plus_one),
    "phi3": Architecture("phi3", keys=_SLIDING, rotates="part"),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture("qwen2_moe", keys=_EXPERTS),
    "qwen3": Architecture("qwen3", biases=_ATTENTION_BIAS),
    "qwen3moe": Architecture("qwen3_moe", keys=_EXPERTS, settings={"norm_topk_prob": True}, biases=_ATTENTION_BIAS),
    "qwen35": _QWEN_35("qwen3_5_text"),
    "qwen35moe": _QWEN_35("qwen3_5_moe_text", keys=_SSM | _EXPERTS | _SHARED_EXPERT),
    "stablelm": Architecture(
        "stablelm",
        "layer_norm_eps",
        keys={"use_parallel_residual": "use_parallel_residual"},
        biases={"attn_q.bias": "use_qkv_bias"},
        head_size=False,
        rotates="part",
    ),
    "starcoder2": Architecture("starcoder2", "norm_epsilon", biases={"attn_q.bias": "use_bias"}),
}

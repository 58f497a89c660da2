"""Write GGUF files of tiny models as llama.cpp's converter does: its names, its keys, and how it stores weights."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.tiny_models import VOCABULARY

# Architectures, their types in transformers, the key of their epsilon, and their own keys from settings.
_LLAMA = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_SIZED = _LLAMA | {"attention.key_length": "head_dim", "attention.value_length": "head_dim"}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_EXPERTS |= {"expert_feed_forward_length": "moe_intermediate_size"}
_LOCAL_EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_LOCAL_EXPERTS |= {"expert_feed_forward_length": "intermediate_size"}
_LINEAR = {"ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim"}
_LINEAR |= {"ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads"}
_GEMMA = _SIZED | {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "bloom": ("bloom", {"attention.layer_norm_epsilon": "layer_norm_epsilon"}),
    "falcon": ("falcon", {"attention.layer_norm_epsilon": "layer_norm_epsilon"}),
    "gemma": ("gemma", _SIZED),
    "gemma2": ("gemma2", _GEMMA | {"attn_logit_softcapping": "attn_logit_softcapping"}),
    "gemma3": ("gemma3_text", _GEMMA),
    "gpt-oss": ("gpt_oss", _SIZED | _LOCAL_EXPERTS | {"attention.sliding_window": "sliding_window"}),
    "gpt2": ("gpt2", {"attention.layer_norm_epsilon": "layer_norm_epsilon"}),
    "lfm2": ("lfm2", {"attention.layer_norm_rms_epsilon": "norm_eps", "shortconv.l_cache": "conv_L_cache"}),
    "llama": ("llama", _LLAMA | {"rope.dimension_count": "head_dim"}),
    "mamba": ("mamba", {"attention.layer_norm_rms_epsilon": "layer_norm_epsilon", "ssm.conv_kernel": "conv_kernel"}
              | {"ssm.inner_size": "intermediate_size", "ssm.state_size": "state_size"}
              | {"ssm.time_step_rank": "time_step_rank"}),
    "minimax-m2": ("minimax_m2", _SIZED | _LOCAL_EXPERTS),
    "nemotron": ("nemotron", {"attention.layer_norm_epsilon": "norm_eps", "attention.key_length": "head_dim"}),
    "phi3": ("phi3", _LLAMA | {"attention.sliding_window": "sliding_window"}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2moe": ("qwen2_moe", _LLAMA | _EXPERTS
                 | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}),
    "qwen3": ("qwen3", _SIZED),
    "qwen3moe": ("qwen3_moe", _SIZED | _EXPERTS),
    "qwen35": ("qwen3_5_text", _SIZED | _LINEAR),
    "qwen35moe": ("qwen3_5_moe_text", _SIZED | _LINEAR | _EXPERTS
                  | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}),
    "stablelm": ("stablelm", {"attention.layer_norm_epsilon": "layer_norm_eps"}),
    "starcoder2": ("starcoder2", {"attention.layer_norm_epsilon": "norm_epsilon"}),
}  # fmt: skip
_FIXED: dict[str, dict[str, Any]] = {
    "bloom": {"attention.max_alibi_bias": 8.0},
    "falcon": {"tensor_data_layout": "jploski", "attention.head_count_kv": 1},
    "mamba": {"feed_forward_length": 0, "attention.head_count": 0, "ssm.dt_b_c_rms": False},
    "minimax-m2": {"expert_gating_func": 2},
    "stablelm": {"use_parallel_residual": False},
}


def write_gguf(
    model: Any,
    path: Path,
    architecture: str = "llama",
    *,
    keys: Mapping[str, Any] | None = None,
    whole_keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    kind: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Write a model to a file.

    Args:
        model: A model of transformers.
        path: The file.
        architecture: Its name in GGUF.
        keys: Further keys of the architecture, without its name; None takes a key out.
        whole_keys: Further keys that are not of the architecture.
        tensors: Further tensors by their names in the file; None takes a tensor out.
        kind: The type of all matrices whose rows fill its blocks; by default float32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (_keys(model.config, architecture) | dict(keys or {})).items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    for key, value in (whole_keys or {}).items():
        _add(writer, key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<pad>", "<s>", "</s>", *(chr(33 + i) for i in range(VOCABULARY - 4)), "ab"])
    writer.add_token_types([3] * 3 + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["a b"])
    for name, values in (dict(stored_tensors(model, architecture)) | dict(tensors or {})).items():
        if values is None:
            continue
        values = np.ascontiguousarray(values)
        if kind is not None and values.ndim > 1 and values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized_as_stored(model: Any, architecture: str, kind: gguf.GGMLQuantizationType) -> Any:
    """Put into a model the values that its file of a type holds; return the model."""
    for name, parameter in _parameters(model).items():
        parts = _stored(name, parameter, model.config, architecture)
        if all(part.ndim > 1 and part.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 for _, part in parts):
            assert architecture == "llama", "only what is stored row by row"
            rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind))
            parameter.copy_(rounded)
    return model


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _keys(config: Any, architecture: str) -> dict[str, Any]:
    kind, own = ARCHITECTURES[architecture]
    names = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings"}
    names |= {"embedding_length": "hidden_size", "attention.head_count": "num_attention_heads"}
    names |= {
        "attention.head_count_kv": "num_key_value_heads",
    }
    names["feed_forward_length"] = {"gpt2": "n_inner", "falcon": "ffn_hidden_size"}.get(kind, "intermediate_size")
    keys = {key: getattr(config, name, None) for key, name in (names | own).items()}
    if kind == "lfm2":
        attends = [kind == "full_attention" for kind in config.layer_types]
        keys["attention.head_count_kv"] = [config.num_key_value_heads * one for one in attends]
    rope = getattr(config, "rope_parameters", None)
    if rope and "full_attention" in rope:
        rope = rope["full_attention"]
    if rope:
        keys["rope.freq_base"] = float(rope["rope_theta"])
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
    if architecture.startswith("qwen35"):
        keys["full_attention_interval"] = 4
        keys["ssm.inner_size"] = config.linear_num_value_heads * config.linear_value_head_dim
    return keys | _FIXED.get(architecture, {})


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: weight for name, weight in model.state_dict().items() if name not in tied}


def stored_tensors(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a model's file, by their names there."""
    for name, weight in _parameters(model).items():
        yield from _stored(name, weight, model.config, architecture)


def _stored(name: str, weight: torch.Tensor, config: Any, architecture: str) -> list[tuple[str, np.ndarray]]:
    layer = re.search(r"\.(\d+)\.", name)
    block = f"blk.{layer[1]}." if layer else ""
    values = weight.numpy()
    if ".experts." in name:
        end = "bias" if name.endswith("bias") else "weight"
        if architecture == "gpt-oss" and end == "weight":
            values = values.swapaxes(1, 2)  # [experts, outputs, inputs]
        if "down_proj" in name:
            return [(f"{block}ffn_down_exps.{end}", values)]
        gate, up = np.split(values, 2, axis=1)
        if architecture == "gpt-oss":
            gate, up = values[:, ::2], values[:, 1::2]
        return [(f"{block}ffn_gate_exps.{end}", gate), (f"{block}ffn_up_exps.{end}", up)]
    if name.endswith("e_score_correction_bias"):
        return [(f"{block}exp_probs_b.bias", values)]
    if name.endswith("dt_bias"):
        return [(f"{block}ssm_dt.bias", _tiled(values, config))]
    if name.endswith("sinks"):
        return [(f"{block}attn_sinks.weight", values)]
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    base, dot, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    stored = table.get_name(base) or table.get_name(base.removeprefix("transformer.")) or f"no name for {name}"
    return [(f"{stored}{dot}{end}", _as_llama_cpp_keeps(stored, f"{stored}{dot}{end}", values, config, architecture))]


def _as_llama_cpp_keeps(stored: str, whole: str, values: np.ndarray, config: Any, architecture: str) -> np.ndarray:
    part = stored.split(".")[-1]
    if architecture == "llama" and part in ("attn_q", "attn_k"):  # `permute` of convert_hf_to_gguf.py
        heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and whole.endswith("norm.weight"):
        return values + 1
    products = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    if architecture == "gpt2" and whole.endswith(products):
        return values.T
    if architecture == "bloom" and part == "attn_qkv":
        heads = config.num_attention_heads
        by_head = values.reshape(heads, 3, config.hidden_size // heads, *values.shape[1:])
        return np.concatenate([by_head[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    if architecture.startswith("qwen35"):
        return _qwen35_keeps(part, whole, values, config)
    return _states_keep(part, values)


def _states_keep(part: str, values: np.ndarray) -> np.ndarray:
    if part == "ssm_a":
        return -np.exp(values)
    if part in ("ssm_conv1d", "shortconv.conv", "conv") and values.ndim == 3:
        return values.squeeze(1)
    if part == "ffn_gate_inp_shexp":
        return values.squeeze(0)
    return values


def _qwen35_keeps(part: str, whole: str, values: np.ndarray, config: Any) -> np.ndarray:
    if part == "ssm_a":
        return _tiled(-np.exp(values), config)
    if whole.endswith("norm.weight") and part != "ssm_norm":
        return values + 1
    if part in ("ssm_alpha", "ssm_beta", "attn_gate"):
        return _tiled(values, config)
    if part == "ssm_out":
        return _tiled(values.T, config).T
    if part in ("attn_qkv", "ssm_conv1d"):
        start = 2 * config.linear_num_key_heads * config.linear_key_head_dim
        values = values.reshape(len(values), -1)
        return np.concatenate([values[:start], _tiled(values[start:], config)])
    return _states_keep(part, values)


def _tiled(rows: np.ndarray, config: Any) -> np.ndarray:
    """Rows of value heads: the first value head of each key head, then the second of each (`_reorder_v_heads`)."""
    heads = np.split(rows, config.linear_num_value_heads)
    keys = config.linear_num_key_heads
    per_key = len(heads) // keys
    return np.concatenate([heads[key * per_key + value] for value in range(per_key) for key in range(keys)])

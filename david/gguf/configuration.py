"""The configuration of transformers that computes what the keys of a GGUF file say.

Every key of the file's architecture is used, or has the value with which transformers' model computes, or does not bear
on what it computes. Otherwise the file is refused with the name of the key.
"""

import math
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from david.errors import ModelError
from david.gguf.architectures import ARCHITECTURES, Architecture
from david.gguf.file import GgufFile
from david.support.text import brief

_SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_EXPECTED: dict[str, tuple[Any, ...]] = {  # the values with which every model here computes
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "ssm.dt_b_c_rms": (False,),
    "use_parallel_residual": (False,),
}
_HARMLESS = {"pooling_type", "rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout"}
_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_THETA, _LOCAL_THETA = 10_000.0, 10_000.0  # llama.cpp's bases of the rotation, where a file says none
_FREQUENCIES = "rope_freqs.weight"  # what Llama 3 divides its frequencies by
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ROTATION_TENSORS = (_FREQUENCIES, _LONG, _SHORT)  # used by the configuration
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class _Keys:
    """The keys of a file's architecture, and which of them have not been used yet."""

    def __init__(self, file: GgufFile) -> None:
        self.prefix = f"{file.architecture}."
        self.values = {
            key.removeprefix(self.prefix): file.keys[key] for key in file.keys if key.startswith(self.prefix)
        }
        self.unused = set(self.values)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, and mark it as used."""
        self.unused.discard(key)
        return self.values.get(key, default)

    def one(self, key: str, default: Any = None) -> Any:
        """Return the value of a key; of a list that has the same value for each layer, that value."""
        value = self.get(key, default)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            self.refuse(key, "one value for all layers")
        return value[0]

    def need(self, key: str) -> Any:
        """Return the value of a key that every file has."""
        if key not in self.values:
            raise ModelError(f"its key {self.prefix}{key} is missing: fetch it again, or convert the model anew")
        return self.one(key)

    def expect(self, key: str, *expected: Any) -> None:
        """Raise `ModelError` if a key is there and has none of the values with which the model computes."""
        value = self.one(key, expected[0])
        numbers = not isinstance(value, str)
        if not any(value == one or (numbers and math.isclose(value, one, rel_tol=1e-6)) for one in expected):
            self.refuse(key, " or ".join(map(str, expected)))

    def refuse(self, key: str, expected: str) -> None:
        """Raise `ModelError` for a key whose value transformers' model cannot take."""
        raise ModelError(
            f"its key {self.prefix}{key} is {brief(self.values.get(key))}, and transformers' model of this "
            f"architecture computes with {expected}: give the folder or Hub id of the model instead"
        )


def gguf_config(file: GgufFile) -> PreTrainedConfig:
    """Return the configuration of transformers for a GGUF file.

    Args:
        file: The file, from `read_gguf`.

    Raises:
        ModelError: Its architecture is unknown, or a key or a tensor of the rotation says what transformers' model does
            not compute; it is named.
    """
    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"its architecture {brief(file.architecture)} is not read from GGUF: expected one of "
            f"{', '.join(ARCHITECTURES)}; give the folder or Hub id of the model instead"
        )
    architecture, keys = ARCHITECTURES[file.architecture], _Keys(file)
    kind = CONFIG_MAPPING[architecture.model_type]
    settings = _settings(file, architecture, keys)
    for key, values in (_EXPECTED | dict(architecture.expected)).items():
        if key in keys.unused:
            keys.expect(key, *values)
    if unknown := sorted(keys.unused - _HARMLESS):
        raise ModelError(
            f"its key {keys.prefix}{unknown[0]} ({brief(keys.values[unknown[0]])}) has no counterpart in "
            f"transformers' model of this architecture: give the folder or Hub id of the model instead"
        )
    return kind(**{kind.attribute_map.get(name, name): value for name, value in settings.items()})


def _settings(file: GgufFile, architecture: Architecture, keys: _Keys) -> dict[str, Any]:
    """Return all settings of the configuration."""
    settings = {f"{name}_token_id": file.keys.get(f"tokenizer.ggml.{word}_token_id") for name, word in _TOKENS.items()}
    settings |= architecture.settings
    rms = "attention.layer_norm_rms_epsilon" in keys.values
    settings[architecture.epsilon] = keys.need(f"attention.layer_norm_{'rms_' if rms else ''}epsilon")
    for key in ("block_count", "embedding_length"):
        settings[_SETTINGS[key]] = keys.need(key)
    settings |= _special_settings(architecture, keys, settings)
    for key, name in architecture.keys.items():
        if key in architecture.expected:
            keys.expect(key, *architecture.expected[key])
        if key in keys.values:
            settings[name] = keys.one(key)
    for key, name in _SETTINGS.items():
        if key in keys.unused:
            settings.setdefault(name, keys.need(key))
    settings |= _stored_settings(file, architecture, keys, settings)
    return settings | _attention(file, architecture, keys, settings)


def _special_settings(architecture: Architecture, keys: _Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of layers that do not attend."""
    kind = architecture.model_type
    if kind == "lfm2":  # convolutions have no heads
        heads = keys.get("attention.head_count_kv")
        kinds = ["full_attention" if count else "conv" for count in heads]
        return {"layer_types": kinds, "num_key_value_heads": max(heads)}
    if kind == "mamba":
        keys.expect("feed_forward_length", 0)
        keys.expect("attention.head_count", 0)
        return {"expand": keys.need("ssm.inner_size") // settings["hidden_size"]}
    if kind in ("qwen3_5_text", "qwen3_5_moe_text"):
        depth = settings["num_hidden_layers"] - keys.one(
            "nextn_predict_layers", 0
        )  # the last ones predict tokens ahead
        full = keys.need("full_attention_interval")
        kinds = ["linear_attention" if (layer + 1) % full else "full_attention" for layer in range(depth)]
        size = keys.need("ssm.inner_size") // keys.need("ssm.time_step_rank")
        return {"num_hidden_layers": depth, "layer_types": kinds, "linear_value_head_dim": size}
    return {}


def _stored_settings(
    file: GgufFile, architecture: Architecture, keys: _Keys, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that the tensors say: which there are, and how large they are."""
    stored: dict[str, Any] = {}
    stored["vocab_size"] = _rows(file, "token_embd.weight")
    keys.expect("vocab_size", stored["vocab_size"])
    tied = "output.weight" not in file.tensors or (
        architecture.model_type in ("bloom", "falcon") and file.same("output.weight", "token_embd.weight")
    )
    stored["tie_word_embeddings"] = tied
    for end, name in architecture.biases.items():
        stored[name] = any(tensor.endswith(end) for tensor in file.tensors)
    if architecture.model_type == "qwen2_moe":
        if "moe_intermediate_size" not in settings:
            stored["moe_intermediate_size"] = _rows(file, "blk.0.ffn_up_exps.weight")
        stored["shared_expert_intermediate_size"] = _rows(file, "blk.0.ffn_up_shexp.weight")
        keys.expect("expert_shared_feed_forward_length", stored["shared_expert_intermediate_size"])
    return stored


def _rows(file: GgufFile, name: str) -> int:
    """Return the number of rows of a tensor."""
    if name not in file.tensors:
        raise ModelError(f"it lacks the tensor {name}: fetch it again, or convert the model anew")
    return file.tensors[name].shape[-2]


def _attention(file: GgufFile, architecture: Architecture, keys: _Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of heads, windows and rotation."""
    heads = settings.get("num_attention_heads")
    if not heads:
        return {}
    own: dict[str, Any] = {}
    usual = settings["hidden_size"] // heads
    size = keys.one("attention.key_length", usual)
    keys.expect("attention.value_length", size)
    keys.expect("attention.scale", 0.0, size**-0.5)
    if architecture.head_size:
        own["head_dim"] = size
    else:
        keys.expect("attention.key_length", usual)
    if settings.get("sliding_window") == 0:
        own["sliding_window"] = None
    if (pattern := keys.get("attention.sliding_window_pattern")) is not None:
        if "sliding_window" not in settings:
            keys.refuse("attention.sliding_window_pattern", "the whole text in each layer")
        depth = settings["num_hidden_layers"]
        slides = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in range(depth)]
        own["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    if architecture.model_type in ("gemma2", "gemma3_text"):  # llama.cpp knows the models of 27 billion by their depth
        largest = settings["num_hidden_layers"] == {"gemma2": 46, "gemma3_text": 62}[architecture.model_type]
        own["query_pre_attn_scalar"] = usual if largest else size
    if architecture.rotates:
        own["rope_parameters"] = _rotation(file, architecture, keys, settings, size)
    return own


def _rotation(
    file: GgufFile, architecture: Architecture, keys: _Keys, settings: dict[str, Any], size: int
) -> dict[str, Any]:
    """Return the parameters of the rotation of queries and keys."""
    rotation = {"rope_theta": keys.one("rope.freq_base", _THETA), **_scaling(architecture, keys, settings)}
    turned = keys.one("rope.dimension_count", size)
    if architecture.rotates == "part":
        rotation["partial_rotary_factor"] = turned / size
    else:
        keys.expect("rope.dimension_count", size)
    if _FREQUENCIES in file.tensors:
        rotation |= _llama_3(file, rotation, size)
    if _LONG in file.tensors or _SHORT in file.tensors:
        rotation |= _long_rope(file, architecture, keys, settings)
    if (sections := keys.get("rope.dimension_sections")) is not None:
        if not architecture.model_type.startswith("qwen3_5"):
            keys.refuse("rope.dimension_sections", "one section")
        rotation |= {"mrope_section": [section for section in sections if section], "mrope_interleaved": True}
    if architecture.model_type == "gemma3_text":
        local = keys.one("rope.freq_base_swa", _LOCAL_THETA)
        return {"full_attention": rotation, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return rotation


def _scaling(architecture: Architecture, keys: _Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Return how the rotation is stretched for long texts."""
    kind = keys.one("rope.scaling.type", "linear")  # llama.cpp's default; a factor of 1 changes nothing
    factor = keys.one("rope.scaling.factor", keys.one("rope.scale_linear", 1.0))
    keys.get("rope.scale_linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default"}
    if architecture.model_type == "phi3":
        keys.refuse("rope.scaling.type", "none, or with tensors of factors")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        keys.refuse("rope.scaling.type", "none, linear or yarn")
    strength = keys.one("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(factor) + 1.0)
    whole = settings["max_position_embeddings"]
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": strength,
        "original_max_position_embeddings": keys.one("rope.scaling.original_context_length", whole),
        "beta_fast": keys.one("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.one("rope.scaling.yarn_beta_slow", 1.0),
    }
    return scaling | ({"truncate": False} if architecture.model_type == "gpt_oss" else {})


def _llama_3(file: GgufFile, rotation: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the parameters whose frequencies are divided as a tensor of the file says."""
    stored = torch.from_numpy(file.tensors[_FREQUENCIES].values().copy()).flatten()
    plain = 1.0 / rotation["rope_theta"] ** (torch.arange(0, size, 2).double() / size)
    low, high, original = _LLAMA_3.values()
    smooth = ((original * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    last = float(smooth[-1])  # the slowest frequency is divided most
    factor = round((1 - last) / (1 / float(stored[-1]) - last), 3) if stored[-1] != 1 else 1.0
    expected = 1 / ((1 - smooth) / factor + smooth)
    if (
        rotation["rope_type"] != "default"
        or len(stored) != len(plain)
        or not torch.allclose(stored.double(), expected, 1e-4)
    ):
        raise ModelError(
            f"its tensor {_FREQUENCIES} divides the frequencies in another way than Llama 3 does, which transformers' "
            "configuration does not say: give the folder or Hub id of the model instead"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA_3}


def _long_rope(file: GgufFile, architecture: Architecture, keys: _Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the factors for short and for long texts of a Phi 3."""
    if architecture.model_type != "phi3" or not {_LONG, _SHORT} <= file.tensors.keys():
        raise ModelError(
            f"its tensors {_LONG} and {_SHORT} have no counterpart in transformers' model of this architecture"
        )
    original = keys.need("rope.scaling.original_context_length")
    settings["original_max_position_embeddings"] = original
    return {
        "rope_type": "longrope",
        "long_factor": file.tensors[_LONG].values().flatten().tolist(),
        "short_factor": file.tensors[_SHORT].values().flatten().tolist(),
        "attention_factor": keys.one("rope.scaling.attn_factor", 1.0),
        "original_max_position_embeddings": original,
    }

"""A tiny random model of every causal-LM type that the installed transformers maps."""

import copy
import dataclasses
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

N_LAYERS = 6
VOCABULARY = 97
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_WINDOW = 6  # tokens that a sliding-window layer sees: fewer than a check's prompt has


def _kinds(pattern: str, **names: str) -> list[str]:
    """One kind a layer, from one letter a layer."""
    return [names[letter] for letter in pattern]


# Irregular, and not the same when reversed, so that a rearrangement puts another kind at most places.
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_SLIDING_LAYERS = {"layer_types": _kinds("FSSFSF", F=_FULL, S=_SLIDING)}
_LINEAR_LAYERS = {"layer_types": _kinds("LFLLFF", F=_FULL, L=_LINEAR)}
_CONV_LAYERS = {"layer_types": _kinds("CFCCFF", F=_FULL, C="conv")}
_HYBRID_LAYERS = {"layer_types": _kinds("HSSHSH", H="hybrid", S="hybrid_sliding")}
_INDEXED_LAYERS = {"layer_types": ["indexed_attention"] * N_LAYERS}
_SHARED_INDEX = _INDEXED_LAYERS | {"indexer_types": _kinds("FSSFSF", F="full", S="shared")}
_NARROW_SLIDING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 1, "swa_head_dim": 4}

# Settings by their usual names. A type, and every part of a composite type, gets those that its configuration declares.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "is_decoder": True,
    "n_inner": 48, "embedding_size": 16, "rotary_dim": 4, "query_pre_attn_scalar": 8, "use_qk_norm": True,
    "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "final_logit_softcapping": 30.0,
    # kinds of layers
    "sliding_window": _WINDOW, "use_sliding_window": True, "max_window_layers": N_LAYERS,
    "no_rope_layers": [1, 1, 0, 1, 0, 1], **_SLIDING_LAYERS,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 2, "topk_group": 1,
    "num_shared_experts": 1, "n_shared_experts": 1, "moe_num_shared_experts": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "mlp_layer_types": _kinds("DEEDEE", D="dense", E="sparse"), "first_k_dense_replace": 2, "num_dense_layers": 2,
    "decoder_sparse_step": 2, "mlp_only_layers": [3],
    # latent attention. Many heads in an indexer: with few of them most scores are zero, and the first k are a draw.
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_topk": 4, "index_head_dim": 8, "index_n_heads": 16,
    # linear attention, state spaces
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4, "state_size": 8,
    # embeddings for every layer
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
    # encoder-decoders' decoders. The cache gets as many layers as the encoder has.
    "decoder_layers": N_LAYERS, "encoder_layers": N_LAYERS, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "ffn_dim": 48,
    # images and sounds
    "image_size": 28, "patch_size": 14, "num_codebooks": 1,
    "image_token_id": 90, "video_token_id": 91, "audio_token_id": 92,
}  # fmt: skip

# What a type, or a part of a composite type, needs over the common settings.
SPECIAL: dict[str, dict[str, Any]] = {
    # Kinds of layers other than full and sliding attention
    **dict.fromkeys(("bailing_hybrid", "granitemoehybrid", "olmo_hybrid", "qwen3_next"), _LINEAR_LAYERS),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _LINEAR_LAYERS),
    "kimi_linear": _LINEAR_LAYERS | {"linear_head_dim": 8, "linear_num_heads": 4},
    "minimax": {  # its cache asks layer 0 for the length, so that one attends; the released multipliers
        "layer_types": _kinds("FLLFLF", F=_FULL, L=_LINEAR), "block_size": 4,
        "full_attn_alpha_factor": 3.5, "linear_attn_alpha_factor": 3.5, "mlp_alpha_factor": 3.5,
    },
    "bamba": {"attn_layer_indices": [1, 4, 5]},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 1},
    "nemotron_h": {
        "layers_block_type": _kinds("LEFLMF", L=_LINEAR, E="moe", F=_FULL, M="mlp"),
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 4,
        "moe_shared_expert_intermediate_size": 16,
    },
    "recurrent_gemma": {"block_types": _kinds("RARRAA", R="recurrent", A="attention")},
    "zamba": {  # an attention head is as wide as two hidden states over the heads
        "layers_block_type": _kinds("LLHLHL", L=_LINEAR, H="hybrid"), "attention_head_dim": 16,
    },
    "zamba2": {  # two shared transformers take turns, with an adapter a visit, which wants a key for every head
        "layers_block_type": _kinds("LHLHHL", L=_LINEAR, H="hybrid"), "num_mem_blocks": 2, "n_mamba_heads": 4,
        "num_key_value_heads": 4, "mamba_ngroups": 2, "chunk_size": 4,
        "use_shared_attention_adapter": True, "adapter_rank": 4,
    },
    "lfm2": _CONV_LAYERS,
    "lfm2_moe": _CONV_LAYERS,
    "lfm3": {"layer_types": _kinds("CFSCSF", C="conv", F=_FULL, S=_SLIDING)},
    "inkling_text": _HYBRID_LAYERS | _NARROW_SLIDING | {"d_rel": 4, "rel_extent": 8, "log_scaling_n_floor": 4},
    "inkling2_text": _HYBRID_LAYERS | _NARROW_SLIDING | {
        "d_rel": 4, "rel_extent": 8, "log_scaling_n_floor": 4, "n_layers_per_attn_res_block": 2,
    },
    "zaya": _HYBRID_LAYERS | {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "axk2": _INDEXED_LAYERS,
    "deepseek_v32": _INDEXED_LAYERS,
    "glm_moe_dsa": _SHARED_INDEX,
    "hy_v4": _SHARED_INDEX,
    "deepseek_v4": {
        "layer_types": _kinds("SCHCSH", S=_SLIDING, C="compressed_sparse_attention", H="heavily_compressed_attention"),
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": _kinds("HMMHMM", H="hash_moe", M="moe"),
        "index_topk": 2, "o_groups": 2, "o_lora_rank": 8,
    },
    "dots3_note_text": {  # its sliding layers have heads and ranks of their own
        "layer_types": _kinds("ISSISI", I="indexed_attention", S=_SLIDING), "shared_experts_intermediate_size": 16,
        "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8,
        "swa_head_dim": 12, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
    },
    "minimax_m3_vl_text": {
        "layer_types": _kinds("FSSFSF", F=_FULL, S="minimax_m3_sparse"), "dense_intermediate_size": 48,
        "index_n_heads": 2, "index_block_size": 2, "index_topk_blocks": 2,
    },
    "qwen4_exp_text": {  # embeddings of n-grams at layers 2 and 4, counted from one
        "layer_types": _kinds("LLILII", L=_LINEAR, I="indexed_attention"), "hc_lowrank": 8,
        "ple_layer_ids": [2, 4], "ple_embed_dim": 16, "heads_per_ngram": 2, "ngram_vocab_size_base": 50,
        "split_ngram_parts": 1, "make_ngram_vocab_size_divisible_by": 1,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
        "indexer_budget": 4, "indexer_compress_ratio": 2,
    },
    "llama4_text": {
        "layer_types": _kinds("CCFCFC", C="chunked_attention", F=_FULL), "attention_chunk_size": _WINDOW,
        "moe_layers": [1, 2, 4], "intermediate_size_mlp": 48, "floor_scale": 4,
    },
    "gpt_neo": {
        "attention_types": [[["global", "local", "local", "global", "local", "global"], 1]], "window_size": _WINDOW,
    },
    "reformer": {  # without a seed a hash is drawn at every run
        "attn_layers": _kinds("OHHOHO", O="local", H="lsh"), "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
        "num_buckets": 4, "hash_seed": 0, "axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 48,
    },
    "mllama_text_model": {"cross_attention_layers": [1, 4]},
    # What else differs from layer to layer
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 2},
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "intermediate_size": [48, 32, 32, 48, 48, 32],
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0, 0.0, 0.5],
    },
    "gemma4_text": {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "global_head_dim": 16},
    "gemma4_unified_text": {"attention_k_eq_v": True, "global_head_dim": 16, "num_global_key_value_heads": 1},
    "granite_swa": {"layer_rope_theta": [10000.0, 500.0, 0.0, 0.0, 10000.0, 500.0]},
    "granitemoe_swa": {"layer_rope_theta": [10000.0, 500.0, 0.0, 0.0, 10000.0, 500.0]},
    "laguna": {"num_attention_heads_per_layer": [4, 8, 8, 4, 8, 4]},
    "cohere_compass_text": {  # no default positions for its two kinds
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            _SLIDING: {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1]},
        },
    },
    "modernbert-decoder": {"local_attention": 2 * _WINDOW},
    # What released models have on
    "afmoe": {"mup_enabled": True},
    "doge": {"keep_window_size": _WINDOW},
    "prophetnet": {
        "num_decoder_layers": N_LAYERS, "num_encoder_layers": N_LAYERS,
        "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
        "add_cross_attention": False, "num_buckets": 8, "relative_max_distance": 16,
    },
    "rwkv": {"rescale_every": 0},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni", "d_inner": 48, "d_head": 8},
    "xmod": {"languages": ("en_XX", "de_DE"), "default_language": "en_XX"},
    # Names and sizes of their own
    "blt": {"encoder_hash_byte_group_vocab": 50, "local_attention_window_len": _WINDOW, "patch_size": 4}
    | {"num_hidden_layers": N_LAYERS},  # not declared, and its cache asks for it
    "blt_local_decoder": {"hidden_size_global": 32},
    "big_bird": {"attention_type": "original_full"},  # for blocks that are longer than these texts
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "longcat_flash": {"num_layers": N_LAYERS, "zero_expert_num": 2},  # two attentions a layer
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 4},
    "minicpm3": {"dim_model_base": 16},
    "moshi": {"sliding_window": 64},  # its cache forgets what is outside the window, its mask does not
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roc_bert": {
        "pronunciation_vocab_size": 97, "pronunciation_embed_dim": 16, "shape_vocab_size": 97, "shape_embed_dim": 16,
    },
    "xlstm": {"hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "ffn_proj_factor": 1.0},  # multiples of 64
    # Parts of composite types that see and hear
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "gemma3n": {  # its own part that sees needs timm
        "vision_config": {
            "model_type": "siglip_vision_model", "vocab_size": 1, "vocab_offset": 262144, "rms_norm_eps": 1e-6,
        },
    },
    "gemma3n_audio": {
        "conf_num_hidden_layers": 2, "conf_num_attention_heads": 4,
        "input_feat_size": 16, "sscp_conv_channel_size": [8, 4],
    },
    "gemma4_vision": {"position_embedding_size": 16},
    "gemma4_audio": {"subsampling_conv_channels": [8, 4], "output_proj_dims": 32},
    "gemma4_unified_vision": {"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 2}},  # with all of them it cannot be built
    "gemma4_unified_audio": {"audio_embed_dim": 16},
    "got_ocr2_vision": {"output_channels": 8, "mlp_dim": 48, "window_size": 2},
    "phi4_multimodal_audio": {
        "num_blocks": 2, "input_size": 16, "nemo_conv_channels": 8,
        "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32,
    },
}  # fmt: skip

# Types that are left out, with the reason.
NOT_BUILT = {
    "gemma4_assistant": "its configuration has all layers share their keys, and transformers 5.23 then raises while it "
    "builds the layers",
}

# Second settings of a type, over its own, that change what a layer does.
_NO_LAYER_EMBEDDINGS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "big_bird-sparse": ("big_bird", {"attention_type": "block_sparse"}),
    "bloom-post-norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma3n_text-unshared": ("gemma3n_text", {"num_kv_shared_layers": 0}),
    "gemma4_text-unshared": (
        "gemma4_text",
        {"num_kv_shared_layers": 0, "use_double_wide_mlp": False, "num_global_key_value_heads": 1}
        | {"attention_k_eq_v": True}
        | _NO_LAYER_EMBEDDINGS,
    ),
    "gemma4_text-experts": (
        "gemma4_text",
        {"num_kv_shared_layers": 0, "use_double_wide_mlp": False, "enable_moe_block": True, "top_k_experts": 2}
        | _NO_LAYER_EMBEDDINGS,
    ),
    "gpt2-layer-scaling": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode-many-keys": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granitemoehybrid-dense": ("granitemoehybrid", {"num_local_experts": 0, "position_embedding_type": "rope"}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "mpt-learned": ("mpt", {"attn_config": {"alibi": False}}),
    "nemotron_h-latent": ("nemotron_h", {"moe_latent_size": 16}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "qwen2_moe-dense-first": ("qwen2_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]}),
    "qwen4_exp_text-plain": ("qwen4_exp_text", {"ple_layer_ids": []}),
    "rwkv-rescaled": ("rwkv", {"rescale_every": 2}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "zamba2-rope": ("zamba2", {"use_mem_rope": True, "num_mem_blocks": 1, "use_shared_attention_adapter": False}),
}


def tiny_options(name: str) -> dict[str, Any]:
    """What a row's forward pass takes besides token ids: what its layers read of an image, [1, 3, D]."""
    if name != "mllama":  # whose layers that read images are left out without one
        return {}
    return {
        "cross_attention_states": torch.randn(1, 3, COMMON["hidden_size"], generator=torch.Generator().manual_seed(0))
    }


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of a type; `settings` go over its own."""
    return _tiny(CONFIG_MAPPING[model_type], settings)


def _tiny(kind: Any, settings: dict[str, Any]) -> Any:
    settings = SPECIAL.get(kind.model_type, {}) | settings
    declared = {field.name for field in dataclasses.fields(kind)}
    names = getattr(kind, "attribute_map", {})
    common = {name if name in declared else names.get(name, name): value for name, value in COMMON.items()}
    common = {name: value for name, value in common.items() if name in declared}
    if "kv_lora_rank" in declared:  # every head has its own key
        common |= {"num_key_value_heads": common["num_attention_heads"]}
    own, foreign = {}, {}
    for name, part in kind.sub_configs_defaults.items():
        given = settings.get(name, {})
        model_type = given.get("model_type", part.model_type)
        (own if model_type == part.model_type else foreign)[name] = _tiny(CONFIG_MAPPING[model_type], given)
    config = kind(**copy.deepcopy(common | settings | dict.fromkeys(foreign) | own))
    vars(config).update(foreign)  # the composite's configuration itself refuses a part of another type
    return config


def tiny_model(model_type: str, **settings: Any) -> Any:
    """A tiny model of a type, in float32 and evaluation mode, with weights large enough that layers matter."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **settings)
    if "decoder" in config.sub_configs:  # musicgen: the automatic class hands over the whole configuration
        kind = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        model = kind._from_config(config.decoder, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            elif not parameter.any():  # a bias or gate that starts at zero
                parameter.normal_(0, 0.1)
    return model.eval()


def tiny_named(name: str) -> Any:
    """The tiny model of a type or of a row of `VARIANTS`."""
    model_type, settings = VARIANTS.get(name, (name, {}))
    return tiny_model(model_type, **settings)

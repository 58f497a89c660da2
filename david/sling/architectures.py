"""What is special about single model types: one table, and the names that configurations and modules use.

A model type whose row in experiments/architectures is exact stands in `_EXACT`. If it is an exception to the generic
rules of `locate` and `remap`, it has an entry in `SPECIAL`, with the reason. This is the one file to edit for a new
architecture, besides the independent reference in `stacked_copy`, which has rules of its own on purpose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EXACT = """
afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bert bert-generation big_bird bigbird_pegasus
biogpt bitnet blenderbot blenderbot-small bloom camembert codegen cohere cohere2 cohere2_moe cohere_compass_text cpmant
ctrl cwm data2vec-text dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 dots3_note_text
electra emu3_text_model ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint
gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa
gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling2_text
inkling_text internlm3 iquestcoder jais2 jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text
longcat_flash mamba mamba2 marian mbart megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2
minimax_m3_vl_text ministral ministral3 mistral mixtral mllama_text_model modernbert-decoder moshi mpt musicgen_decoder
musicgen_melody_decoder mvp nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt pegasus
persimmon phi phi3 phi4_multimodal phimoe plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text
qwen3_moe qwen3_next qwen4_exp_text recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert roformer rwkv
seed_oss smollm3 solar_open stablelm starcoder2 trocr vaultgemma whisper xglm xlm-roberta xlm-roberta-xl xlnet xlstm
xmod youtu zamba zamba2 zaya
"""
PROVED = frozenset(_EXACT.split())
PROVED_HERE = "_david_proved"  # attribute of a model of another type, for which `check_model` made the proof


@dataclass(frozen=True)
class Special:
    """How a model type differs from the rest.

    `refused` says why it cannot run recipes at all. `requires` is a setting of its configuration, the value that it
    must have, and why. The layers of a `coupled` type pass more than a hidden state to one another or to the end, so
    that none can be called alone. `unscalable` says why there is no one hidden state to which a strength could apply.
    """

    refused: str | None = None
    requires: tuple[str, Any, str] | None = None
    coupled: bool = False
    unscalable: str | None = None


SPECIAL: Mapping[str, Special] = {
    "big_bird": Special(
        requires=("attention_type", "original_full", "it exchanges its layers for others when a text is short")
    ),
    "blt": Special(refused="it has four lists of layers, some of bytes and some of patches"),
    "gemma4_assistant": Special(refused="it drafts on the keys and values of another model"),
    "gemma4_unified_assistant": Special(refused="it drafts on the keys and values of another model"),
    "glm_moe_dsa": Special(coupled=True),
    "hrm_text": Special(refused="it runs two lists of layers in cycles"),
    "hy_v4": Special(coupled=True),
    "inkling2_text": Special(coupled=True),
    "mvp": Special(requires=("use_prompt", False, "its prompts belong to the place of a layer")),
    "reformer": Special(coupled=True, unscalable="its layers are reversible: each passes on two streams"),
    "rwkv": Special(requires=("rescale_every", 0, "it divides a layer's weights by its place")),
    "xlm": Special(refused="it keeps the parts of its layers in four lists, so that no module is a layer"),
    "xlnet": Special(unscalable="its layers pass on two streams, content and query"),
    "zaya": Special(coupled=True),
}
REFUSED = {kind: special.refused for kind, special in SPECIAL.items() if special.refused}
REQUIRED = {kind: special.requires for kind, special in SPECIAL.items() if special.requires}
COUPLED = frozenset(kind for kind, special in SPECIAL.items() if special.coupled)
UNSCALED = {kind: special.unscalable for kind, special in SPECIAL.items() if special.unscalable}

# Names of the depth in configurations. The first one that a configuration declares is the length of the list of layers.
DEPTHS = ("decoder_layers", "num_decoder_layers", "num_layers", "num_blocks", "num_hidden_layers")
# The cache of an encoder-decoder's decoder is as long as its encoder is deep.
CACHE_DEPTHS = ("encoder_layers", "num_encoder_layers")
# Lists of a configuration with one entry per layer, besides those with "layer" in their name.
PER_LAYER_LISTS = ("activation_sparsity_pattern", "indexer_types", "intermediate_size")
# Lists of a configuration that hold layer numbers.
LAYER_NUMBER_LISTS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids", "local_layer_ids"),
    *("mlp_only_layers", "moe_layers"),
)
UNRELATED_PREFIXES = ("mtp_", "ple_layer_ids")  # lists about other layers, or read only when the model is built
OVERRIDES = "_heterogeneity_spec"  # where a configuration keeps settings that differ for single layers
SHARED_END = "first_kv_shared_layer_idx"  # attribute of the module that owns the layers
# Attributes that hold a layer's number as its place in the cache; and those that stay: they hold it for arithmetic, or
# for an attention that is refused (BigBird's sparse one).
INDICES = ("layer_idx", "layer_id")
KEPT_INDICES = (("RwkvBlock", "layer_id"), ("BigBirdAttention", "seed"), ("GPTNeoXJapaneseLayer", "layer_number"))
SLOTS = {"LongcatFlashDecoderLayer": 2}  # cache places per layer: its two attentions use 2 · layer and 2 · layer + 1
# Modules beside the layers whose output packs one part per layer: [B, T, N · part].
PACKED = ("embed_tokens_per_layer", "per_layer_model_projection")

"""What is special about single architectures: one table for each kind of exception."""

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
PROVED = frozenset(_EXACT.split())  # text models whose row in experiments/architectures is exact
PROVED_HERE = "_david_proved"  # an attribute of a model of another type, for which `check` made the proof
# The types that no list of visits can describe, and why.
REFUSED = {
    "blt": "it has four lists of layers, some of bytes and some of patches",
    "gemma4_assistant": "it drafts on the keys and values of another model",
    "gemma4_unified_assistant": "it drafts on the keys and values of another model",
    "hrm_text": "it runs two lists of layers in cycles",
    "xlm": "it keeps the parts of its layers in four lists, so that no module is a layer",
}
# Settings with which alone a type can be slung, and why.
NEEDED = (
    ("big_bird", "attention_type", "original_full", "it exchanges its layers for others when a text is short"),
    ("mvp", "use_prompt", False, "its prompts belong to the place of a layer"),
    ("rwkv", "rescale_every", 0, "it divides a layer's weights by its place"),
)
# Types whose layers hand on more than a hidden state, to one another or to the end.
COUPLED = frozenset({"glm_moe_dsa", "hy_v4", "inkling2_text", "reformer", "zaya"})
UNSCALED = {  # types whose layers pass on two streams: there is no one hidden state to damp
    "reformer": "its layers are reversible: each passes on two streams",
    "xlnet": "its layers pass on two streams, content and query",
}

# What the configurations call the depth. The first of these that one declares is the length of the list of layers.
DEPTHS = ("decoder_layers", "num_decoder_layers", "num_layers", "num_blocks", "num_hidden_layers")
# The caches of encoder-decoders' decoders are as long as their encoder was.
CACHE_DEPTHS = ("encoder_layers", "num_encoder_layers")
# Lists with an entry for each layer, besides those that have "layer" in their name.
PER_LAYER_LISTS = ("activation_sparsity_pattern", "indexer_types", "intermediate_size")
# Lists of the numbers of layers.
LAYER_NUMBER_LISTS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids", "local_layer_ids"),
    *("mlp_only_layers", "moe_layers"),
)
UNRELATED_PREFIXES = ("mtp_", "ple_layer_ids")  # of other layers, or read when the model is built and never again
OVERRIDES = "_heterogeneity_spec"  # where a configuration keeps what single layers have otherwise
SHARED_END = "first_kv_shared_layer_idx"  # an attribute of the owner
# Attributes that carry a layer's number for its place in the cache, and those that carry it for its arithmetic.
INDICES = ("layer_idx", "layer_id")
KEPT_INDICES = (("RwkvBlock", "layer_id"),)
SLOTS = {"LongcatFlashDecoderLayer": 2}  # its two attentions have the places 2 · layer and 2 · layer + 1
# Modules beside the layers whose output holds a part for each layer, packed: [B, T, N · part].
PACKED = ("embed_tokens_per_layer", "per_layer_model_projection")

"""Where a transformers model keeps its layers, and what follows when they are visited in another order.

This is the one place that knows models. The rule is generic: one list of layers, the lists of the configuration that
have an entry for each layer, and each layer's `layer_idx`. What is special has a short, named entry here, with its
reason. What is not known to be right is refused before anything is touched.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from david.errors import SlingError
from david.recipe import Recipe
from david.views import damp, is_rotary, module_view, parts

Values = list[dict[str, Any]]  # of a stack's owner, then of each of its configurations: attribute → value

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
KEPT = "_david_base"  # an attribute of a slung model's owner of layers: what is kept of the base, with the list's name
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
    inner = unwrapped(model)
    config = inner.config.get_text_config(decoder=True)
    owner, name = _kept_home(inner) or _home(inner, config)
    return Stack(owner, name, tuple(_configs(owner, name, config)))


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what holds it alone, such as PEFT's classes and what `torch.compile` returns."""
    inner = model
    while not isinstance(inner, PreTrainedModel):
        inside = list(inner.children()) if isinstance(inner, nn.Module) else []
        if len(inside) != 1:
            raise SlingError(f"expected a transformers model (PreTrainedModel); got {type(model).__name__}")
        inner = inside[0]
    return inner


def _refuse(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """`SlingError` for a model of a kind that is not known to be slung exactly."""
    kind = config.model_type
    for type_ in (model.config.model_type, kind):
        if type_ in REFUSED:
            raise SlingError(
                f"model type {type_!r} is refused: {REFUSED[type_]}. A decoder-only model with one list of layers works"
            )
    reads_encoder = config.is_encoder_decoder or getattr(config, "add_cross_attention", False)
    if reads_encoder or model.config.is_encoder_decoder:
        raise SlingError(
            f"{type(model).__name__} is refused: it is an encoder-decoder ({kind!r}), whose layers read the encoder "
            "as well. A decoder-only model works"
        )
    if not is_proved(model):
        raise SlingError(
            f"model type {kind!r} is refused: no proof has been made that slinging it is exact. "
            "`David.check(model)` makes the proof on the model in hand"
        )
    for type_, setting, needed, reason in NEEDED:
        if kind == type_ and (value := getattr(config, setting)) != needed:
            raise SlingError(
                f"model type {kind!r} is refused with {setting}={value!r}: {reason}. Load it with {setting}={needed!r}"
            )


def _kept_home(model: PreTrainedModel) -> tuple[nn.Module, str] | None:
    """The owner of a slung model's layers, and the list's name in it."""
    return next(((module, vars(module)[KEPT].name) for module in model.modules() if KEPT in vars(module)), None)


def is_proved(model: nn.Module) -> bool:
    """Whether slinging was proved exact for its type, or by `check` for the model in hand."""
    inner = unwrapped(model)
    kind = inner.config.get_text_config(decoder=True).model_type
    return kind in PROVED or bool(inner.__dict__.get(PROVED_HERE))


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT put adapters into it."""
    return any(kind.__module__.startswith("peft.") for kind in {type(part) for part in parts(module)})


def carry_adapters(old: nn.Module, new: nn.Module) -> None:
    """Let the same adapters be active in other layers: PEFT keeps that in each layer."""
    names = ("_active_adapter", "_disable_adapters")
    state = next((vars(part) for part in parts(old) if names[0] in vars(part)), None)
    for part in parts(new) if state is not None else ():
        if names[0] in vars(part):
            vars(part).update({name: state[name] for name in names})  # type: ignore[index]


def is_known(model: nn.Module) -> bool:
    """Whether `find` finds its layers."""
    try:
        find(model)
    except SlingError:
        return False
    return True


def is_coupled(model: nn.Module) -> bool:
    """Whether its layers hand on more than a hidden state, so that none can be called without its forerunner."""
    return find(model).configs[0].model_type in COUPLED


def _home(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[nn.Module, str]:
    """The one module that holds the list of a base's decoder layers, and the list's name in it."""
    _refuse(model, config)
    depth = next(getattr(config, name) for name in DEPTHS if name in vars(config) or name == DEPTHS[-1])
    found = list(_lists(model, config, model.config, depth))
    if len(found) != 1:
        places = ", ".join(f"{type(owner).__name__}.{name}" for owner, name in found) or "none"
        raise SlingError(
            f"{type(model).__name__} ({config.model_type!r}) is refused: expected one list of its {depth} decoder "
            f"layers, found {places}"
        )
    owner, name = found[0]
    if not type(owner).__module__.startswith("transformers."):
        raise SlingError(f"{type(owner).__name__} is refused: it is not transformers' own code, so its loop is unknown")
    return owner, name


def _lists(
    module: nn.Module, text: PreTrainedConfig, config: PreTrainedConfig, depth: int
) -> Iterator[tuple[nn.Module, str]]:
    """The outermost lists of `depth` modules with weights, among the modules that the text configuration speaks of."""
    config = module.__dict__.get("config", config)
    for name, child in module._modules.items():
        if child is None:
            continue
        is_list = isinstance(child, nn.ModuleList) and config.model_type == text.model_type and len(child) == depth
        if is_list and all(any(True for _ in layer.parameters()) for layer in child.children()):
            yield module, name
            continue
        yield from _lists(child, text, config, depth)


def _configs(owner: nn.Module, name: str, config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Each configuration object that the text model keeps beside its layers, once."""
    told = {id(config)}
    yield config
    for _, module in owner.named_modules({owner.get_submodule(name)}):  # a layer may have a copy, with what is its own
        other = module.__dict__.get("config")
        if (
            isinstance(other, PreTrainedConfig)
            and other.model_type == config.model_type
            and id(other) not in told
            and not is_rotary(module)  # a view shares these with its base, whose configuration must not follow
        ):
            told.add(id(other))
            yield other


def now(stack: Stack) -> Values:
    """What follows a map, as it is now: the owner's layers and what goes with them, a configuration's lists."""
    owner = {stack.name: stack.layers} | {name: child for name in PACKED if (child := stack.owner._modules.get(name))}
    owner |= {name: value for name, value in vars(stack.owner).items() if name in (*LAYER_NUMBER_LISTS, SHARED_END)}
    return [owner, *(per_layer(config, len(stack.layers)) for config in stack.configs)]


def put(stack: Stack, values: Values) -> None:
    """Set what `now` gave, or what `followed` made of it."""
    for holder, its_values in zip((stack.owner, *stack.configs), values, strict=True):
        for name, value in its_values.items():
            setattr(holder, name, value)


def followed(stack: Stack, base: Values, visits: nn.ModuleList, repeat_map: Sequence[int]) -> Values:
    """The base's values as they read for a map: `visits` for its layers, and all that goes with them in their order."""
    home = base[0][stack.name]
    owner: dict[str, Any] = {}
    for name, value in base[0].items():
        if name == stack.name:
            owner[name] = visits
        elif name in LAYER_NUMBER_LISTS:
            owner[name] = _numbers(value, repeat_map)
        elif name == SHARED_END:
            owner[name] = _shared_end(home, repeat_map)
        else:
            owner[name] = module_view(value, {})
            owner[name].register_forward_hook(_Unpacked(len(home), repeat_map))
    configs = zip(stack.configs, base[1:], strict=True)
    return [owner, *(_mapped(config, values, len(home), repeat_map) for config, values in configs)]


def per_layer(config: PreTrainedConfig, n_layers: int) -> dict[str, Any]:
    """What a configuration says layer by layer.

    Its depth, over which the loops of transformers run (`layers[:config.num_hidden_layers]`); each list that has an
    entry for every layer (`layer_types`, `mlp_layer_types`, `no_rope_layers`, …), from which caches are built; what a
    heterogeneous configuration overrides; and the class, since some of these lists are computed.
    """
    depth = type(config).attribute_map.get(DEPTHS[-1], DEPTHS[-1])
    follow = (depth, OVERRIDES, *CACHE_DEPTHS, *LAYER_NUMBER_LISTS)
    return {"__class__": type(config)} | {
        name: value
        for name, value in vars(config).items()
        if name in follow or (name in DEPTHS and value == n_layers) or _has_each(name, value, n_layers)
    }


def _has_each(name: str, value: Any, n_layers: int) -> bool:
    """Whether a value is a list with an entry for each layer."""
    named = ("layer" in name or name in PER_LAYER_LISTS) and not name.startswith(UNRELATED_PREFIXES)
    return named and isinstance(value, list | tuple) and len(value) == n_layers


def _mapped(
    config: PreTrainedConfig, base: Mapping[str, Any], n_layers: int, repeat_map: Sequence[int]
) -> dict[str, Any]:
    """The base's values of a configuration as they read for a map's visits."""
    mapped: dict[str, Any] = {}
    for name, value in base.items():
        if name == "__class__":
            mapped[name] = _with_lists(config, base, n_layers, repeat_map)
        elif name == OVERRIDES:
            told = value.per_layer_overrides
            own = {visit: told[layer] for visit, layer in enumerate(repeat_map) if layer in told}
            mapped[name] = dataclasses.replace(value, per_layer_overrides=own)
        elif name in LAYER_NUMBER_LISTS:
            mapped[name] = _numbers(value, repeat_map)
        elif _has_each(name, value, n_layers):
            mapped[name] = type(value)(value[layer] for layer in repeat_map)
        else:
            mapped[name] = len(repeat_map)
    return mapped


def _with_lists(
    config: PreTrainedConfig, base: Mapping[str, Any], n_layers: int, repeat_map: Sequence[int]
) -> type[PreTrainedConfig]:
    """The class of a configuration, with the lists that it computes from a pattern replaced by the map's."""
    kind: type[PreTrainedConfig] = base["__class__"]
    twin = copy.copy(config)
    for name, value in base.items():
        setattr(twin, name, value)
    lists = {}
    own = kind.__mro__[: kind.__mro__.index(PreTrainedConfig)]
    for name in {name for part in own for name, value in vars(part).items() if isinstance(value, property)}:
        try:
            value = getattr(twin, name)
        except Exception:  # what the base's own model could not have read either
            continue
        if isinstance(value, list | tuple) and len(value) == n_layers:
            lists[name] = type(value)(value[layer] for layer in repeat_map)
    return _class_with(kind, lists) if lists else kind


def _class_with(kind: type[PreTrainedConfig], lists: dict[str, Any]) -> type[PreTrainedConfig]:
    """A configuration's class in which some computed lists are these."""

    def reduce(config: PreTrainedConfig) -> tuple[Any, ...]:  # pickle finds no class by this name
        return _empty_with, (kind, lists), vars(config)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__reduce__": reduce} | lists)


def _empty_with(kind: type[PreTrainedConfig], lists: dict[str, Any]) -> PreTrainedConfig:
    return object.__new__(_class_with(kind, lists))


def _numbers(old: Any, repeat_map: Sequence[int]) -> Any:
    """A list of the numbers of layers (or None) as the list of the visits of these."""
    return old and type(old)(visit for visit, layer in enumerate(repeat_map) if layer in old)


def visited(layer: nn.Module, index: int, slot: int, scale: float) -> nn.Module:
    """Base layer `index` as visit `slot`: a view of it, with its own place in the cache, damped to its scale."""
    view = module_view(layer, {})
    for module in parts(view):
        own = vars(module)
        for name in INDICES:
            carried = own.get(name)
            if carried is None or carried < 0 or (type(module).__name__, name) in KEPT_INDICES:
                continue
            places = 1 if module is view else SLOTS.get(type(layer).__name__, 1)
            if carried // places != index:
                raise SlingError(f"layer {index} is refused: its {type(module).__name__} carries {name} {carried}")
            own[name] = slot * places + carried % places
        if "layer_dic" in own:  # Zamba 2: the number of a layer → its adapters in a block that layers share
            own["layer_dic"] = {slot: own["layer_dic"][index]}
    damp(view, scale)
    return view


def check(stack: Stack, base: Values, recipe: Recipe) -> None:
    """`SlingError` where a model cannot run a recipe, with the layers named: before anything is touched."""
    kind = stack.configs[0].model_type
    if kind in UNSCALED and any(scale != 1 for scale in recipe.scales):
        raise SlingError(f"scales are refused for model type {kind!r}: {UNSCALED[kind]}. Without scales it works")
    home, values, first = base[0][stack.name], base[1], recipe.repeat_map[0]
    if _misleads(kind, values, first):
        raise SlingError(
            f"layer {first} cannot be the first visit of a {kind!r} model: the length of a cached text is read off the "
            "first visit, and this layer keeps no keys of the text. Begin with a layer of self-attention"
        )
    sources = _sources(home, values)
    for visit, layer in enumerate(recipe.repeat_map):
        if layer in sources and sources[layer][0] not in recipe.repeat_map[:visit]:
            source, shared = sources[layer]
            raise SlingError(
                f"layer {layer} of this {kind!r} model shares the {shared} of layer {source}: "
                f"a map must visit layer {source} before it"
            )


def _misleads(kind: str, values: Mapping[str, Any], layer: int) -> bool:
    """Whether a cache whose length is read off its first place reads it wrong with this layer there."""
    if kind == "minimax":
        return bool(values["layer_types"][layer] != "full_attention")
    return kind == "mllama_text_model" and layer in values["cross_attention_layers"]


def _sources(home: nn.ModuleList, values: Mapping[str, Any]) -> dict[int, tuple[int, str]]:
    """A layer that shares → the layer it shares with, and what of it."""
    sources: dict[int, tuple[int, str]] = {}
    stores: dict[str, int] = {}
    for index, layer in enumerate(home):
        attention: Any = getattr(layer, "self_attn", None)
        if getattr(attention, "store_full_length_kv", False):
            stores[attention.layer_type] = index
    for index, layer in enumerate(home):
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "is_kv_shared_layer", False):
            sources[index] = stores[attention.layer_type], "keys and values"
    kinds = values.get("indexer_types") or ()
    for index, kind in enumerate(kinds):
        if kind == "shared":
            sources[index] = max(i for i in range(index) if kinds[i] != "shared"), "choice of tokens"
    return sources


def _shared_end(home: nn.ModuleList, repeat_map: Sequence[int]) -> int:
    """The visit from which on no layer has keys and values of its own (Gemma 4 then drops tokens that nobody needs)."""
    end = len(repeat_map)
    while end and home[repeat_map[end - 1]].self_attn.is_kv_shared_layer:  # type: ignore[union-attr]
        end -= 1
    return end


class _Unpacked:
    """A forward hook that puts the parts of an output, one a layer, into a map's order: `[…, N · p]` → `[…, M · p]`."""

    def __init__(self, n_layers: int, repeat_map: Sequence[int]) -> None:
        self.n_layers, self.order = n_layers, tuple(repeat_map)

    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        parts = output.view(*output.shape[:-1], self.n_layers, -1)
        return parts[..., self.order, :].flatten(-2)


def config_copies(model: nn.Module) -> dict[int, Any]:
    """The id of each configuration of a model → a copy of its own, as a second model needs them."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            if module.__dict__.get(name) is not None:
                copy.deepcopy(module.__dict__[name], copies)
    return {key: value for key, value in copies.items() if isinstance(value, PreTrainedConfig | GenerationConfig)}

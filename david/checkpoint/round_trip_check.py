"""Whether plain transformers builds from a configuration what a recipe runs: the proof before a checkpoint is written.

The view's configuration is written, read back and built, without values; and what comes out is compared with the view,
module by module: classes, shapes, buffers, and every plain attribute.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation
from transformers.integrations.accelerate import load_offloaded_parameter

from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling import architectures, locate
from david.sling.locate import Stack
from david.sling.views import is_rotary
from david.support.text import one_line

HINT = "The recipe itself runs without a checkpoint: david generate --recipe"
# Attributes that say how a model is used, or how it was built, and not what it computes.
_USAGE_ATTRIBUTES = frozenset(
    {"all_tied_weights_keys", "gradient_checkpointing", "layer_block_map", "layers_are_rescaled", "name_or_path"}
    | {"training", "vocab_size"}  # the shapes of the embeddings are compared
)
# Settings of a configuration that say where it is from (its class says what type), or what is compared in the layers.
_ORIGIN_SETTINGS = frozenset(
    {"architectures", "dtype", "kv_sharing_modes", "model_type", "name_or_path", "torch_dtype", "transformers_version"}
)
_STORES = "store_full_length_kv"  # an attribute of attentions whose keys and values later layers share
_PACKED_WIDTHS = ("embedding_dim", "out_features")


@dataclass(frozen=True)
class Weights:
    """The tensors of a view by their names in it; those that it packs for each layer, in the map's order."""

    slung: PreTrainedModel
    state: Mapping[str, Tensor]
    packed: Mapping[str, int]  # name → the dimension in which the parts of the layers stand
    n_layers: int
    order: tuple[int, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that a tensor has in the file."""
        shape = list(self.state[name].shape)
        if name in self.packed:
            shape[self.packed[name]] = shape[self.packed[name]] // self.n_layers * len(self.order)
        return tuple(shape)

    def meta(self, name: str) -> Tensor:
        """A tensor without values, of the shape that the file's has."""
        return torch.empty(self.shape(name), dtype=self.state[name].dtype, device="meta")

    def load(self, name: str) -> Tensor:
        """A tensor's values; those of a packed one in the map's order, in memory of their own."""
        tensor = self.state[name]
        if tensor.is_meta:
            try:
                tensor = load_offloaded_parameter(self.slung, name)
            except ValueError as error:
                raise SlingError(f"{name} has no values: {one_line(error)}") from None
        if name not in self.packed:
            return tensor
        dimension = self.packed[name]
        parts: Tensor = tensor.unflatten(dimension, (self.n_layers, -1))  # type: ignore[no-untyped-call]
        taken = parts.index_select(dimension, torch.tensor(self.order, device=tensor.device))
        return taken.flatten(dimension, dimension + 1)


@dataclass(frozen=True)
class RoundTripProof:
    """What was proved: `config` is the JSON of a configuration from which transformers builds what the view runs."""

    config: dict[str, Any]
    loaded_config: PreTrainedConfig
    weights: Weights
    prefix: str  # of the layers in the weights' names
    names: tuple[str, ...]  # of the weights that it reads from a checkpoint
    values: int  # how many numbers those are


def check_round_trip(slung: PreTrainedModel, recipe: Recipe, n_layers: int) -> RoundTripProof:
    """The proof, on a view of a base of `n_layers`; `SlingError` that names the first difference."""
    stack = locate.find(slung)
    prefix = next(name for name, module in slung.named_modules() if module is stack.layers)
    _follow_sharing(stack)
    config = _configuration(slung)
    read = _read_back(config, slung)
    built = _build_model(read, slung)
    weights = _weights(slung, stack, n_layers, recipe)
    _compare_modules(weights, built, prefix)
    _check_padding(weights, built)
    _compare_configurations(stack, locate.find(built))
    unread = _check_ties(weights, built) | set(slung._keys_to_ignore_on_save or ())
    names = tuple(name for name in weights.state if name not in unread)
    values = sum(tensor.numel() for name, tensor in built.state_dict().items() if name not in unread)
    return RoundTripProof(config, read, weights, prefix, names, values)


def _follow_sharing(stack: Stack) -> None:
    """Gemma 3n and 4 say by one number how many of the last layers share keys and values: as many as of the visits."""
    shared = [getattr(getattr(visit, "self_attn", None), "is_kv_shared_layer", False) for visit in stack.layers]
    last = next((place for place, shares in enumerate(reversed(shared)) if not shares), len(shared))
    for config in stack.configs:
        if "num_kv_shared_layers" in vars(config):
            config.num_kv_shared_layers = last


def _configuration(slung: PreTrainedModel) -> dict[str, Any]:
    """The view's configuration as the JSON of a checkpoint, with nothing of this machine in it."""
    config: dict[str, Any] = json.loads(slung.config.to_json_string())
    dtype = str(slung.dtype).removeprefix("torch.")

    def clean(part: dict[str, Any]) -> None:
        part.pop("_name_or_path", None)
        if part.get("dtype") is not None:
            part["dtype"] = dtype
        for inner in part.values():
            if isinstance(inner, dict):
                clean(inner)

    clean(config)
    return config | {"architectures": [type(slung).__name__], "dtype": dtype}


def _read_back(config: dict[str, Any], slung: PreTrainedModel) -> PreTrainedConfig:
    """The configuration as transformers reads it from its file."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            read = AutoConfig.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # each configuration checks itself in its own way
            raise SlingError(
                f"a {type(slung.config).__name__} cannot say what this recipe needs: {one_line(error)}. {HINT}"
            ) from None
    if not isinstance(slung.config, type(read)):
        raise SlingError(
            f"its {type(slung.config).__name__} would be read back as a {type(read).__name__}, another type. {HINT}"
        )
    return read


def _build_model(config: PreTrainedConfig, slung: PreTrainedModel) -> PreTrainedModel:
    """What transformers builds from the configuration: real buffers, no values of parameters."""
    kind = type(slung)
    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            return kind._from_config(config, dtype=slung.dtype)
    except Exception as error:  # the code of any model
        raise SlingError(
            f"{kind.__name__} cannot be built with this recipe's configuration: {one_line(error)}. {HINT}"
        ) from None


def _weights(slung: PreTrainedModel, stack: Stack, n_layers: int, recipe: Recipe) -> Weights:
    owner = next(name for name, module in slung.named_modules() if module is stack.owner)
    packed: dict[str, int] = {}
    for name in architectures.PACKED:
        module = stack.owner._modules.get(name)
        if module is None:
            continue
        # an embedding has a column for each number of its output, [V, N · p]; a projection a row, [N · p, D]
        dimension = 1 if isinstance(module, nn.Embedding) else 0
        path = f"{owner}.{name}" if owner else name
        own = {name: weight for name, weight in module._parameters.items() if weight is not None}
        packed |= {f"{path}.{name}": dimension if weight.dim() > 1 else 0 for name, weight in own.items()}
    return Weights(slung, slung.state_dict(), packed, n_layers, recipe.repeat_map)


def _compare_modules(weights: Weights, built: PreTrainedModel, prefix: str) -> None:
    """`SlingError` unless what the configuration builds is, module by module, what the recipe runs."""
    stack = locate.find(weights.slung)
    settings = _settings(stack.configs[0])
    mine = dict(weights.slung.named_modules(remove_duplicate=False))
    its = dict(built.named_modules(remove_duplicate=False))
    for path in (*mine, *(path for path in its if path not in mine)):
        ours, theirs = _facts(weights, path, mine.get(path)), _facts(None, path, its.get(path))
        if not path:  # a loaded model remembers how it was loaded
            ours = {name: value for name, value in ours.items() if name in theirs}
        for name in (*theirs, *(name for name in ours if name not in theirs)):
            if mine.get(path) is stack.owner and isinstance(settings.get(name), list):
                continue  # read when the model was built; what the configuration says now is compared below
            if name == _STORES and ours.get(name) and theirs.get(name) is False:
                continue  # the last that stores is read, and all that share come after it
            if ours.get(name, _ABSENT) != theirs.get(name, _ABSENT):
                raise SlingError(_difference(path, name, ours, theirs, prefix, type(weights.slung.config)))
        _compare_buffers(weights, path, mine[path], its[path])
    _compare_dtypes(weights, built)


_ABSENT = "nothing of this name"
_CLASS = "the module"


def _difference(
    path: str, name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str, config: type
) -> str:
    place = re.match(rf"{re.escape(prefix)}\.(\d+)\.?(.*)", path)
    where = f"visit {place[1]}" if place else "the model"
    inner = place[2] if place else path
    had, has = theirs.get(name, _ABSENT), ours.get(name, _ABSENT)
    if name == _CLASS and not inner:
        return f"{where} would be a {had} where the recipe has a {has}: a {config.__name__} cannot say so. {HINT}"
    inner = ".".join(filter(None, [inner, "" if name == _CLASS else name])) or name
    had, has = (value if value is _ABSENT or name == _CLASS else _short_repr(value) for value in (had, has))
    return f"{where} would have {inner} = {had} where the recipe has {has}: a {config.__name__} cannot say so. {HINT}"


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _facts(weights: Weights | None, path: str, module: nn.Module | None) -> dict[str, Any]:
    """What a module is, besides the values of its tensors. With `weights`, packed ones have the file's shapes."""
    if module is None:
        return {}
    facts: dict[str, Any] = {_CLASS: type(module).__name__, "its class": _class_path(module)}
    for name, tensor in module._parameters.items():
        full = f"{path}.{name}" if path else name
        shape = weights.shape(full) if weights is not None and full in weights.packed else None
        facts[name] = None if tensor is None else ("parameter", shape or tuple(tensor.shape))
    for name, buffer in module._buffers.items():
        kept = "buffer, not kept" if name in module._non_persistent_buffers_set else "buffer"
        facts[name] = None if buffer is None else (kept, tuple(buffer.shape))
    if is_rotary(module):
        return facts
    own = {name: _plain_value(value) for name, value in vars(module).items() if _is_compared(module, name)}
    if isinstance(of_all := own.get("layer_dic"), dict):  # Zamba 2: a block that layers share knows them all by number
        numbers = {int(part) for part in path.split(".") if part.isdigit()}
        own["layer_dic"] = {number: entry for number, entry in of_all.items() if number in numbers}
    if weights is not None and any(f"{path}.{name}" in weights.packed for name in module._parameters):
        parts = len(weights.order) / weights.n_layers
        own |= {name: int(own[name] * parts) for name in _PACKED_WIDTHS if name in own}
    return facts | {name: value for name, value in own.items() if value is not _OTHER}


def _class_path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_compared(module: nn.Module, name: str) -> bool:
    """Whether an attribute says what a module computes."""
    kept = (type(module).__name__, name) in architectures.KEPT_INDICES  # read only when the module is built
    return not name.startswith("_") and name not in _USAGE_ATTRIBUTES and not kept


_OTHER = object()  # what is no plain value


def _plain_value(value: Any) -> Any:
    """A value that can be compared: numbers, text, and lists and dictionaries of these; tuples as lists, as in JSON."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain_value(part) for part in value]
        return _OTHER if any(part is _OTHER for part in parts) else parts
    if isinstance(value, dict):
        named = {key: _plain_value(part) for key, part in value.items()}
        return _OTHER if any(part is _OTHER for part in named.values()) else named
    return _OTHER


def _compare_buffers(weights: Weights, path: str, mine: nn.Module, its: nn.Module) -> None:
    """Buffers that a checkpoint does not hold must come out of the configuration with the values that they have."""
    grows = hasattr(mine, "original_inv_freq")  # what follows the longest text so far, and the value it began with
    for name in sorted(mine._non_persistent_buffers_set & mine._buffers.keys()):
        ours, theirs = mine._buffers[name], its._buffers[name]
        if ours is None or theirs is None or (grows and name == "inv_freq"):
            continue
        full = f"{path}.{name}" if path else name
        if ours.is_meta:
            ours = load_offloaded_parameter(weights.slung, full)
        if ours.dtype != theirs.dtype or not torch.equal(ours.to(theirs.device), theirs):
            raise SlingError(
                f"{full} would be built with other values than it has here ({ours.dtype}; built: {theirs.dtype}): "
                "a checkpoint does not hold it. Load the base with its dtype, rather than casting it"
            )


def _compare_dtypes(weights: Weights, built: PreTrainedModel) -> None:
    """Each tensor must be read back in the type that it has."""
    kept = built._get_dtype_plan(built.dtype)
    pattern = build_glob_alternation(list(kept))[0] if kept else None
    for name, tensor in built.state_dict().items():
        read = torch.float32 if pattern is not None and pattern.search(name) else tensor.dtype
        has = weights.state[name].dtype
        if has != read:
            raise SlingError(
                f"{name} is {has} here and would be read back as {read}: load the base with one dtype "
                "(load_model(…, dtype=…)), then export"
            )


def _check_padding(weights: Weights, built: PreTrainedModel) -> None:
    """Some types clear the padding token's embedding when they are read (Youtu): it must be zero then."""
    if not any(_clears_padding(part) for part in built.modules() if isinstance(part, PreTrainedModel)):
        return
    for path, module in weights.slung.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            row = weights.load(f"{path}.weight")[module.padding_idx]
            if row.any():
                raise SlingError(
                    f"{path} has values for the padding token, {module.padding_idx}, which transformers sets to zero "
                    f"when it reads a {type(built).__name__}: it would be another model. {HINT}"
                )


def _clears_padding(model: PreTrainedModel) -> bool:
    probe = nn.Embedding(2, 1, padding_idx=0)
    nn.init.ones_(probe.weight)
    probe.weight._is_hf_initialized = True  # type: ignore[attr-defined]  # how transformers marks what was read
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model._init_weights(probe)
    except Exception:  # the code of any model: it wants more than a module, so nothing is known of it
        return True
    return probe.weight[0].item() == 0


def _compare_configurations(mine: Stack, its: Stack) -> None:
    """The text configuration must say of each visit what the view's says, also where it computes it."""
    ours, theirs = _settings(mine.configs[0]), _settings(its.configs[0])
    for name in sorted(ours.keys() | theirs.keys()):
        had, has = theirs.get(name, _ABSENT), ours.get(name, _ABSENT)
        if had != has:
            raise SlingError(
                f"the configuration would be read back with {name} = {_short_repr(had)} where the recipe has "
                f"{_short_repr(has)}: a {type(its.configs[0]).__name__} cannot say so. {HINT}"
            )


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    computed = {
        name
        for part in type(config).__mro__[: type(config).__mro__.index(PreTrainedConfig)]
        for name, value in vars(part).items()
        if isinstance(value, property | list | tuple)  # a list stands for a property where a view computes it
    }
    settings: dict[str, Any] = {}
    for name in sorted(vars(config).keys() | computed):
        if name.startswith("_") or name in _ORIGIN_SETTINGS:
            continue
        try:
            value = _plain_value(getattr(config, name))
        except Exception:  # what the base's own model could not have read either
            continue
        if value is not _OTHER:
            settings[name] = value
    return settings


def _check_ties(weights: Weights, built: PreTrainedModel) -> set[str]:
    """The names that the built model ties to another and so does not read; `SlingError` where the view has two."""
    ties: dict[str, str] = built.all_tied_weights_keys
    for name, source in ties.items():
        one, other = (weights.slung.get_parameter_or_buffer(key) for key in (name, source))
        if one is not other and not torch.equal(weights.load(name), weights.load(source)):
            raise SlingError(
                f"{name} and {source} would be read back as one tensor, and are two here: load the base with "
                f"tie_word_embeddings=False. {HINT}"
            )
    return set(ties)

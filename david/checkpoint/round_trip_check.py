"""Prove that plain transformers builds from a configuration what a recipe runs, before a checkpoint is written.

`check_round_trip` writes the configuration of a slung view, reads it back, builds the model without values, and
compares it with the view, module by module: classes, shapes, buffers, and every plain attribute. `Weights` gives the
tensors of the view in the form of the file.
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

from david.checkpoint.layer_counts import update_layer_counts, update_shared_count
from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling import architectures, locate
from david.sling.locate import Stack
from david.sling.views import is_rotary
from david.support.text import one_line

HINT = "The recipe itself runs without a checkpoint: david generate --recipe"
# Attributes that do not affect what a model computes, only how it is used or how it was built.
_USAGE_ATTRIBUTES = frozenset(
    {"all_tied_weights_keys", "gradient_checkpointing", "layer_block_map", "layers_are_rescaled", "name_or_path"}
    | {"training", "vocab_size"}  # the shapes of the embeddings are compared
)
# Settings of a configuration that record its origin (its class is the type), or that are compared in the layers.
_ORIGIN_SETTINGS = frozenset(
    {"architectures", "dtype", "kv_sharing_modes", "model_type", "name_or_path", "torch_dtype", "transformers_version"}
)
_STORES = "store_full_length_kv"  # an attribute of attentions whose keys and values later layers share
_PACKED_WIDTHS = ("embedding_dim", "out_features")
_ABSENT = "nothing of this name"  # stands in messages for a missing fact
_CLASS = "the module"  # the fact that holds the class of a module


@dataclass(frozen=True)
class Weights:
    """The tensors of a slung view by name, with packed tensors (one part for each layer) in the order of the visits."""

    slung: PreTrainedModel
    state: Mapping[str, Tensor]  # of the view
    packed: Mapping[str, int]  # name → the dimension that holds the parts of the layers
    n_layers: int  # of the base
    order: tuple[int, ...]  # the layer of each visit

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the file."""
        shape = list(self.state[name].shape)
        if name in self.packed:
            shape[self.packed[name]] = shape[self.packed[name]] // self.n_layers * len(self.order)
        return tuple(shape)

    def meta(self, name: str) -> Tensor:
        """Return a tensor without values (on the `meta` device) in the shape and dtype of the file."""
        return torch.empty(self.shape(name), dtype=self.state[name].dtype, device="meta")

    def load(self, name: str) -> Tensor:
        """Return the values of a tensor; of a packed tensor a copy, in the order of the visits.

        Args:
            name: The name of the tensor in the view; offloaded values are loaded.

        Raises:
            SlingError: The tensor has no values.
        """
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
        selected = parts.index_select(dimension, torch.tensor(self.order, device=tensor.device))
        return selected.flatten(dimension, dimension + 1)


@dataclass(frozen=True)
class RoundTripProof:
    """The result of `check_round_trip`: the configuration and the weights of the checkpoint."""

    config: dict[str, Any]  # JSON from which transformers builds what the view runs
    loaded_config: PreTrainedConfig  # the configuration as transformers reads it
    weights: Weights
    prefix: str  # of the names of the weights in the layers
    names: tuple[str, ...]  # of the weights that the built model reads from a checkpoint
    values: int  # count of values in these weights


def check_round_trip(slung: PreTrainedModel, recipe: Recipe, n_layers: int) -> RoundTripProof:
    """Prove that transformers builds from the configuration of a view what the recipe runs.

    Args:
        slung: A view of the base, slung to the recipe. Numbers of layers in its configuration are updated if they
            must be.
        recipe: The recipe.
        n_layers: The number of layers of the base.

    Returns:
        The configuration, and the weights in the form of the file.

    Raises:
        SlingError: The built model differs from the view; the message names the first difference.
    """
    stack = locate.find(slung)
    update_shared_count(stack)
    try:
        return _prove(slung, recipe, n_layers)
    except SlingError:
        if not update_layer_counts(stack, recipe.repeat_map):
            raise
    return _prove(slung, recipe, n_layers)


def _prove(slung: PreTrainedModel, recipe: Recipe, n_layers: int) -> RoundTripProof:
    """Prove it for the configuration as it is."""
    stack = locate.find(slung)
    prefix = next(name for name, module in slung.named_modules() if module is stack.layers)
    config = _configuration(slung)
    loaded_config = _read_back(config, slung)
    built = _build_model(loaded_config, slung)
    weights = _weights(slung, stack, n_layers, recipe)
    _compare_modules(weights, built, prefix)
    _check_padding(weights, built)
    _compare_configurations(stack, locate.find(built))
    unread = _check_ties(weights, built) | set(slung._keys_to_ignore_on_save or ())
    names = tuple(name for name in weights.state if name not in unread)
    values = sum(tensor.numel() for name, tensor in built.state_dict().items() if name not in unread)
    return RoundTripProof(config, loaded_config, weights, prefix, names, values)


def _configuration(slung: PreTrainedModel) -> dict[str, Any]:
    """Return the configuration of the view as the JSON of a checkpoint, without paths of this machine."""
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
    """Return the configuration as transformers reads it from its file; `SlingError` if it is refused."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            loaded_config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # each configuration class has its own checks and error types
            raise SlingError(
                f"a {type(slung.config).__name__} cannot say what this recipe needs: {one_line(error)}. {HINT}"
            ) from None
    if not isinstance(slung.config, type(loaded_config)):
        raise SlingError(
            f"its {type(slung.config).__name__} would be read back as a {type(loaded_config).__name__}, "
            f"another type. {HINT}"
        )
    return loaded_config


def _build_model(config: PreTrainedConfig, slung: PreTrainedModel) -> PreTrainedModel:
    """Build the model of the configuration with transformers: buffers have values, parameters have none."""
    kind = type(slung)
    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            return kind._from_config(config, dtype=slung.dtype)
    except Exception as error:  # the code of any model
        raise SlingError(
            f"{kind.__name__} cannot be built with this recipe's configuration: {one_line(error)}. {HINT}"
        ) from None


def _weights(slung: PreTrainedModel, stack: Stack, n_layers: int, recipe: Recipe) -> Weights:
    """Return the tensors of the view, and which of them pack a part for each layer."""
    owner = next(name for name, module in slung.named_modules() if module is stack.owner)
    packed: dict[str, int] = {}
    for name in architectures.PACKED:
        module = stack.owner._modules.get(name)
        if module is None:
            continue
        # an embedding has a column for each number of its output, [V, N · p]; a projection a row, [N · p, D]
        dimension = 1 if isinstance(module, nn.Embedding) else 0
        path = f"{owner}.{name}" if owner else name
        weights = {name: weight for name, weight in module._parameters.items() if weight is not None}
        packed |= {f"{path}.{name}": dimension if weight.dim() > 1 else 0 for name, weight in weights.items()}
    return Weights(slung, slung.state_dict(), packed, n_layers, recipe.repeat_map)


def _compare_modules(weights: Weights, built: PreTrainedModel, prefix: str) -> None:
    """Raise `SlingError` unless the built model equals the view that runs the recipe, module by module."""
    stack = locate.find(weights.slung)
    settings = _settings(stack.configs[0])
    view_modules = dict(weights.slung.named_modules(remove_duplicate=False))
    built_modules = dict(built.named_modules(remove_duplicate=False))
    for path in (*view_modules, *(path for path in built_modules if path not in view_modules)):
        actual = _facts(weights, path, view_modules.get(path))
        rebuilt = _facts(None, path, built_modules.get(path))
        if not path:  # a loaded model has further attributes on how it was loaded
            actual = {name: value for name, value in actual.items() if name in rebuilt}
        for name in (*rebuilt, *(name for name in actual if name not in rebuilt)):
            if _is_stale_copy(weights, name, actual, rebuilt, settings):
                continue
            if rebuilt and name not in rebuilt and _is_frequency(view_modules.get(path), name):
                continue  # of a kind of layer that no visit is of
            if name == _STORES and actual.get(name) and rebuilt.get(name) is False:
                continue  # only the last layer that stores is read, and all that share come after it
            if actual.get(name, _ABSENT) != rebuilt.get(name, _ABSENT):
                raise SlingError(_difference(path, name, actual, rebuilt, prefix, type(weights.slung.config)))
        _compare_buffers(weights, path, view_modules[path], built_modules[path])
    _compare_dtypes(weights, built)


def _is_stale_copy(
    weights: Weights, name: str, actual: Mapping[str, Any], rebuilt: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Return whether an attribute was copied from a setting when the base was built: a list per layer, or the depth.

    So is whether any layer has a sliding window, which asks for a mask that other layers do not read. The
    configurations themselves are compared, and the built model has what its configuration says.
    """
    had, has = rebuilt.get(name), actual.get(name)
    if isinstance(settings.get(name), list):
        return bool(had == settings[name])
    if name == "has_sliding_layers":
        return bool(has) and had is False
    return name in architectures.DEPTHS and (has, had) == (weights.n_layers, len(weights.order))


def _is_frequency(module: nn.Module | None, name: str) -> bool:
    """Return whether a name is that of a buffer of a rotary module, which has some for each kind of layer."""
    return module is not None and is_rotary(module) and name in module._buffers


def _difference(
    path: str, name: str, actual: Mapping[str, Any], rebuilt: Mapping[str, Any], prefix: str, config: type
) -> str:
    """Return the sentence on one difference: of the class of a module, or of one of its facts."""
    place = re.match(rf"{re.escape(prefix)}\.(\d+)\.?(.*)", path)
    where = f"visit {place[1]}" if place else "the model"
    inner = place[2] if place else path
    had, has = rebuilt.get(name, _ABSENT), actual.get(name, _ABSENT)
    if name == _CLASS and not inner:
        return f"{where} would be a {had} where the recipe has a {has}: a {config.__name__} cannot say so. {HINT}"
    inner = ".".join(filter(None, [inner, "" if name == _CLASS else name])) or name
    had, has = (value if value is _ABSENT or name == _CLASS else _short_repr(value) for value in (had, has))
    return f"{where} would have {inner} = {had} where the recipe has {has}: a {config.__name__} cannot say so. {HINT}"


def _short_repr(value: Any) -> str:
    """Return the repr of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _facts(weights: Weights | None, path: str, module: nn.Module | None) -> dict[str, Any]:
    """Return class, shapes and attributes of a module; with `weights`, packed tensors have the file's shapes."""
    if module is None:
        return {}
    facts: dict[str, Any] = {_CLASS: type(module).__name__, "its class": _class_path(module)}
    for name, tensor in module._parameters.items():
        full = f"{path}.{name}" if path else name
        shape = weights.shape(full) if weights is not None and full in weights.packed else None
        facts[name] = None if tensor is None else ("parameter", shape or tuple(tensor.shape))
    for name, buffer in module._buffers.items():
        kind = "buffer, not kept" if name in module._non_persistent_buffers_set else "buffer"
        facts[name] = None if buffer is None else (kind, tuple(buffer.shape))
    if is_rotary(module):
        return facts
    attributes = {name: _plain_value(value) for name, value in vars(module).items() if _is_compared(module, name)}
    entries = attributes.get("layer_dic")
    if isinstance(entries, dict):  # Zamba 2: a shared block lists all its layers by number
        numbers = {int(part) for part in path.split(".") if part.isdigit()}
        attributes["layer_dic"] = {number: entry for number, entry in entries.items() if number in numbers}
    if weights is not None and any(f"{path}.{name}" in weights.packed for name in module._parameters):
        parts = len(weights.order) / weights.n_layers
        attributes |= {name: int(attributes[name] * parts) for name in _PACKED_WIDTHS if name in attributes}
    return facts | {name: value for name, value in attributes.items() if value is not _OTHER}


def _class_path(module: nn.Module) -> str:
    """Return the full name of the class of a module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_compared(module: nn.Module, name: str) -> bool:
    """Return whether an attribute affects what a module computes."""
    used_at_build_only = (type(module).__name__, name) in architectures.KEPT_INDICES
    return not name.startswith("_") and name not in _USAGE_ATTRIBUTES and not used_at_build_only


_OTHER = object()  # stands for any value that is not plain


def _plain_value(value: Any) -> Any:
    """Return a comparable value: numbers, text, lists and dictionaries of these (tuples as lists, as in JSON)."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain_value(part) for part in value]
        return _OTHER if any(part is _OTHER for part in parts) else parts
    if isinstance(value, dict):
        entries = {key: _plain_value(part) for key, part in value.items()}
        return _OTHER if any(part is _OTHER for part in entries.values()) else entries
    return _OTHER


def _compare_buffers(weights: Weights, path: str, view_module: nn.Module, built_module: nn.Module) -> None:
    """Raise `SlingError` if a buffer that a checkpoint does not hold would be built with other values."""
    grows = hasattr(view_module, "original_inv_freq")  # inv_freq follows the longest text so far, from this value on
    for name in sorted(
        view_module._non_persistent_buffers_set & view_module._buffers.keys() & built_module._buffers.keys()
    ):
        actual, rebuilt = view_module._buffers[name], built_module._buffers[name]
        if actual is None or rebuilt is None or (grows and name == "inv_freq"):
            continue
        full = f"{path}.{name}" if path else name
        if actual.is_meta:
            actual = load_offloaded_parameter(weights.slung, full)
        if actual.dtype != rebuilt.dtype or not torch.equal(actual.to(rebuilt.device), rebuilt):
            raise SlingError(
                f"{full} would be built with other values than it has here ({actual.dtype}; built: {rebuilt.dtype}): "
                "a checkpoint does not hold it. Load the base with its dtype, rather than casting it"
            )


def _compare_dtypes(weights: Weights, built: PreTrainedModel) -> None:
    """Raise `SlingError` if a tensor would be read back in another dtype."""
    float32_names = built._get_dtype_plan(built.dtype)
    pattern = build_glob_alternation(list(float32_names))[0] if float32_names else None
    for name, tensor in built.state_dict().items():
        read = torch.float32 if pattern is not None and pattern.search(name) else tensor.dtype
        has = weights.state[name].dtype
        if has != read:
            raise SlingError(
                f"{name} is {has} here and would be read back as {read}: load the base with one dtype "
                "(load_model(…, dtype=…)), then export"
            )


def _check_padding(weights: Weights, built: PreTrainedModel) -> None:
    """Raise `SlingError` if reading (of types such as Youtu) clears a padding embedding that is not zero."""
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
    """Return whether a model clears the embedding of the padding token when it is read."""
    probe = nn.Embedding(2, 1, padding_idx=0)
    nn.init.ones_(probe.weight)
    probe.weight._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers marks weights that were read like this
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model._init_weights(probe)
    except Exception:  # the code of any model: it needs more than a module, so assume that it does
        return True
    return probe.weight[0].item() == 0


def _compare_configurations(view_stack: Stack, built_stack: Stack) -> None:
    """Raise `SlingError` if the text configurations differ for a visit, in stored or in computed settings."""
    actual, rebuilt = _settings(view_stack.configs[0]), _settings(built_stack.configs[0])
    for name in sorted(actual.keys() | rebuilt.keys()):
        had, has = rebuilt.get(name, _ABSENT), actual.get(name, _ABSENT)
        if had != has:
            raise SlingError(
                f"the configuration would be read back with {name} = {_short_repr(had)} where the recipe has "
                f"{_short_repr(has)}: a {type(built_stack.configs[0]).__name__} cannot say so. {HINT}"
            )


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the plain settings of a configuration, stored and computed, by name."""
    computed = {
        name
        for part in type(config).__mro__[: type(config).__mro__.index(PreTrainedConfig)]
        for name, value in vars(part).items()
        if isinstance(value, property | list | tuple)  # a view replaces a property by a list that it computed
    }
    settings: dict[str, Any] = {}
    for name in sorted(vars(config).keys() | computed):
        if name.startswith("_") or name in _ORIGIN_SETTINGS:
            continue
        try:
            value = _plain_value(getattr(config, name))
        except Exception:  # the base could not have read this setting either
            continue
        if value is not _OTHER:
            settings[name] = value
    return settings


def _check_ties(weights: Weights, built: PreTrainedModel) -> set[str]:
    """Return the names that are tied to another and not read; `SlingError` if the view has two different tensors."""
    ties: dict[str, str] = built.all_tied_weights_keys
    for name, source in ties.items():
        one, other = (weights.slung.get_parameter_or_buffer(key) for key in (name, source))
        if one is not other and not torch.equal(weights.load(name), weights.load(source)):
            raise SlingError(
                f"{name} and {source} would be read back as one tensor, and are two here: load the base with "
                f"tie_word_embeddings=False. {HINT}"
            )
    return set(ties)

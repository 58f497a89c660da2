"""A recipe written out as an ordinary checkpoint with its layers really stacked, for engines that cannot sling.

Every visit gets its own copy of the weights, so that the file is larger than its base, and a checkpoint has no place
for scales. Nothing is written before it is proved that what the configuration builds is what the recipe runs.
"""

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation, revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from david import __version__, layers
from david.errors import DavidError, SearchError, SlingError, one_line
from david.layers import Stack
from david.models import DEMO, describe
from david.origin import Base, Versions
from david.recipe import Recipe
from david.report import check_folder
from david.sling import AnyRecipe, base_depth, view
from david.views import is_rotary

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_RUNS = "The recipe itself runs without a checkpoint: david generate --recipe"
_BESIDE = 2**20  # bytes for the files beside the weights, besides a tokenizer
# Attributes that say how a model is used, or how it was built, and not what it computes.
_OF_USE = frozenset(
    {"all_tied_weights_keys", "gradient_checkpointing", "layer_block_map", "layers_are_rescaled", "name_or_path"}
    | {"training"}
)
# Settings of a configuration that say where it is from (its class says what type), or what is compared in the layers.
_OF_ORIGIN = frozenset(
    {"architectures", "dtype", "kv_sharing_modes", "model_type", "name_or_path", "torch_dtype", "transformers_version"}
)
_STORES = "store_full_length_kv"  # an attribute of attentions whose keys and values later layers share
_PACKED_WIDTHS = ("embedding_dim", "out_features")


def export(
    model: PreTrainedModel,
    recipe: AnyRecipe,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_shard_size: int | str = "5GB",
    progress: bool = False,
) -> Path:
    """Write a recipe as a checkpoint whose layers are really stacked, for engines that cannot sling; its folder.

    Plain transformers reads it back with the very logits of the slung model. The model may be slung, offloaded or
    spread over devices, and is left alone. The folder gets `config.json`, the weights in shards of at most
    `max_shard_size` (bytes, or text such as `"5GB"`; a single tensor may be larger), the tokenizer if there is one,
    `recipe.json`, and a model card. Hooks that are put on the model are not in a checkpoint. Beside the base, memory
    holds one shard at a time. What is cut off half way leaves nothing that looks whole.

    Raises `RecipeError` for a recipe that does not fit the model; `SlingError` for what no checkpoint of this type can
    say (scales, quantised weights, adapters, a map that its configuration has no words for); `SearchError` for a folder
    that is not empty or cannot be written, or too little room on its disk. Nothing is written then.

    Example:
        >>> export(model, "0:12, 8:30", "stacked", tokenizer=tokenizer)  # doctest: +SKIP
    """
    target = Path(folder).resolve()
    check_target(target)
    limit = _bytes(max_shard_size)
    wanted = Recipe.of(recipe)
    check_recipe(wanted)
    _refuse_weights(model)
    beside = view(model, wanted)
    plan = _planned(beside, wanted, base_depth(model), limit)
    _check_room(target, plan.bytes)
    told = _told(model, wanted)
    with _appearing(target) as place:
        index = _write_weights(plan, place, progress)
        told.save(place / "recipe.json")
        (place / "README.md").write_text(_card(plan, told), encoding="utf-8")
        if tokenizer is not None:
            _write_tokenizer(tokenizer, place)
        if beside.can_generate():
            beside.generation_config.to_json_file(place / "generation_config.json")  # as it is, also where unwise
        _write_json(place / "config.json", plan.config)
        _write_json(place / "model.safetensors.index.json", index)
    return Path(folder)


def check_target(folder: str | os.PathLike[str]) -> None:
    """`SearchError` unless a checkpoint can be written there: nothing is there yet, or an empty folder."""
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()):
        raise SearchError(
            f"{target} is not empty: give a folder that is new or empty, so that nothing is mixed or lost"
        )
    if target.exists() and not target.is_dir():
        raise SearchError(f"{target} is a file: give a folder that is new or empty")
    check_folder(target.absolute().parent)


def check_recipe(recipe: Recipe) -> None:
    """`SlingError` for a recipe that no checkpoint can hold."""
    damped = [visit for visit, scale in enumerate(recipe.scales) if scale != 1]
    if damped:
        raise SlingError(
            f"a checkpoint has no place for scales: visit {damped[0]} has scale {recipe.scales[damped[0]]:g}"
            f"{f', and {len(damped) - 1} more have theirs' if len(damped) > 1 else ''}. {_RUNS}"
        )


@dataclass(frozen=True)
class _Bundle:
    """Tensors of the view that are turned into tensors of the file together, because one conversion takes them all."""

    sources: tuple[str, ...]
    made: Mapping[str, int]  # name in the file → bytes


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first byte is written."""

    weights: "_Weights"
    config: dict[str, Any]
    loader: str  # the class of transformers that reads the checkpoint
    shards: tuple[tuple[str, ...], ...]
    bundles: tuple[_Bundle, ...]
    values: int

    @property
    def bytes(self) -> int:
        """What the weights take on disk."""
        return sum(size for bundle in self.bundles for size in bundle.made.values())


@dataclass(frozen=True)
class _Weights:
    """The tensors of a view by their names in it; those that it packs for each layer, in the map's order."""

    beside: PreTrainedModel
    state: Mapping[str, Tensor]
    packed: Mapping[str, int]  # name → the dimension in which the parts of the layers stand
    n_layers: int
    order: tuple[int, ...]

    def shape(self, name: str) -> tuple[int, ...]:
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
            tensor = load_offloaded_parameter(self.beside, name)
        if name not in self.packed:
            return tensor
        dimension = self.packed[name]
        parts: Tensor = tensor.unflatten(dimension, (self.n_layers, -1))  # type: ignore[no-untyped-call]
        taken = parts.index_select(dimension, torch.tensor(self.order, device=tensor.device))
        return taken.flatten(dimension, dimension + 1)


# ---- what is refused


def _refuse_weights(model: nn.Module) -> None:
    """`SlingError` for weights that a plain checkpoint cannot hold, and for what is no transformers model."""
    adapted = next((module for module in model.modules() if type(module).__module__.startswith("peft.")), None)
    if adapted is not None or getattr(model, "_hf_peft_config_loaded", False):
        raise SlingError(
            f"the model carries an adapter (PEFT{'' if adapted is None else f', {type(adapted).__name__}'}), which a "
            "checkpoint of the whole model does not hold: merge it first (merge_and_unload), then export"
        )
    if not isinstance(model, PreTrainedModel):
        raise SlingError(f"expected a transformers model (PreTrainedModel); got {type(model).__name__}")
    quantised = getattr(model, "hf_quantizer", None) or getattr(model.config, "quantization_config", None)
    if quantised:
        raise SlingError(
            f"the weights are quantised ({type(quantised).__name__}): a stacked checkpoint of such weights cannot be "
            f"proved to be read back as they are. Export from the weights as published, then quantise. {_RUNS}"
        )
    for name, weight in model.named_parameters():
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
            raise SlingError(
                f"{name} is not made of plain floating-point numbers ({kind}): its weights are quantised or sharded. "
                f"Export from the weights as published. {_RUNS}"
            )


def _check_room(target: Path, needed: int) -> None:
    place = next(place for place in (target, *target.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _BESIDE > free:
        raise SearchError(
            f"{target} needs {size_text(needed + _BESIDE)}, and {size_text(free)} are free there: make room, or give a "
            "folder on another disk"
        )


def folder_size(folder: str | os.PathLike[str]) -> str:
    """What the files of a folder take together, in words."""
    return size_text(sum(path.stat().st_size for path in Path(folder).iterdir()))


def size_text(size: int) -> str:
    """A number of bytes in words: `1.3 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def _bytes(size: int | str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    limit = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if limit < 1:
        raise DavidError(f"cannot read the shard size {size!r}: expected a number of bytes, or text such as '5GB'")
    return limit


# ---- what is decided


def _planned(beside: PreTrainedModel, recipe: Recipe, n_layers: int, limit: int) -> _Plan:
    """Everything that can be decided and proved without the values of the weights."""
    stack = layers.find(beside)
    prefix = next(name for name, module in beside.named_modules() if module is stack.layers)
    _follow_sharing(stack)
    config = _configuration(beside)
    read = _read_back(config, beside)
    built = _built(read, beside)
    weights = _weights(beside, stack, n_layers, recipe)
    _compare(weights, built, prefix)
    _check_padding(weights, built)
    _compare_configurations(stack, layers.find(built))
    tied = _check_ties(weights, built)
    ignored = set(beside._keys_to_ignore_on_save or ())
    names = [name for name in weights.state if name not in tied and name not in ignored]
    bundles = tuple(_bundles(weights, names, prefix))
    values = _count(built, tied, ignored)
    written = sum(weights.meta(name).numel() for bundle in bundles for name in bundle.sources)
    if written != values:
        raise SlingError(f"{written} values would be written where the configuration's model has {values}: {_RUNS}")
    return _Plan(weights, config, _loader(read, beside), tuple(_shards(bundles, limit)), bundles, values)


def _follow_sharing(stack: Stack) -> None:
    """Gemma 3n and 4 say by one number how many of the last layers share keys and values: as many as of the visits."""
    shared = [getattr(getattr(visit, "self_attn", None), "is_kv_shared_layer", False) for visit in stack.layers]
    last = next((place for place, shares in enumerate(reversed(shared)) if not shares), len(shared))
    for config in stack.configs:
        if "num_kv_shared_layers" in vars(config):
            config.num_kv_shared_layers = last


def _configuration(beside: PreTrainedModel) -> dict[str, Any]:
    """The view's configuration as the JSON of a checkpoint, with nothing of this machine in it."""
    config: dict[str, Any] = json.loads(beside.config.to_json_string())
    dtype = str(beside.dtype).removeprefix("torch.")

    def clean(part: dict[str, Any]) -> None:
        part.pop("_name_or_path", None)
        if part.get("dtype") is not None:
            part["dtype"] = dtype
        for inner in part.values():
            if isinstance(inner, dict):
                clean(inner)

    clean(config)
    return config | {"architectures": [type(beside).__name__], "dtype": dtype}


def _read_back(config: dict[str, Any], beside: PreTrainedModel) -> PreTrainedConfig:
    """The configuration as transformers reads it from its file."""
    with tempfile.TemporaryDirectory() as place:
        _write_json(Path(place) / "config.json", config)
        try:
            read = AutoConfig.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # each configuration checks itself in its own way
            raise SlingError(
                f"a {type(beside.config).__name__} cannot say what this recipe needs: {one_line(error)}. {_RUNS}"
            ) from None
    if not isinstance(beside.config, type(read)):
        raise SlingError(
            f"its {type(beside.config).__name__} would be read back as a {type(read).__name__}, another type. {_RUNS}"
        )
    return read


def _built(config: PreTrainedConfig, beside: PreTrainedModel) -> PreTrainedModel:
    """What transformers builds from the configuration: real buffers, no values of parameters."""
    kind = type(beside)
    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            return kind._from_config(config, dtype=beside.dtype)
    except Exception as error:  # the code of any model
        raise SlingError(
            f"{kind.__name__} cannot be built with this recipe's configuration: {one_line(error)}. {_RUNS}"
        ) from None


def _loader(config: PreTrainedConfig, beside: PreTrainedModel) -> str:
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return "AutoModelForCausalLM" if kinds and kinds[0] is type(beside) else type(beside).__name__


def _weights(beside: PreTrainedModel, stack: Stack, n_layers: int, recipe: Recipe) -> _Weights:
    owner = next(name for name, module in beside.named_modules() if module is stack.owner)
    packed: dict[str, int] = {}
    for name in layers._PACKED:
        module = stack.owner._modules.get(name)
        if module is None:
            continue
        # an embedding has a column for each number of its output, [V, N · p]; a projection a row, [N · p, D]
        dimension = 1 if isinstance(module, nn.Embedding) else 0
        path = f"{owner}.{name}" if owner else name
        own = {name: weight for name, weight in module._parameters.items() if weight is not None}
        packed |= {f"{path}.{name}": dimension if weight.dim() > 1 else 0 for name, weight in own.items()}
    return _Weights(beside, beside.state_dict(), packed, n_layers, recipe.repeat_map)


def _bundles(weights: _Weights, names: Sequence[str], prefix: str) -> Iterator[_Bundle]:
    """The tensors of the file, in the order of the visits: those that take no conversion alone, the others together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        visit = re.match(rf"{re.escape(prefix)}\.\d+\.", name)
        groups.setdefault(visit[0] if visit else "", []).append(name)
    taken: set[str] = set()
    for group in groups.values():
        for bundle in _bundles_of(weights, group):
            again = taken & bundle.made.keys()
            if again:
                raise SlingError(f"two weights would be written as {min(again)}: this layout cannot be exported")
            taken |= bundle.made.keys()
            yield bundle


def _bundles_of(weights: _Weights, names: Sequence[str]) -> list[_Bundle]:
    metas = {name: weights.meta(name) for name in names}
    together = _reverted(weights.beside, metas)
    by_id = {id(tensor): name for name, tensor in metas.items()}
    renamed = [(by_id[id(tensor)], name) for name, tensor in together.items() if id(tensor) in by_id]
    found = [_Bundle((source,), {name: metas[source].nbytes}) for source, name in renamed]
    rest = [name for name in names if name not in {source for source, _ in renamed}]
    converted = {name: tensor for name, tensor in together.items() if id(tensor) not in by_id}
    return found + _smallest(weights.beside, {name: metas[name] for name in rest}, converted)


def _smallest(beside: PreTrainedModel, metas: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> list[_Bundle]:
    """One bundle for each tensor that is converted alone, if so they come out as all do together; else one for all."""
    try:
        alone = {name: _reverted(beside, {name: meta}) for name, meta in metas.items()}
    except SlingError:
        alone = {}
    parts = [(name, tensor) for tensors in alone.values() for name, tensor in tensors.items()]
    if len(parts) == len(made) and all(name in made and made[name].shape == part.shape for name, part in parts):
        return [_Bundle((name,), {k: part.nbytes for k, part in tensors.items()}) for name, tensors in alone.items()]
    return [_Bundle(tuple(metas), {name: tensor.nbytes for name, tensor in made.items()})] if metas else []


def _reverted(beside: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names, and in the shapes, that the hub's checkpoints of this type have."""
    try:
        made: dict[str, Tensor] = revert_weight_conversion(beside, dict(tensors))
    except Exception as error:  # each conversion has its own kinds
        raise SlingError(f"the weights cannot be brought into their published form: {one_line(error)}") from error
    return made


def _shards(bundles: Sequence[_Bundle], limit: int) -> Iterator[tuple[str, ...]]:
    """The names of each shard.

    A bundle that does not fit beside what is there begins a new shard, so that memory never holds more than one; a
    bundle that is larger than a shard is cut.
    """
    names: list[str] = []
    full = 0
    for bundle in bundles:
        whole = sum(bundle.made.values())
        for name, size in bundle.made.items():
            fresh = name == next(iter(bundle.made)) and full + whole > limit
            if names and (fresh or full + size > limit):
                yield tuple(names)
                names, full = [], 0
            names.append(name)
            full += size
    yield tuple(names)


def _count(built: PreTrainedModel, tied: set[str], ignored: set[str]) -> int:
    """How many values the model of the configuration reads from a checkpoint."""
    return sum(tensor.numel() for name, tensor in built.state_dict().items() if name not in tied | ignored)


# ---- what is proved


def _compare(weights: _Weights, built: PreTrainedModel, prefix: str) -> None:
    """`SlingError` unless what the configuration builds is, module by module, what the recipe runs."""
    stack = layers.find(weights.beside)
    settings = _settings(stack.configs[0])
    mine = dict(weights.beside.named_modules(remove_duplicate=False))
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
                raise SlingError(_difference(path, name, ours, theirs, prefix, type(weights.beside.config)))
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
        return f"{where} would be a {had} where the recipe has a {has}: a {config.__name__} cannot say so. {_RUNS}"
    inner = ".".join(filter(None, [inner, "" if name == _CLASS else name])) or name
    had, has = (value if value is _ABSENT or name == _CLASS else _short(value) for value in (had, has))
    return f"{where} would have {inner} = {had} where the recipe has {has}: a {config.__name__} cannot say so. {_RUNS}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _facts(weights: _Weights | None, path: str, module: nn.Module | None) -> dict[str, Any]:
    """What a module is, besides the values of its tensors. With `weights`, packed ones have the file's shapes."""
    if module is None:
        return {}
    facts: dict[str, Any] = {_CLASS: type(module).__name__, "its class": _home_of(module)}
    for name, tensor in module._parameters.items():
        full = f"{path}.{name}" if path else name
        shape = weights.shape(full) if weights is not None and full in weights.packed else None
        facts[name] = None if tensor is None else ("parameter", shape or tuple(tensor.shape))
    for name, buffer in module._buffers.items():
        kept = "buffer, not kept" if name in module._non_persistent_buffers_set else "buffer"
        facts[name] = None if buffer is None else (kept, tuple(buffer.shape))
    if is_rotary(module):
        return facts
    own = {name: _plain(value) for name, value in vars(module).items() if _says(module, name)}
    if isinstance(of_all := own.get("layer_dic"), dict):  # Zamba 2: a block that layers share knows them all by number
        numbers = {int(part) for part in path.split(".") if part.isdigit()}
        own["layer_dic"] = {number: entry for number, entry in of_all.items() if number in numbers}
    if weights is not None and any(f"{path}.{name}" in weights.packed for name in module._parameters):
        parts = len(weights.order) / weights.n_layers
        own |= {name: int(own[name] * parts) for name in _PACKED_WIDTHS if name in own}
    return facts | {name: value for name, value in own.items() if value is not _OTHER}


def _home_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _says(module: nn.Module, name: str) -> bool:
    """Whether an attribute says what a module computes."""
    kept = (type(module).__name__, name) in layers._KEPT_INDICES  # read only when the module is built
    return not name.startswith("_") and name not in _OF_USE and not kept


_OTHER = object()  # what is no plain value


def _plain(value: Any) -> Any:
    """A value that can be compared: numbers, text, and lists and dictionaries of these; tuples as lists, as in JSON."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return _OTHER if any(part is _OTHER for part in parts) else parts
    if isinstance(value, dict):
        named = {key: _plain(part) for key, part in value.items()}
        return _OTHER if any(part is _OTHER for part in named.values()) else named
    return _OTHER


def _compare_buffers(weights: _Weights, path: str, mine: nn.Module, its: nn.Module) -> None:
    """Buffers that a checkpoint does not hold must come out of the configuration with the values that they have."""
    grows = hasattr(mine, "original_inv_freq")  # what follows the longest text so far, and the value it began with
    for name in sorted(mine._non_persistent_buffers_set & mine._buffers.keys()):
        ours, theirs = mine._buffers[name], its._buffers[name]
        if ours is None or theirs is None or (grows and name == "inv_freq"):
            continue
        full = f"{path}.{name}" if path else name
        if ours.is_meta:
            ours = load_offloaded_parameter(weights.beside, full)
        if ours.dtype != theirs.dtype or not torch.equal(ours.to(theirs.device), theirs):
            raise SlingError(
                f"{full} would be built with other values than it has here ({ours.dtype}; built: {theirs.dtype}): "
                "a checkpoint does not hold it. Load the base with its dtype, rather than casting it"
            )


def _compare_dtypes(weights: _Weights, built: PreTrainedModel) -> None:
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


def _check_padding(weights: _Weights, built: PreTrainedModel) -> None:
    """Some types clear the padding token's embedding when they are read (Youtu): it must be zero then."""
    if not any(_clears_padding(part) for part in built.modules() if isinstance(part, PreTrainedModel)):
        return
    for path, module in weights.beside.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            row = weights.load(f"{path}.weight")[module.padding_idx]
            if row.any():
                raise SlingError(
                    f"{path} has values for the padding token, {module.padding_idx}, which transformers sets to zero "
                    f"when it reads a {type(built).__name__}: it would be another model. {_RUNS}"
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
                f"the configuration would be read back with {name} = {_short(had)} where the recipe has {_short(has)}: "
                f"a {type(its.configs[0]).__name__} cannot say so. {_RUNS}"
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
        if name.startswith("_") or name in _OF_ORIGIN:
            continue
        try:
            value = _plain(getattr(config, name))
        except Exception:  # what the base's own model could not have read either
            continue
        if value is not _OTHER:
            settings[name] = value
    return settings


def _check_ties(weights: _Weights, built: PreTrainedModel) -> set[str]:
    """The names that the built model ties to another and so does not read; `SlingError` where the view has two."""
    ties: dict[str, str] = built.all_tied_weights_keys
    for name, source in ties.items():
        one, other = (weights.beside.get_parameter_or_buffer(key) for key in (name, source))
        if one is not other and not torch.equal(weights.load(name), weights.load(source)):
            raise SlingError(
                f"{name} and {source} would be read back as one tensor, and are two here: load the base with "
                f"tie_word_embeddings=False. {_RUNS}"
            )
    return set(ties)


# ---- what is written


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target that takes its name when all is in it; gone where anything goes wrong."""
    parent = target.absolute().parent
    made = [place for place in (parent, *parent.parents) if not place.exists()]
    place = parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir(parents=True)
        yield place
        if target.exists():
            target.rmdir()  # it is empty
        place.rename(target)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise SearchError(f"{target} could not be written: {one_line(error)}") from error
        raise


def _write_weights(plan: _Plan, place: Path, progress: bool) -> dict[str, Any]:
    """Write shard by shard; the index that says where each tensor is."""
    tensors = _tensors(plan)
    where: dict[str, str] = {}
    for number, names in enumerate(tqdm(plan.shards, "writing", unit="shard", disable=not progress)):
        shard = f"model-{number + 1:05}-of-{len(plan.shards):05}.safetensors"
        pending: dict[str, Tensor] = {}
        held: set[int] = set()
        for expected in names:
            name, tensor = next(tensors)
            if name != expected or tensor.is_meta:
                raise SlingError(f"expected the values of {expected}; got {name} on {tensor.device}")
            tensor = tensor.cpu().contiguous()
            if tensor.data_ptr() in held:
                tensor = tensor.clone()  # a layer visited again: a file has no references
            held.add(tensor.data_ptr())
            pending[name], where[name] = tensor, shard
        del tensor
        save_file(pending, place / shard, metadata={"format": "pt"})
        pending.clear()
    return {"metadata": {"total_parameters": plan.values, "total_size": plan.bytes}, "weight_map": where}


def _tensors(plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file in the order of the plan; of a conversion's results, none is kept longer than needed."""
    for bundle in plan.bundles:
        made = _reverted(plan.weights.beside, {name: plan.weights.load(name) for name in bundle.sources})
        for name in bundle.made:
            yield name, made.pop(name)


def _write_tokenizer(tokenizer: Any, place: Path) -> None:
    tokenizer.save_pretrained(place)
    path = place / "tokenizer_config.json"
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(told, dict) and told.pop("name_or_path", None) is not None:
            _write_json(path, told)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _told(model: PreTrainedModel, recipe: Recipe) -> Recipe:
    """The recipe with its base and its makers filled in, and without the path that the base has on this machine."""
    base = describe(model)
    name = _published(base)
    if name is None and recipe.base is not None and recipe.base.fingerprint == base.fingerprint:
        name = _published(recipe.base)
    if name is not None and name != base.model and recipe.base is not None:
        base = base.model_copy(update={"revision": recipe.base.revision})
    made = Versions(
        david=__version__,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(recipe, base=base.model_copy(update={"model": name}), made_with=recipe.made_with or made)


def _published(base: Base) -> str | None:
    """What others can find a base by: a Hub id, or demo; None for a path."""
    name = base.model or ""
    if name == DEMO:
        return name
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII) is not None
    return name if is_id and base.revision is not None and not os.path.exists(name) else None


def _card(plan: _Plan, recipe: Recipe) -> str:
    """The model card: what this is, how it was made, and how to have it without this checkpoint."""
    base: Any = recipe.base
    hub = base.model if base.model != DEMO else None
    named = base.model or f"a {base.architecture} of {base.num_layers} layers"
    named = "SmolLM2-135M-Instruct (David's `demo`)" if base.model == DEMO else named
    front = ["---", *([f"base_model: {json.dumps(hub)}", "base_model_relation: merge"] if hub else [])]
    front += ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    front += ["- david", "- frankenmerge", "- layer-repetition", "---"]
    source = json.dumps(base.model or "the base")
    return "\n".join(front) + (
        f"\n\n# {named}, its layers in another order\n\n"
        f"This checkpoint has {len(recipe)} layers, made of the {base.num_layers} of {named} without any training: "
        "the layers below, one after the other, each with its own copy of the base's weights.\n\n"
        f"```\n{recipe}\n\n{recipe.picture}\n```\n\n"
        f"The map: `{list(recipe.repeat_map)}`\n\n"
        "## Use\n\n```python\n"
        f"from transformers import {plan.loader}, AutoTokenizer\n\n"
        f'model = {plan.loader}.from_pretrained("this folder, or its name on the Hub")\n```\n\n'
        "## The same without this checkpoint\n\n"
        "On the base's own weights, in place and with no byte copied, with "
        "David and the `recipe.json` of this folder:\n\n"
        "```python\nfrom david import David, load_model\n\n"
        f"model, tokenizer = load_model({source})\n"
        'David.sling(model, "recipe.json")\n```\n\n'
        "## How it was made\n\n"
        f"`david export`, with david {__version__}, torch {torch.__version__}, transformers {transformers.__version__}."
        f" {plan.values:,} values in {plan.config['dtype']}, {size_text(plan.bytes)}."
        f" Base: {base.architecture}, fingerprint `{base.fingerprint}`"
        f"{'' if base.revision is None or hub is None else f', revision `{base.revision}`'}.\n"
    )

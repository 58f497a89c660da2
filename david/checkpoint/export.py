"""A recipe written out as an ordinary checkpoint with its layers really stacked, for engines that cannot sling.

Every visit gets its own copy of the weights, so that the file is larger than its base, and a checkpoint has no place
for scales. Nothing is written before it is proved that what the configuration builds is what the recipe runs.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from david.checkpoint.model_card import Stacked, complete_recipe, loader_class, without_paths, write_card_files
from david.checkpoint.round_trip_check import HINT, Rebuilt, Weights, check_round_trip
from david.errors import DavidError, ModelError, RecipeError, SearchError, SlingError
from david.models.load import changed
from david.recipe.recipe import Recipe
from david.sling import adapters, locate
from david.sling.in_place import AnyRecipe, base_depth, view
from david.support import memory
from david.support.files import check_folder, reason
from david.support.text import one_line

_RESERVE = 2**20  # bytes for the files beside the weights, besides a tokenizer


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
    `recipe.json`, a model card and the recipe's picture. Hooks that are put on the model are not in a checkpoint.
    Beside the base, memory holds one shard at a time. What is cut off half way leaves nothing that looks whole.

    Raises `RecipeError` for a recipe that does not fit the model; `SlingError` for what no checkpoint of this type can
    say (scales, quantised weights, adapters, a map that its configuration has no words for); `SearchError` for a folder
    that is not empty or cannot be written, or too little room on its disk; `ModelError` where the files of the model
    have changed since it was loaded. Nothing is written then.

    Example:
        >>> folder = export(model, "0:12, 8:30", "stacked", tokenizer=tokenizer)
        >>> stacked, _ = load_model(folder)
        >>> stacked.config.num_hidden_layers
        34
    """
    target = check_target(folder)
    limit = memory.as_bytes(max_shard_size, "the shard size")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise DavidError(f"expected a tokenizer, as load_model gives it; got {type(tokenizer).__name__}")
    wanted = Recipe.of(recipe)
    check_exportable(wanted)
    if said := changed(model):
        raise ModelError(f"the model's files are not what they were when it was loaded: {said}; load it again")
    _check_weights(model)
    model = locate.unwrapped(model)
    beside = view(model, wanted)
    plan = _make_plan(beside, wanted, base_depth(model), limit)
    _check_room(target, plan.bytes)
    kept, proved = complete_recipe(model, wanted), plan.proved
    reads = loader_class(proved.read, type(beside))
    about = Stacked(reads, proved.values, proved.config["dtype"], size_text(plan.bytes))
    with _hidden_until_complete(target) as place:
        index = _write_weights(plan, place, progress)
        write_card_files(kept, place, about)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, place)
        if beside.can_generate():
            beside.generation_config.to_json_file(place / "generation_config.json")  # as it is, also where unwise
        _write_json(place / "config.json", proved.config)
        _write_json(place / "model.safetensors.index.json", index)
    return Path(folder)


def write_hub_folder(
    recipe: AnyRecipe, folder: str | os.PathLike[str], *, model: PreTrainedModel | None = None
) -> Path:
    """Write a recipe as a folder that is ready for the Hub, without weights; its folder.

    It holds `recipe.json`, a model card and the recipe's picture: `load_model` of the folder, or of the repository that
    it becomes, slings the base that the recipe names. Paths of this machine are left out. With `model`, the base in
    hand, what the recipe does not say of its base is filled in, and scores that are not known to be of its weights are
    left out; without it, nothing is loaded.

    Raises `RecipeError` for a recipe that is not valid, does not fit the model, or says nothing of its base;
    `SearchError` for a folder that is not empty or cannot be written.

    Example:
        >>> sorted(path.name for path in write_hub_folder("recipe.json", "for-the-hub", model=model).iterdir())
        ['README.md', 'recipe.json', 'recipe.png']
    """
    target = check_target(folder)
    wanted = Recipe.of(recipe)
    if model is not None:
        wanted.check(base_depth(model))
        wanted = complete_recipe(model, wanted)
    elif wanted.base is None or wanted.base.fingerprint is None:
        raise RecipeError("the recipe does not say which weights are its base: give the model")
    wanted = without_paths(wanted)
    with _hidden_until_complete(target) as place:
        write_card_files(wanted, place)
    return Path(folder)


def check_target(folder: str | os.PathLike[str]) -> Path:
    """The whole path; `SearchError` unless a checkpoint can be written there: nothing is there, or an empty folder."""
    try:
        target = Path(folder).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, links in a circle
        raise SearchError(f"{os.fspath(folder)} cannot be written: {reason(error)}") from None
    if Path.cwd().is_relative_to(target.absolute()):
        raise SearchError(
            f"{target} is where this command runs: give a folder that is new, such as {target / 'stacked'}"
        )
    try:
        filled = target.is_dir() and any(target.iterdir())
    except OSError as error:
        raise SearchError(f"{target} cannot be written: {one_line(error)}") from None
    if filled:
        raise SearchError(
            f"{target} is not empty: give a folder that is new or empty, so that nothing is mixed or lost"
        )
    if os.path.exists(target) and not target.is_dir():
        raise SearchError(f"{target} is a file: give a folder that is new or empty")
    check_folder(target.parent)
    return target


def check_exportable(recipe: Recipe) -> None:
    """`SlingError` for a recipe that no checkpoint can hold."""
    damped = [visit for visit, scale in enumerate(recipe.scales) if scale != 1]
    if damped:
        raise SlingError(
            f"a checkpoint has no place for scales: visit {damped[0]} has scale {recipe.scales[damped[0]]:g}"
            f"{f', and {len(damped) - 1} more have theirs' if len(damped) > 1 else ''}. {HINT}"
        )


@dataclass(frozen=True)
class _Bundle:
    """Tensors of the view that are turned into tensors of the file together, because one conversion takes them all."""

    sources: tuple[str, ...]
    made: Mapping[str, int]  # name in the file → bytes


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first byte is written."""

    proved: Rebuilt
    bundles: tuple[_Bundle, ...]
    shards: tuple[tuple[str, ...], ...]

    @property
    def bytes(self) -> int:
        """What the weights take on disk."""
        return sum(size for bundle in self.bundles for size in bundle.made.values())


def _check_weights(wrapped: nn.Module) -> None:
    """`SlingError` for weights that a plain checkpoint cannot hold."""
    model = locate.unwrapped(wrapped)
    if adapters.has_adapters(wrapped):
        raise SlingError(
            "the model carries an adapter (PEFT), which a checkpoint of the whole model does not hold: merge it first "
            "(merge_and_unload), then export"
        )
    quantised = getattr(model, "hf_quantizer", None) or getattr(model.config, "quantization_config", None)
    if quantised:
        raise SlingError(
            f"the weights are quantised ({type(quantised).__name__}): a stacked checkpoint of such weights cannot be "
            f"proved to be read back as they are. Export from the weights as published, then quantise. {HINT}"
        )
    for name, weight in model.named_parameters():
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
            raise SlingError(
                f"{name} is not made of plain floating-point numbers ({kind}): its weights are quantised or sharded. "
                f"Export from the weights as published. {HINT}"
            )


def _check_room(target: Path, needed: int) -> None:
    place = next(place for place in (target, *target.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _RESERVE > free:
        raise SearchError(
            f"{target} needs {size_text(needed + _RESERVE)}, and {size_text(free)} are free there: make room, or give "
            "a folder on another disk"
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


def _make_plan(beside: PreTrainedModel, recipe: Recipe, n_layers: int, limit: int) -> _Plan:
    """Everything that can be decided and proved without the values of the weights."""
    proved = check_round_trip(beside, recipe, n_layers)
    bundles = tuple(_bundles(proved))
    written = sum(proved.weights.meta(name).numel() for bundle in bundles for name in bundle.sources)
    if written != proved.values:
        raise SlingError(
            f"{written} values would be written where the configuration's model has {proved.values}. {HINT}"
        )
    return _Plan(proved, bundles, tuple(_shards(bundles, limit)))


def _bundles(proved: Rebuilt) -> Iterator[_Bundle]:
    """The tensors of the file, in the order of the visits: those that take no conversion alone, the others together."""
    groups: dict[str, list[str]] = {}
    for name in proved.names:
        visit = re.match(rf"{re.escape(proved.prefix)}\.\d+\.", name)
        groups.setdefault(visit[0] if visit else "", []).append(name)
    taken: set[str] = set()
    for group in groups.values():
        for bundle in _bundles_of(proved.weights, group):
            again = taken & bundle.made.keys()
            if again:
                raise SlingError(f"two weights would be written as {min(again)}: this layout cannot be exported")
            taken |= bundle.made.keys()
            yield bundle


def _bundles_of(weights: Weights, names: Sequence[str]) -> list[_Bundle]:
    metas = {name: weights.meta(name) for name in names}
    together = _revert_conversion(weights.beside, metas)
    by_id = {id(tensor): name for name, tensor in metas.items()}
    renamed = [(by_id[id(tensor)], name) for name, tensor in together.items() if id(tensor) in by_id]
    found = [_Bundle((source,), {name: metas[source].nbytes}) for source, name in renamed]
    rest = [name for name in names if name not in {source for source, _ in renamed}]
    converted = {name: tensor for name, tensor in together.items() if id(tensor) not in by_id}
    return found + _split_bundle(weights.beside, {name: metas[name] for name in rest}, converted)


def _split_bundle(beside: PreTrainedModel, metas: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> list[_Bundle]:
    """One bundle for each tensor that is converted alone, if so they come out as all do together; else one for all."""
    try:
        alone = {name: _revert_conversion(beside, {name: meta}) for name, meta in metas.items()}
    except SlingError:
        alone = {}
    parts = [(name, tensor) for tensors in alone.values() for name, tensor in tensors.items()]
    if len(parts) == len(made) and all(name in made and made[name].shape == part.shape for name, part in parts):
        return [_Bundle((name,), {k: part.nbytes for k, part in tensors.items()}) for name, tensors in alone.items()]
    return [_Bundle(tuple(metas), {name: tensor.nbytes for name, tensor in made.items()})] if metas else []


def _revert_conversion(beside: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


@contextmanager
def _hidden_until_complete(target: Path) -> Iterator[Path]:
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
    tensors = _read_tensors(plan)
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
    return {"metadata": {"total_parameters": plan.proved.values, "total_size": plan.bytes}, "weight_map": where}


def _read_tensors(plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file in the order of the plan; of a conversion's results, none is kept longer than needed."""
    for bundle in plan.bundles:
        made = _revert_conversion(
            plan.proved.weights.beside, {name: plan.proved.weights.load(name) for name in bundle.sources}
        )
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

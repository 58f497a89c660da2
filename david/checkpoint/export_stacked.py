"""Write a recipe as an ordinary checkpoint whose layers are really stacked, for engines that cannot sling.

`export` writes the checkpoint, `write_hub_folder` a folder without weights. Every visit gets its own copy of the
weights, so that the file is larger than its base, and a checkpoint has no place for scales. Nothing is written before
`check_round_trip` has proved that the configuration builds what the recipe runs.
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

from david.checkpoint.model_card import (
    StackedCheckpoint,
    complete_recipe,
    loader_class,
    without_paths,
    write_card_files,
)
from david.checkpoint.round_trip_check import HINT, RoundTripProof, Weights, check_round_trip
from david.errors import DavidError, ModelError, RecipeError, SearchError, SlingError
from david.models.load import changed
from david.recipe.recipe import Recipe
from david.sling import adapters, locate
from david.sling.in_place import AnyRecipe, base_depth, view
from david.support import memory
from david.support.files import check_folder, reason
from david.support.text import one_line

_RESERVE = 2**20  # bytes for the small files beside the weights; a tokenizer is not counted


def export(
    model: PreTrainedModel,
    recipe: AnyRecipe,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_shard_size: int | str = "5GB",
    progress: bool = False,
) -> Path:
    """Write a recipe as a checkpoint whose layers are really stacked, for engines that cannot sling.

    Plain transformers reads it back with exactly the logits of the slung model. The folder gets `config.json`, the
    weights in shards, the tokenizer if there is one, `recipe.json`, a model card and the recipe's picture. Hooks on the
    model are not part of a checkpoint. Beside the base, memory holds one shard at a time. An interrupted export leaves
    no folder that looks complete; an error leaves nothing.

    Args:
        model: The base. It may be slung, offloaded or spread over devices, and is not changed.
        recipe: The recipe, or anything that `David` accepts as one.
        folder: A folder that is new or empty.
        tokenizer: The tokenizer to write beside the weights, as `load_model` returns it.
        max_shard_size: The largest size of a shard, in bytes or as text such as `"5GB"`; a larger tensor gets a shard
            of its own.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        RecipeError: The recipe does not fit the model.
        SlingError: No checkpoint of this type can hold it: scales, quantised weights, adapters, or a map that its
            configuration cannot express.
        SearchError: The folder is not empty or cannot be written, or its disk has too little room.
        ModelError: The files of the model have changed since it was loaded.
        DavidError: `tokenizer` is not a tokenizer, or the shard size cannot be parsed.

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
    parsed = Recipe.of(recipe)
    check_exportable(parsed)
    if change := changed(model):
        raise ModelError(f"the model's files are not what they were when it was loaded: {change}; load it again")
    _check_weights(model)
    model = locate.unwrapped(model)
    slung = view(model, parsed)
    plan = _make_plan(slung, parsed, base_depth(model), limit)
    _check_room(target, plan.bytes)
    proof = plan.proof
    loader = loader_class(proof.loaded_config, type(slung))
    facts = StackedCheckpoint(loader, proof.values, proof.config["dtype"], size_text(plan.bytes))
    completed = complete_recipe(model, parsed)
    with _hidden_until_complete(target) as place:
        index = _write_weights(plan, place, progress)
        write_card_files(completed, place, facts)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, place)
        if slung.can_generate():
            slung.generation_config.to_json_file(place / "generation_config.json")  # unchanged, even if unwise
        _write_json(place / "config.json", proof.config)
        _write_json(place / "model.safetensors.index.json", index)
    return Path(folder)


def write_hub_folder(
    recipe: AnyRecipe, folder: str | os.PathLike[str], *, model: PreTrainedModel | None = None
) -> Path:
    """Write a recipe as a folder that is ready for the Hub, without weights.

    The folder holds `recipe.json`, a model card and the recipe's picture. `load_model` of the folder, or of a Hub
    repository with these files, slings the base that the recipe names. Paths of this machine are left out.

    Args:
        recipe: The recipe, or anything that `David` accepts as one.
        folder: A folder that is new or empty.
        model: The base, if it is loaded: it completes the recipe's description of its base, and scores that are not
            known to belong to its weights are left out. Without it, nothing is loaded.

    Returns:
        The folder.

    Raises:
        RecipeError: The recipe is not valid, does not fit the model, or does not describe its base.
        SearchError: The folder is not empty or cannot be written.

    Example:
        >>> sorted(path.name for path in write_hub_folder("recipe.json", "for-the-hub", model=model).iterdir())
        ['README.md', 'recipe.json', 'recipe.png']
    """
    target = check_target(folder)
    parsed = Recipe.of(recipe)
    if model is not None:
        parsed.check(base_depth(model))
        parsed = complete_recipe(model, parsed)
    elif parsed.base is None or parsed.base.fingerprint is None:
        raise RecipeError("the recipe does not say which weights are its base: give the model")
    with _hidden_until_complete(target) as place:
        write_card_files(without_paths(parsed), place)
    return Path(folder)


def check_target(folder: str | os.PathLike[str]) -> Path:
    """Check that a checkpoint can be written to a folder.

    Args:
        folder: The folder; it must be new or empty.

    Returns:
        Its absolute path, without links.

    Raises:
        SearchError: The folder is not empty, is a file, is or holds the current directory, or cannot be written.
    """
    try:
        target = Path(folder).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # an impossible file name, or a cycle of links
        raise SearchError(f"{os.fspath(folder)} cannot be written: {reason(error)}") from None
    if Path.cwd().is_relative_to(target.absolute()):
        raise SearchError(
            f"{target} is where this command runs: give a folder that is new, such as {target / 'stacked'}"
        )
    try:
        has_content = target.is_dir() and any(target.iterdir())
    except OSError as error:
        raise SearchError(f"{target} cannot be written: {one_line(error)}") from None
    if has_content:
        raise SearchError(
            f"{target} is not empty: give a folder that is new or empty, so that nothing is mixed or lost"
        )
    if os.path.exists(target) and not target.is_dir():
        raise SearchError(f"{target} is a file: give a folder that is new or empty")
    check_folder(target.parent)
    return target


def check_exportable(recipe: Recipe) -> None:
    """Check that a checkpoint can hold a recipe.

    Args:
        recipe: The recipe.

    Raises:
        SlingError: A visit has a scale other than 1.
    """
    damped = [visit for visit, scale in enumerate(recipe.scales) if scale != 1]
    if damped:
        raise SlingError(
            f"a checkpoint has no place for scales: visit {damped[0]} has scale {recipe.scales[damped[0]]:g}"
            f"{f', and {len(damped) - 1} more have theirs' if len(damped) > 1 else ''}. {HINT}"
        )


@dataclass(frozen=True)
class _Bundle:
    """Tensors of the view that one conversion turns together into tensors of the file."""

    sources: tuple[str, ...]  # names in the view
    outputs: Mapping[str, int]  # name in the file → bytes


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first byte is written."""

    proof: RoundTripProof
    bundles: tuple[_Bundle, ...]
    shards: tuple[tuple[str, ...], ...]  # names in the file

    @property
    def bytes(self) -> int:
        """The size of the weights on disk."""
        return sum(size for bundle in self.bundles for size in bundle.outputs.values())


def _check_weights(wrapped: nn.Module) -> None:
    """Raise `SlingError` for weights that a plain checkpoint cannot hold: adapters, quantised or sharded weights."""
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
    """Raise `SearchError` if the disk of the target has less than `needed` bytes free."""
    place = next(place for place in (target, *target.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _RESERVE > free:
        raise SearchError(
            f"{target} needs {size_text(needed + _RESERVE)}, and {size_text(free)} are free there: make room, or give "
            "a folder on another disk"
        )


def folder_size(folder: str | os.PathLike[str]) -> str:
    """Return the total size of the files in a folder, in words, such as `1.3 GB`."""
    return size_text(sum(path.stat().st_size for path in Path(folder).iterdir()))


def size_text(size: int) -> str:
    """Return a number of bytes in words, such as `1.3 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def _make_plan(slung: PreTrainedModel, recipe: Recipe, n_layers: int, limit: int) -> _Plan:
    """Prove the export and lay out its shards, without the values of the weights."""
    proof = check_round_trip(slung, recipe, n_layers)
    bundles = tuple(_bundles(proof))
    written = sum(proof.weights.meta(name).numel() for bundle in bundles for name in bundle.sources)
    if written != proof.values:
        raise SlingError(
            f"{written} values would be written where the configuration's model has {proof.values}. {HINT}"
        )
    return _Plan(proof, bundles, tuple(_shards(bundles, limit)))


def _bundles(proof: RoundTripProof) -> Iterator[_Bundle]:
    """Yield the bundles in the order of the visits: tensors without a conversion alone, the others together."""
    groups: dict[str, list[str]] = {}
    for name in proof.names:
        visit = re.match(rf"{re.escape(proof.prefix)}\.\d+\.", name)
        groups.setdefault(visit[0] if visit else "", []).append(name)
    outputs: set[str] = set()
    for group in groups.values():
        for bundle in _bundles_of(proof.weights, group):
            duplicates = outputs & bundle.outputs.keys()
            if duplicates:
                raise SlingError(f"two weights would be written as {min(duplicates)}: this layout cannot be exported")
            outputs |= bundle.outputs.keys()
            yield bundle


def _bundles_of(weights: Weights, names: Sequence[str]) -> list[_Bundle]:
    """Return the bundles of one group of tensors, such as those of a visit."""
    metas = {name: weights.meta(name) for name in names}
    together = _revert_conversion(weights.slung, metas)
    by_id = {id(tensor): name for name, tensor in metas.items()}
    renamed = [(by_id[id(tensor)], name) for name, tensor in together.items() if id(tensor) in by_id]
    unconverted = [_Bundle((source,), {name: metas[source].nbytes}) for source, name in renamed]
    rest = [name for name in names if name not in {source for source, _ in renamed}]
    converted = {name: tensor for name, tensor in together.items() if id(tensor) not in by_id}
    return unconverted + _split_bundle(weights.slung, {name: metas[name] for name in rest}, converted)


def _split_bundle(slung: PreTrainedModel, metas: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> list[_Bundle]:
    """Return one bundle for each tensor if converting them one by one gives the same outputs; otherwise one for all."""
    try:
        alone = {name: _revert_conversion(slung, {name: meta}) for name, meta in metas.items()}
    except SlingError:
        alone = {}
    parts = [(name, tensor) for tensors in alone.values() for name, tensor in tensors.items()]
    if len(parts) == len(outputs) and all(
        name in outputs and outputs[name].shape == part.shape for name, part in parts
    ):
        return [_Bundle((name,), {k: part.nbytes for k, part in tensors.items()}) for name, tensors in alone.items()]
    return [_Bundle(tuple(metas), {name: tensor.nbytes for name, tensor in outputs.items()})] if metas else []


def _revert_conversion(slung: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names, and in the shapes, of the checkpoints of this type on the Hub."""
    try:
        outputs: dict[str, Tensor] = revert_weight_conversion(slung, dict(tensors))
    except Exception as error:  # each conversion has its own error types
        raise SlingError(f"the weights cannot be brought into their published form: {one_line(error)}") from error
    return outputs


def _shards(bundles: Sequence[_Bundle], limit: int) -> Iterator[tuple[str, ...]]:
    """Yield the names of the tensors of each shard.

    A bundle that does not fit into the rest of a shard begins a new one, so that memory never holds more than one
    shard; a bundle that is larger than a shard is cut.
    """
    names: list[str] = []
    full = 0
    for bundle in bundles:
        total = sum(bundle.outputs.values())
        for name, size in bundle.outputs.items():
            begins_shard = name == next(iter(bundle.outputs)) and full + total > limit
            if names and (begins_shard or full + size > limit):
                yield tuple(names)
                names, full = [], 0
            names.append(name)
            full += size
    yield tuple(names)


@contextmanager
def _hidden_until_complete(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the target; rename it to the target at the end, or remove it after an error."""
    parent = target.absolute().parent
    new_parents = [place for place in (parent, *parent.parents) if not place.exists()]
    place = parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir(parents=True)
        yield place
        if target.exists():
            target.rmdir()  # it is empty
        place.rename(target)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        for folder in new_parents:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise SearchError(f"{target} could not be written: {one_line(error)}") from error
        raise


def _write_weights(plan: _Plan, place: Path, progress: bool) -> dict[str, Any]:
    """Write the weights shard by shard; return the index that names the shard of each tensor."""
    tensors = _read_tensors(plan)
    shard_of: dict[str, str] = {}
    for number, names in enumerate(tqdm(plan.shards, "writing", unit="shard", disable=not progress)):
        shard = f"model-{number + 1:05}-of-{len(plan.shards):05}.safetensors"
        pending: dict[str, Tensor] = {}
        addresses: set[int] = set()
        for expected in names:
            name, tensor = next(tensors)
            if name != expected or tensor.is_meta:
                raise SlingError(f"expected the values of {expected}; got {name} on {tensor.device}")
            tensor = tensor.cpu().contiguous()
            if tensor.data_ptr() in addresses:
                tensor = tensor.clone()  # a layer visited again: safetensors does not store references
            addresses.add(tensor.data_ptr())
            pending[name], shard_of[name] = tensor, shard
        del tensor
        save_file(pending, place / shard, metadata={"format": "pt"})
        pending.clear()
    return {"metadata": {"total_parameters": plan.proof.values, "total_size": plan.bytes}, "weight_map": shard_of}


def _read_tensors(plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the file in the order of the plan; release each result of a conversion once it is used."""
    for bundle in plan.bundles:
        weights = plan.proof.weights
        tensors = _revert_conversion(weights.slung, {name: weights.load(name) for name in bundle.sources})
        for name in bundle.outputs:
            yield name, tensors.pop(name)


def _write_tokenizer(tokenizer: Any, place: Path) -> None:
    """Write the tokenizer without the path that it was loaded from."""
    tokenizer.save_pretrained(place)
    path = place / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and settings.pop("name_or_path", None) is not None:
            _write_json(path, settings)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")

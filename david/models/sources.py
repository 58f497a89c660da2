"""Say what a source is: `demo`, a folder, a GGUF file, a Hub id or a recipe, and where its files are.

`recipe_at` reads a recipe, `base_source` names the base of a source, `resolve_source` returns what `from_pretrained`
takes, `read_config` the configuration, and `failure_reason` says why a model cannot be loaded. No weights are read.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from david.errors import ModelError
from david.gguf.configuration import gguf_config
from david.gguf.file import read_gguf
from david.gguf.weights import gguf_tokenizer
from david.models import file_stamps
from david.models.demo import demo_folder
from david.recipe.base_model import DEMO, is_hub_id, named_base
from david.recipe.recipe import Recipe
from david.support.console import say
from david.support.memory import lacks_memory
from david.support.text import brief, one_line

RECIPE_FILE = "recipe.json"
_TOKENIZER_FILES = ("token", "vocab", "merges", "spiece", "spm", "sentencepiece", "bpe", "tekken", ".model")


def recipe_at(source: str | os.PathLike[str]) -> Recipe | None:
    """Return the recipe at a source; None if the source is no recipe.

    Args:
        source: As for `load_model`. A source that ends in `.json` is a recipe file; a folder or Hub repository is a
            recipe if it holds a `recipe.json` and no `config.json`.

    Raises:
        RecipeError: The recipe file cannot be read or is not valid.
    """
    name = os.fspath(source)
    path = os.path.expanduser(name)
    if name.endswith(".json"):
        return Recipe.load(path)
    if os.path.isdir(path):
        recipe_path, config_path = (os.path.join(path, file) for file in (RECIPE_FILE, "config.json"))
        return Recipe.load(recipe_path) if os.path.isfile(recipe_path) and not os.path.exists(config_path) else None
    if name == DEMO or name.endswith(".gguf") or os.path.exists(path) or not is_hub_id(name):
        return None
    cached = _hub_recipe(name)
    return None if cached is None else Recipe.load(cached)


def _hub_recipe(name: str) -> str | None:
    """Return the cached path of the recipe of a Hub repository; None if it holds a model, or no recipe is there."""
    _note_hub_lookup(name)
    try:
        hf_hub_download(name, "config.json")
    except LocalEntryNotFoundError:  # no network
        cached = try_to_load_from_cache(name, RECIPE_FILE)
        return cached if isinstance(cached, str) else None
    except EntryNotFoundError:
        with suppress(Exception):
            return hf_hub_download(name, RECIPE_FILE)
    except Exception:  # the Hub has many error types; loading the weights reports this one
        return None
    return None


@lru_cache
def _note_hub_lookup(name: str) -> None:
    """Print a note once for each name, however many of its files are requested."""
    say(f"nothing here is called {name}: asking the Hub")


def base_source(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return the name and revision of the model at a source; for a recipe, those of its base."""
    recipe = recipe_at(source)
    if recipe is None:
        return os.fspath(source), None
    return recipe_base(recipe, "--model")


def recipe_base(recipe: Recipe, instead: str) -> tuple[str, str | None]:
    """Return the name and revision of the model that a recipe names as its base.

    Args:
        recipe: The recipe.
        instead: How an error tells the user to name another base.

    Raises:
        RecipeError: It names none that is accepted.
    """
    name = named_base(recipe.base, instead)
    return name, None if recipe.base is None or name == DEMO else recipe.base.revision


def resolve_source(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `from_pretrained` for a source that is no recipe.

    Args:
        source: As for `load_model`, without recipes.
        revision: The revision of a Hub id; ignored for other sources.

    Returns:
        A folder or Hub id, and further options.

    Raises:
        ModelError: There is no such model.
    """
    if not source.strip():
        raise ModelError("no model is named: give a Hub id, a folder, a .gguf file, a recipe JSON, or demo")
    path = Path(os.path.expanduser(source))
    if source == DEMO:
        return str(demo_folder()), {}
    if path.suffix == ".gguf":
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
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
    """Raise `ModelError` if a file holds no JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, as save_pretrained writes; got {type(config).__name__}")


def read_config(name: str, options: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a model's configuration; `ModelError` if it names kernels on the Hub, which would be fetched and run."""
    if "gguf_file" in options:
        return gguf_config(read_gguf(Path(name, options["gguf_file"])))
    config = AutoConfig.from_pretrained(name, **options, trust_remote_code=False)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if "/" in str(kernels := getattr(part, "_attn_implementation", None)):
            raise ModelError(f"its config.json names code to fetch and run: take attn_implementation {kernels!r} out")
    return config


def build_without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of a configuration on the `meta` device: it has names and shapes, and no values.

    Args:
        config: The configuration; a quantised model is built as if it were not quantised.

    Raises:
        ModelError: transformers has no model of its type that writes text.
    """
    with torch.device("meta"):
        model: PreTrainedModel = automatic_class(config).from_config(
            config, dtype=config.dtype, trust_remote_code=False
        )
    return model


def automatic_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that builds the model of a configuration: one that writes text from text alone.

    Raises:
        ModelError: There is none.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    raise ModelError(f"transformers has no causal language model of its type, {config.model_type!r}")


def read_tokenizer(name: str, options: Mapping[str, Any], config: PreTrainedConfig) -> Any:
    """Return a model's tokenizer.

    Args:
        name: A folder or Hub id, from `resolve_source`.
        options: What `resolve_source` returns beside it.
        config: The model's configuration.

    Raises:
        ModelError: There is none, it cannot be read, or it has more tokens than the model.
    """
    if "gguf_file" in options:
        tokenizer = gguf_tokenizer(Path(name, options["gguf_file"]), config)
    else:
        _check_tokenizer_files(Path(name))
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options, trust_remote_code=False)
        except Exception as error:  # tokenizers raises Exception itself
            if "trust_remote_code" in str(error):
                raise
            raise ModelError(f"its tokenizer cannot be read: {one_line(error)}") from error
    size = getattr(tokenizer, "vocab_size", 0)
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if rows is not None and size > rows:
        raise ModelError(f"its tokenizer has {size:,} tokens, its model {rows:,}: fetch or copy it again")
    return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    """Raise `ModelError` if a folder has no tokenizer, or its `tokenizer.json` is no JSON."""
    if not folder.is_dir():
        return
    if not any(word in path.name for path in folder.iterdir() for word in _TOKENIZER_FILES):
        raise ModelError("it has no tokenizer: expected tokenizer.json in it, as save_pretrained writes")
    _check_json(folder / "tokenizer.json")


def check_weight_files(folder: Path) -> None:
    """Check, without opening weights, that a folder has files of weights that are read here.

    Args:
        folder: The folder of a model; what is no folder is not checked.

    Raises:
        ModelError: Its weights are pickled, it has none, or its index is broken or names files that are not there.
    """
    if not folder.is_dir() or (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _check_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise ModelError(f"{index.name} has no weight_map, which says where weights are: fetch or copy it again")
        missing = sorted({file for file in shards.values() if not (folder / file).is_file()})
        if missing:
            files = len(set(shards.values()))
            raise ModelError(f"it lacks {len(missing)} of its {files} files of weights, such as {missing[0]}")
    elif not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        if pickles:
            raise ModelError(
                f"its weights are a pickle ({pickles[0]}), which is not opened here: save them as safetensors first"
            )
        raise ModelError("it has no weights: expected model.safetensors in it, as save_pretrained writes")


def _check_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, if there is one; `ModelError` if the file holds something else."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON ({one_line(error)}): fetch or copy it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} must hold a JSON object; got {type(content).__name__}: fetch or copy it again")
    return content


def local_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder in which the files of a loaded model lie.

    Args:
        name: What it was loaded from: `demo`, a folder, a GGUF file or a Hub id.
        revision: The revision of a Hub id.

    Returns:
        The folder, of a Hub id in the Hub's cache; None for a GGUF file, and for what is not on this machine.
    """
    if name == DEMO:
        return demo_folder()
    if os.path.isdir(os.path.expanduser(name)):
        return Path(os.path.expanduser(name))
    if not is_hub_id(name):
        return None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def failure_reason(error: Exception, before: file_stamps.Stamps | None = None) -> str:
    """Return why a model cannot be loaded; name the file that is truncated, or needs custom code or a pickle."""
    if isinstance(error, ModelError):
        return one_line(error)
    if "trust_remote_code" in str(error):
        return "it needs custom code that comes with it (auto_map in its config.json), which is never run here"
    if lacks_memory(error):
        return f"no memory is left ({one_line(error)}): try --device-map auto, --quantize or another --dtype"
    names = sorted(before or ())
    for path in names:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except Exception as cause:  # safetensors has its own error type
                return f"{path.name} is not whole ({one_line(cause)}): fetch or copy it again"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says: fetch or copy it again"
    if names and not any(path.name.endswith((".safetensors", ".index.json", ".gguf")) for path in names):
        pickles = sorted(path.name for path in names[0].parent.glob("*.bin"))
        if pickles:
            return f"its weights are a pickle ({pickles[0]}), which is not opened here: save them as safetensors first"
        return "it has no weights: expected model.safetensors in it, as save_pretrained writes"
    return one_line(error)

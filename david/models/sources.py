"""Say what a source is: `demo`, a folder, a GGUF file, a Hub id or a recipe, and where its files are.

`recipe_at` reads a recipe, `base_source` names the base of a source, `resolve_source` returns what `from_pretrained`
takes, and `read_config` the configuration. No weights are read here.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from david.errors import ModelError
from david.models.demo import demo_folder
from david.recipe.base_model import DEMO, is_hub_id, named_base
from david.recipe.recipe import Recipe
from david.support.console import say
from david.support.text import brief, one_line

RECIPE_FILE = "recipe.json"


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
    return named_base(recipe.base, "--model"), None if recipe.base is None else recipe.base.revision


def resolve_source(
    source: str, revision: str | None, read: Callable[..., tuple[PreTrainedModel, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `from_pretrained` for a source that is no recipe.

    Args:
        source: As for `load_model`, without recipes.
        revision: The revision of a Hub id; ignored for other sources.
        read: A function with the parameters of `load_weights`; it reads the demo model when it is downloaded.

    Returns:
        A folder or Hub id, and further options.

    Raises:
        ModelError: There is no such model.
    """
    if not source.strip():
        raise ModelError("no model is named: give a Hub id, a folder, a .gguf file, a recipe JSON, or demo")
    path = Path(os.path.expanduser(source))
    if source == DEMO:
        return str(demo_folder(read)), {}
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
    config = AutoConfig.from_pretrained(name, **options, trust_remote_code=False)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if "/" in str(kernels := getattr(part, "_attn_implementation", None)):
            raise ModelError(f"its config.json names code to fetch and run: take attn_implementation {kernels!r} out")
    return config

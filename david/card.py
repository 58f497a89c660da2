"""What goes beside the weights of a stacked checkpoint: its recipe, and a model card."""

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from david import __version__
from david.models import DEMO, describe
from david.origin import Base, Versions, is_hub_id
from david.recipe import Recipe


def told(model: PreTrainedModel, recipe: Recipe) -> Recipe:
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
    if recipe.base is not None and recipe.base.fingerprint not in (None, base.fingerprint):
        recipe = replace(recipe, scores=(), search=None)  # of other weights
    return replace(recipe, base=base.model_copy(update={"model": name}), made_with=recipe.made_with or made)


def _published(base: Base) -> str | None:
    """What others can find a base by: a Hub id, or demo; None for a path."""
    name = base.model or ""
    if name == DEMO:
        return name
    is_revision = re.fullmatch(r"[\w./-]+", base.revision or "", re.ASCII) is not None  # a recipe can say anything
    return name if is_hub_id(name) and is_revision and not os.path.exists(name) else None


def loader(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> str:
    """The class of transformers that reads a checkpoint of a model of this kind."""
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return "AutoModelForCausalLM" if kinds and kinds[0] is kind else kind.__name__


def card(recipe: Recipe, loader: str, values: int, dtype: str, size: str) -> str:
    """The model card: what this is, how it was made, and how to have it without this checkpoint."""
    base: Any = recipe.base
    hub = base.model if base.model != DEMO else None
    named = base.model or f"a {base.architecture} of {base.num_layers} layers"
    named = "SmolLM2-135M-Instruct (David's `demo`)" if base.model == DEMO else named
    front = ["---", *([f"base_model: {json.dumps(hub)}", "base_model_relation: merge"] if hub else [])]
    front += ["license: apache-2.0"] if base.model == DEMO else []
    front += ["library_name: transformers"]
    front += ["pipeline_tag: text-generation"] if loader == "AutoModelForCausalLM" else []
    front += ["tags:"]
    front += ["- david", "- frankenmerge", "- layer-repetition", "---"]
    source = json.dumps(base.model or "the folder of the base, or its name on the Hub")
    return "\n".join(front) + (
        f"\n\n# {named}, its layers in another order\n\n"
        f"This checkpoint has {len(recipe)} layers, made of the {base.num_layers} of {named} without any training: "
        "the layers below, one after the other, each with its own copy of the base's weights.\n\n"
        f"```\n{recipe}\n\n{recipe.picture}\n```\n\n"
        f"The map: `{list(recipe.repeat_map)}`\n\n"
        "## Use\n\n```python\n"
        f"from transformers import {loader}\n\n"
        f'model = {loader}.from_pretrained("this folder, or its name on the Hub")\n```\n\n'
        "## The same without this checkpoint\n\n"
        "On the base's own weights, in place and with no byte copied, with "
        "David and the `recipe.json` of this folder:\n\n"
        "```python\nfrom david import David, load_model\n\n"
        f"model, tokenizer = load_model({source})\n"
        'David.sling(model, "recipe.json")\n```\n\n'
        "## How it was made\n\n"
        f"`david export`, with david {__version__}, torch {torch.__version__}, transformers {transformers.__version__}."
        f" {values:,} values in {dtype}, {size}."
        f" Base: {base.architecture}, fingerprint `{base.fingerprint}`"
        f"{'' if base.revision is None or hub is None else f', revision `{base.revision}`'}.\n"
    )

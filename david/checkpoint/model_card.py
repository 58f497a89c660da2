"""A recipe ready to be handed on: its file, a model card, and its picture, with a stacked checkpoint or without."""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from matplotlib.figure import Figure
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from david._version import __version__
from david.models.describe import describe_base
from david.models.load import RECIPE_FILE
from david.recipe.base_model import DEMO, is_hub_id, public_name
from david.recipe.recipe import Recipe
from david.recipe.schema import Measurement, Versions
from david.report import plots, tables

PICTURE_FILE, CARD_FILE = "recipe.png", "README.md"


@dataclass(frozen=True)
class Stacked:
    """What a card says of a checkpoint: the class that reads it, how many numbers it holds, their type and size."""

    loader: str
    numbers: int
    dtype: str
    size: str


def complete_recipe(model: PreTrainedModel, recipe: Recipe) -> Recipe:
    """The recipe with its base and its makers filled in, and without the paths that things have on this machine."""
    base = describe_base(model)
    name = public_name(base)
    if name is None and recipe.base is not None and recipe.base.fingerprint == base.fingerprint:
        name = public_name(recipe.base)
    if name is not None and name != base.model and recipe.base is not None:
        base = base.model_copy(update={"revision": recipe.base.revision})
    if recipe.base is None or recipe.base.fingerprint != base.fingerprint:
        recipe = replace(recipe, scores=(), search=None)  # of other weights, or nobody can tell of which
    return without_paths(replace(recipe, base=base.model_copy(update={"model": name})))


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe as others may have it: a base or data that lie on this machine go without their folders."""
    base = recipe.base and recipe.base.model_copy(update={"model": public_name(recipe.base)})
    scores = [_without_path(score) for score in recipe.scores]
    made = Versions(
        david=__version__,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(recipe, base=base, scores=tuple(scores), made_with=recipe.made_with or made)


def _without_path(score: Measurement) -> Measurement:
    source = score.data.source
    kept = source if is_hub_id(source) else re.split(r"[/\\]", source)[-1]
    return score.model_copy(update={"data": score.data.model_copy(update={"source": kept})})


def loader_class(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> str:
    """The class of transformers that reads a checkpoint of a model of this kind."""
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return "AutoModelForCausalLM" if kinds and kinds[0] is kind else kind.__name__


def write_card_files(recipe: Recipe, place: Path, stacked: Stacked | None = None) -> None:
    """Put a recipe's file, card and picture into a folder."""
    recipe.save(place / RECIPE_FILE)
    (place / CARD_FILE).write_text(render_card(recipe, stacked), encoding="utf-8")
    figure = Figure(figsize=(9, 5), layout="constrained")
    board = pd.DataFrame({"recipe": ["base", str(recipe)]})
    ax = plots.paths(tables.paths(board, recipe.n_layers), figure.add_subplot())
    ax.set_title("The recipe's path over the base's layers")
    figure.savefig(place / PICTURE_FILE, dpi=120, format="png")  # which every page of the Hub shows, light or dark


def render_card(recipe: Recipe, stacked: Stacked | None = None) -> str:
    """The model card: what this is, how to use it, what it scored, how it was made.

    Of what a recipe says, it holds names of the Hub, numbers, and words of letters, digits and a few signs as code.
    """
    base: Any = recipe.base
    named = base.model or f"a {_as_code(base.architecture or 'model')} of {base.num_layers} layers"
    named = "SmolLM2-135M-Instruct (David's `demo`)" if base.model == DEMO else named
    parts = [
        _front_matter(recipe, stacked),
        f"# {named}, its layers in another order",
        _introduction(recipe, named, stacked),
        f"![The recipe's path over the base's layers]({PICTURE_FILE})",
        f"```\n{recipe}\n\n{recipe.picture}\n```",
        f"The map: `{list(recipe.repeat_map)}`",
        *(_stacked_usage(stacked) if stacked else ()),
        "## The same without this checkpoint" if stacked else "## Use",
        _usage(recipe, stacked),
        *_scores(recipe),
        "## How it was made",
        _provenance(recipe, stacked),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe, stacked: Stacked | None) -> str:
    """The card's metadata. Of the Hub's relations, what needs its base's weights to run is an `adapter`."""
    base: Any = recipe.base
    hub = base.model if base.model != DEMO else None
    lines = ["---"]
    if hub:
        lines += [f"base_model: {json.dumps(hub)}", f"base_model_relation: {'merge' if stacked else 'adapter'}"]
    lines += ["license: apache-2.0"] if base.model == DEMO else []
    lines += [f"library_name: {'transformers' if stacked else 'david'}"]
    lines += ["pipeline_tag: text-generation"] if not stacked or stacked.loader == "AutoModelForCausalLM" else []
    return "\n".join([*lines, "tags:", "- david", "- frankenmerge", "- layer-repetition", "---"])


def _introduction(recipe: Recipe, named: str, stacked: Stacked | None) -> str:
    if stacked:
        return (
            f"This checkpoint has {len(recipe)} layers, made of the {recipe.n_layers} of {named} without any training: "
            "the layers below, one after the other, each with its own copy of the base's weights."
        )
    return (
        f"This is a recipe, without any weights: {len(recipe)} visits of the {recipe.n_layers} layers of {named}, in "
        "the order below. David runs them on the base's own weights, of which it copies no byte."
    )


def _stacked_usage(stacked: Stacked) -> tuple[str, str]:
    return (
        "## Use",
        f"```python\nfrom transformers import {stacked.loader}\n\n"
        f'model = {stacked.loader}.from_pretrained("this folder, or its name on the Hub")\n```',
    )


def _usage(recipe: Recipe, stacked: Stacked | None) -> str:
    """Two lines of Python and a command."""
    named = recipe.base is not None and recipe.base.model is not None
    given = "" if named else ', base="the folder of the base, or its name on the Hub"'
    command = f"david chat {RECIPE_FILE}" if named else f"david chat BASE --recipe {RECIPE_FILE}"
    also = "" if stacked else f"\n\nThis repository's name on the Hub serves in the place of `{RECIPE_FILE}` too."
    return (
        f"On the base's own weights, with David and the `{RECIPE_FILE}` of this folder:\n\n"
        "```python\nfrom david import load_model\n\n"
        f'model, tokenizer = load_model("{RECIPE_FILE}"{given})\n```\n\n'
        f"or, to talk to it,\n\n```\n{command}\n```{also}"
    )


def _scores(recipe: Recipe) -> list[str]:
    """What the recipe's file says of its scores, as a table; nothing where it says nothing."""
    if not recipe.scores:
        return []
    rows = [
        "| metric | on | windows | scored | base | recipe | Δ nats | 95% interval |",
        "|---|---|---|---|---|---|---|---|",
        *(_score_row(score) for score in recipe.scores),
    ]
    told = (
        "Δ is the recipe's NLL less the base's, for each token (of multiple choice, each question): below 0 the "
        "recipe is better. The interval is paired; held-out windows were not seen by the search. Perplexity is a cheap "
        "gate, not intelligence."
    )
    return ["## Scores", "\n".join(rows), told]


def _score_row(score: Measurement) -> str:
    on = _as_code(score.data.source) + (f" {_as_code(score.data.slice)}" if score.data.slice else "")
    interval = "" if score.interval95 is None else "{:+.4f} … {:+.4f}".format(*score.interval95)
    base, value = f"{score.base:.4f}", f"{score.value:.4f}"
    if score.accuracy is not None and score.base_accuracy is not None:
        base, value = f"{base} ({score.base_accuracy:.1%} right)", f"{value} ({score.accuracy:.1%} right)"
    windows = "held out" if score.held_out else "of the search"
    cells = (
        _as_code(score.metric),
        on,
        windows,
        f"{score.tokens:,}",
        base,
        value,
        f"{score.nll_difference:+.4f}",
        interval,
    )
    return f"| {' | '.join(cells)} |"


def _as_code(text: str) -> str:
    """A word or two of a stranger's as code, in which nothing of Markdown or HTML can be written."""
    shown = re.sub(r"[^\w ./:%,+=-]", "·", text[:80]).strip()
    return f"`{shown or '·'}`"


def _provenance(recipe: Recipe, stacked: Stacked | None) -> str:
    base: Any = recipe.base
    said = []
    if recipe.search is not None:
        found = recipe.search
        asked = found.sampler if found.strategy is None else found.strategy.partition("(")[0]
        said.append(
            f"Trial {found.trial} of a search of {found.trials} recipes ({_as_code(found.space)}, {_as_code(asked)})."
        )
    if stacked:
        said.append(
            f"`david export`, with david {__version__}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}. {stacked.numbers:,} values in {stacked.dtype}, {stacked.size}."
        )
    else:
        said.append(f"`david export --no-weights`, with david {__version__}.")
    fingerprint = f", fingerprint {_as_code(base.fingerprint)}" if base.fingerprint else ""
    revision = f", revision `{base.revision}`" if base.revision and base.model and base.model != DEMO else ""
    said.append(f"Base: {_as_code(base.architecture or 'unknown')}{fingerprint}{revision}.")
    return " ".join(said)

"""Write what others need of a recipe: its file, a model card, and its picture.

`complete_recipe` and `without_paths` prepare the recipe; `write_card_files` writes the three files, beside a stacked
checkpoint or without one; `render_card` returns the text of the card.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from huggingface_hub import ModelCardData
from matplotlib.figure import Figure
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from david._version import __version__
from david.models.describe import describe_base
from david.models.sources import RECIPE_FILE
from david.recipe.base_model import DEMO, is_hub_id, public_name
from david.recipe.recipe import Recipe
from david.recipe.schema import Measurement, Versions
from david.recipe.verdict import verdict_sentence
from david.report import plots, tables
from david.report.formatting import capitalised

PICTURE_FILE, CARD_FILE = "recipe.png", "README.md"


@dataclass(frozen=True)
class StackedCheckpoint:
    """The facts of a stacked checkpoint that its card holds."""

    loader: str  # name of the class of transformers that reads it
    numbers: int  # count of values in its weights
    dtype: str
    size: str  # of its weights on disk, in words


def complete_recipe(model: PreTrainedModel, recipe: Recipe) -> Recipe:
    """Return the recipe with its base and versions filled in, and without the paths of this machine.

    Scores and search are removed if the recipe was made on other weights, or does not say on which.

    Args:
        model: The base of the recipe, slung or not.
        recipe: The recipe.

    Returns:
        A new recipe; a public name of the same weights in the recipe is kept if the model has none.
    """
    base = describe_base(model)
    name = public_name(base)
    if name is None and recipe.base is not None and recipe.base.fingerprint == base.fingerprint:
        name = public_name(recipe.base)
    if name is not None and name != base.model and recipe.base is not None:
        base = base.model_copy(update={"revision": recipe.base.revision})
    if recipe.base is None or recipe.base.fingerprint != base.fingerprint:
        recipe = replace(recipe, scores=(), search=None)  # they belong to other weights, or to unknown ones
    return without_paths(replace(recipe, base=base.model_copy(update={"model": name})))


def without_paths(recipe: Recipe) -> Recipe:
    """Return the recipe without the paths of this machine, ready to be given to others.

    Args:
        recipe: The recipe.

    Returns:
        A new recipe: a local base has no name, local data only the name of their file. The versions of David, torch and
        transformers are filled in if they are missing.
    """
    base = recipe.base and recipe.base.model_copy(update={"model": public_name(recipe.base)})
    scores = [_without_path(score) for score in recipe.scores]
    versions = Versions(
        david=__version__,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(recipe, base=base, scores=tuple(scores), made_with=recipe.made_with or versions)


def _without_path(score: Measurement) -> Measurement:
    """Return the score with the Hub id of its data, or else their file name."""
    source = score.data.source
    public_source = source if is_hub_id(source) else re.split(r"[/\\]", source)[-1]
    return score.model_copy(update={"data": score.data.model_copy(update={"source": public_source})})


def loader_class(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> str:
    """Return the name of the class of transformers that reads a checkpoint of a model.

    Args:
        config: The configuration of the checkpoint.
        kind: The class of the model.

    Returns:
        "AutoModelForCausalLM" if it would choose this class, or else the name of the class.
    """
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return "AutoModelForCausalLM" if kinds and kinds[0] is kind else kind.__name__


def write_card_files(recipe: Recipe, place: Path, stacked: StackedCheckpoint | None = None) -> None:
    """Write the file, card and picture of a recipe into a folder.

    Args:
        recipe: The recipe, with its base, as `complete_recipe` or `without_paths` returns it.
        place: An existing folder.
        stacked: The checkpoint in this folder; None for a folder without weights.
    """
    recipe.save(place / RECIPE_FILE)
    (place / CARD_FILE).write_text(render_card(recipe, stacked), encoding="utf-8")
    figure = Figure(figsize=(9, 5), layout="constrained")
    board = pd.DataFrame({"recipe": [str(recipe), "base"]})
    ax = plots.paths(tables.paths(board, recipe.n_layers), figure.add_subplot())
    ax.set_title("The recipe's path over the base's layers")
    figure.savefig(place / PICTURE_FILE, dpi=120, format="png")  # PNG: every page of the Hub shows it, light or dark


def render_card(recipe: Recipe, stacked: StackedCheckpoint | None = None) -> str:
    """Return the model card: what this is, how to use it, its scores, how it was made.

    Of a recipe's content, the card holds only Hub ids, numbers, and words of letters, digits and a few signs as code,
    so that a stranger's recipe cannot place Markdown or HTML in it.

    Args:
        recipe: The recipe, with its base.
        stacked: The checkpoint that the card describes; None for a recipe without weights.

    Returns:
        Markdown with metadata (YAML) at its beginning.
    """
    base: Any = recipe.base
    base_name = base.model or f"a {_as_code(base.architecture or 'model')} of {base.num_layers} layers"
    base_name = "SmolLM2-135M-Instruct (David's `demo`)" if base.model == DEMO else base_name
    parts = [
        _front_matter(recipe, stacked),
        f"# {base_name}, its layers in another order",
        *_verdict(recipe),
        _introduction(recipe, base_name, stacked),
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


def _verdict(recipe: Recipe) -> list[str]:
    """Return the paragraph that says whether the recipe was better than its base; nothing without scores."""
    sentence = verdict_sentence(recipe)
    return [] if sentence is None else [f"**{capitalised(sentence)}.**"]


def _front_matter(recipe: Recipe, stacked: StackedCheckpoint | None) -> str:
    """Return the metadata of the card. A recipe needs the base's weights to run: the Hub calls this an `adapter`."""
    base: Any = recipe.base
    is_demo = base.model == DEMO
    hub_id = None if is_demo else base.model
    data = ModelCardData(
        base_model=hub_id,
        license="apache-2.0" if is_demo else None,
        library_name="transformers" if stacked else "david",
        pipeline_tag="text-generation" if not stacked or stacked.loader == "AutoModelForCausalLM" else None,
        tags=["david", "frankenmerge", "layer-repetition"],
        base_model_relation=None if hub_id is None else "merge" if stacked else "adapter",
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(recipe: Recipe, base_name: str, stacked: StackedCheckpoint | None) -> str:
    """Return the paragraph that says what the folder holds."""
    if stacked:
        return (
            f"This checkpoint has {len(recipe)} layers, made of the {recipe.n_layers} of {base_name} without any "
            "training: the layers below, one after the other, each with its own copy of the base's weights."
        )
    return (
        f"This is a recipe, without any weights: {len(recipe)} visits of the {recipe.n_layers} layers of {base_name}, "
        "in the order below. David runs them on the base's own weights, of which it copies no byte."
    )


def _stacked_usage(stacked: StackedCheckpoint) -> tuple[str, str]:
    """Return the heading and the code that load a stacked checkpoint with transformers."""
    return (
        "## Use",
        f"```python\nfrom transformers import {stacked.loader}\n\n"
        f'model = {stacked.loader}.from_pretrained("this folder, or its name on the Hub")\n```',
    )


def _usage(recipe: Recipe, stacked: StackedCheckpoint | None) -> str:
    """Return two lines of Python and a command that run the recipe with David."""
    has_base_name = recipe.base is not None and recipe.base.model is not None
    base_argument = "" if has_base_name else ', base="the folder of the base, or its name on the Hub"'
    command = f"david chat {RECIPE_FILE}" if has_base_name else f"david chat BASE --recipe {RECIPE_FILE}"
    hub_hint = "" if stacked else f"\n\nThis repository's name on the Hub serves in the place of `{RECIPE_FILE}` too."
    return (
        f"On the base's own weights, with David and the `{RECIPE_FILE}` of this folder:\n\n"
        "```python\nfrom david import load_model\n\n"
        f'model, tokenizer = load_model("{RECIPE_FILE}"{base_argument})\n```\n\n'
        f"or, to talk to it,\n\n```\n{command}\n```{hub_hint}"
    )


def _scores(recipe: Recipe) -> list[str]:
    """Return a heading, a table of the recipe's scores, and its legend; nothing without scores."""
    if not recipe.scores:
        return []
    rows = [
        "| metric | on | windows | scored | base | recipe | Δ nats | 95% interval |",
        "|---|---|---|---|---|---|---|---|",
        *(_score_row(score) for score in recipe.scores),
    ]
    legend = (
        "Δ is the recipe's NLL less the base's, for each token (of multiple choice, each question): below 0 the "
        "recipe is better. The interval is paired; held-out windows were not seen by the search. Perplexity is a cheap "
        "gate, not intelligence."
    )
    return ["## Scores", "\n".join(rows), legend]


def _score_row(score: Measurement) -> str:
    """Return a row of the table of scores."""
    data = _as_code(score.data.source) + (f" {_as_code(score.data.slice)}" if score.data.slice else "")
    interval = "" if score.interval95 is None else "{:+.4f} … {:+.4f}".format(*score.interval95)
    base, value = f"{score.base:.4f}", f"{score.value:.4f}"
    if score.accuracy is not None and score.base_accuracy is not None:
        base, value = f"{base} ({score.base_accuracy:.1%} right)", f"{value} ({score.accuracy:.1%} right)"
    windows = "held out" if score.held_out else "of the search"
    cells = (
        _as_code(score.metric),
        data,
        windows,
        f"{score.tokens:,}",
        base,
        value,
        f"{score.nll_difference:+.4f}",
        interval,
    )
    return f"| {' | '.join(cells)} |"


def _as_code(text: str) -> str:
    """Return a stranger's words as code, without characters that Markdown or HTML would interpret."""
    shown = re.sub(r"[^\w ./:%,+=-]", "·", text[:80]).strip()
    return f"`{shown or '·'}`"


def _provenance(recipe: Recipe, stacked: StackedCheckpoint | None) -> str:
    """Return the sentences on the search, the command and versions, and the base."""
    base: Any = recipe.base
    sentences = []
    if recipe.search is not None:
        search = recipe.search
        proposer = search.sampler if search.strategy is None else search.strategy.partition("(")[0]
        sentences.append(
            f"Trial {search.trial} of a search of {search.trials} recipes "
            f"({_as_code(search.space)}, {_as_code(proposer)})."
        )
    if stacked:
        sentences.append(
            f"`david export`, with david {__version__}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}. {stacked.numbers:,} values in {stacked.dtype}, {stacked.size}."
        )
    else:
        sentences.append(f"`david export --no-weights`, with david {__version__}.")
    fingerprint = f", fingerprint {_as_code(base.fingerprint)}" if base.fingerprint else ""
    revision = f", revision `{base.revision}`" if base.revision and base.model and base.model != DEMO else ""
    sentences.append(f"Base: {_as_code(base.architecture or 'unknown')}{fingerprint}{revision}.")
    return " ".join(sentences)

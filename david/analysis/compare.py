"""Compare recipes side by side (`compare`): scores on several texts and tasks, costs, decoding speed."""

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from david.engine.engine import score_recipes
from david.errors import RecipeError, ScoreError
from david.metrics import units
from david.metrics.paired_test import paired_difference
from david.metrics.score import Score
from david.models.describe import token_costs
from david.recipe.explain import explain
from david.recipe.recipe import Recipe
from david.report.formatting import verdict_text
from david.report.tables import BASE
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity
from david.sling.forward import context_of, input_device
from david.sling.in_place import base_depth, check_recipe, running_base, slung
from david.support.arguments import check_function, check_type, check_whole, checked_list

__all__ = ["compare"]

_PROMPT_TOKENS = 8  # read before each timed decoding
_DIFFERENCE_COLUMNS = ("difference", "low95", "high95", "verdict")


def compare(
    model: nn.Module,
    recipes: Sequence[Recipe],
    corpora: Mapping[str, Corpus | tuple[Objective, Corpus]],
    *,
    decode: int = 16,
    rounds: int = 5,
    memory_budget: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Score recipes and their base on several corpora, side by side.

    Each corpus goes through the engine once, for all recipes together. Intervals are corrected for the number of
    recipes: on each corpus all of them hold together with 95%.

    Args:
        model: The model whose layers are rearranged.
        recipes: The recipes; one that is given twice is one row.
        corpora: By name, a corpus, which is scored by perplexity, or `(objective, corpus)`: questions with
            `multiple_choice`, or what `tasks.load` gives.
        decode: How many tokens to decode greedily, with a cache, behind a few tokens of the first corpus, to measure
            the speed; 0 for no measurement.
        rounds: How often each recipe is timed; in each round all recipes take their turn, and the median counts.
        memory_budget: How many bytes of hidden states may be held (see `score_recipes`).
        progress: Whether to show progress bars.

    Returns:
        A table with the base in the first row. Columns: `recipe`, `visits`, `extra_depth`, `kv_bytes_per_token` (bytes
        of the cache for each token), `tokens_per_second`, and for each corpus, behind its name: the score as it is read
        (`wiki_perplexity`, `arc_acc`; `attrs["labels"]` has the word), recipe minus base (`_difference`; below 0 is
        better; `attrs["units"]` has the unit: nats a token, `1 − acc`), its paired 95% interval (`_low95`, `_high95`),
        and `_verdict`: better, worse, or not told apart. Where a task has the model generate answers, `_cut` is the
        share of them that reached the task's token limit, or ended inside the model's thinking.

    Raises:
        RecipeError: If the model cannot run a recipe. Nothing is scored then.
        SlingError: If the model is refused. Nothing is scored then.
        ScoreError: If an option is invalid, or a recipe cannot be scored.

    Example:
        >>> found = compare(model, [Recipe.parse("0:12, 8:30")], {"wiki": corpus.take(4)}, decode=0)
        >>> found[["recipe", "visits"]].values.tolist()
        [['base', 30], ['0:12, 8:30', 34]]
    """
    n_layers = base_depth(model)
    recipes = checked_list("recipes", recipes, Recipe, RecipeError)
    check_type("corpora", corpora, Mapping, ScoreError)
    if not corpora:
        raise ScoreError("give at least one corpus to compare on")
    check_whole("decode", decode, ScoreError, least=0)
    check_whole("rounds", rounds, ScoreError, least=1)
    pairs = [(name, *(its if isinstance(its, tuple) else (perplexity, its))) for name, its in corpora.items()]
    for name, objective, corpus in pairs:
        check_function(f"the objective of corpora[{name!r}]", objective, "(model, corpus) → Score", ScoreError)
        check_type(f"corpora[{name!r}]", corpus, Corpus, ScoreError)
    prompt = pairs[0][2].windows[:1, :_PROMPT_TOKENS]
    context = context_of(model)
    if decode and context is not None and prompt.shape[1] + decode > context:
        most = max(0, context - prompt.shape[1])
        raise ScoreError(f"decode must be at most {most} behind a prompt of {prompt.shape[1]} tokens; got {decode}")
    candidates = list(dict.fromkeys([Recipe.identity(n_layers), *recipes]))
    for recipe in candidates:
        check_recipe(model, recipe)
    with running_base(model):
        cost = token_costs(model)
    explained = [explain(recipe, cost) for recipe in candidates]
    columns: dict[str, Sequence[object]] = {
        "recipe": [BASE, *map(str, candidates[1:])],
        "visits": [its.visits for its in explained],
        "extra_depth": [its.extra_depth for its in explained],
        "kv_bytes_per_token": [its.kv_bytes_per_token for its in explained],
    }
    score_columns: dict[str, Sequence[object]] = {}
    base_scores: dict[str, Score] = {}
    for name, objective, corpus in pairs:
        scores = score_recipes(
            model, candidates, corpus, objective=objective, memory_budget=memory_budget, progress=progress
        )
        base_scores[name] = scores[0]
        score_columns |= {f"{name}_{part}": values for part, values in _score_columns(scores).items()}
    if decode:
        columns["tokens_per_second"] = decode_speeds(model, candidates, prompt, decode, rounds, progress)
    table = pd.DataFrame(columns | score_columns)
    table.attrs["units"] = {name: base.unit for name, base in base_scores.items()}
    table.attrs["labels"] = {name: _label(base) for name, base in base_scores.items()}
    return table


def decode_speeds(
    model: nn.Module, recipes: Sequence[Recipe], prompt: Tensor, tokens: int, rounds: int, progress: bool = False
) -> list[float]:
    """Measure the speed of greedy decoding with a cache.

    In each round all recipes take their turn, and each round begins with another one. A warm-up round is not counted.

    Args:
        model: The model that recipes are slung on.
        recipes: The recipes to time.
        prompt: Tokens to decode behind, `[1, T]`.
        tokens: How many tokens to decode.
        rounds: How often each recipe is timed.
        progress: Whether to show a progress bar.

    Returns:
        The median of new tokens a second of each recipe.
    """
    prompt = prompt.to(input_device(model))
    options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    durations: list[list[float]] = [[] for _ in recipes]
    with tqdm(total=(1 + rounds) * len(recipes), desc="decoding", unit="run", disable=not progress) as bar:
        for turn in range(-1, rounds):
            for place in range(len(recipes)):
                i = (place + turn) % len(recipes)
                with slung(model, recipes[i]), torch.inference_mode():
                    start = time.perf_counter()
                    written = model.generate(  # type: ignore[operator]
                        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **options
                    )
                    written[:, -1].tolist()  # wait for an accelerator
                    seconds = time.perf_counter() - start
                if turn >= 0:
                    durations[i].append(seconds)
                bar.update()
    return [tokens / median(seconds) for seconds in durations]


def comparison_text(table: pd.DataFrame) -> str:
    """Return a table of `compare` as text: for each corpus score, difference ± half its interval, and verdict."""
    columns: list[tuple[str, list[str]]] = [("visits", [f"{n}" for n in table["visits"]])]
    columns += [("KV bytes/token", [f"{n:,}" for n in table["kv_bytes_per_token"]])]
    if "tokens_per_second" in table:
        columns += [("tokens/s", [f"{speed:.1f}" for speed in table["tokens_per_second"]])]
    for name, unit in table.attrs["units"].items():
        label = table.attrs["labels"][name]
        figure = "{:.1%}" if unit == units.QUESTION else "{:.3f}"
        short = "ppl" if label == "perplexity" else label
        columns += [(f"{name} {short}", [figure.format(value) for value in table[f"{name}_{label}"]])]
        bounds = zip(*(table[f"{name}_{part}"] for part in _DIFFERENCE_COLUMNS[:3]), strict=True)
        columns += [(units.difference_heading(unit), ["", *[_difference_text(*row) for row in bounds][1:]])]
        if f"{name}_cut" in table:
            columns += [("cut", [f"{share:.1%}" for share in table[f"{name}_cut"]])]
        columns += [("verdict", [verdict_text(verdict) for verdict in table[f"{name}_verdict"]])]
    columns += [("recipe", list(table["recipe"]))]
    padded = []
    for head, values in columns:
        width = max(len(head), *map(len, values))
        side = "<" if head in ("verdict", "recipe") else ">"
        padded.append([f"{text:{side}{width}}" for text in (head, *values)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _score_columns(scores: Sequence[Score]) -> dict[str, list[object]]:
    """Return the columns of one corpus, from the scores on it, the base's first."""
    base, *others = scores
    columns: dict[str, list[object]] = {_label(base): [_value(score) for score in scores]}
    differences = [
        paired_difference(
            its.window_nll, base.window_nll, base.window_tokens, documents=base.documents, finalists=len(others)
        )
        for its in others
    ]
    columns["difference"] = [0.0, *(its.mean for its in differences)]
    columns["low95"] = [math.nan, *(its.low for its in differences)]
    columns["high95"] = [math.nan, *(its.high for its in differences)]
    columns["verdict"] = ["", *(its.word for its in differences)]
    if base.cut:
        columns["cut"] = [score.cut_share for score in scores]
    return columns


def _label(score: Score) -> str:
    """Return the name of the metric that a score is read as: perplexity, accuracy, or a task's own."""
    return "accuracy" if score.right else units.readable(score.unit, score.nll)[0]


def _value(score: Score) -> float:
    return score.accuracy if score.right else units.readable(score.unit, score.nll)[1]


def _difference_text(middle: float, low: float, high: float) -> str:
    """Return a difference and half its interval, which is symmetric."""
    return f"{middle:+.4f} ± {(high - low) / 2:.4f}" if math.isfinite(high - low) else f"{middle:+.4f} ± ∞"

"""Several recipes side by side: on several texts and tasks, what each costs, and how fast it writes."""

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from david.engine.engine import score_recipes
from david.errors import ScoreError
from david.metrics import units
from david.metrics.paired_test import paired_difference
from david.metrics.score import Score
from david.models.describe import token_costs
from david.recipe.explain import explain
from david.recipe.recipe import Recipe
from david.report.tables import BASE
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity
from david.sling.forward import context_of, input_device
from david.sling.in_place import base_depth, check_recipe, running_base, slung

__all__ = ["compare"]

_PROMPT = 8  # tokens to read before a timing writes
_PARTS = ("difference", "low95", "high95", "verdict")


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
    """Score recipes and their base on several corpora, each by a name; a row each, the base first.

    A corpus is scored by perplexity, or by the objective that comes with it in `(objective, corpus)`: questions by
    `multiple_choice`, the documents of `tasks.load` by what that gave. Each goes through the engine once, for all
    recipes together. A recipe that is given twice is one row.

    Columns: `recipe`, `visits`, `extra_depth`, `kv_bytes_per_token` (what a token takes in the cache),
    `tokens_per_second`, and of each corpus, behind its name: what a person reads of the score (`wiki_perplexity`,
    `arc_acc`; `attrs["labels"]` has the word), then recipe minus base (`_difference`, below 0 is better, in what
    `attrs["units"]` says: nats a token, `1 − acc`), the paired 95% interval of that (`_low95`, `_high95`), and
    `_verdict`: better, worse, or not told apart.
    Intervals are corrected for the number of recipes: on each corpus all hold together with 95%.

    Speed is that of greedy decoding of `decode` tokens with a cache, behind a few of the first corpus, in the median of
    so many `rounds`, in each of which all recipes take their turn. It is told, and decides nothing; 0 leaves it out.

    Raises `RecipeError` or `SlingError` for a recipe that the model cannot run, before anything is scored, and
    `ScoreError` where one cannot be scored.

    Example:
        >>> found = compare(model, [Recipe.parse("0:12, 8:30")], {"wiki": corpus.take(4)}, decode=0)
        >>> found[["recipe", "visits"]].values.tolist()
        [['base', 30], ['0:12, 8:30', 34]]
    """
    if not corpora:
        raise ScoreError("give at least one corpus to compare on")
    if decode < 0 or rounds < 1:
        raise ScoreError(f"decode must be 0 or more and rounds at least 1; got {decode} and {rounds}")
    pairs = [(name, *(its if isinstance(its, tuple) else (perplexity, its))) for name, its in corpora.items()]
    prompt = pairs[0][2].windows[:1, :_PROMPT]
    context = context_of(model)
    if decode and context is not None and prompt.shape[1] + decode > context:
        most = max(0, context - prompt.shape[1])
        raise ScoreError(f"behind a prompt of {prompt.shape[1]} the model takes {most} tokens; got decode {decode}")
    n_layers = base_depth(model)
    every = list(dict.fromkeys([Recipe.identity(n_layers), *recipes]))
    for recipe in every:
        check_recipe(model, recipe)
    with running_base(model):
        cost = token_costs(model)
    explained = [explain(recipe, cost) for recipe in every]
    columns: dict[str, Sequence[object]] = {
        "recipe": [BASE, *map(str, every[1:])],
        "visits": [its.visits for its in explained],
        "extra_depth": [its.extra_depth for its in explained],
        "kv_bytes_per_token": [its.kv_bytes_per_token for its in explained],
    }
    scored: dict[str, Sequence[object]] = {}
    measured: dict[str, Score] = {}
    for name, objective, corpus in pairs:
        scores = score_recipes(
            model, every, corpus, objective=objective, memory_budget=memory_budget, progress=progress
        )
        measured[name] = scores[0]
        scored |= {f"{name}_{part}": values for part, values in _judged(scores).items()}
    if decode:
        columns["tokens_per_second"] = decode_speeds(model, every, prompt, decode, rounds, progress)
    table = pd.DataFrame(columns | scored)
    table.attrs["units"] = {name: base.unit for name, base in measured.items()}
    table.attrs["labels"] = {name: _label(base) for name, base in measured.items()}
    return table


def decode_speeds(
    model: nn.Module, recipes: Sequence[Recipe], prompt: Tensor, tokens: int, rounds: int, progress: bool = False
) -> list[float]:
    """New tokens a second of each recipe behind a prompt `[1, T]`: the median of the rounds, in which they take turns.

    Each round begins with another recipe, and one that does not count comes before the first.
    """
    prompt = prompt.to(input_device(model))
    options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    took: list[list[float]] = [[] for _ in recipes]
    with tqdm(total=(1 + rounds) * len(recipes), desc="decoding", unit="run", disable=not progress) as bar:
        for turn in range(-1, rounds):
            for place in range(len(recipes)):
                i = (place + turn) % len(recipes)
                with slung(model, recipes[i]), torch.inference_mode():
                    start = time.perf_counter()
                    written = model.generate(  # type: ignore[operator]
                        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **options
                    )
                    written[:, -1].tolist()  # an accelerator is waited for
                    seconds = time.perf_counter() - start
                if turn >= 0:
                    took[i].append(seconds)
                bar.update()
    return [tokens / median(seconds) for seconds in took]


def comparison_text(table: pd.DataFrame) -> str:
    """What `compare` gave, for a terminal: of each corpus the value, the difference ± half its interval, the word."""
    columns: list[tuple[str, list[str]]] = [("visits", [f"{n}" for n in table["visits"]])]
    columns += [("KV bytes/token", [f"{n:,}" for n in table["kv_bytes_per_token"]])]
    if "tokens_per_second" in table:
        columns += [("tokens/s", [f"{speed:.1f}" for speed in table["tokens_per_second"]])]
    for name, unit in table.attrs["units"].items():
        label = table.attrs["labels"][name]
        figure = "{:.1%}" if unit == units.QUESTION else "{:.3f}"
        short = "ppl" if label == "perplexity" else label
        columns += [(f"{name} {short}", [figure.format(value) for value in table[f"{name}_{label}"]])]
        bounds = zip(*(table[f"{name}_{part}"] for part in _PARTS[:3]), strict=True)
        columns += [(units.delta(unit), ["", *[_apart(*its) for its in bounds][1:]])]
        columns += [("verdict", list(table[f"{name}_verdict"]))]
    columns += [("recipe", list(table["recipe"]))]
    padded = []
    for head, values in columns:
        width = max(len(head), *map(len, values))
        side = "<" if head in ("verdict", "recipe") else ">"
        padded.append([f"{text:{side}{width}}" for text in (head, *values)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _judged(scores: Sequence[Score]) -> dict[str, list[object]]:
    """Columns of one corpus, from the scores on it, the base's first."""
    base, *others = scores
    found: dict[str, list[object]] = {_label(base): [_value(score) for score in scores]}
    apart = [
        paired_difference(
            its.window_nll, base.window_nll, base.window_tokens, documents=base.documents, finalists=len(others)
        )
        for its in others
    ]
    found["difference"] = [0.0, *(its.mean for its in apart)]
    found["low95"] = [math.nan, *(its.low for its in apart)]
    found["high95"] = [math.nan, *(its.high for its in apart)]
    found["verdict"] = ["", *(its.word for its in apart)]
    return found


def _label(score: Score) -> str:
    """What a person reads of a score: perplexity, accuracy, a task's own metric."""
    return "accuracy" if score.right else units.read(score.unit, score.nll)[0]


def _value(score: Score) -> float:
    return score.accuracy if score.right else units.read(score.unit, score.nll)[1]


def _apart(middle: float, low: float, high: float) -> str:
    """A difference and half its interval, which is as wide on both sides."""
    return f"{middle:+.4f} ± {(high - low) / 2:.4f}" if math.isfinite(high - low) else f"{middle:+.4f} ± ∞"

"""Does a search find an optimum that is known to be there? Damaged forms of the demo model whose cure is a recipe."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, Score, load_model, score_recipes, search
from david.candidates.neighbours import neighbours
from david.candidates.strategies import Refine
from david.engine.engine import Engine
from david.sling.in_place import base_depth, base_layers
from david.sling.stacked_copy import stacked

WINDOW = 128
TRIALS = (100, 300)
CLOSE = 1e-4  # nats a token above the undamaged model: found
MOST = 0.9  # of the way from the damaged to the undamaged model
HARM = 0.01  # nats a token that a damage does at least; what does less is drawn again


@dataclass(frozen=True)
class Damage:
    """A way to damage a model: what is done to it, the steps of neighbours that undo it, and how many there are.

    In bfloat16, which is faster, a cure gives the undamaged model's very numbers only where the layers run as they are.
    """

    told: str
    damaged: Callable[[Any, random.Random], tuple[Any, str]]
    steps: tuple[str, ...]
    most: int
    dtype: str = "bfloat16"


def repeated(model: Any, draw: random.Random) -> tuple[Any, str]:
    """Two blocks of two to four layers run twice."""
    n_layers = base_depth(model)
    first, second = draw.randrange(1, n_layers // 2 - 4), draw.randrange(n_layers // 2, n_layers - 5)
    parts = [(start, start + draw.randint(2, 4), 2) for start in (first, second)]
    return built(model, Recipe.from_blocks(n_layers, parts))


def duplicated(model: Any, draw: random.Random) -> tuple[Any, str]:
    """Three layers, each once more at a random place."""
    visits = list(range(base_depth(model)))
    for layer in draw.sample(visits, 3):
        visits.insert(draw.randint(1, len(visits)), layer)
    return built(model, Recipe(tuple(visits)))


def swapped(model: Any, draw: random.Random) -> tuple[Any, str]:
    """Two neighbouring layers, one in the other's place."""
    visits = list(range(base_depth(model)))
    place = draw.randrange(1, len(visits) - 2)
    visits[place : place + 2] = reversed(visits[place : place + 2])
    return built(model, Recipe(tuple(visits)))


def halved(model: Any, draw: random.Random) -> tuple[Any, str]:
    """A layer that adds half of what it added."""
    second, layer = stacked(model, Recipe.identity(base_depth(model))), draw.randrange(1, base_depth(model) - 1)

    def halve(_layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return args[0] + 0.5 * (output - args[0])

    base_layers(second)[layer].register_forward_hook(halve)
    return second, f"layer {layer} at half strength"


def built(model: Any, recipe: Recipe) -> tuple[Any, str]:
    """A model whose layers are really stacked as a recipe has them."""
    return stacked(model, recipe), str(recipe)


DAMAGES = {
    "blocks": Damage("two blocks repeated", repeated, ("drop", "cut"), 2),
    "layers": Damage("three layers duplicated", duplicated, ("drop",), 3),
    "swap": Damage("two layers swapped", swapped, ("swap",), 1),
    "half": Damage("a layer at half strength", halved, ("scale",), 1, "float32"),
}


def refined(model: Any, corpus: Corpus, damage: Damage) -> Iterator[float]:
    """The NLL of each trial of a refinement, in their order."""
    study = optuna.create_study()
    strategy = Refine(steps=damage.steps)
    search(model, corpus, held_out=None, study=study, strategy=strategy, n_trials=TRIALS[-1], progress=False)
    return (trial.value for trial in study.trials if trial.value is not None)


def at_random(model: Any, corpus: Corpus, damage: Damage, draw: random.Random) -> Iterator[float]:
    """The NLL of as many recipes, each some random steps of the same kinds away from the base."""
    n_layers, base = base_depth(model), Recipe.identity(base_depth(model))
    drawn = {base: None}
    if damage.most == 1:  # there are so few that none needs to come twice
        around = neighbours(base, n_layers, steps=damage.steps)
        drawn |= dict.fromkeys(draw.sample(around, min(len(around), TRIALS[-1] - 1)))
    while damage.most > 1 and len(drawn) < TRIALS[-1]:
        recipe = base
        for _ in range(draw.randint(1, damage.most)):
            recipe = draw.choice(neighbours(recipe, n_layers, steps={draw.choice(damage.steps)}))
        drawn[recipe] = None
    return (score.nll for score in score_recipes(model, list(drawn), corpus))


def nll_of(model: Any, corpus: Corpus) -> float:
    """The NLL of a model, its windows together as a search has them: in bfloat16 the sums depend on that."""
    [score] = Engine(model, corpus, keeps=True).outcomes([Recipe.identity(base_depth(model))])
    if not isinstance(score, Score):
        raise score
    return score.nll


def standing(nlls: Iterator[float], damaged: float, whole: float) -> dict[str, float | None]:
    """How far a search has come after so many trials, and after how many it was there."""
    best, found = damaged, dict[str, float | None]({"found after": None})
    for number, nll in enumerate(nlls):
        best = min(best, nll)
        if best <= whole + CLOSE and found["found after"] is None:
            found["found after"] = number
        for trials in TRIALS:
            if number < trials:
                found[f"way in {trials}"] = (damaged - best) / (damaged - whole)
    return found


def main() -> None:
    """Damage, search, compare: each kind with each seed; what is measured already is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="of each kind of damage (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="of 128 tokens (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("planted"), help="a folder (default: %(default)s)")
    given = parser.parse_args()
    logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "runs.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    done = {(row["damage"], row["seed"]) for row in rows}
    models = {dtype: load_model("demo", dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32")}
    corpus = Corpus.load(tokenizer=models["float32"][1], window=WINDOW).hold_out(given.windows, given.windows)[0]
    whole = {dtype: nll_of(model, corpus) for dtype, (model, _) in models.items()}
    left = [(name, seed) for seed in range(given.seeds) for name in DAMAGES if (name, seed) not in done]
    for name, seed in tqdm(left, unit="damage"):
        damage, draw = DAMAGES[name], random.Random(f"{name} {seed}")
        (model, _), healthy = models[damage.dtype], whole[damage.dtype]
        broken, told = damage.damaged(model, draw)
        while (before := nll_of(broken, corpus)) < healthy + HARM:
            broken, told = damage.damaged(model, draw)
        row = {"damage": name, "seed": seed, "is": told, "damaged": before, "undamaged": healthy}
        row["refine"] = standing(refined(broken, corpus, damage), before, healthy)
        row["random"] = standing(at_random(broken, corpus, damage, draw), before, healthy)
        rows.append(row)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
    text = table(rows)
    print(text, end="")
    (given.out / "results.md").write_text(text, encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind of damage and way to search."""
    heads = ["damage", "search", "seeds", "found in 300", "nine tenths of the way in 100", "found after, median"]
    lines = [heads, ["---"] * 2 + ["---:"] * 4]
    for name, damage in DAMAGES.items():
        for way in ("refine", "random"):
            runs = [row[way] for row in rows if row["damage"] == name]
            if runs:
                after = sorted(run["found after"] for run in runs if run["found after"] is not None)
                near = sum(run[f"way in {TRIALS[0]}"] >= MOST for run in runs)
                middle = f"{median(after):.0f}" if after else "–"
                steps = f" ({', '.join(damage.steps)})" if way == "refine" else " steps"
                lines.append([damage.told, way + steps, str(len(runs)), str(len(after)), str(near), middle])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()

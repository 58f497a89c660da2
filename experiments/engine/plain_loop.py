"""How much faster is the engine than sling, score, reset: for a scan, for a raced scan, and for a search?"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from printed import table, write
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, load_model, perplexity, search
from david.candidates.spaces import Block, Blocks
from david.engine.engine import Engine
from david.engine.prefix_tree import PrefixTree
from david.errors import DavidError
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth, slung

WINDOW = 128


def seconds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    start = time.perf_counter()
    call(*args, **kwargs)
    return time.perf_counter() - start


def one_by_one(model: Any, recipes: Sequence[Recipe], corpus: Corpus, batch: int) -> None:
    for recipe in recipes:
        with slung(model, recipe):
            perplexity(model, corpus, batch=batch)


def row(what: str, recipes: int, windows: int, plain: float, engine: float, predicted: str) -> dict[str, str]:
    return {
        "what": what,
        "recipes": f"{recipes}",
        "windows": f"{windows}",
        "plain loop, s": f"{plain:.1f}",
        "engine, s": f"{engine:.1f}",
        "ratio": f"{plain / engine:.2f}",
        "predicted": predicted,
    }


def scan(model: Any, corpus: Corpus, recipes: list[Recipe]) -> dict[str, str]:
    """A full scan, window by window: each way first every other time."""
    plain = ours = 0.0
    costs = []
    for window in tqdm(range(len(corpus)), desc="scan", unit="window"):
        part = corpus.part(window, window + 1)
        engine = Engine(model, part)  # its self-check is not timed
        costs.append(engine.end_visits)
        if window % 2:
            plain += seconds(one_by_one, model, recipes, part, 1)
        ours += seconds(engine.outcomes, recipes)
        if not window % 2:
            plain += seconds(one_by_one, model, recipes, part, 1)
    cost, end = PrefixTree.of(recipes, engine.n_layers).cost, sum(costs) / len(costs)
    return row("scan", len(recipes), len(corpus), plain, ours, f"{cost.ratio(end):.2f} (an end: {end:.1f} visits)")


def tpe(model: Any, corpus: Corpus, space: Blocks, what: str, n_trials: int) -> dict[str, str]:
    """A search with TPE: each trial's recipe is scored both ways, and told once."""
    engine = Engine(model, corpus, keeps=True)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    plain = ours = 0.0
    seen: dict[Recipe, float] = {}
    with tqdm(total=n_trials, desc=what, unit="recipe") as bar:
        while len(seen) < n_trials:
            trial = study.ask()
            recipe = space(trial, engine.n_layers) if seen else Recipe.identity(engine.n_layers)
            if recipe not in seen:
                if len(seen) % 2:
                    plain += seconds(one_by_one, model, [recipe], corpus, len(corpus))
                start = time.perf_counter()
                [score] = engine.outcomes([recipe])
                ours += time.perf_counter() - start
                if not len(seen) % 2:
                    plain += seconds(one_by_one, model, [recipe], corpus, len(corpus))
                if isinstance(score, DavidError):
                    raise score
                seen[recipe] = score.nll
                bar.update()
            study.tell(trial, seen[recipe])
    cost = PrefixTree.of(list(seen), engine.n_layers).cost
    done = (engine.meter.visits + engine.end_visits * engine.meter.ends) / len(engine.batches)
    kept = (cost.visits_one_by_one + engine.end_visits * cost.recipes) / done
    return row(
        what, n_trials, len(corpus), plain, ours, f"{cost.ratio(engine.end_visits):.2f}; {kept:.2f} by the visits done"
    )


def raced(model: Any, corpus: Corpus, recipes: list[Recipe], every: int) -> dict[str, str]:
    """A raced scan as the command runs it, between the two halves of a sample of what the plain loop would score."""
    sample = random.Random(0).sample(recipes, len(recipes) // every)
    halves = sample[::2], sample[1::2]
    plain = seconds(one_by_one, model, halves[0], corpus, 8)
    start = time.perf_counter()
    study = search(
        model,
        corpus,
        space=Block(max_length=base_depth(model)),
        held_out=None,
        n_trials=1 + len(recipes),
        queue=recipes,
        sampler="random",
        pruner="race",
    )
    ours = time.perf_counter() - start
    plain += seconds(one_by_one, model, halves[1], corpus, 8)
    end = Engine(model, corpus.take(1)).end_visits

    def work(recipes: list[Recipe]) -> float:
        return sum(len(recipe) + end for recipe in recipes)

    dropped = sum("partial" in trial.user_attrs for trial in study.trials)
    told = f"{dropped} dropped; plain: {len(sample)} of the recipes, {plain:.0f} s"
    return row("raced scan", len(recipes), len(corpus), plain * work(recipes) / work(sample), ours, told)


def main() -> None:
    """One after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4, help="of 128 tokens (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=100, help="of each search (default: %(default)s)")
    parser.add_argument("--raced-windows", type=int, default=32, help="of the raced scan (default: %(default)s)")
    parser.add_argument(
        "--every", type=int, default=15, help="of how many recipes of the raced scan the plain loop scores one"
    )
    parser.add_argument("--out", type=Path, help="a folder for plain_loop.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW)
    recipes, few = all_blocks(base_depth(model)), corpus.take(given.windows)
    rows = [
        scan(model, few, recipes),
        tpe(model, few, Blocks(), "search", given.trials),
        tpe(model, few, Blocks(scales=(0.1, 1.0)), "search with scales", given.trials),
        raced(model, corpus.take(given.raced_windows), recipes, given.every),
    ]
    write(table(rows), given.out, "plain_loop.md")


if __name__ == "__main__":
    main()

"""Does the engine give what slinging by hand gives, on a real model, and does it keep to its memory budget?"""

import argparse
import random
from pathlib import Path

from printed import table, write
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, load_model, perplexity
from david.engine.engine import Engine
from david.errors import DavidError
from david.metrics.score import Score
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth, slung

WINDOW = 128
BUDGETS = (1, 8, 64)  # in states


def drawn(n_layers: int, draw: random.Random) -> Recipe:
    """A random recipe: up to three blocks run again or left out, in two of three with scales."""
    visits = [(layer, 1.0) for layer in range(n_layers)]
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(visits))
        stop = min(len(visits), start + draw.randint(1, 8))
        if draw.random() < 0.6:
            scale = draw.choice((1.0, 0.5, draw.uniform(-0.2, 1.5)))
            visits[stop:stop] = [(layer, scale) for layer, _ in visits[start:stop]]
        elif stop - start < len(visits):
            del visits[start:stop]
    layers, scales = zip(*visits, strict=True)
    return Recipe(layers, scales)


def scores(found: list[Score | DavidError]) -> list[Score]:
    for score in found:
        if isinstance(score, DavidError):
            raise score
    return [score for score in found if isinstance(score, Score)]


def apart(found: list[Score], expected: list[Score]) -> float:
    """The largest difference between two NLLs of a window, in nats a token."""
    pairs = (
        (a, b)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one.window_nll, other.window_nll, strict=True)
    )
    return max(abs(a - b) for a, b in pairs) / (WINDOW - 1)


def main() -> None:
    """Score random recipes both ways, then some under three budgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=200, help="random recipes (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=2, help="windows of 128 tokens (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for exact.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW).take(given.windows)
    draw, n_layers = random.Random(0), base_depth(model)
    recipes = [drawn(n_layers, draw) for _ in range(given.recipes)]
    state = WINDOW * model.config.hidden_size * 4
    rows, by_one = [], []
    for at_once in sorted({1, given.windows}):
        plain = []
        for recipe in tqdm(recipes, desc=f"plain, {at_once} at a time", unit="recipe"):
            with slung(model, recipe):
                plain.append(perplexity(model, corpus, batch=at_once))
        by_one = by_one or plain
        engine = Engine(model, corpus, memory_budget=2 * at_once * state)
        found = scores(engine.outcomes(recipes))
        rows.append(
            {
                "windows at a time": f"{at_once}",
                "recipes": f"{len(recipes)}",
                "equal to the plain loop's last bit": f"{sum(a == b for a, b in zip(found, plain, strict=True))}",
                "furthest from it, nats a token": f"{apart(found, plain):.1e}",
                "plain loop, from its own of one window": f"{apart(plain, by_one):.1e}",
            }
        )
    few = [Recipe.identity(n_layers), *all_blocks(n_layers, 3)]
    free = scores(Engine(model, corpus.take(1)).outcomes(few))
    budgets = []
    for states in BUDGETS:
        engine = Engine(model, corpus.take(1), memory_budget=states * state)
        found = scores(engine.outcomes(few))
        budgets.append(
            {
                "budget, states": f"{states}",
                "peak, states": f"{engine.meter.peak / state:.0f}",
                "visits": f"{engine.meter.visits:,}",
                "largest difference, nats a token": f"{apart(found, free):.1e}",
            }
        )
    write(f"{table(rows)}\n\n{len(few)} recipes of blocks up to 3 layers:\n\n{table(budgets)}", given.out, "exact.md")


if __name__ == "__main__":
    main()

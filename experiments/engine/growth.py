"""How do visits and time grow with the layers of a model, with recipes, with windows and with tokens?"""

import argparse
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from printed import table, write
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, load_model
from david.engine.engine import Engine
from david.engine.prefix_tree import PrefixTree
from david.recipe.blocks import all_blocks

ALL = 465  # the blocks of 30 layers
START = {"layers": 30, "recipes": 60, "windows": 2, "tokens": 128}
GROWING = {
    "layers": [{"layers": n, "recipes": ALL, "windows": 1} for n in (6, 12, 18, 24, 30)],  # all blocks of each
    "recipes": [{"recipes": n} for n in (30, 60, 120, 240, 465)],
    "windows": [{"windows": n} for n in (1, 2, 4, 8, 16)],
    "tokens": [{"tokens": n} for n in (32, 64, 128, 256, 512)],
}


def shortened(model: Any, n_layers: int) -> Any:
    """The same model with its first layers alone."""
    model.model.layers = model.model.layers[:n_layers]
    model.config.num_hidden_layers = n_layers
    model.config.layer_types = ["full_attention"] * n_layers
    return model.eval()  # a new list of layers is in training mode


def measure(tokenizer: Any, given: dict[str, int]) -> dict[str, float]:
    """Visits and seconds of a scan of all blocks of a model, or of a sample of them."""
    n_layers = given["layers"]
    model = shortened(load_model("demo", dtype="float32", device="cpu")[0], n_layers)
    corpus = Corpus.load(tokenizer=tokenizer, window=given["tokens"]).take(given["windows"])
    every = all_blocks(n_layers)
    recipes = random.Random(0).sample(every, min(given["recipes"], len(every)))
    engine = Engine(model, corpus)
    engine.outcomes([Recipe.identity(n_layers)])  # the first run of a kernel is slow
    before, start = engine.meter.visits, time.perf_counter()
    engine.outcomes(recipes)
    seconds = time.perf_counter() - start
    cost = PrefixTree.of(recipes, n_layers).cost
    assert engine.meter.visits - before == cost.visits * len(engine.batches), "visits that are no distinct ones"
    work = cost.visits + engine.end_visits * cost.ends
    return given | {"recipes": len(recipes), "visits": cost.visits, "ends": cost.ends, "work": work, "seconds": seconds}


def row(what: str, found: dict[str, float]) -> dict[str, str]:
    tokens = found["windows"] * found["tokens"]
    return {
        "grows": what,
        **{name: f"{found[name]:,.0f}" for name in (*START, "visits", "ends")},
        "visits' worth": f"{found['work']:,.0f}",
        "s": f"{found['seconds']:.1f}",
        "µs a visit's worth and token": f"{1e6 * found['seconds'] / (found['work'] * tokens):.1f}",
    }


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Seconds against visits' worths times tokens, on logarithmic axes: what is linear lies on one slope."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    ends = []
    for what, points in found.items():
        work = [point["work"] * point["windows"] * point["tokens"] / 1e6 for point in points]
        axes.plot(work, [point["seconds"] for point in points], "o-", label=f"more {what}")
        ends += [(work[0], points[0]["seconds"]), (work[-1], points[-1]["seconds"])]
    middle = median(seconds / work for work, seconds in ends)
    span = min(ends)[0], max(ends)[0]
    axes.plot(span, [middle * end for end in span], color="0.6", zorder=0, label="linear")
    axes.set(xscale="log", yscale="log", xlabel="visits' worth × tokens, millions", ylabel="seconds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Let one thing grow at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for growth.md and growth.png")
    out = parser.parse_args().out
    logging.disable_progress_bar()
    _, tokenizer = load_model("demo", dtype="float32", device="cpu")
    found = {
        what: [measure(tokenizer, START | part) for part in tqdm(parts, desc=what)] for what, parts in GROWING.items()
    }
    write(table([row(what, point) for what, points in found.items() for point in points]), out, "growth.md")
    if out is not None:
        draw(found, out / "growth.png")


if __name__ == "__main__":
    main()

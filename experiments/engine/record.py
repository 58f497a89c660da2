"""Records the NLL of each window of every block repeat of the demo model: the landscape that racing.py races on."""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, load_model, score_recipes
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth

WINDOW = 128
AT_ONCE = 2  # windows that a process scores at once: what is lost when the run is broken off


def record(start: int, stop: int) -> dict[str, tuple[float, ...]]:
    """The NLL of some windows of the base and of each block twice, in nats, summed over the window's scored tokens."""
    torch.set_num_threads(1)  # the processes share the cores, and threads would wait for one another
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW).part(start, stop)
    n_layers = base_depth(model)
    recipes = [Recipe.identity(n_layers), *all_blocks(n_layers)]
    scores = score_recipes(model, recipes, corpus)
    return {str(recipe): score.window_nll for recipe, score in zip(recipes, scores, strict=True)}


def main() -> None:
    """Record them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=32, help="windows of 128 tokens (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="one thread each (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a folder for landscape.csv")
    given = parser.parse_args()
    starts = [*range(0, given.windows, AT_ONCE), given.windows]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        parts = [pool.submit(record, *ends) for ends in pairwise(starts)]
        columns = [part.result() for part in tqdm(parts, unit="windows", unit_scale=AT_ONCE)]
    with (given.out / "landscape.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", *range(given.windows)])
        for recipe in columns[0]:
            writer.writerow([recipe, *(f"{nll:.4f}" for part in columns for nll in part[recipe])])


if __name__ == "__main__":
    main()

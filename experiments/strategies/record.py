"""Records the NLL of every block of up to four layers of the demo model, run again at each of nine strengths."""

import argparse
import csv
from pathlib import Path

from transformers.utils import logging

from david import Corpus, Recipe, load_model, score_recipes
from david.sling.in_place import base_depth

WINDOW, WINDOWS = 128, 16
LONGEST = 4  # layers of a block
STRENGTHS = tuple(step / 4 for step in range(-2, 7))


def recipes(n_layers: int) -> list[Recipe]:
    """The base, and each block at each strength."""
    blocks = [
        Recipe.from_blocks(n_layers, [(start, start + length, 2, strength)])
        for length in range(1, LONGEST + 1)
        for start in range(n_layers - length + 1)
        for strength in STRENGTHS
    ]
    return [Recipe.identity(n_layers), *blocks]


def main() -> None:
    """Record them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for strengths.csv")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype=given.dtype, device="cpu")
    corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW).take(WINDOWS)
    every = recipes(base_depth(model))
    scores = score_recipes(model, every, corpus, progress=True)
    with (given.out / "strengths.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", *range(WINDOWS)])
        for recipe, score in zip(every, scores, strict=True):
            writer.writerow([str(recipe), *(f"{nll:.4f}" for nll in score.window_nll)])


if __name__ == "__main__":
    main()

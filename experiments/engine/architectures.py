"""Does the engine give what slinging by hand gives, on every type? Prints a line for each, and writes the table."""

import argparse
import contextlib
import csv
import io
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tqdm.auto import tqdm

from david.engine.engine import Engine
from david.errors import DavidError
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import base_depth, check_recipe, slung
from david.support.text import one_line

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository

from tests.tiny_models import TYPES, VARIANTS, VOCABULARY, tiny_named


@dataclass(frozen=True)
class Row:
    """A type: `engine`, or why its recipes are scored one by one; the largest difference in nats a token."""

    name: str
    outcome: str
    recipes: int = 0
    difference: float | None = None


def recipes(n_layers: int) -> list[Recipe]:
    """Beginnings that are shared and left again, in no helpful order; repeats, skips, scales."""
    last = n_layers - 1
    base = list(range(n_layers))
    return [
        Recipe([*base[: last - 1], *base[1:]]),
        Recipe(base),
        Recipe([*base[:3], *base[1:3], *base[1:]], [1.0] * 3 + [0.5, -0.25] + [1.0] * last),
        Recipe([*base[:3], *base[1:3], *base[2:]]),
        Recipe([0, *base[2:]]),
        Recipe([0, last, *base[1:]]),
        Recipe([0, *reversed(base[1:last]), last]),
        Recipe([0, 0, 0, *base[1:]]),
    ]


def run(name: str) -> Row:
    """One type, with two batches of windows."""
    try:
        model = tiny_named(name).eval()
        n_layers = base_depth(model)
    except Exception as error:  # of any model's code
        return Row(name, f"refused: {one_line(error)}")
    windows = torch.randint(3, VOCABULARY - 6, (3, 24), generator=torch.Generator().manual_seed(1))
    corpus = Corpus(windows, (0, 0, 0), source="random", slice=None, sha256="", bos=False)
    wanted = []
    for recipe in recipes(n_layers):
        with contextlib.suppress(DavidError):
            check_recipe(model, recipe)
            wanted.append(recipe)
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            engine = Engine(model, corpus, memory_budget=2**30, keeps=True)
            engine.batches = [range(2), range(2, 3)]
            found = [*engine.outcomes(wanted[:1]), *engine.outcomes(wanted[1:])]
        except Exception as error:  # of any model's code
            return Row(name, f"fails: {type(error).__name__}: {one_line(error)}")
    apart = 0.0
    for recipe, score in zip(wanted, found, strict=True):
        with slung(model, recipe):
            plain = perplexity(model, corpus)
        if isinstance(score, DavidError):
            return Row(name, f"fails: {score}")
        apart = max(apart, *(abs(a - b) for a, b in zip(score.window_nll, plain.window_nll, strict=True)))
    line = told.getvalue().strip().partition("(")[2].rpartition(")")[0]
    return Row(name, f"one by one: {line}" if line else "engine", len(wanted), apart / (corpus.window - 1))


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*TYPES, *VARIANTS], help="model types; left out, all")
    parser.add_argument("--out", type=Path, help="a folder for architectures.csv")
    given = parser.parse_args()
    rows = []
    for name in tqdm(given.names):
        rows.append(run(name))
        apart = "" if rows[-1].difference is None else f"{rows[-1].difference:.1e}"
        tqdm.write(f"{name:<28} {apart:<8} {rows[-1].outcome}", file=sys.stdout)
    if given.out is not None:
        with (given.out / "architectures.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()

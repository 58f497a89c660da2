"""Is racing honest? Races the recorded landscape in many orders of its windows, with several rules."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm.auto import tqdm

from david import Recipe
from david.candidates.pruner import hopeless
from david.engine.prefix_tree import PrefixTree

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from experiments.engine.printed import table, write

LANDSCAPE = Path(__file__).parent / "landscape.csv"
RUNGS = (0, 2, 4, 8, 16, 24, 32)  # windows that the engine has scored at each decision; 8 of 128 tokens go at once
SCORED = 127  # tokens of a window
CLOSE = 0.002  # nats a token
END = 9.0  # visits that an end is worth on the demo model
TOP = 5  # finalists, and the base beside them

Rule = Callable[[NDArray[Any]], NDArray[Any]]  # NLL [R, W] → whether each recipe is given up


@dataclass(frozen=True)
class Landscape:
    """The NLL of each recipe on each window `[R, W]`, in nats a token; the base is first."""

    recipes: tuple[Recipe, ...]
    nll: NDArray[Any]

    @classmethod
    def read(cls, path: Path = LANDSCAPE) -> "Landscape":
        with path.open(encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        return cls(tuple(Recipe.parse(row[0]) for row in rows), np.array([row[1:] for row in rows], float) / SCORED)

    @cached_property
    def whole(self) -> NDArray[Any]:
        """The work of all recipes."""
        return self.work(np.arange(len(self.recipes)))

    def work(self, alive: NDArray[Any]) -> NDArray[Any]:
        """Distinct visits, and these with ends, of one window of some recipes."""
        tree = PrefixTree.of([self.recipes[i] for i in alive], len(self.recipes[0]))
        ends = len(set(tree.ends))
        visits = len(tree.parents) - ends
        return np.array([visits, visits + END * ends])


def wilcoxon(nll: NDArray[Any], threshold: float) -> NDArray[Any]:
    """Optuna's rule, held against the best recipe so far rather than the best finished trial; never the base.

    Exact up to 8 windows, where scipy's own choice would be so for longer, and slow.
    """
    best = 1 + nll[1:].mean(axis=1).argmin()
    differences = nll - nll[best]
    method = "exact" if nll.shape[1] <= 8 else "asymptotic"
    tested = stats.wilcoxon(differences, alternative="greater", zero_method="zsplit", method=method, axis=1)
    return (tested.pvalue < threshold) & (np.arange(len(nll)) > 0)


RULES: dict[str, Rule] = {
    **{f"race, level {level:g}": partial(hopeless, finalists=TOP + 1, level=level) for level in (0.001, 0.005, 0.02)},
    "race, its spread alone": partial(hopeless, finalists=TOP + 1, prior=0.0),
    "race, against the best alone": partial(hopeless, finalists=2),
    "wilcoxon, p < 0.1 (Optuna's default)": partial(wilcoxon, threshold=0.1),
    "wilcoxon, p < 0.01": partial(wilcoxon, threshold=0.01),
}


def race(land: Landscape, nll: NDArray[Any], rule: Rule) -> tuple[NDArray[Any], NDArray[Any]]:
    """The recipes that are left at the end, the base among them, and the work that they took."""
    alive, work = np.arange(len(nll)), np.zeros(2)
    for start, stop in pairwise(RUNGS):
        work += (stop - start) * (land.work(alive) if start else land.whole)
        if stop < RUNGS[-1]:
            alive = alive[~rule(nll[alive, :stop])]
    return alive, work


def races(land: Landscape, rule: Rule, orders: int) -> Iterator[dict[str, float]]:
    """What races in random orders of the windows find and save."""
    shuffle, true = np.random.default_rng(0), land.nll.mean(axis=1)
    whole = RUNGS[-1] * land.whole
    plain = RUNGS[-1] * sum(len(recipe) + END for recipe in land.recipes)
    best = set(1 + np.argsort(true[1:])[:TOP])
    for _ in range(orders):
        alive, work = race(land, land.nll[:, shuffle.permutation(land.nll.shape[1])], rule)
        alive = alive[alive > 0]
        yield {
            "apart": true[alive].min() - true[1:].min(),
            "kept": len(best & set(alive)),
            "visits": whole[0] / work[0],
            "work": whole[1] / work[1],
            "plain": plain / work[1],
        }


def row(rule: str, found: list[dict[str, float]]) -> dict[str, str]:
    apart = np.array([its["apart"] for its in found])
    mean = {name: np.mean([its[name] for its in found]) for name in found[0]}
    return {
        "rule": rule,
        f"winner within {CLOSE} nats": f"{(apart <= CLOSE).mean():.1%}",
        "furthest": f"{apart.max():.4f}",
        f"of the true {TOP} best kept": f"{mean['kept']:.2f}",
        "visits saved": f"{mean['visits']:.2f}×",
        "with ends": f"{mean['work']:.2f}×",
        "against the plain loop": f"{mean['plain']:.2f}×",
    }


def main() -> None:
    """Race with each rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=200, help="random orders of the windows (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for racing.md")
    given = parser.parse_args()
    land = Landscape.read()
    rows = [row(name, list(races(land, rule, given.orders))) for name, rule in tqdm(RULES.items())]
    write(table(rows), given.out, "racing.md")


if __name__ == "__main__":
    main()

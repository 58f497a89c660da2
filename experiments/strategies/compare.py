"""Which way of searching finds the best recipe soonest? Each runs on recorded scores: a trial costs nothing."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm.auto import tqdm

from david import Recipe
from david.neighbours import neighbours
from david.space import Block
from david.store import sampler_named

LANDSCAPE = Path(__file__).parents[1] / "engine" / "landscape.csv"
SCORED = 127  # tokens of a window
TRIALS = (10, 25, 50, 100, 200)
CLOSE = 0.002  # nats a token
SAMPLERS = ("tpe", "cmaes", "gp", "qmc", "random")
STEPS = {"add", "grow", "shrink", "shift"}  # between one block and another
REPEATS = 5  # proposals in a row with nothing new, before one is drawn at random: as `search` does

Landscape = dict[Recipe, float]  # NLL, in nats a token; the base is first


def read(path: Path) -> Landscape:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {Recipe.parse(row[0]): float(np.mean([float(nll) for nll in row[1:]])) / SCORED for row in rows}


def sampled(land: Landscape, name: str, seed: int) -> list[float]:
    """The NLL of each new recipe that a sampler proposes, as `search` asks for them."""
    n_layers = len(next(iter(land)))
    space, found, stale = Block(max_length=n_layers), dict[Recipe, float](), 0
    study = optuna.create_study(sampler=sampler_named(name, seed, 0))
    study.enqueue_trial({"start": 0, "length": 0})
    own = study.sampler
    while len(found) <= TRIALS[-1]:
        study.sampler = own if stale < REPEATS else sampler_named("random", seed, len(study.trials))
        trial = study.ask()
        recipe = space(trial, n_layers)
        stale = stale + 1 if recipe in found else 0
        found[recipe] = land[recipe]
        study.tell(trial, land[recipe])
    return list(found.values())[1:]


def scanned(land: Landscape, seed: int) -> list[float]:
    """A scan, as far as it comes: the blocks in their order, from the first layer on."""
    del seed
    return list(land.values())[1 : TRIALS[-1] + 1]


def refined(land: Landscape, seed: int) -> list[float]:
    """Hill climbing over neighbouring blocks from random ones, until the budget is used up."""
    draw, recipes = np.random.default_rng(seed), list(land)
    found = dict[Recipe, float]()
    while len(found) < TRIALS[-1]:
        here = recipes[draw.integers(1, len(recipes))]
        while True:
            found.setdefault(here, land[here])
            around = [recipe for recipe in neighbours(here, len(recipes[0]), steps=STEPS) if recipe in land]
            around = [recipe for recipe in around if recipe != recipes[0]]
            found |= {recipe: land[recipe] for recipe in around if recipe not in found}
            best = min(around, key=land.__getitem__, default=here)
            if land[best] >= land[here] or len(found) >= TRIALS[-1]:
                break
            here = best
    return list(found.values())[: TRIALS[-1]]


def main() -> None:
    """Run each way with each seed; print a table, draw a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for results.md and results.png")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    land = read(LANDSCAPE)
    best = min(list(land.values())[1:])
    ways: dict[str, Callable[[int], list[float]]] = {
        **{name: lambda seed, name=name: sampled(land, name, seed) for name in SAMPLERS},
        "refine, from random blocks": lambda seed: refined(land, seed),
        "scan, in order": lambda seed: scanned(land, seed),
    }
    curves = {}
    for name, way in ways.items():
        runs = [way(seed) for seed in tqdm(range(given.seeds), desc=name)]
        curves[name] = np.minimum.accumulate(np.array(runs), axis=1) - best  # [seeds, trials]
    text = table(curves, len(land) - 1)
    print(text, end="")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.md").write_text(text, encoding="utf-8")
        drawn(curves).savefig(given.out / "results.png", dpi=120)


def table(curves: dict[str, NDArray[np.float64]], recipes: int) -> str:
    """Of each way, how far its best is from the best of all, the median of seeds; and how many came close."""
    heads = ["way", *(f"after {n}" for n in TRIALS), f"within {CLOSE} nats after {TRIALS[3]}"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, curve in sorted(curves.items(), key=lambda pair: np.median(pair[1][:, TRIALS[3] - 1])):
        medians = [f"{np.median(curve[:, n - 1]):.4f}" for n in TRIALS]
        near = f"{(curve[:, TRIALS[3] - 1] <= CLOSE).sum()} of {len(curve)}"
        lines.append([name, *medians, near])
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Nats a token above the best of {recipes} blocks, median of the seeds.\n\n{rows}\n"


def drawn(curves: dict[str, NDArray[np.float64]]) -> Figure:
    """The same as curves: medians, with the middle eight tenths of the seeds around the default's."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for name, curve in curves.items():
        at = np.arange(1, curve.shape[1] + 1)
        (line,) = ax.step(at, np.median(curve, axis=0), where="post", lw=2 if name == "tpe" else 1.2, label=name)
        if name == "tpe":
            low, high = np.quantile(curve, (0.1, 0.9), axis=0)
            ax.fill_between(at, low, high, step="post", alpha=0.15, color=line.get_color(), lw=0)
    ax.set_yscale("symlog", linthresh=0.001)
    ax.set(title="One block, run twice: how far the best found is from the best there is", xlabel="recipes scored")
    ax.set(ylabel="nats a token above the best block", xlim=(1, None))
    ax.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()

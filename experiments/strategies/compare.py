"""Which way of searching finds the best recipe soonest? Each runs on recorded scores: a trial costs nothing."""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna.trial import BaseTrial
from record import LONGEST, STRENGTHS
from tqdm.auto import tqdm

from david import Recipe
from david.candidates.encoding import Space
from david.candidates.neighbours import neighbours
from david.candidates.spaces import Block
from david.study.create import sampler_named

HERE = Path(__file__).parent
SCORED = 127  # tokens of a window
TRIALS = (10, 25, 50, 100, 200)
CLOSE = 0.002  # nats a token
SAMPLERS = ("tpe", "cmaes", "gp", "qmc", "random")
STEPS = ("add", "grow", "shrink", "shift")  # between one block and another
REPEATS = 5  # proposals in a row with nothing new, before one is drawn at random: as `search` does


@dataclass(frozen=True)
class Landscape:
    """The NLL of every recipe of a space, in nats a token; the base is first."""

    told: str
    nll: dict[Recipe, float]
    space: Space
    base: dict[str, float]  # its parameters
    steps: tuple[str, ...]

    @property
    def others(self) -> list[Recipe]:
        """All recipes but the base."""
        return list(self.nll)[1:]

    @property
    def best(self) -> float:
        """The lowest NLL of these."""
        return min(self.nll[recipe] for recipe in self.others)


def strong_block(trial: BaseTrial, n_layers: int) -> Recipe:
    """One block of up to four layers, run again at one of the strengths that are recorded; length 0 is the base."""
    start = trial.suggest_int("start", 0, n_layers - 1)
    length = trial.suggest_int("length", 0, LONGEST)
    strength = trial.suggest_float("strength", STRENGTHS[0], STRENGTHS[-1], step=STRENGTHS[1] - STRENGTHS[0])
    parts = [(start, min(start + length, n_layers), 2, strength)] if length else []
    return Recipe.from_blocks(n_layers, parts)


def landscapes() -> dict[str, Landscape]:
    """Those that are recorded."""
    plain, strong = read(HERE.parent / "engine" / "landscape.csv"), read(HERE / "strengths.csv")
    n_layers = len(next(iter(plain)))
    return {
        "blocks": Landscape(
            "one block, run twice", plain, Block(max_length=n_layers), {"start": 0, "length": 0}, STEPS
        ),
        "strengths": Landscape(
            "one block of up to four layers, again at some strength",
            strong,
            strong_block,
            {"start": 0, "length": 0, "strength": 1.0},
            (*STEPS, "scale"),
        ),
    }


def read(path: Path) -> dict[Recipe, float]:
    """The mean NLL of each recipe."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {Recipe.parse(row[0]): float(np.mean([float(nll) for nll in row[1:]])) / SCORED for row in rows}


def sampled(land: Landscape, name: str, seed: int) -> list[float]:
    """The NLL of each new recipe that a sampler proposes, as `search` asks for them."""
    n_layers, found, stale = len(next(iter(land.nll))), dict[Recipe, float](), 0
    study = optuna.create_study(sampler=sampler_named(name, seed, 0))
    study.enqueue_trial(land.base)
    own = study.sampler
    while len(found) <= TRIALS[-1]:
        study.sampler = own if stale < REPEATS else sampler_named("random", seed, len(study.trials))
        trial = study.ask()
        recipe = land.space(trial, n_layers)
        stale = stale + 1 if recipe in found else 0
        found[recipe] = land.nll[recipe]
        study.tell(trial, land.nll[recipe])
    return list(found.values())[1:]


def scanned(land: Landscape, seed: int) -> list[float]:
    """A scan, as far as it comes: the recipes in their order, from the first layer on."""
    del seed
    return [land.nll[recipe] for recipe in land.others[: TRIALS[-1]]]


def refined(land: Landscape, seed: int) -> list[float]:
    """Hill climbing over neighbouring blocks from random ones, until the budget is used up."""
    draw, recipes, n_layers = np.random.default_rng(seed), land.others, len(next(iter(land.nll)))
    known, found = set(recipes), dict[Recipe, float]()
    while len(found) < TRIALS[-1]:
        here = recipes[draw.integers(len(recipes))]
        while True:
            found.setdefault(here, land.nll[here])
            near = neighbours(here, n_layers, steps=land.steps, scales=STRENGTHS)
            around = [recipe for recipe in near if recipe in known]
            found |= {recipe: land.nll[recipe] for recipe in around if recipe not in found}
            best = min(around, key=land.nll.__getitem__, default=here)
            if land.nll[best] >= land.nll[here] or len(found) >= TRIALS[-1]:
                break
            here = best
    return list(found.values())[: TRIALS[-1]]


def curves_of(land: Landscape, seeds: int) -> dict[str, NDArray[np.float64]]:
    """Of each way, how far the best so far is from the best of all `[seeds, trials]`."""
    ways: dict[str, Callable[[int], Sequence[float]]] = {
        **{name: lambda seed, name=name: sampled(land, name, seed) for name in SAMPLERS},
        "refine, from random blocks": lambda seed: refined(land, seed),
        "scan, in order": lambda seed: scanned(land, seed),
    }
    runs = {name: [way(seed) for seed in tqdm(range(seeds), desc=name)] for name, way in ways.items()}
    return {name: np.minimum.accumulate(np.array(each), axis=1) - land.best for name, each in runs.items()}


def main() -> None:
    """Run each way with each seed; print a table for each landscape, draw a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for results.md and results.png")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lands = landscapes()
    curves = {name: curves_of(land, given.seeds) for name, land in lands.items()}
    text = "\n".join(table(curves[name], land) for name, land in lands.items())
    print(text, end="")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.md").write_text(text, encoding="utf-8")
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        for ax, (name, land) in zip(figure.subplots(1, len(lands)), lands.items(), strict=True):
            draw(curves[name], land, ax)
        figure.savefig(given.out / "results.png", dpi=120)


def table(curves: dict[str, NDArray[np.float64]], land: Landscape) -> str:
    """Of each way, how far its best is from the best of all, the median of seeds; and how many came close."""
    heads = ["way", *(f"after {n}" for n in TRIALS), f"within {CLOSE} nats after {TRIALS[3]}"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, curve in sorted(curves.items(), key=lambda pair: np.median(pair[1][:, TRIALS[3] - 1])):
        medians = [f"{np.median(curve[:, n - 1]):.4f}" for n in TRIALS]
        near = f"{(curve[:, TRIALS[3] - 1] <= CLOSE).sum()} of {len(curve)}"
        lines.append([name, *medians, near])
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    apart, told = land.best - next(iter(land.nll.values())), f"{land.told[:1].upper()}{land.told[1:]}"
    return (
        f"{told}: {len(land.others)} recipes, the best of them {apart:+.4f} nats a token from the base. "
        f"How far above it the best found is, in nats a token, median of the seeds:\n\n{rows}\n"
    )


def draw(curves: dict[str, NDArray[np.float64]], land: Landscape, ax: Axes) -> None:
    """The same as curves: medians, with the middle eight tenths of the seeds around the default's."""
    for name, curve in curves.items():
        at = np.arange(1, curve.shape[1] + 1)
        (line,) = ax.step(at, np.median(curve, axis=0), where="post", lw=2 if name == "tpe" else 1.2, label=name)
        if name == "tpe":
            low, high = np.quantile(curve, (0.1, 0.9), axis=0)
            ax.fill_between(at, low, high, step="post", alpha=0.15, color=line.get_color(), lw=0)
    ax.set_yscale("symlog", linthresh=0.001)
    ax.set(title=f"{land.told[:1].upper()}{land.told[1:]}", xlabel="recipes scored", xlim=(1, None))
    ax.set(ylabel="nats a token above the best there is")
    ax.legend(fontsize=8)


if __name__ == "__main__":
    main()

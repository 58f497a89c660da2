"""Does the verdict fool itself? Thousands of studies without a model, in which nothing, or one recipe, is better."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm.auto import tqdm

from david.metrics.paired_test import BETTER, WORSE, paired_difference
from david.metrics.selection_bias import luck

RECIPES, TOP = 40, 5
RUINED = 200  # recipes that are 2 nats a token worse than the base, and six times as spread as the others
TOKENS = 511  # scored, of a window
SPREAD = 0.05  # nats a token: of a recipe's effect on a document, and again on each window
HELD_OUT = (4, 8, 16, 48)  # documents
SEARCH = ((4, 3), (6, 2), (12, 1), (48, 1))  # documents, and windows of each
EFFECTS = (1, 2, 4)  # of the one better recipe, in standard errors of its difference on the held-out windows
RESAMPLES = 999  # of a bootstrap here; the library takes ten times as many

Method = Literal["t", "bootstrap"]
Noise = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]


def gaussian(draw: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return draw.normal(size=shape)


def heavy(draw: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Student's t with three degrees of freedom: of unit variance, and often far out."""
    return draw.standard_t(3, size=shape) / math.sqrt(3)


def lopsided(draw: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Exponential: mostly a little below its mean, rarely far above."""
    return draw.exponential(size=shape) - 1


def alike(documents: int) -> NDArray[Any]:
    return np.full(documents, 4)


def some_long(documents: int) -> NDArray[Any]:
    """The second longest is half as long as the longest, the third a third; four windows on average."""
    shares = 1 / np.arange(1, documents + 1)
    return np.maximum(1, np.round(4 * documents * shares / shares.sum())).astype(int)


def one_long(documents: int) -> NDArray[Any]:
    """The longest is as long as all others together."""
    return np.array([2 * (documents - 1)] + [2] * (documents - 1))


@dataclass(frozen=True)
class Kind:
    """How the differences of a recipe to the base are distributed, and how many windows the documents have."""

    noise: Noise = gaussian
    windows: Callable[[int], NDArray[Any]] = alike
    leans: bool = False  # the base's noise is the mirror image of the recipes', or differences would be symmetric


KINDS = {
    "gaussian": Kind(),
    "heavy-tailed": Kind(heavy),
    "few long documents": Kind(windows=some_long),
    "one document is half": Kind(windows=one_long),
    "heavy-tailed, one document is half": Kind(heavy, one_long),
    "lopsided": Kind(lopsided, leans=True),
}


@dataclass(frozen=True)
class Windows:
    """The NLL sums of base (the first) and recipes `[S, 1 + R, W]` in many studies, and what windows they share."""

    nll: NDArray[Any]
    documents: NDArray[Any]

    @property
    def tokens(self) -> list[int]:
        return [TOKENS] * len(self.documents)

    @property
    def differences(self) -> NDArray[Any]:
        """Of each recipe to the base, in mean NLL, nats a token `[S, R]`."""
        means = self.nll.mean(axis=2) / TOKENS
        return means[:, 1:] - means[:, :1]


def drawn(draw: np.random.Generator, kind: Kind, studies: int, recipes: int, windows: NDArray[Any]) -> Windows:
    """The scores of a base and of recipes, all from one distribution, on documents of so many windows each."""
    documents = np.repeat(np.arange(len(windows)), windows)
    owned = kind.noise(draw, (studies, 1 + recipes, len(windows)))[..., documents]
    noise = SPREAD * (owned + kind.noise(draw, (studies, 1 + recipes, len(documents))))
    if kind.leans:
        noise[:, 0] *= -1
    hard = draw.normal(3, 0.4, (studies, 1, len(documents)))  # what makes a window hard is the same for all
    return Windows(TOKENS * (hard + noise), documents)


def words(held: Windows, study: int, recipes: range, method: Method = "t") -> list[str]:
    """The verdicts on finalists of a study."""
    base, *others = held.nll[study].tolist()
    given = {"documents": held.documents.tolist(), "finalists": TOP, "method": method, "resamples": RESAMPLES}
    return [paired_difference(others[recipe], base, held.tokens, **given, seed=study).word for recipe in recipes]


def none_better(name: str, documents: int, studies: int) -> Windows:
    """Held-out windows of finalists that are as good as the base: what was picked on other windows is any five."""
    kind = KINDS[name]
    return drawn(np.random.default_rng([*name.encode(), documents]), kind, studies, TOP, kind.windows(documents))


def shares(held: Windows, method: Method = "t") -> tuple[float, float]:
    """The share of studies in which any finalist is called better, and of those in which any is called worse."""
    found = [words(held, study, range(TOP), method) for study in range(len(held.nll))]
    return np.mean([BETTER in its for its in found]), np.mean([WORSE in its for its in found])


def plain_better(held: Windows) -> float:
    """The share in which any finalist is better by the t of Cochran's ratio estimator, as if lengths did not matter."""
    sizes = np.bincount(held.documents)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat((held.nll[:, 1:] - held.nll[:, :1]) / TOKENS, starts, axis=2)
    means = sums.sum(axis=2) / sizes.sum()
    spreads = np.std(sums - means[..., None] * sizes, axis=2, ddof=1) / math.sqrt(len(sizes)) / sizes.mean()
    better = means + stats.t.ppf(1 - 0.025 / TOP, len(sizes) - 1) * spreads < 0
    return better.any(axis=1).mean()


def no_effect(name: str, documents: int, studies: int) -> dict[str, str]:
    """A row of the first table."""
    held = none_better(name, documents, studies)
    (better, worse), (by_bootstrap, worse_by_bootstrap) = shares(held), shares(held, "bootstrap")
    return {
        "differences": name,
        "held-out documents": f"{documents}",
        "better, by t": f"{better:.1%}",
        "worse, by t": f"{worse:.1%}",
        "better, by plain t": f"{plain_better(held):.1%}",
        "better, by bootstrap": f"{by_bootstrap:.1%}",
        "worse, by bootstrap": f"{worse_by_bootstrap:.1%}",
    }


def one_better(name: str, documents: int, studies: int) -> dict[str, str]:
    """A row of the second table: one of forty recipes is better, and is judged if twelve search windows tell so."""
    kind = KINDS[name]
    draw = np.random.default_rng([*name.encode(), documents, 1])
    searched = drawn(draw, kind, studies, RECIPES, np.full(6, 2)).differences
    held = drawn(draw, kind, studies, 1, kind.windows(documents))
    error = float(held.differences.std())
    row = {"differences": name, "held-out documents": f"{documents}", "standard error, nats": f"{error:.4f}"}
    for effect in EFFECTS:
        nats = effect * error
        picked = (searched[:, 1:] < searched[:, :1] - nats).sum(axis=1) < TOP
        shifted = replace(held, nll=held.nll - np.array([[0], [nats * TOKENS]]))
        better = np.array([words(shifted, study, range(1)) == [BETTER] for study in range(studies)])
        row[f"{effect}: judged"] = f"{picked.mean():.0%}"
        row[f"{effect}: better if judged"] = f"{better.mean():.0%}"
        row[f"{effect}: both"] = f"{(picked & better).mean():.0%}"
    return row


def naive(name: str, documents: int, windows: int, ruined: int, studies: int) -> dict[str, str]:
    """A row of the third table: what the best recipe of the search windows seems to be, where none is better."""
    draw = np.random.default_rng([*name.encode(), documents, ruined])
    searched = drawn(draw, KINDS[name], studies, RECIPES + ruined, np.full(documents, windows))
    searched.nll[:, 1 + RECIPES :] += 5 * (searched.nll[:, 1 + RECIPES :] - searched.nll[:, :1]) + 2 * TOKENS
    lines = [
        luck(nll[1:] - nll[0], searched.tokens, searched.documents.tolist(), resamples=RESAMPLES, seed=study)
        for study, nll in enumerate(searched.nll)
    ]
    best = np.array([line.best for line in lines])
    claimed = [
        paired_difference(list(nll[1 + means.argmin()]), list(nll[0]), searched.tokens).word == BETTER
        for nll, means in zip(searched.nll, searched.differences, strict=True)
    ]
    return {
        "differences": name + f", and {ruined} ruined" * bool(ruined),
        "search windows": f"{documents * windows} of {documents} documents",
        "best is below the base": f"{(best < 0).mean():.1%}",
        "its own 95% interval is": f"{np.mean(claimed):.1%}",
        "it is below the luck line": f"{np.mean([line.best < line.extreme for line in lines]):.1%}",
        "luck line, nats": f"{np.median([line.extreme for line in lines]):.3f}",
        "a twentieth is below, nats": f"{np.quantile(best, 0.05):.3f}",
    }


def table(rows: list[dict[str, str]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---:"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Simulate all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="of each row (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write what is printed to results.md there as well")
    given = parser.parse_args()
    both = [(name, documents) for name in KINDS for documents in HELD_OUT]
    searches = [(name, *search, ruined) for ruined in (0, RUINED) for name in list(KINDS)[:2] for search in SEARCH]
    parts = {
        "No recipe is better or worse than the base": [no_effect(*row, given.studies) for row in tqdm(both)],
        "One recipe is better, by 1, 2 or 4 standard errors": [one_better(*row, given.studies) for row in tqdm(both)],
        "No recipe is better: the best of the search windows": [naive(*row, given.studies) for row in tqdm(searches)],
    }
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    text = f"{given.studies} studies a row, {RESAMPLES} resamples; {versions}.\n"
    text += "".join(f"\n**{title}**\n\n{table(rows)}\n" for title, rows in parts.items())
    print(text, end="")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Does the verdict fool itself where texts are repeated? Studies without a model, in which no recipe is better."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from david.metrics.paired_test import BETTER, paired_difference
from david.scoring.hold_out import document_groups, draw_sides, window_clusters

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from experiments.verdict.simulate import table

RECIPES, TOP = 40, 5
TOKENS = 511  # scored, of a window
SPREAD = 0.05  # nats a token: of a recipe's effect on a text
COPIES = 8  # of each text
GROUPS = (8, 16, 32)  # distinct texts, half of them to search on


@dataclass(frozen=True)
class Kind:
    """How texts are repeated, and what the data say of it.

    Attributes:
        own: The spread of a document's own effect beside its text's, as a share of the text's: 0 for equal texts.
        named: Whether a column names the text that a document is a variant of.
        shuffled: Whether copies lie scattered over the data.
        spanned: Documents in a window.
        few: Whether a tenth of the texts occur twice, and the others once; there are eight times as many.
    """

    own: float = 0.0
    named: bool = False
    shuffled: bool = True
    spanned: int = 1
    few: bool = False


KINDS = {
    "equal texts": Kind(),
    "equal texts, one after another": Kind(shuffled=False),
    "near-equal texts, named": Kind(own=0.3, named=True),
    "chunks of articles, named": Kind(own=1.0, named=True, shuffled=False),
    "chunks of articles, two in a window, named": Kind(own=1.0, named=True, shuffled=False, spanned=2),
    "equal texts, three in a window": Kind(spanned=3),
    "a tenth twice, three in a window": Kind(spanned=3, few=True),
}


@dataclass(frozen=True)
class Layout:
    """The documents of a text, and its windows: the documents that each begins and ends in, and the groups."""

    texts: NDArray[Any]
    first: list[int]
    last: list[int]
    groups: tuple[int, ...]


def layout(draw: np.random.Generator, kind: Kind, distinct: int) -> Layout:
    """Repeat texts, and find the groups of them as `Corpus.load` does."""
    texts = np.repeat(np.arange(distinct), COPIES)
    if kind.few:
        texts = np.append(np.arange(len(texts)), np.arange(len(texts) // 10))
    texts = draw.permutation(texts) if kind.shuffled else texts
    words = [f"{'word ' * 20}{text} {i * bool(kind.own)}" for i, text in enumerate(texts.tolist())]
    groups, _ = document_groups(words, texts.tolist() if kind.named else None, fewest_words=16)
    first = list(range(0, len(texts) - kind.spanned + 1, kind.spanned))
    return Layout(texts, first, [document + kind.spanned - 1 for document in first], groups)


def study(draw: np.random.Generator, kind: Kind, place: Layout, groups: tuple[int, ...], seed: int) -> str:
    """Search on one side, judge the best five on the other: `better`, `none` or `refused`.

    `groups` are those that hold-out and intervals know of.
    """
    distinct = int(place.texts.max()) + 1
    effects = draw.normal(0, SPREAD, (RECIPES, distinct))[:, place.texts]
    effects = effects + draw.normal(0, kind.own * SPREAD, effects.shape)
    differences = (
        TOKENS * np.array([effects[:, a : b + 1].mean(axis=1) for a, b in zip(place.first, place.last, strict=True)]).T
    )
    many = len(place.first) // 4
    sides = draw_sides(place.first, place.last, many, many, seed, groups)
    if sides is None:
        return "refused"
    search, held_out = sides
    finalists = np.argsort(differences[:, search].mean(axis=1))[:TOP]
    clusters = window_clusters(*([ends[i] for i in held_out] for ends in (place.first, place.last)), groups)
    verdicts = [judged(differences[recipe, held_out], clusters) for recipe in finalists]
    return "better" if BETTER in verdicts else "none"


def judged(differences: NDArray[Any], clusters: Sequence[int | str]) -> str:
    zeros, tokens = [0.0] * len(clusters), [TOKENS] * len(clusters)
    return paired_difference(differences.tolist(), zeros, tokens, documents=clusters, finalists=TOP).word


def shares(name: str, distinct: int, studies: int) -> dict[str, float]:
    """The share of studies that call a recipe better, and that cannot hold out: with groups, and without any."""
    kind, outcomes = KINDS[name], {"groups": [""] * studies, "none": [""] * studies}
    for number in range(studies):
        seeds = [*name.encode(), distinct, number]
        place = layout(np.random.default_rng(seeds), kind, distinct)
        for arm, groups in (("groups", place.groups), ("none", ())):
            outcomes[arm][number] = study(np.random.default_rng([*seeds, 1]), kind, place, groups, number)
    return {
        f"{word}, {arm}": float(np.mean([outcome == word for outcome in outcomes[arm]]))
        for arm in outcomes
        for word in ("better", "refused")
    }


def row(name: str, distinct: int, studies: int) -> dict[str, str]:
    """A row of the table."""
    found = shares(name, distinct, studies)
    error = math.sqrt(0.06 * 0.94 / studies)
    return {
        "data": name,
        "distinct texts": f"{distinct}",
        "better, groups as one": f"{found['better, groups']:.1%}",
        "no way to hold out": f"{found['refused, groups']:.1%}",
        "better, each document its own": f"{found['better, none']:.1%}",
        "standard error at 6%": f"{error:.1%}",
    }


def main() -> None:
    """Simulate all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200, help="of each row (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write what is printed to copies.md there as well")
    given = parser.parse_args()
    both = [(name, distinct) for name in KINDS for distinct in GROUPS]
    text = f"{given.studies} studies a row, {COPIES} documents of each text.\n\n"
    text += table([row(*each, given.studies) for each in tqdm(both)]) + "\n"
    print(text, end="")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "copies.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

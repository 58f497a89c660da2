"""Two sides of a text, one to search on and one to judge by, so that no document has windows on both.

`draw_sides` is what `Corpus.hold_out` draws with. A window is given by the documents that it begins and ends in.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

_SHARES = [Fraction(n, 12) for n in (6, 4, 8, 3, 9, 2, 10, 1, 11)]  # of documents, to search on; the first that does
_UNIT = 4  # at least so many windows begin in a unit: neighbouring documents that come to the same side


def draw_sides(
    documents: Sequence[int], last_documents: Sequence[int], search: int, held_out: int, seed: int
) -> tuple[list[int], list[int]] | None:
    """Draw which windows to search on and which to judge by, with no document on both sides.

    Args:
        documents: The document that each window begins in.
        last_documents: The document that each window ends in.
        search: How many windows to search on.
        held_out: How many windows to judge by.
        seed: The seed of the draw. More or fewer windows with the same seed are more or fewer of the same sides.

    Returns:
        The places of the windows on each side, in the order in which they are taken; None if no share of the documents
        leaves enough windows for both.
    """
    for share in _SHARES:
        first, second = _sides(documents, last_documents, share, np.random.default_rng(seed))
        if len(first) >= search and len(second) >= held_out:
            return first[:search], second[:held_out]
    return None


def _sides(
    documents: Sequence[int], last_documents: Sequence[int], share: Fraction, draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Return the places of the windows that lie wholly in documents to search on, and in those to judge by.

    `share` is the part of the documents to search on. One window of each document comes before a second of any.
    """
    units = _units(documents, last_documents)
    order = draw.permutation(max(units.values()) + 1).tolist()
    rank = {unit: i for i, unit in enumerate(order)}
    places: dict[int, list[int]] = {}  # of the windows that begin in each document
    for place in draw.permutation(len(documents)).tolist():
        places.setdefault(documents[place], []).append(place)
    ranked = sorted(places, key=lambda document: rank[units[document]])
    turns = sorted((turn, i, place) for i, d in enumerate(ranked) for turn, place in enumerate(places[d]))
    sides: tuple[list[int], list[int]] = [], []
    for _, _, place in turns:
        spanned = range(documents[place], last_documents[place] + 1)
        ranks = {rank[units[document]] for document in spanned}
        to_search = {math.floor((i + 1) * share) > math.floor(i * share) for i in ranks}
        if len(to_search) == 1:
            sides[0 if to_search.pop() else 1].append(place)
    return sides


def _units(documents: Sequence[int], last_documents: Sequence[int]) -> dict[int, int]:
    """Return the unit of each document: neighbours, until enough windows begin in them."""
    windows_begun = Counter(documents)
    units, unit, windows = {}, 0, 0
    for document in range(min(documents), max(last_documents) + 1):
        if windows >= _UNIT:
            unit, windows = unit + 1, 0
        units[document] = unit
        windows += windows_begun[document]
    return units

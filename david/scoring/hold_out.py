"""Which documents of a text belong together, and two sides of it, one to search on and one to judge by.

`document_groups` finds copies and named groups, `window_clusters` says which windows depend on one another because of
them, and `draw_sides` is what `Corpus.hold_out` draws with. A window is given by the documents that it begins and ends
in. A group has the number of its first document; a text without groups is an empty sequence of groups.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from david.metrics.paired_test import GROUP

_SHARES = [Fraction(n, 12) for n in (6, 4, 8, 3, 9, 2, 10, 1, 11)]  # of documents, to search on; the first that does
_UNIT = 4  # at least so many windows begin in a unit: neighbouring documents that come to the same side


def document_groups(
    texts: Sequence[str], names: Sequence[Hashable] | None = None, *, fewest_words: int = 1
) -> tuple[tuple[int, ...], int]:
    """Find documents that belong together: equal texts (but for white space), and those with the same name.

    Args:
        texts: The text of each document.
        names: The name of each document's group; None for a document without one.
        fewest_words: Equal texts with fewer words, such as headings, are no copies.

    Returns:
        The group of each document, as the number of its first document; empty if each document is a group of its own.
        And how many documents are copies of an earlier one.
    """
    return groups_of_keys([copy_key(text, fewest_words) for text in texts], names)


def copy_key(text: str, fewest_words: int) -> bytes | None:
    """Return what copies of a text have in common with it; None if it has so few words that it has no copies."""
    words = text.split()
    return None if len(words) < fewest_words else hashlib.sha256(" ".join(words).encode()).digest()


def groups_of_keys(
    copy_keys: Sequence[bytes | None], names: Sequence[Hashable] | None = None
) -> tuple[tuple[int, ...], int]:
    """Find documents that belong together, as `document_groups` does, by the `copy_key` of each."""
    keys: list[list[Hashable]] = [[] if key is None else [key] for key in copy_keys]
    with_copies = [key for key in copy_keys if key is not None]
    for key, name in zip(keys, names or (), strict=names is not None):
        if name is not None:
            key.append(("name", name))
    groups = _linked(keys)
    is_grouped = groups != list(range(len(groups)))
    return tuple(groups) if is_grouped else (), len(with_copies) - len(set(with_copies))


def comparable(value: Any) -> Hashable:
    """Return the name of a group, as data have it, in a form that can be compared; None if it is missing."""
    if isinstance(value, str | int | float | None):
        return None if value != value else value  # a table has NaN for what is missing
    return repr(value)


def window_clusters(
    documents: Sequence[int], last_documents: Sequence[int], groups: Sequence[int]
) -> tuple[int | str, ...]:
    """Return what each window counts as in intervals: the document that it begins in, or the name of its group.

    Where copies lie scattered over the text, windows that span them depend on one another, wherever they begin: those
    that are copies for a quarter of their documents or more are one cluster with the windows that span the same texts.

    Args:
        documents: The document that each window begins in.
        last_documents: The document that each window ends in.
        groups: The group of each document.
    """
    if not groups:
        return tuple(documents)
    sizes = Counter(groups)
    lasts = {group: number for number, group in enumerate(groups)}
    scattered = {group for group, size in sizes.items() if lasts[group] - group + 1 > size}
    keys: list[list[Hashable]] = []
    for first, last in zip(documents, last_documents, strict=True):
        copies = [group for group in groups[first : last + 1] if group in scattered]
        is_chained = 4 * len(copies) >= last + 1 - first
        keys.append([groups[first], *(copies if is_chained else ())])
    first_windows = _linked(keys)
    members: dict[int, set[int]] = {}
    for window, document in zip(first_windows, documents, strict=True):
        members.setdefault(window, set()).add(document)
    names = {
        window: document if len(members[window]) == 1 else f"{GROUP}{groups[documents[window]]}"
        for window, document in zip(first_windows, documents, strict=True)
    }
    return tuple(names[window] for window in first_windows)


def share_groups(first: Iterable[int], second: Iterable[int], groups: Sequence[int]) -> bool:
    """Return whether two sets of documents have different documents of one group."""
    if not groups:
        return False
    one, other = set(first), set(second)
    members: dict[int, set[int]] = {}
    for document in one | other:
        members.setdefault(groups[document], set()).add(document)
    common = {groups[document] for document in one} & {groups[document] for document in other}
    return any(len(members[group]) > 1 for group in common)


def draw_sides(
    documents: Sequence[int],
    last_documents: Sequence[int],
    search: int,
    held_out: int,
    seed: int,
    groups: Sequence[int] = (),
) -> tuple[list[int], list[int]] | None:
    """Draw which windows to search on and which to judge by, with no document or group on both sides.

    Args:
        documents: The document that each window begins in.
        last_documents: The document that each window ends in.
        search: How many windows to search on.
        held_out: How many windows to judge by.
        seed: The seed of the draw. More or fewer windows with the same seed are more or fewer of the same sides, unless
            more would bring copies to both.
        groups: The group of each document.

    Returns:
        The places of the windows on each side, in the order in which they are taken; None if no share of the documents
        leaves enough windows for both.
    """
    alone = range(max(last_documents) + 1)  # each document a group of its own
    attempts: list[tuple[Sequence[int], int]] = [(alone, _UNIT)]
    attempts += [(groups, _UNIT), (groups, 1)] if groups else []
    for drawn, fewest in attempts:
        for share in _SHARES:
            draw = np.random.default_rng(seed)
            first, second = _sides(documents, last_documents, drawn, share, fewest, draw)
            if len(first) >= search and len(second) >= held_out:
                sides = first[:search], second[:held_out]
                one, other = ({d for w in side for d in range(documents[w], last_documents[w] + 1)} for side in sides)
                if not share_groups(one, other, groups):
                    return sides  # that of a text without copies, unless copies would be on both
                break
    return None


def _sides(
    documents: Sequence[int],
    last_documents: Sequence[int],
    groups: Sequence[int],
    share: Fraction,
    fewest: int,
    draw: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Return the places of the windows that lie wholly in documents to search on, and in those to judge by.

    `share` is the part of the documents to search on. A group comes to the side of its first document. One window of
    each group comes before a second of any.
    """
    units = _units(documents, last_documents, fewest)
    leaders: dict[int, int] = {}  # the first document of each group, among those of these windows
    for document in units:
        leaders.setdefault(groups[document], document)
    unit_of = {document: units[leaders[groups[document]]] for document in units}
    used = sorted(set(unit_of.values()))
    rank = {used[place]: i for i, place in enumerate(draw.permutation(len(used)).tolist())}
    places: dict[int, list[int]] = {}  # of the windows that begin in each group
    for place in draw.permutation(len(documents)).tolist():
        places.setdefault(leaders[groups[documents[place]]], []).append(place)
    ranked = sorted(places, key=lambda leader: rank[units[leader]])
    turns = sorted((turn, i, place) for i, d in enumerate(ranked) for turn, place in enumerate(places[d]))
    sides: tuple[list[int], list[int]] = [], []
    for _, _, place in turns:
        spanned = range(documents[place], last_documents[place] + 1)
        ranks = {rank[unit_of[document]] for document in spanned}
        to_search = {math.floor((i + 1) * share) > math.floor(i * share) for i in ranks}
        if len(to_search) == 1:
            sides[0 if to_search.pop() else 1].append(place)
    return sides


def _units(documents: Sequence[int], last_documents: Sequence[int], fewest: int) -> dict[int, int]:
    """Return the unit of each document: neighbours, until enough windows begin in them."""
    windows_begun = Counter(documents)
    units, unit, windows = {}, 0, 0
    for document in range(min(documents), max(last_documents) + 1):
        if windows >= fewest:
            unit, windows = unit + 1, 0
        units[document] = unit
        windows += windows_begun[document]
    return units


def _linked(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return for each item the number of the first item that it is linked to: items that share a key are linked."""
    parents = list(range(len(keys)))
    owners: dict[Hashable, int] = {}

    def root(item: int) -> int:
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    for item, its_keys in enumerate(keys):
        for key in its_keys:
            low, high = sorted((root(owners.setdefault(key, item)), root(item)))
            parents[high] = low
    return [root(item) for item in range(len(keys))]

"""Documents that belong together: found, kept on one side of a draw, and counted once by intervals and luck."""

import math
import random

import numpy as np
import pytest

from david.metrics.paired_test import UNDECIDED, paired_difference
from david.metrics.selection_bias import Luck, luck
from david.report import sentences
from david.scoring.hold_out import comparable, document_groups, draw_sides, share_groups, window_clusters
from experiments.verdict import copies

TEXTS = ["one", "two", "one", "three", " two\n", "four"]


def test_equal_texts_are_one_group_with_the_number_of_the_first() -> None:
    assert document_groups(TEXTS) == ((0, 1, 0, 3, 1, 5), 2)
    assert document_groups(["one", "two"]) == ((), 0)
    assert document_groups(["", "", " "]) == ((), 0)
    assert document_groups(TEXTS, fewest_words=2) == ((), 0)


def test_names_join_what_texts_do_not_and_the_other_way_round() -> None:
    names = ["a", "b", "c", "c", None, None]
    assert document_groups(TEXTS, names) == ((0, 1, 0, 0, 1, 5), 2)
    assert document_groups(["x", "y", "z"], [1, 2, 1]) == ((0, 1, 0), 0)
    assert [comparable(value) for value in (math.nan, None, 3, "3", ["a"])] == [None, None, 3, "3", "['a']"]


def test_windows_of_a_group_are_one_cluster_and_a_document_alone_keeps_its_number() -> None:
    groups = (0, 1, 0, 3)
    assert window_clusters([0, 1, 2, 3, 3], [0, 1, 2, 3, 3], groups) == ("group 0", 1, "group 0", 3, 3)
    assert window_clusters([0, 0, 1], [0, 1, 1], groups) == (0, 0, 1)  # the copy is in no window
    assert window_clusters([4, 7], [5, 7], ()) == (4, 7)


def test_windows_that_span_scattered_copies_are_one_cluster_and_chunks_in_a_row_are_not_chained() -> None:
    scattered = (0, 1, 2, 3, 4, 0)
    assert window_clusters([0, 2, 4], [1, 3, 5], scattered) == ("group 0", 2, "group 0")
    chunks = (0, 0, 0, 3, 3, 3)
    assert window_clusters([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], chunks) == ("group 0",) * 3 + ("group 3",) * 2


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_on_both_sides(seed: int) -> None:
    draw = random.Random(seed)
    groups, _ = document_groups([f"text {draw.randrange(12)}" for _ in range(96)])
    if seed % 2:  # windows of a document each, or of two
        documents, last_documents = list(range(96)), list(range(96))
    else:
        documents, last_documents = list(range(0, 96, 2)), list(range(1, 96, 2))
    sides = draw_sides(documents, last_documents, 3, 4, seed, groups)
    assert sides is not None
    assert [len(side) for side in sides] == [3, 4]
    spanned = [{groups[d] for w in side for d in range(documents[w], last_documents[w] + 1)} for side in sides]
    assert not spanned[0] & spanned[1]


def test_without_groups_the_draw_is_what_it_was() -> None:
    documents = [0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8]
    last_documents = [0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8, 8]
    assert draw_sides(documents, last_documents, 4, 3, 7) == ([8, 14, 13, 12], [3, 1, 6])


def test_a_group_on_both_sides_is_told_from_a_document_on_both_sides() -> None:
    assert share_groups([0, 1], [2, 3], (0, 1, 0, 3))
    assert not share_groups([0, 1], [1, 2], (0, 1, 2, 0))
    assert not share_groups([0, 1], [1, 2], ())


def test_copies_narrow_no_interval_and_no_luck_line() -> None:
    draw = np.random.default_rng(0)
    nll, base = draw.normal(30, 1, 8), draw.normal(30.5, 1, 8)
    once = paired_difference(nll.tolist(), base.tolist(), [10] * 8)
    labels = [f"group {number}" for number in range(8)] * 16
    for method in ("t", "bootstrap"):
        once = paired_difference(nll.tolist(), base.tolist(), [10] * 8, method=method)  # type: ignore[arg-type]
        many = paired_difference(
            nll.tolist() * 16,
            base.tolist() * 16,
            [10] * 128,
            documents=labels,
            method=method,  # type: ignore[arg-type]
        )
        assert vars(many) == pytest.approx(vars(once))
    difference = nll - base
    one, other = luck([difference], [10] * 8), luck([np.tile(difference, 16)], [10] * 128, labels)
    assert vars(one) == pytest.approx(vars(other))


def test_one_group_leaves_no_interval_and_one_document_does() -> None:
    nll, base = [9.0, 9.5, 9.1, 9.3], [10.0] * 4
    found = paired_difference(nll, base, [10] * 4, documents=["group 0"] * 4)
    assert (found.word, found.low, found.high) == (UNDECIDED, -math.inf, math.inf)
    assert math.isfinite(paired_difference(nll, base, [10] * 4, documents=[0] * 4).low)
    assert math.isnan(luck([[-1.0, -2.0, -1.0, -3.0]], [10] * 4, ["group 0"] * 4).typical)


def test_two_or_three_documents_are_too_few_for_a_luck_line_and_that_is_said() -> None:
    differences = [[-1.0, -2.0, 1.0, -3.0]]
    assert math.isnan(luck(differences, [10] * 4, [0, 0, 1, 2]).chance)
    assert math.isfinite(luck(differences, [10] * 4, [0, 1, 2, 3]).chance)
    assert sentences.few_documents("it", [0, 0, 1]).startswith("it is of 2 documents, too few for an interval;")
    assert sentences.few_documents("it", ["group 0", "group 0"]).startswith("it is of 1 group, too few")
    assert "of one document: its windows were taken as independent" in sentences.few_documents("it", [3, 3])
    assert sentences.few_documents("it", [0, 1, 2, 3]) == sentences.few_documents("it", [0]) == ""


def test_where_every_recipe_is_worse_the_luck_line_says_so_and_gives_no_odds() -> None:
    line = sentences.luck(Luck(0.38, 0.2, 0.4126, 0.74), 12)
    assert line == (
        "no recipe is below the base on the search windows: the best shows +0.4126 nats a token, "
        "so there is no gain that could be luck"
    )
    assert "luck alone is as low in 74% of draws" in sentences.luck(Luck(-0.1, -0.2, -0.05, 0.74), 12)


@pytest.mark.parametrize("name", ["equal texts", "near-equal texts, named"])
def test_repeated_texts_make_no_recipe_better_in_more_than_six_of_a_hundred_studies(name: str) -> None:
    found = copies.shares(name, 8, 60)
    assert found["better, groups"] <= 0.06
    assert found["better, none"] > 0.3  # what it was when each document counted

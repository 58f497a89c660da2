"""The report page: whole, true to its tables, safe whatever a study is called, and quiet in a browser."""

import math
import os
import re
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from optuna import Study
from optuna.trial import create_trial

import david
from david.errors import SearchError
from david.recipe.base_model import Base
from david.recipe.blocks import all_blocks
from david.recipe.picture import svg_picture
from david.recipe.recipe import Recipe
from david.report import artifacts, page, sentences, tables
from david.storage import results
from david.storage.results import StudyResults
from tests.helpers.handmade_studies import add, data, judge, new_study
from tests.helpers.pages import (
    BASE,
    BEST,
    HOSTILE,
    OTHER,
    SHOWN,
    UNSEEN,
    Document,
    judged_study,
    only_base,
    small_study,
)


@pytest.fixture
def study() -> Study:
    return small_study()


@pytest.fixture
def judged() -> Study:
    return judged_study()


def two_thousand() -> Study:
    """The blocks of a base of 80 layers, of which a race has dropped most, and finalists with many seams."""
    study, numbers = new_study(80), np.random.default_rng(0)
    add(study, Recipe.identity(80), 2.0)
    for trial, recipe in enumerate([*all_blocks(80)][:1999]):
        about = {"partial": 1} if trial % 3 else {}
        add(study, recipe, 2 + float(numbers.exponential()), **about)
    judge(study, 0, [20.0, 21.0, 22.0], [10, 10, 10])
    for trial in StudyResults.read(study).best_of_search(5):
        judge(study, trial.number, list(20 + numbers.normal(size=3)), [10, 10, 10])
    for _ in range(5):
        wild = Recipe(tuple(int(layer) for layer in numbers.integers(0, 80, 240)))
        judge(study, add(study, wild, 9.0).number, [90.0, 91.0, 95.0], [10, 10, 10])
    return study


# The document


@pytest.mark.parametrize("make", [new_study, only_base, two_thousand])
def test_a_page_is_whole_html_small_and_loads_nothing(make: Callable[[], Study]) -> None:
    check_document(page.page(make()))


def test_a_page_of_a_judged_study_is_whole_html_small_and_loads_nothing(judged: Study) -> None:
    check_document(page.page(judged))


def check_document(source: str) -> None:
    """What holds of every page."""
    assert source.startswith("<!DOCTYPE html>\n")
    assert len(source.encode()) < 2_000_000
    document = Document(source)
    assert document.all("html") == [{"lang": "en"}]
    csp = {"http-equiv": "Content-Security-Policy", "content": page_policy()}
    assert csp in document.all("meta")
    assert not {"script", "iframe", "object", "form", "base"} & {tag for tag, _ in document.elements}
    ids = [attrs["id"] for _, attrs in document.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in document.elements:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset"}
            if "href" in name:
                assert value is not None
                assert value.startswith("data:") or value.removeprefix("#") in ids
    assert set(re.findall(r"url\(#([^)]*)\)", source)) <= set(ids)
    assert "@import" not in source
    assert set(re.findall(r"https?://[^\"\s<]+", source)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    levels = [int(tag[1]) for tag, _ in document.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert not re.search(r"\b(nan|inf|NaN)\b", document.text)
    known = set(re.findall(r"(--[a-z]+):", source))
    assert set(re.findall(r"var\((--[a-z]+)\)", source)) <= known
    assert "#0102" not in source  # the stand-ins of the page's colours


def page_policy() -> str:
    return "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_verdict_comes_first_and_the_sections_in_their_order(judged: Study) -> None:
    for recipe in all_blocks(6):
        add(judged, recipe, 3.0)
    document = Document(page.page(judged))
    verdict = sentences.verdict(tables.leaderboard(judged))
    assert document.headings[0] == ("h1", verdict[:1].upper() + verdict[1:])
    assert [text for tag, text in document.headings if tag == "h2"] == [
        "Leaderboard",
        "Paths of the best recipes",
        "Repeating one block",
        "The search",
        "What depth buys",
        "What is left of the gain",
        "Luck",
        "Seams",
        "What was run",
        "How to read this",
    ]
    assert "not intelligence" in document.text


@pytest.mark.parametrize(
    ("make", "sections"),
    [
        (new_study, []),
        (only_base, ["Leaderboard", "The search"]),
    ],
)
def test_a_section_with_nothing_to_show_is_left_out(make: Callable[[], Study], sections: list[str]) -> None:
    document = Document(page.page(make()))
    found = [text for tag, text in document.headings if tag == "h2"]
    assert found == [*sections, "What was run", "How to read this"]
    assert document.headings[0][1] == "Nothing but the base is scored yet"


def test_blocks_become_a_heatmap_and_a_list_of_the_lowest_once_there_are_as_many_as_layers() -> None:
    study, every = only_base(), all_blocks(6)
    for number, recipe in enumerate(every[:5]):
        add(study, recipe, 3.0 - number / 10, **({"partial": 1} if number == 0 else {}))
    assert "Repeating one block" not in page.page(study)
    add(study, every[5], math.inf)
    source = page.page(study)
    check_document(source)
    rows = re.findall(r"<td>\((\d), (\d)\)</td>.*?>([^<>]+)</td></tr>", source)
    assert [row[2] for row in rows] == ["+0.6000", "+0.7000", "+0.8000", "+0.9000", "+1.0000", "+∞"]
    best = int(rows[0][0]), int(rows[0][1])
    assert Recipe.from_blocks(6, [(*best, 2)]) == every[4]
    assert f"lowest: ({best[0]},\N{NO-BREAK SPACE}{best[1]}), +0.6000 nats a token (none is better)" in source


def test_every_drawing_is_told_in_words(judged: Study) -> None:
    source = page.page(judged)
    drawn = re.findall(
        r"<svg [^>]*>", re.sub(r'<div class="path" role="img" aria-label="[^"]+">\s*<svg', "<div", source)
    )
    assert len(drawn) == 2 + 2  # intervals and plots; the paths' words stand around them
    assert all(re.search(r'role="img" aria-label="[^"]{10,}"', opening) for opening in drawn)
    labels = [label for label in re.findall(r'aria-label="([^"]*)"', source) if "Path of recipe" in label]
    assert labels == ["Path of recipe 1, 8 visits", "Path of recipe 3, 8 visits"]


def test_the_same_study_gives_the_same_page_and_leaves_matplotlib_as_it_was(judged: Study) -> None:
    before = dict(mpl.rcParams)
    assert page.page(judged) == page.page(judged)
    assert dict(mpl.rcParams) == before


def test_a_study_of_anothers_is_refused() -> None:
    with pytest.raises(SearchError, match="not one of David's"):
        page.page(optuna.create_study())


# True to the tables


def test_the_leaderboard_shows_the_tables_figures_and_words(judged: Study) -> None:
    text = Document(page.page(judged)).text
    board = tables.leaderboard(judged).set_index("trial")
    best = board.loc[1]
    for number in (best["held_out_perplexity"], best["search_perplexity"], board.loc[0]["held_out_perplexity"]):
        assert f"{number:.3f}" in text
    interval = f"{best['low95']:+.4f} … {best['high95']:+.4f}".replace("-", "−")
    assert f"−0.1200 {interval}" in text
    assert "better" in text
    assert "inconclusive" in text
    assert "not told apart" not in text
    assert "+33%" in text


def test_an_interval_is_drawn_where_it_lies_all_of_them_on_one_scale(judged: Study) -> None:
    document = Document(page.page(judged))
    board = tables.leaderboard(judged)
    board = board[board["recipe"] != tables.BASE]
    ranges = [(float(line["x1"] or 0), float(line["x2"] or 0)) for line in document.all("line", "range")]
    middles = [float(dot["cx"] or 0) for dot in document.all("circle")]
    assert len(ranges) == len(middles) == len(board) == 2
    widths = [
        (stop - start) / (row.high95 - row.low95) for (start, stop), row in zip(ranges, board.itertuples(), strict=True)
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.02)
    for (start, stop), middle, row in zip(ranges, middles, board.itertuples(), strict=True):
        assert 6 <= start < middle < stop <= 194
        for drawn, value in ((start, row.low95), (middle, row.nll_difference), (stop, row.high95)):
            assert (drawn - 100) / widths[0] == pytest.approx(value, abs=0.002)
    assert [mark["class"] for mark in document.all("svg", "interval")] == ["interval better", "interval even"]


def test_intervals_and_scores_without_an_end_are_drawn_and_told(study: Study) -> None:
    judge(study, 0, [20.0], [10])
    judge(study, 1, [19.0], [10])  # one window: an interval without ends
    judge(study, 2, [math.inf], [10])
    source = page.page(study)
    check_document(source)
    text = Document(source).text
    assert "−0.1000 −∞ … +∞" in text
    assert "+∞ +∞ … +∞" in text
    assert "worse" in text


@pytest.mark.parametrize(
    ("recipe", "back", "forward", "left_out"),
    [
        ("0:6", ["none"], ["none"], "none"),
        ("0:4, 2:4, 2:6", ["3 → 2 ×2"], ["none"], "none"),
        ("0:2, 4, 1, 4:6", ["4 → 1"], ["1 → 4 ×2"], "2–3"),
        ("1, 1, 3, 0", ["1 → 1", "3 → 0"], ["1 → 3"], "2, 4–5"),
    ],
)
def test_seams_are_where_the_next_layer_is_not_the_one_after(
    recipe: str, back: list[str], forward: list[str], left_out: str
) -> None:
    study = only_base()
    add(study, recipe + "*0.5", 1.0)
    source = page.page(study)
    row = re.search(r'aria-label="Seams">.*?<tbody>(.*?)</tbody>', source, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.DOTALL)[2:]
    said = [re.findall(r">([^<>]+)<", f">{cell}<") for cell in cells]
    assert [[text for text in cell if text.strip()] for cell in said] == [back, forward, [left_out]]


def test_what_was_run_is_told(judged: Study) -> None:
    text = Document(page.page(judged)).text
    for said in (
        "Study “david” on six, 6 layers",
        "LlamaForCausalLM",
        "sha256:0f",
        "Block(max_length=None, max_times=2, scales=None)",
        "TPESampler",
        "window, windows of 8 tokens, without BOS",
        "2 of 8 tokens",
        "3 of 8 tokens",
        "2:5",
        "6 in all: 4 complete, 1 of these duplicates, 0 dropped early, 2 failed, 0 unfinished",
        "the score is not a number 2 times",
        "2.13",
        "3 recipes, the base among them, scored on 2 windows of words. The base and 2 finalists were then measured on "
        "3 windows of words that the search had not seen.",
    ):
        assert said in text


def test_what_depth_buys_is_a_front_of_visits_and_nll(judged: Study) -> None:
    parsed = Document(page.page(judged))
    assert "What depth buys" in parsed.text
    assert "What depth buys" not in Document(page.page(only_base())).text


def test_a_strategy_that_asked_for_recipes_is_told() -> None:
    study = only_base()
    add(study, BEST, 1.5, strategy="Refine(start=None)")
    add(study, "0:5", 1.6, strategy="Refine(start=None)")
    text = Document(page.page(study)).text
    assert "by Refine" in text
    assert text.count("Refine(start=None)") == 1


def test_looks_at_the_held_out_windows_are_told_when_there_were_several(judged: Study) -> None:
    told = "Held-out data evaluated 2 times, for 2 recipes and the base"
    for picked, often in ((judged.trials[:2], False), (judged.trials[1:3], True)):
        results.log_evaluation(judged, picked)
        assert (told in Document(page.page(judged)).text) is often


def test_the_luck_line_stands_in_words(judged: Study) -> None:
    text = Document(page.page(judged)).text
    assert "By luck alone the best of 3 recipes would show" in text or "By luck alone the best of 2 recipes" in text
    assert "Luck" not in Document(page.page(only_base())).text


def test_a_study_without_held_out_windows_says_so() -> None:
    study = new_study(6, held_out_data=None)
    add(study, BASE, 2.0)
    add(study, BEST, 1.5)
    text = Document(page.page(study)).text
    assert "Nothing has been measured on held-out windows" in text
    assert "none: nothing is held out" in text


def test_a_long_recipe_is_shortened_and_whole_on_a_click() -> None:
    study = only_base()
    long = Recipe((5, 3, 1) * 30 + (0,))
    add(study, long, 1.0)
    source = page.page(study)
    check_document(source)
    assert f"<summary><code>{str(long)[:90]}…</code></summary><code>{long}</code></details>" in source


def test_many_different_jumps_are_counted_after_the_first_twelve() -> None:
    study = new_study(60)
    add(study, Recipe.identity(60), 2.0)
    add(study, Recipe((*range(0, 60, 2), 59)), 1.0)
    document = Document(page.page(study))
    assert len(document.all("span", "chip")) == 13
    assert "none 0 → 2 2 → 4" in document.text  # none back
    assert "22 → 24 and 17 more 1, 3, 5" in document.text


def test_only_the_top_recipes_have_pictures(judged: Study) -> None:
    assert len(Document(page.page(judged, top=1)).all("div", "path")) == 1


# Safe


def test_names_of_strategies_measures_and_recipes_are_text_too() -> None:
    """Also in what matplotlib draws, which takes what stands between two dollars for a formula."""
    name = "also $\\" + HOSTILE + UNSEEN + "$"
    about = new_study(6, also=[[name, "measure " + HOSTILE + UNSEEN]]).user_attrs["david"]
    study = optuna.create_study(directions=["minimize"] * 2, study_name="study " + UNSEEN)
    study.set_user_attr("david", about)
    kept = {
        "strategy": "strategy " + HOSTILE + UNSEEN,
        "window_nll": [1.0],
        "window_tokens": [1],
        "convention": "window",
    }
    for recipe, nll in ((BASE, 2.0), (BEST, 1.5), (OTHER, 1.75)):
        study.add_trial(create_trial(values=[nll, -nll], user_attrs={**kept, "recipe": recipe}))
    add(study, None, None, state="FAIL", error="error " + HOSTILE + UNSEEN)
    source = page.page(study)
    check_document(source)
    document = Document(source)
    for said in ("measure", "strategy", "error"):
        assert f"{said} {HOSTILE}{SHOWN}" in document.text, said
    assert f"“study {SHOWN}”" in document.text
    assert not set(source) & set("\x00\x1b\u202e\u2066\r")
    assert not document.all("img")


def test_random_recipes_that_others_wrote_into_a_study_are_text(judged: Study) -> None:
    results.store_baseline(judged, results.Baseline(1, 1, {"recipe " + HOSTILE + UNSEEN: 2.5}))
    source = page.page(judged)
    check_document(source)
    assert f"recipe {HOSTILE}{SHOWN}" in Document(source).text


@pytest.mark.parametrize("title", [HOSTILE, "a & b", '"quoted"'])
def test_a_picture_of_a_recipe_has_its_title_as_text(title: str) -> None:
    drawn = Document(svg_picture([0, 1, 1], [1, 0.5, 1], 2, title))
    assert {tag for tag, _ in drawn.elements} == {"svg", "g", "path", "rect", "title", "text"}
    assert title in drawn.text


def test_a_recipe_in_a_notebook_is_a_picture_without_anything_its_file_says() -> None:
    base = Base(model=HOSTILE, num_layers=6)
    recipe = Recipe((0, 1, 1), base=base, written_as=HOSTILE)
    drawn = recipe._repr_html_()
    assert {tag for tag, _ in Document(drawn).elements} == {"svg", "g", "path", "rect", "title", "text"}
    assert "alert" not in drawn


def test_what_a_study_says_of_itself_is_text_whatever_it_holds() -> None:
    said = {**data(0, 2), "source": "source " + HOSTILE, "slice": "slice " + HOSTILE, "sha256": "sha256 " + HOSTILE}
    study = new_study(
        6,
        name="name " + HOSTILE,
        base={
            "model": "model " + HOSTILE,
            "revision": "revision " + HOSTILE,
            "architecture": "architecture " + HOSTILE,
            "num_layers": 6,
            "fingerprint": "fingerprint " + HOSTILE,
        },
        search_data=said,
        held_out_data=said,
        **{key: f"{key} {HOSTILE}" for key in ("dtype", "space", "objective", "sampler", "seed")},
        made_with={"version " + HOSTILE: "number " + HOSTILE},
    )
    add(study, BASE, 2.0, convention="convention " + HOSTILE)
    add(study, BEST, 1.5)
    add(study, None, None, state="FAIL", error="error " + HOSTILE)
    source = page.page(study)
    check_document(source)
    document = Document(source)
    assert not document.all("img")
    every = "name model revision architecture fingerprint source slice sha256 dtype space objective sampler seed"
    for field in [*every.split(), "version", "number", "convention", "error"]:
        assert f"{field} {HOSTILE}" in document.text, field


# Files


def test_a_run_gets_its_page_beside_what_the_report_writes(judged: Study, tmp_path: Path) -> None:
    for folder in ("plain", "whole"):
        (tmp_path / folder).mkdir()
    plain = artifacts.write(judged, tmp_path / "plain")
    for _ in range(2):  # again over the files of the last time
        written = page.write(judged, tmp_path / "whole")
        assert [path.name for path in written] == [*(path.name for path in plain), "report.html"]
        assert {path.name for path in written} == set(os.listdir(tmp_path / "whole"))
    assert (tmp_path / "whole" / "report.html").read_text(encoding="utf-8") == page.page(judged)


def test_a_page_that_cannot_be_put_in_its_place_is_told(study: Study, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(SearchError, match=r"cannot write .*report\.html: "):
        page.write(study, tmp_path)


def test_whatever_a_module_reads_comes_with_the_package() -> None:
    house = Path(david.__file__).parent
    project = tomllib.loads((house.parent / "pyproject.toml").read_text(encoding="utf-8"))
    rooms: dict[str, list[str]] = {}
    for path in house.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md"):
            room = ".".join(path.parent.relative_to(house.parent).parts)
            rooms.setdefault(room, []).append(path.name)
    shipped = project["tool"]["setuptools"]["package-data"]
    assert shipped.keys() == rooms.keys()
    for room, names in rooms.items():
        assert all(any(Path(name).match(pattern) for pattern in shipped[room]) for name in names)

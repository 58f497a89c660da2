"""A study shown in a notebook cell: the content of its page, escaped, in the notebook's theme."""

import re

import optuna
import pytest
from optuna import Study

from david.errors import SearchError
from david.report import page, sentences, tables
from tests.helpers.handmade_studies import add, data, new_study
from tests.helpers.pages import BASE, HOSTILE, SHOWN, UNSEEN, Document, judged_study, only_base


@pytest.fixture
def judged() -> Study:
    return judged_study()


def test_a_study_in_a_cell_shows_what_its_page_does(judged: Study) -> None:
    shown, whole = page.show(judged), Document(page.page(judged))
    cell = Document(shown._repr_html_())
    assert cell.headings == whole.headings
    title = whole.text.partition(" Study “")[0]
    assert cell.text == whole.text.removeprefix(title).strip()
    assert cell.elements[0] == ("div", {"class": "david cell mathjax_ignore"})
    assert not {"html", "head", "body", "script", "link", "meta", "main"} & {tag for tag, _ in cell.elements}


def test_a_hostile_study_is_text_in_a_cell_too_and_anothers_is_refused() -> None:
    study = new_study(6, name="name " + HOSTILE + UNSEEN, search_data={**data(0, 2), "source": HOSTILE})
    add(study, BASE, 2.0)
    cell = Document(page.show(study).html)
    assert f"“name {HOSTILE}{SHOWN}”" in cell.text
    assert not {"script", "img"} & {tag for tag, _ in cell.elements}
    with pytest.raises(SearchError, match="not one of David's"):
        page.show(optuna.create_study())


def test_without_a_notebook_a_study_is_shown_as_text(judged: Study) -> None:
    board = tables.leaderboard(judged)
    assert repr(page.show(judged)) == f"{sentences.board_text(board)}\n\n{sentences.verdict(board)}"
    assert repr(page.show(new_study(6))).startswith("(nothing is scored yet)")
    assert len(Document(page.show(judged, top=1).html).all("div", "path")) == 1


def test_studies_in_two_cells_do_not_mix_up_their_drawings(judged: Study) -> None:
    first = page.show(judged).html
    assert page.show(judged).html == first
    add(judged, "0:2, 1:6", 1.6)
    ids = [set(re.findall(r' id="([^"]*)"', source)) for source in (first, page.show(judged).html)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", first)) <= ids[0]


def test_a_cell_follows_the_notebooks_theme_and_a_page_the_systems() -> None:
    """Each name of a colour is told for light and for dark; a cell asks nothing of the system."""
    source = page.show(only_base()).html
    system = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*(\S+) \{", source)
    assert system is not None
    assert system[1] == ".david:not(#_):not(.cell)"
    theme = re.search(r"\[data-jp-theme-light=\"false\"\].*?\.david:not\(#_\)\.cell \{(.*?)\}", source, re.DOTALL)
    assert theme is not None
    dark, light = (set(re.findall(r"(--[a-z]+): ?#", part)) for part in (theme[1], source[: source.index("@media")]))
    assert light - dark == {"--first", "--again"}

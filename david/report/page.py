"""A study as one self-contained HTML page: the verdict in words first, then what it rests on.

`page` returns the page, `write` writes it beside the other files of a run, `show` shows it in a notebook. The page
loads nothing (no script, font or picture from elsewhere), and text that a study holds is escaped.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study

from david.metrics import units
from david.metrics.paired_test import BETTER, WORSE
from david.report import artifacts, sentences
from david.report.columns import BASE
from david.report.formatting import capitalised, figure, share, signed, verdict_text
from david.report.page_sections import SECTIONS, PageContent, Section, data_text, strategies
from david.report.rendering import part
from david.report.study_report import StudyReport
from david.storage.results import StudyResults
from david.support import files
from david.support.text import counted

__all__ = ["NAME", "Section", "Shown", "page", "show", "write", "write_run"]

NAME = "report.html"


def write(study: Study | StudyResults, folder: str | os.PathLike[str], *, top: int = 5) -> list[Path]:
    """Write the files of `report.write` and the page, `report.html`, into a folder.

    Args:
        study: The study.
        folder: The folder; it is made if it does not exist.
        top: How many of the search's best to show, if they are not judged yet.

    Returns:
        The files.

    Raises:
        SearchError: The folder cannot be written, or no search has run on the study.
    """
    return write_run(StudyReport.read(study, top), folder)


def write_run(report: StudyReport, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the files of `write` from a report that was read already.

    Args:
        report: The study's report.
        folder: The folder; it is made if it does not exist.

    Returns:
        The files.

    Raises:
        SearchError: The folder cannot be written.
    """
    written = artifacts.write_files(report, folder)
    text = _document(report)
    return [*written, files.write_atomically(Path(folder) / NAME, lambda path: path.write_text(text, encoding="utf-8"))]


def page(study: Study | StudyResults, *, top: int = 5) -> str:
    """Return a study as an HTML document; the same study gives the same page.

    Args:
        study: The study.
        top: How many of the best recipes to draw.

    Raises:
        SearchError: No search has run on the study.

    Example:
        >>> page(study)[:15]
        '<!DOCTYPE html>'
    """
    return _document(StudyReport.read(study, top))


@dataclass(frozen=True)
class Shown:
    """A study in a cell of a notebook (`html`), and as text elsewhere: see `show`."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(study: Study | StudyResults, *, top: int = 5) -> Shown:
    """Show a study in a cell of a notebook, with all that its page has, in the notebook's light or dark theme.

    It shows the study at this moment. Outside a notebook it is the leaderboard and the verdict as text.

    Args:
        study: The study.
        top: How many of the best recipes to draw.

    Raises:
        SearchError: No search has run on the study.

    Example:
        >>> show(study, top=1)
         rank  trial  visits depth search ppl held-out ppl  Δ nats ...
    """
    report = StudyReport.read(study, top)
    # Two studies may stand in one notebook: the ids of their drawings must differ.
    identity = f"{report.results.name}{report.trials.to_csv()}{report.board.to_csv()}".encode(errors="replace")
    content = PageContent(report, f"d{hashlib.sha256(identity).hexdigest()[:8]}-")
    text = f"{sentences.board_text(report.board)}\n\n{sentences.verdict(report.board)}"
    return Shown(str(part("cell", _hero(content), _sections(content))).strip(), text)


def _document(report: StudyReport) -> str:
    content = PageContent(report, mark="")
    title = f"David · {report.results.name}"
    return str(part("document", title, _hero(content), _sections(content))).strip() + "\n"


def _sections(content: PageContent) -> list[Section]:
    """Return the sections that have something to show."""
    return [section for make in SECTIONS if (section := make(content)) is not None]


def _hero(content: PageContent) -> dict[str, Any]:
    """Return the head of the page: the verdict, what it rests on, and four figures."""
    results, metadata = content.results, content.results.metadata
    verdict = sentences.verdict(content.report.board)
    verdicts = [row["verdict"] for row in content.recipes]
    n_scored, n_judged = len(results.scored), len(results.judged)
    with_base = ", the base among them," * (results.base_trial is not None)
    searched = data_text(metadata.search_data, results.item)
    lead = f"{counted(n_scored, 'recipe')}{with_base} scored on {searched}. "
    if metadata.held_out_data is None or not n_judged:
        lead += f"Nothing has been measured on held-out {results.item}s."
    else:
        held_out = data_text(metadata.held_out_data, results.item)
        lead += (
            f"The base and {counted(n_judged, 'finalist')} were then measured on {held_out} "
            "that the search had not seen."
        )
    if results.evaluations > 1:
        lead += f" {capitalised(sentences.looks(results))}."
    lead += "".join(f" {capitalised(sentence)}." for sentence in sentences.scarcity(results))
    return {
        "tone": "better" if BETTER in verdicts else "worse" if verdicts and set(verdicts) == {WORSE} else "even",
        "eyebrow": f"Study “{results.name}” on {metadata.base.model or 'a model'}, {results.n_layers} layers",
        "verdict": capitalised(verdict),
        "lead": lead,
        "tiles": _tiles(content),
    }


def _tiles(content: PageContent) -> list[tuple[str, str, str]]:
    """Return a label, a figure and a note for each tile of the head."""
    results = content.results
    base, unit = results.base_trial, results.unit
    if base is None:
        return []
    is_choice = unit == units.QUESTION
    measure, write_out = ("accuracy", share) if is_choice else (content.measure, figure)
    score = results.held_out(base)
    if score is None:
        base_row = next(row for row in content.rows if row["recipe"] == BASE)
        return [
            (f"Base, search {measure}", write_out(base_row[f"search_{measure}"]), "not judged yet"),
            _count(content),
        ]
    better = "higher" if is_choice or units.readable(unit, 1.0)[1] < units.readable(unit, 0.0)[1] else "lower"
    value = score.accuracy if is_choice else units.readable(unit, score.nll)[1]
    tiles = [(f"Base, held-out {measure}", write_out(value), f"{better} is better")]
    best = next((row for row in content.recipes if not math.isnan(row["held_out_nll"])), None)
    if best is not None:
        change = math.expm1(min(best["nll_difference"], 700))
        has_change = math.isfinite(change) and measure == "perplexity"
        difference = f"{signed(100 * change, 2)}% to the base’s, " if has_change else ""
        note = f"{difference}{verdict_text(best['verdict'])}"
        tiles.append((f"Best finalist, held-out {measure}", write_out(best[f"held_out_{measure}"]), note))
    documents = len(set(score.documents))
    scored = ("Held-out tokens scored", f"{score.tokens:,}", f"in {counted(documents, 'document')}")
    if results.item != "window":
        note = "each counts once" if set(score.window_tokens) == {1} else ""
        scored = (f"Held-out {results.item}s", f"{len(score.window_nll):,}", note)
    return [*tiles, _count(content), scored]


def _count(content: PageContent) -> tuple[str, str, str]:
    """Return the tile that counts recipes, and what proposed them."""
    results = content.results
    by = [name.partition("(")[0] for name in strategies(results)] or [results.metadata.sampler]
    return "Recipes scored", f"{len(results.scored):,}", f"by {', '.join(dict.fromkeys(by))}"

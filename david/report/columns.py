"""The columns of the leaderboard: one entry each in `leaderboard_columns`.

The table (`leaderboard.csv`), the text for a terminal and the page are all made from these entries. To add a column,
add an entry: its name and value for the table, a heading and text for the terminal, and a `PageCell` for the page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from david.metrics import units
from david.metrics.paired_test import Difference
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.report.formatting import (
    figure,
    number,
    percent,
    plain_figure,
    plain_share,
    plain_signed,
    share,
    verdict_text,
)
from david.storage import trial_attributes

BASE = "base"  # the base's recipe in the leaderboard

Row = Mapping[str, Any]  # of the leaderboard: the value of each column by its name


@dataclass(frozen=True)
class Entry:
    """What the values of a row are computed from.

    Attributes:
        trial: The trial of the recipe.
        recipe: The recipe.
        is_base: Whether it is the base.
        n_layers: Number of layers of the base.
        held_out: Its held-out score, if it was judged.
        difference: Its held-out NLL minus the base's, if both were judged.
    """

    trial: FrozenTrial
    recipe: Recipe
    is_base: bool
    n_layers: int
    held_out: Score | None
    difference: Difference | None

    @property
    def search_nll(self) -> float:
        """Mean NLL on the search windows."""
        return trial_attributes.value_of(self.trial)

    @property
    def held_out_nll(self) -> float:
        """Mean NLL on the held-out data; NaN if it was not judged."""
        return math.nan if self.held_out is None else self.held_out.nll

    @property
    def interval(self) -> Difference:
        """The difference to the base; NaN if it is unknown."""
        return self.difference or Difference(math.nan, math.nan, math.nan)

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not told apart` or `not judged`; empty for the base."""
        if self.is_base:
            return ""
        return "not judged" if self.difference is None else self.difference.word

    def extra_value(self, index: int) -> float:
        """Return the value of an extra objective; NaN if the trial has none."""
        return dict(enumerate(trial_attributes.values_of(self.trial)[1:])).get(index, math.nan)


@dataclass(frozen=True)
class PageCell:
    """How a column of figures stands on the page, behind the rank, recipe, verdict and difference.

    Attributes:
        place: Columns stand in the order of this number.
        heading: One or two lines.
        text: The text of a row.
        note: A small text below it.
    """

    place: int
    heading: tuple[str, ...]
    text: Callable[[Row], str]
    note: Callable[[Row], str] = lambda _: ""


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        name: Its name in the table.
        value: Its value in the table.
        heading: Its heading on the terminal; None if the terminal does not show it.
        text: The text of a row on the terminal; None for the value as it is.
        is_text: Whether the terminal aligns it to the left.
        is_last: Whether the terminal shows it behind the others, for texts without a limit.
        page: Its cell on the page, if it has one.
    """

    name: str
    value: Callable[[Entry], Any]
    heading: str | None = None
    text: Callable[[Row], str] | None = None
    is_text: bool = False
    is_last: bool = False
    page: PageCell | None = None

    def cell(self, row: Row) -> Any:
        """Return the text of a row on the terminal, or a value to be printed as it is."""
        return row[self.name] if self.text is None else self.text(row)


def leaderboard_columns(unit: str, extra_objectives: Sequence[str], *, generates: bool = False) -> tuple[Column, ...]:
    """Return the columns of a study's leaderboard, in the order of the table.

    Args:
        unit: Unit of what the study minimises.
        extra_objectives: Names of what it minimises beside that.
        generates: Whether the model generates answers, some of which may be cut.
    """
    measure, _ = units.readable(unit, 0.0)
    short = "ppl" if measure == "perplexity" else measure
    is_choice = unit == units.QUESTION
    accuracy = _share_columns("accuracy", "acc", trial_attributes.accuracy, lambda score: score.accuracy)
    cut_answers = _share_columns("cut", "cut", trial_attributes.cut_share, lambda score: score.cut_share)
    return (
        Column("rank", lambda _: 0, "rank"),  # known once the rows are sorted
        Column("trial", lambda entry: entry.trial.number, "trial"),
        Column(
            "recipe",
            lambda entry: BASE if entry.is_base else str(entry.recipe),
            "recipe",
            is_text=True,
            is_last=True,
        ),
        Column(
            "visits",
            lambda entry: len(entry.recipe),
            "visits",
            page=PageCell(
                4, ("Visits",), lambda row: str(row["visits"]), lambda row: f"{percent(row['extra_depth'])} depth"
            ),
        ),
        Column(
            "extra_depth",
            lambda entry: len(entry.recipe) / entry.n_layers - 1,
            "depth",
            lambda row: f"{row['extra_depth']:+.0%}",
        ),
        Column("search_nll", lambda entry: entry.search_nll),
        Column(
            f"search_{measure}",
            lambda entry: units.readable(unit, entry.search_nll)[1],
            f"search {short}",
            lambda row: plain_figure(row[f"search_{measure}"]),
            page=PageCell(2, ("Search", measure), lambda row: figure(row[f"search_{measure}"]), _share_note("search")),
        ),
        Column("held_out_nll", lambda entry: entry.held_out_nll),
        Column(
            f"held_out_{measure}",
            lambda entry: units.readable(unit, entry.held_out_nll)[1],
            f"held-out {short}",
            lambda row: plain_figure(row[f"held_out_{measure}"]),
            page=PageCell(
                1,
                ("Held-out", measure),
                lambda row: figure(row[f"held_out_{measure}"]),
                _share_note("held_out"),
            ),
        ),
        *(accuracy if is_choice else ()),
        *(cut_answers if generates else ()),
        *(_extra_column(index, name) for index, name in enumerate(extra_objectives)),
        Column(
            "nll_difference",
            lambda entry: entry.interval.mean,
            units.difference_heading(unit),
            lambda row: plain_signed(row["nll_difference"]),
        ),
        Column("low95", lambda entry: entry.interval.low, "95% interval", _interval_text),
        Column("high95", lambda entry: entry.interval.high),
        Column(
            "verdict", lambda entry: entry.verdict, "verdict", lambda row: verdict_text(row["verdict"]), is_text=True
        ),
    )


def terminal_columns(columns: Sequence[Column]) -> list[Column]:
    """Return the columns that a terminal shows, in its order."""
    return sorted((column for column in columns if column.heading is not None), key=lambda column: column.is_last)


def page_cells(columns: Sequence[Column]) -> list[PageCell]:
    """Return the cells of figures that the page shows, in its order."""
    return sorted((column.page for column in columns if column.page is not None), key=lambda cell: cell.place)


def _share_columns(
    name: str, word: str, of_trial: Callable[[FrozenTrial], float], of_score: Callable[[Score], float]
) -> tuple[Column, Column]:
    """Return a share of the search's items and of the held-out ones.

    Args:
        name: What follows `search_` and `held_out_` in the columns' names.
        word: What follows `search` and `held-out` in their headings.
        of_trial: Takes a trial and returns its share on the search data.
        of_score: Takes a held-out score and returns its share.
    """
    return (
        Column(
            f"search_{name}",
            lambda entry: of_trial(entry.trial),
            f"search {word}",
            lambda row: plain_share(row[f"search_{name}"]),
        ),
        Column(
            f"held_out_{name}",
            lambda entry: math.nan if entry.held_out is None else of_score(entry.held_out),
            f"held-out {word}",
            lambda row: plain_share(row[f"held_out_{name}"]),
        ),
    )


def _extra_column(index: int, name: str) -> Column:
    """Return the column of an extra objective; screen and page have the visits anyway."""
    if name == "visits":
        return Column("also_visits", lambda entry: entry.extra_value(index))
    return Column(
        f"also_{name}",
        lambda entry: entry.extra_value(index),
        f"search {name}",
        lambda row: f"{row[f'also_{name}']:.4g}",
        page=PageCell(3, (name, "in the search"), lambda row: number(row[f"also_{name}"])),
    )


def _share_note(data: str) -> Callable[[Row], str]:
    """Return what stands below a figure on the page: the share of answers that are right, or of those that were cut."""

    def note(row: Row) -> str:
        shares = {"right": f"{data}_accuracy", "cut": f"{data}_cut"}
        return ", ".join(f"{share(row[name])} {word}" for word, name in shares.items() if name in row)

    return note


def _interval_text(row: Row) -> str:
    low, high = row["low95"], row["high95"]
    return "" if math.isnan(low) else f"{low:+.4f} … {high:+.4f}"

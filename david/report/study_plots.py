"""The plots of a study: in the folder of its run and on its page.

`STUDY_PLOTS` lists them: to add a plot, write a function in `plots.py` and add an entry here. `drawings` returns those
that apply to a study, with their data.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from david.report import plots, tables
from david.report.rendering import VOID
from david.report.study_report import StudyReport

SEARCH_SECTION, BLOCKS_SECTION = "The search", "Repeating one block"  # the page's sections that hold plots


@dataclass(frozen=True)
class StudyPlot:
    """A plot of a study, in its folder and on its page. The plot's title is the caption on the page.

    Attributes:
        name: Name of its file, without `.png`; `{}` stands for the name of what it is repeated for.
        data: What to draw, from the study's report, and the name it is repeated for.
        draw: Draws that on the axes.
        size: Width and height of the file, in inches.
        section: The section of the page that shows it, `SEARCH_SECTION` or `BLOCKS_SECTION`; None if the page does not.
        page_size: Width and height on the page.
        page_style: Matplotlib settings on the page.
        applies: Whether the study has something to draw.
        repeated_for: Names to draw it for; by default it is drawn once.
    """

    name: str
    data: Callable[[StudyReport, str], Any]
    draw: Callable[[Any, Axes], Axes]
    size: tuple[float, float] = (8, 4.5)
    section: str | None = SEARCH_SECTION
    page_size: tuple[float, float] = (5, 3.6)
    page_style: Mapping[str, Any] = field(default_factory=lambda: {"axes.grid": True})
    applies: Callable[[StudyReport], bool] = lambda report: not report.board.empty
    repeated_for: Callable[[StudyReport], Sequence[str]] = lambda _: [""]

    def __post_init__(self) -> None:
        if self.section not in (None, SEARCH_SECTION, BLOCKS_SECTION):
            raise ValueError(f"section must be SEARCH_SECTION, BLOCKS_SECTION or None; got {self.section!r}")


# In the order of the page.
STUDY_PLOTS: tuple[StudyPlot, ...] = (
    StudyPlot(
        "path",
        data=lambda report, _: tables.paths(report.board, report.results.n_layers),
        draw=plots.paths,
        size=(8, 5.5),
        section=None,  # the page draws a path for each recipe instead
    ),
    StudyPlot("history", data=lambda report, _: report.trials, draw=plots.history),
    StudyPlot(
        "depth",
        data=lambda report, _: (report.trials, report.depth_front),
        draw=lambda data, ax: plots.depth(data[0], ax, front=data[1]),
    ),
    StudyPlot(
        "against_{}",
        data=lambda report, name: (report.trials, name, tables.front(report.trials, [f"also_{name}"])),
        draw=lambda data, ax: plots.tradeoff(data[0], data[1], ax, front=data[2]),
        repeated_for=lambda report: report.results.extra_columns,
    ),
    StudyPlot(
        "blocks",
        data=lambda report, _: report.blocks,
        draw=plots.blocks,
        size=(7.5, 6),
        section=BLOCKS_SECTION,
        page_size=(5.6, 4.6),
        page_style={"axes.facecolor": VOID},
        applies=lambda report: tables.is_map(report.blocks),
    ),
)


@dataclass(frozen=True)
class Drawing:
    """A plot of `STUDY_PLOTS` with the data of one study.

    Attributes:
        plot: The plot.
        name: Name of its file, without `.png`.
        draw: Draws it on the axes.
    """

    plot: StudyPlot
    name: str
    draw: Callable[[Axes], Axes]


def drawings(report: StudyReport) -> list[Drawing]:
    """Return the plots that apply to a study.

    Args:
        report: The study's report.

    Example:
        >>> from david.report.study_report import StudyReport
        >>> [drawing.name for drawing in drawings(StudyReport.read(study))]
        ['path', 'history', 'depth']
    """
    return [
        Drawing(plot, plot.name.format(re.sub(r"\W+", "-", name)), partial(plot.draw, plot.data(report, name)))
        for plot in STUDY_PLOTS
        if plot.applies(report)
        for name in plot.repeated_for(report)
    ]

"""What a study leaves behind: tables, plots, and the best recipe as a file."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import Study

from david.report import plots, tables
from david.report.best_json import best_recipe
from david.storage import results
from david.support.files import make_folder, write_atomically


def write(study: Study, folder: str | os.PathLike[str], *, top: int = 5) -> list[Path]:
    """Write a study's tables, plots and best recipe (`best.json`) into a folder.

    The tables are `trials.csv`, `leaderboard.csv` and the Pareto front, `front.csv`.
    The plots are `path.png`, `history.png`, `depth.png`, `blocks.png` (of a `table.is_map`), and `against_….png` for
    what is minimised beside the NLL. Each file is written beside and then renamed. Returns the files. Raises
    `SearchError` where the folder cannot be written. `page.write` adds the page.
    """
    make_folder(folder)
    trials, board, grid = tables.trials(study), tables.leaderboard(study, top), tables.blocks(study)
    files: dict[str, Callable[[Path], object]] = {
        "trials.csv": lambda path: trials.to_csv(path, index=False),
        "leaderboard.csv": lambda path: board.to_csv(path, index=False),
        "front.csv": lambda path: tables.front(trials).to_csv(path, index=False),
    }
    best = best_recipe(study, top=top)
    if best is not None:
        files["best.json"] = best.save
    if not board.empty:
        files["path.png"] = _drawing(lambda ax: plots.paths(tables.paths(board, results.depth_of(study)), ax), (8, 5.5))
        files["history.png"] = _drawing(lambda ax: plots.history(trials, ax), (8, 4.5))
        depths = tables.front(trials, ["visits"])
        files["depth.png"] = _drawing(lambda ax: plots.depth(trials, ax, front=depths), (8, 4.5))
        for name in results.traded(study):
            files[f"against_{slug(name)}.png"] = _drawing(partial(against, trials, name), (8, 4.5))
    if tables.is_map(grid):
        files["blocks.png"] = _drawing(lambda ax: plots.blocks(grid, ax), (7.5, 6))
    return [write_atomically(Path(folder) / name, make) for name, make in files.items()]


def against(trials: pd.DataFrame, name: str, ax: Axes) -> Axes:
    """Draw the NLL against what is minimised beside it, with the front of both."""
    return plots.tradeoff(trials, name, ax, front=tables.front(trials, [f"also_{name}"]))


def slug(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"\W+", "-", name)


def write_profile(layers: pd.DataFrame, distances: pd.DataFrame, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the tables of a `profile.Profile` (`profile.csv`, `distances.csv`) and their plots; returns the files."""
    make_folder(folder)
    files: dict[str, Callable[[Path], object]] = {
        "profile.csv": lambda path: layers.to_csv(path, index=False),
        "distances.csv": distances.to_csv,
        "profile.png": _drawing(lambda ax: plots.profile(layers, ax), (9, 4.5)),
        "influence.png": _drawing(lambda ax: plots.influence(layers, ax), (9, 3)),
    }
    return [write_atomically(Path(folder) / name, make) for name, make in files.items()]


def _drawing(draw: Callable[[Axes], Axes], size: tuple[float, float]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path, dpi=120, format="png")

    return put

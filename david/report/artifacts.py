"""The files that a study leaves in its folder: tables, plots, and the best recipe."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import Study

from david.errors import RecipeError, SearchError
from david.recipe.recipe import Recipe
from david.report import plots
from david.report.best_json import best_recipe
from david.report.study_plots import STUDY_PLOTS, drawings
from david.report.study_report import StudyReport
from david.storage.results import StudyResults
from david.support.files import make_folder, write_atomically
from david.support.text import plain

_HEAD = 1000  # bytes of a file that show whose it is
_UNNAMED = "no-name-"  # how Optuna begins the names of studies that nobody named


def write(study: Study | StudyResults, folder: str | os.PathLike[str], *, top: int = 5) -> list[Path]:
    """Write a study's tables, plots and best recipe (`best.json`) into a folder.

    The tables are `trials.csv`, `leaderboard.csv` and the Pareto front, `front.csv`; the plots are those of
    `study_plots.STUDY_PLOTS` that apply to the study. Each file is written beside its place and then renamed.
    `page.write` adds the page.

    Args:
        study: The study.
        folder: The folder; it is made if it does not exist.
        top: How many of the search's best the leaderboard shows, if they are not judged yet.

    Returns:
        The files.

    Raises:
        SearchError: The folder cannot be written, or holds files of others under these names; or no search has run on
            the study.
    """
    return write_files(StudyReport.read(study, top), folder)


def write_files(report: StudyReport, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the files of `write` from a report that was read already.

    Args:
        report: The study's report.
        folder: The folder; it is made if it does not exist.

    Returns:
        The files.

    Raises:
        SearchError: The folder cannot be written, or holds files of others under these names.
    """
    check_own_files(folder, report.results.name)
    make_folder(folder)
    trials, board, front = report.trials, report.board, report.front  # before a file is written: a study may be damaged
    files: dict[str, Callable[[Path], object]] = {
        "trials.csv": lambda path: trials.to_csv(path, index=False),
        "leaderboard.csv": lambda path: board.to_csv(path, index=False),
        "front.csv": lambda path: front.to_csv(path, index=False),
    }
    best = best_recipe(report.results, top=report.top, board=board)
    if best is not None:
        files["best.json"] = best.save
    for drawing in drawings(report):
        files[f"{drawing.name}.png"] = _picture(drawing.draw, drawing.plot.size)
    return [write_atomically(Path(folder) / name, make) for name, make in files.items()]


def write_profile(layers: pd.DataFrame, distances: pd.DataFrame, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the tables of a `profile.Profile` and their plots.

    Args:
        layers: The profile's `layers`, written as `profile.csv`.
        distances: The profile's `distances`, written as `distances.csv`.
        folder: The folder; it is made if it does not exist.

    Returns:
        The files.

    Raises:
        SearchError: The folder cannot be written, or holds files of others under these names.
    """
    check_own_profile(folder)
    make_folder(folder)
    files: dict[str, Callable[[Path], object]] = {
        "profile.csv": lambda path: layers.to_csv(path, index=False),
        "distances.csv": distances.to_csv,
        "profile.png": _picture(lambda ax: plots.profile(layers, ax), (9, 4.5)),
        "influence.png": _picture(lambda ax: plots.influence(layers, ax), (9, 3)),
    }
    return [write_atomically(Path(folder) / name, make) for name, make in files.items()]


def check_own_files(folder: str | os.PathLike[str], study_name: str) -> None:
    """Check that a folder holds no file of others under a name that a study's files have.

    A run's folder has David's `trials.csv`, which is written first. The recipe in `best.json` names its study.

    Args:
        folder: The folder; it need not exist.
        study_name: The study that is to be written.

    Raises:
        SearchError: It holds one.
    """
    names = [f"{plot.name.format('*')}.png" for plot in STUDY_PLOTS]
    names += ["leaderboard.csv", "front.csv", "best.json", "report.html"]
    _check_own(folder, names, "trials.csv", "trial,state,recipe,")
    best = Path(folder) / "best.json"
    if not os.path.isfile(best):
        return
    try:
        origin = Recipe.load(best).search
    except RecipeError:
        if b'"david.recipe"' in best.read_bytes()[:_HEAD]:
            return  # one of David's that is not whole: it is written again
        origin = None
    if origin is None or (origin.study != study_name and not origin.study.startswith(_UNNAMED)):
        whose = "is no file of a study" if origin is None else f"is of another study, {plain(origin.study)},"
        raise SearchError(f"{best} {whose} and would be replaced: name another folder, or move it away")


def check_own_profile(folder: str | os.PathLike[str]) -> None:
    """Check that a folder holds no file of others under a name that a profile's files have; raises as above."""
    _check_own(folder, ["distances.csv", "profile.png", "influence.png"], "profile.csv", "layer,influence,")


def _check_own(folder: str | os.PathLike[str], names: Sequence[str], mark: str, begins: str) -> None:
    """Raise `SearchError` if a folder holds one of these files, but not the table that David writes before them."""
    place = Path(folder)
    if not os.path.isdir(place):  # unlike Path.is_dir, False for a name that is too long
        return
    others = [path.name for name in names for path in sorted(place.glob(name)) if path.is_file()]
    try:  # read last: of two workers, one may be writing its files just now
        is_davids = (place / mark).read_bytes()[:_HEAD].startswith(begins.encode())
    except FileNotFoundError:
        is_davids = not others
    except OSError:  # a folder, or unreadable: writing it says so
        return
    if not is_davids:
        shown = ", ".join(others or [mark])
        raise SearchError(
            f"{place} holds files that are not David's and would be replaced ({shown}): name another folder, or move "
            "them away"
        )


def _picture(draw: Callable[[Axes], Axes], size: tuple[float, float]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path, dpi=120, format="png")

    return save

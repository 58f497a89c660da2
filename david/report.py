"""What a study leaves behind: tables, plots, and the best recipe as a file."""

import math
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import sqlalchemy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial

from david import plot, records, table, units
from david.errors import RecipeError, SearchError, one_line, reason
from david.luck import Luck
from david.origin import Base, Convention, Data, Measurement, Origin, Versions
from david.recipe import Recipe
from david.storage import open_storage, shown
from david.verdict import BETTER, UNDECIDED, Difference
from david.workers import LOCKED


def write(study: Study, folder: str | os.PathLike[str], *, top: int = 5) -> list[Path]:
    """Write a study's tables, plots and best recipe (`best.json`) into a folder.

    The tables are `trials.csv`, `leaderboard.csv` and the Pareto front, `front.csv`.
    The plots are `path.png`, `history.png`, `depth.png`, `blocks.png` (of a `table.is_map`), and `against_….png` for
    what is minimised beside the NLL. Each file is written beside and then renamed. Returns the files. Raises
    `SearchError` where the folder cannot be written. `page.write` adds the page.
    """
    ready_folder(folder)
    trials, board, grid = table.trials(study), table.leaderboard(study, top), table.blocks(study)
    files: dict[str, Callable[[Path], object]] = {
        "trials.csv": lambda path: trials.to_csv(path, index=False),
        "leaderboard.csv": lambda path: board.to_csv(path, index=False),
        "front.csv": lambda path: table.front(trials).to_csv(path, index=False),
    }
    best = best_recipe(study, top=top)
    if best is not None:
        files["best.json"] = best.save
    if not board.empty:
        files["path.png"] = _drawing(lambda ax: plot.paths(table.paths(board, records.depth_of(study)), ax), (8, 5.5))
        files["history.png"] = _drawing(lambda ax: plot.history(trials, ax), (8, 4.5))
        depths = table.front(trials, ["visits"])
        files["depth.png"] = _drawing(lambda ax: plot.depth(trials, ax, front=depths), (8, 4.5))
        for name in records.traded(study):
            files[f"against_{slug(name)}.png"] = _drawing(partial(against, trials, name), (8, 4.5))
    if table.is_map(grid):
        files["blocks.png"] = _drawing(lambda ax: plot.blocks(grid, ax), (7.5, 6))
    return [put(Path(folder) / name, make) for name, make in files.items()]


def against(trials: pd.DataFrame, name: str, ax: Axes) -> Axes:
    """Draw the NLL against what is minimised beside it, with the front of both."""
    return plot.tradeoff(trials, name, ax, front=table.front(trials, [f"also_{name}"]))


def slug(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"\W+", "-", name)


def write_profile(layers: pd.DataFrame, distances: pd.DataFrame, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the tables of a `profile.Profile` (`profile.csv`, `distances.csv`) and their plots; returns the files."""
    ready_folder(folder)
    files: dict[str, Callable[[Path], object]] = {
        "profile.csv": lambda path: layers.to_csv(path, index=False),
        "distances.csv": distances.to_csv,
        "profile.png": _drawing(lambda ax: plot.profile(layers, ax), (9, 4.5)),
        "influence.png": _drawing(lambda ax: plot.influence(layers, ax), (9, 3)),
    }
    return [put(Path(folder) / name, make) for name, make in files.items()]


def put(path: Path, make: Callable[[Path], object]) -> Path:
    """Have a file made beside its place, then rename it into it; `SearchError` where that fails."""
    beside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # containers that share a folder have one pid
    try:
        make(beside)
        return beside.replace(path)
    except (OSError, RecipeError) as error:
        cause = error.__context__ if isinstance(error, RecipeError) else error
        raise SearchError(f"cannot write {path}: {getattr(cause, 'strerror', None) or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def best_recipe(study: Study, *, top: int = 5) -> Recipe | None:
    """The first of the leaderboard that is not the base, with its scores and origin; None where there is none."""
    found = records.finalists(study, top)
    base = records.base_trial(study)
    if not found or base is None:
        return None
    best = found[0]
    about = records.about(study)
    recipe = Recipe.parse(best.user_attrs["recipe"])
    return Recipe(
        recipe.repeat_map,
        recipe.scales,
        base=Base(**about["base"]),
        scores=tuple(_measurements(study, best, base)),
        search=Origin(
            study=study.study_name,
            trial=best.number,
            space=about["space_name"],
            sampler=about["sampler"],
            strategy=best.user_attrs.get("strategy"),
            trials=len(records.complete(study)),
            seed=about["seed"],
        ),
        made_with=Versions(**about["made_with"], created=datetime.now(UTC).isoformat(timespec="seconds")),
    )


def verdict(board: pd.DataFrame) -> str:
    """The leaderboard in a sentence."""
    recipes = board[board["recipe"] != table.BASE] if not board.empty else board
    if recipes.empty:
        return "nothing but the base is scored yet"
    items = f"{board.attrs.get('item', 'window')}s"
    judged = recipes[recipes["verdict"] != "not judged"]
    if judged.empty:
        return f"not judged yet: no recipe is measured on held-out {items}"
    better = judged[judged["verdict"] == BETTER]
    if better.empty:
        apart = int((judged["verdict"] == UNDECIDED).sum())
        if not apart:
            return f"the base wins: on held-out {items} every finalist is worse ({len(judged)} of {len(judged)})"
        return (
            f"the base stands: on held-out {items} no finalist is better, "
            f"{apart} of {len(judged)} cannot be told apart from it"
        )
    first, corrected = better.iloc[0], f"corrected for {len(judged)} finalist" + "s" * (len(judged) > 1)
    by = f"{-first['nll_difference']:.4f} {units.behind(board.attrs.get('unit', units.TOKEN))}"
    return (
        f"better than the base on held-out {items}: {first['recipe']} by {by} "
        f"(95% interval {-first['high95']:.4f} to {-first['low95']:.4f}, {corrected})"
    )


def looks(study: Study) -> str:
    """How often the held-out windows were looked at, and for how many recipes, in a sentence; empty for never."""
    times, recipes = records.looks(study), len(records.judged(study))
    if not times:
        return ""
    often = "once" if times == 1 else f"{times} times"
    again = "" if times == 1 else ": with each look they are less held out, and a lucky winner is likelier"
    items = f"{records.item_of(study)}s"
    return (
        f"the held-out {items} were looked at {often}, for {recipes} recipe{'s' * (recipes != 1)} and the base{again}"
    )


def luck(found: Luck | None, recipes: int, unit: str = units.TOKEN, item: str = "window") -> str:
    """The luck line of so many recipes in a sentence; empty where it cannot be told.

    `unit` is what the scores are in, `item` what the search's data are counted in.
    """
    if found is None or math.isnan(found.typical):
        return ""
    line = f"by luck alone the best of {recipes} recipes would show {found.typical:+.4f} {units.behind(unit)}"
    said = f"{line} on the search {item}s"
    if math.isnan(found.chance):
        return said
    return f"{said}; the best shows {found.best:+.4f}, and luck alone is as low in {found.chance:.0%} of draws"


def baseline(study: Study) -> str:
    """How random recipes as deep as the best finalist do on held-out windows, in a sentence; empty where unknown."""
    found, base = records.baseline(study), records.base_trial(study)
    if found is None or base is None or not found.nll:
        return ""
    judged = next((trial for trial in records.judged(study) if trial.number == found.trial), None)
    best = None if judged is None else records.held_out(study, judged)
    its = records.held_out(study, base)
    if best is None or its is None:
        return ""
    apart = sorted(nll - its.nll for nll in found.nll.values())
    unit, items = units.behind(records.unit_of(study)), f"{records.item_of(study)}s"
    beaten = sum(best.nll < nll for nll in found.nll.values())
    return (
        f"random recipes as deep as the best finalist (trial {found.trial}) show {apart[0]:+.4f} to {apart[-1]:+.4f} "
        f"{unit} on the held-out {items}; it is lower than {beaten} of {len(apart)}"
    )


def rankings(study: Study) -> list[str]:
    """How well the search windows rank recipes for each other measure, a sentence each."""
    return [
        f"search NLL ranks {its.pairs} recipes for {name} with a rank correlation of {its.rho:+.2f} "
        f"(95% interval {its.low:+.2f} to {its.high:+.2f})"
        for name, its in table.rank_correlations(study).items()
        if not math.isnan(its.rho)
    ]


def board_text(board: pd.DataFrame) -> str:
    """The leaderboard for a terminal."""
    if board.empty:
        return "(nothing is scored yet)"
    also = [str(name) for name in board if str(name).startswith("also_") and name != "also_visits"]
    unit = board.attrs.get("unit", units.TOKEN)
    name, _ = units.read(unit, 0.0)
    short = "ppl" if name == "perplexity" else name
    shown = pd.DataFrame(
        {
            "rank": board["rank"],
            "trial": board["trial"],
            "visits": board["visits"],
            "depth": board["extra_depth"].map("{:+.0%}".format),
            f"search {short}": board[f"search_{name}"].map(_figure),
            f"held-out {short}": board[f"held_out_{name}"].map(_figure),
            **{
                f"{side.replace('_', '-')} acc": board[f"{side}_accuracy"].map(_percent)
                for side in ("search", "held_out")
                if f"{side}_accuracy" in board
            },
            **{f"search {its.removeprefix('also_')}": board[its].map("{:.4g}".format) for its in also},
            units.delta(unit): board["nll_difference"].map("{:+.4f}".format).replace("+nan", ""),
            "95% interval": [
                "" if math.isnan(low) else f"{low:+.4f} … {high:+.4f}"
                for low, high in zip(board["low95"], board["high95"], strict=True)
            ],
            _left("verdict", board["verdict"]): board["verdict"],
            _left("recipe", board["recipe"]): board["recipe"],
        }
    )
    to_the_left = {name: f"{{:<{len(name)}}}".format for name in shown.columns[-2:]}
    lines = str(shown.to_string(index=False, formatters=to_the_left)).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _left(name: str, values: "pd.Series[str]") -> str:
    """A column's name, as wide as its widest value."""
    return name.ljust(int(values.str.len().max()))


def open_existing(folder: str | os.PathLike[str] | None, storage: str | None, name: str | None = None) -> Study:
    """The study of a run's folder, or of a storage URL; `SearchError` where there is none, or several and no name."""
    if (folder is None) == (storage is None):
        raise SearchError("give a run's folder or a storage URL, one of the two")
    if folder is not None:
        storage = storage_in(folder)
        if not os.path.isfile(Path(folder) / "study.db"):
            raise SearchError(f"{os.fspath(folder)} holds no run: expected a study.db in it")
    assert storage is not None
    where = folder or shown(storage)
    try:
        url = sqlalchemy.make_url(storage)  # a ValueError of its own where the port is no number
        if url.get_backend_name() == "sqlite" and url.database:
            if not os.path.isfile(url.database):
                raise FileNotFoundError(f"there is no file {url.database}")  # SQLite would make one
            if not Path(url.database).stat().st_size:
                raise FileNotFoundError(f"the file {url.database} is empty")  # … or fill it
    except (OSError, ValueError, sqlalchemy.exc.ArgumentError) as error:
        raise SearchError(f"the storage {where} cannot be used: {one_line(error)}") from error
    with readable(f"the storage {where}"):
        opened = open_storage(storage)
        names = [name for name in optuna.get_all_study_names(opened) if not name.endswith(LOCKED)]
        wanted = name or (names[0] if len(names) == 1 else None)
        if wanted is None or wanted not in names:
            raise SearchError(f"name one of the studies in {where}: {', '.join(names) or 'it has none'}")
        return optuna.load_study(study_name=wanted, storage=opened)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """`SearchError` where a study holds what no search writes: others can write into a storage, too."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StorageInternalError) as error:
        reason = one_line(error.__cause__ or error)
        raise SearchError(f"{what} is damaged, or others have written into it: {reason}") from error


def storage_in(folder: str | os.PathLike[str]) -> str:
    """The storage URL of the study that a run keeps in its folder."""
    return sqlalchemy.URL.create("sqlite", database=str(Path(folder) / "study.db")).render_as_string()


def check_folder(folder: str | os.PathLike[str]) -> None:
    """`SearchError` unless files can be written into a folder, or one can be made there. Makes nothing."""
    wanted = Path(folder)
    existing = next((place for place in (wanted, *wanted.absolute().parents) if os.path.exists(place)), wanted)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {wanted} cannot be written: {reason(error)}") from None


def ready_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder where there is none, and make sure that files can be written there; `SearchError` if not."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {os.fspath(folder)} cannot be made: {reason(error)}") from None
    check_folder(folder)


def _measurements(study: Study, trial: FrozenTrial, base: FrozenTrial) -> list[Measurement]:
    about = records.about(study)
    convention = Convention(name=trial.user_attrs["convention"], window=about["window"], bos=about["bos"])
    metric = about["objective"].partition("(")[0]
    measured = []

    def _add(
        mine: float,
        its: float,
        tokens: int,
        kept: Mapping[str, Any],
        accuracies: tuple[float, float],
        *,
        held_out: bool,
        difference: Difference | None,
    ) -> None:
        if max(mine, its) < 700:  # exp of more is no number for a file
            measured.append(
                Measurement(
                    metric=metric,
                    value=math.exp(mine) if metric == "perplexity" else mine,
                    base=math.exp(its) if metric == "perplexity" else its,
                    nll_difference=mine - its,
                    interval95=_interval(difference),
                    accuracy=_known(accuracies[0]),
                    base_accuracy=_known(accuracies[1]),
                    tokens=tokens,
                    held_out=held_out,
                    convention=convention,
                    data=Data(**kept),
                )
            )

    searched = sum(trial.user_attrs["window_tokens"])
    right = records.accuracy(trial), records.accuracy(base)
    nll = records.value_of(trial), records.value_of(base)
    _add(*nll, searched, about["search_data"], right, held_out=False, difference=None)
    ours, theirs = records.held_out(study, trial), records.held_out(study, base)
    difference = table.difference_to_base(study, trial)
    if ours is not None and theirs is not None and difference is not None:
        tokens, right = sum(ours.window_tokens), (ours.accuracy, theirs.accuracy)
        _add(ours.nll, theirs.nll, tokens, about["held_out_data"], right, held_out=True, difference=difference)
    return measured


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _interval(difference: Difference | None) -> tuple[float, float] | None:
    if difference is None or not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return None
    return difference.low, difference.high


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if value < 1e5 else f"{value:.2e}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1%}"


def _drawing(draw: Callable[[Axes], Axes], size: tuple[float, float]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path, dpi=120, format="png")

    return put

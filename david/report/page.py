"""A study as one self-contained HTML page: the verdict in words first, then what it rests on.

The page loads nothing: no script, no font, no picture from elsewhere; what a study says of itself is escaped.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from markupsafe import Markup
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.metrics import units
from david.metrics.paired_test import BETTER, WORSE
from david.recipe.picture import svg_picture
from david.recipe.recipe import Recipe
from david.recipe.schema import Data, ranges_of
from david.report import artifacts, plots, sentences, tables
from david.report.inline_svg import VOID, drawing
from david.report.templating import counted, figure, part, rounded_up, share, signed
from david.storage import results, trial_attributes
from david.support import files

NAME = "report.html"


def write(study: Study, folder: str | os.PathLike[str], *, top: int = 5) -> list[Path]:
    """Write all that a study leaves behind into a folder: what `report.write` writes, and the page, `report.html`.

    Returns the files. Raises `SearchError` where the folder cannot be written.
    """
    written = artifacts.write(study, folder, top=top)
    text = page(study, top=top)
    return [*written, files.write_atomically(Path(folder) / NAME, lambda path: path.write_text(text, encoding="utf-8"))]


def page(study: Study, *, top: int = 5) -> str:
    """A study as an HTML document, its `top` best recipes as pictures; the same study gives the same page.

    Raises `SearchError` for a study that is not one of David's.

    Example:
        >>> page(study)[:15]
        '<!DOCTYPE html>'
    """
    run = _run(study, top)
    return str(part("document", f"David · {study.study_name}", _hero(run), _found(run))).strip() + "\n"


@dataclass(frozen=True)
class Shown:
    """A study as it stands in a cell of a notebook, and as text elsewhere: see `show`."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(study: Study, *, top: int = 5) -> Shown:
    """A study as a whole in a cell of a notebook: what its page tells, in the notebook's own light or dark theme.

    It is a picture of the study as it is now. Where there is no notebook it is the leaderboard and the verdict as text.
    Raises `SearchError` for a study that is not one of David's.

    Example:
        >>> show(study, top=1)
         rank  trial  visits depth search ppl held-out ppl  Δ nats ...
    """
    run = _run(study, top, apart=True)
    text = f"{sentences.board_text(run.board)}\n\n{sentences.verdict(run.board)}"
    return Shown(str(part("cell", _hero(run), _found(run))).strip(), text)


@dataclass(frozen=True)
class _Run:
    """What the sections of a page draw from: a study and its tables."""

    study: Study
    about: Mapping[str, Any]
    trials: pd.DataFrame
    board: pd.DataFrame
    grid: pd.DataFrame
    top: int
    mark: str  # before the ids of its drawings

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The rows of the leaderboard without the base."""
        return [row for row in self.rows if row["recipe"] != tables.BASE]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the leaderboard, best first."""
        return cast(list[dict[str, Any]], self.board.to_dict("records"))


def _run(study: Study, top: int, *, apart: bool = False) -> _Run:
    """A study's tables. In a notebook two studies may be on one page: `apart`, their drawings have ids of their own."""
    about, trials, board = results.about(study), tables.trials(study), tables.leaderboard(study, top)
    told = f"{study.study_name}{trials.to_csv()}{board.to_csv()}".encode(errors="replace") if apart else b""
    mark = f"d{hashlib.sha256(told).hexdigest()[:8]}-" if apart else ""
    return _Run(study, about, trials, board, tables.blocks(study), top, mark)


def _found(run: _Run) -> list["Section"]:
    """The sections that have something to show."""
    return [section for make in _SECTIONS if (section := make(run)) is not None]


Section = tuple[str, Markup]  # its heading, and what stands below


def _hero(run: _Run) -> dict[str, Any]:
    """The head of the page: the verdict, what it rests on, and four figures."""
    said = sentences.verdict(run.board)
    words = [row["verdict"] for row in run.recipes]
    base, held_out = run.about["base"], run.about["held_out_data"]
    scored = len(results.complete(run.study))
    judged = len(results.judged(run.study))
    with_base = ", the base among them," * (results.base_trial(run.study) is not None)
    lead = f"{counted(scored, 'recipe')}{with_base} scored on {_windows(run, run.about['search_data'])}. "
    if held_out is None or not judged:
        lead += f"Nothing has been measured on held-out {results.item_of(run.study)}s."
    else:
        lead += (
            f"The base and {counted(judged, 'finalist')} were then measured on {_windows(run, held_out)} "
            "that the search had not seen."
        )
    if results.evaluations(run.study) > 1:
        again = sentences.looks(run.study)
        lead += f" {again[:1].upper()}{again[1:]}."
    return {
        "tone": "better" if BETTER in words else "worse" if words and set(words) == {WORSE} else "even",
        "eyebrow": f"Study “{run.study.study_name}” on {base['model'] or 'a model'}, {base['num_layers']} layers",
        "verdict": said[:1].upper() + said[1:],
        "lead": lead,
        "tiles": _tiles(run),
    }


def _tiles(run: _Run) -> list[tuple[str, str, str]]:
    """A label, a figure and a note each."""
    base, unit = results.base_trial(run.study), results.unit_of(run.study)
    asked = unit == units.QUESTION
    if base is None:
        return []
    kept = results.held_out(run.study, base)
    measure, write_out = ("accuracy", share) if asked else (units.read(unit, 0.0)[0], figure)
    better = "higher" if asked or units.read(unit, 1.0)[1] < units.read(unit, 0.0)[1] else "lower"
    if kept is None:
        its = run.board[run.board["recipe"] == tables.BASE][f"search_{measure}"]
        return [(f"Base, search {measure}", write_out(float(its.iloc[0])), "not judged yet"), _tried(run)]
    value = kept.accuracy if asked else units.read(unit, kept.nll)[1]
    tiles = [(f"Base, held-out {measure}", write_out(value), f"{better} is better")]
    best = next((row for row in run.recipes if not math.isnan(row["held_out_nll"])), None)
    if best is not None:
        change = math.expm1(min(best["nll_difference"], 700))
        has_change = math.isfinite(change) and measure == "perplexity"
        apart = f"{signed(100 * change, 2)}% to the base’s, " if has_change else ""
        told = write_out(best[f"held_out_{measure}"])
        tiles.append((f"Best finalist, held-out {measure}", told, f"{apart}{best['verdict']}"))
    documents = len(set(kept.documents))
    measured = ("Held-out tokens scored", f"{sum(kept.window_tokens):,}", f"in {counted(documents, 'document')}")
    if (item := results.item_of(run.study)) != "window":
        measured = (f"Held-out {item}s", f"{documents:,}", "each counts once" if set(kept.window_tokens) == {1} else "")
    return [*tiles, _tried(run), measured]


def _tried(run: _Run) -> tuple[str, str, str]:
    by = [name.partition("(")[0] for name in _strategies(run.study)] or [run.about["sampler"]]
    return "Recipes scored", f"{len(results.complete(run.study)):,}", f"by {', '.join(dict.fromkeys(by))}"


def _strategies(study: Study) -> list[str]:
    """The strategies that asked for recipes, in the order of their first."""
    asked = (trial.user_attrs.get("strategy") for trial in study.get_trials(deepcopy=False))
    return list(dict.fromkeys(name for name in asked if name is not None))


def _leaderboard(run: _Run) -> Section | None:
    """The leaderboard, with a bar for each interval, all on one scale."""
    bounds = [abs(row[end]) for row in run.recipes for end in ("low95", "high95", "nll_difference")]
    reach = rounded_up(max((bound for bound in bounds if math.isfinite(bound)), default=0.0))
    rows = [row | {"is_base": row["recipe"] == tables.BASE, "bar": _bar(row, reach)} for row in run.rows]
    unit = results.unit_of(run.study)
    told = unit == units.QUESTION, unit, units.read(unit, 0.0)[0]
    return ("Leaderboard", part("leaderboard", rows, reach, *told, results.traded(run.study))) if rows else None


def _bar(row: Mapping[str, Any], reach: float) -> dict[str, Any] | None:
    """Where an interval's ends and middle stand in a drawing 200 wide, 0 nats at 100; None where there is none."""
    low, high, mean = row["low95"], row["high95"], row["nll_difference"]
    if math.isnan(low) or math.isnan(high):
        return None

    def place(value: float) -> float:
        return round(100 + 94 * (value / reach if math.isfinite(value) and reach else math.copysign(1, value)), 1)

    return {
        "low": 1 if low == -math.inf else place(low),
        "high": 199 if high == math.inf else place(high),
        "mean": place(mean) if math.isfinite(mean) else None,
        "low_is_open": low == -math.inf,
        "high_is_open": high == math.inf,
        "label": f"{signed(mean)}, 95% interval from {signed(low)} to {signed(high)}",
    }


def _paths(run: _Run) -> Section | None:
    """A picture for each of the best recipes."""
    n_layers = results.depth_of(run.study)
    cards = []
    for row in run.recipes[: run.top]:
        recipe = Recipe.parse(row["recipe"])
        drawn = svg_picture(recipe.repeat_map, recipe.scales, n_layers, room=290)
        cards.append(row | {"svg": Markup(drawn)})
    return ("Paths of the best recipes", part("paths", cards)) if cards else None


def _heatmap(run: _Run) -> Section | None:
    """The heatmap of single blocks, and the lowest of them."""
    if not tables.is_map(run.grid):
        return None
    values = run.grid.to_numpy(dtype=float)
    drawn = drawing(lambda ax: plots.blocks(run.grid, ax), (5.6, 4.6), f"{run.mark}blocks", {"axes.facecolor": VOID})
    lowest = sorted((values[i, j], int(i), int(j)) for i, j in np.argwhere(~np.isnan(values)))[:8]
    best = [(i, int(run.grid.columns[j]), difference) for difference, i, j in lowest]
    return "Repeating one block", part("blocks", drawn, best, results.unit_of(run.study))


def _course(run: _Run) -> Section | None:
    """NLL in the order of the trials, and against depth."""
    if run.board.empty:
        return None
    grid = {"axes.grid": True}
    drawings = [
        drawing(lambda ax: plots.history(run.trials, ax), (5, 3.6), f"{run.mark}history", grid),
        drawing(
            lambda ax: plots.depth(run.trials, ax, front=tables.front(run.trials, ["visits"])),
            (5, 3.6),
            f"{run.mark}depth",
            grid,
        ),
        *(
            drawing(
                partial(artifacts.against, run.trials, name),
                (5, 3.6),
                f"{run.mark}against-{artifacts.slug(name)}",
                grid,
            )
            for name in results.traded(run.study)
        ),
    ]
    return "The search", part("plots", drawings)


def _front(run: _Run) -> Section | None:
    """The recipes that no other beats in all that counts; the base alone makes no front."""
    rows = tables.front(run.trials).to_dict("records")
    traded, unit = results.traded(run.study), results.unit_of(run.study)
    told = unit, units.read(unit, 0.0)[0]
    named = "What depth buys" if not traded else "The Pareto front"
    return (named, part("front", rows, results.also(run.study), traded, *told)) if len(rows) > 1 else None


def _luck(run: _Run) -> Section | None:
    """What luck alone would show on the search windows, beside what was seen there."""
    found = tables.luck(run.study)
    unit = results.unit_of(run.study)
    said = sentences.luck(found, len(results.complete(run.study)) - 1, unit, results.item_of(run.study))
    return ("Luck", part("luck", f"{said[:1].upper()}{said[1:]}.", found, unit)) if said else None


def _baseline(run: _Run) -> Section | None:
    """What random recipes of the best one's depth show beside it."""
    said, found = sentences.baseline(run.study), results.baseline(run.study)
    if not said or found is None:
        return None
    rows = sorted(found.nll.items(), key=lambda item: item[1])
    unit = results.unit_of(run.study)
    return ("Beside random recipes", part("baseline", f"{said[:1].upper()}{said[1:]}.", rows, unit))


def _rankings(run: _Run) -> Section | None:
    """How well the search windows rank recipes for other measures."""
    said = sentences.rankings(run.study)
    return ("Other measures", part("rankings", [f"{line[:1].upper()}{line[1:]}." for line in said])) if said else None


def _seams(run: _Run) -> Section | None:
    """Where each finalist jumps."""
    every = range(results.depth_of(run.study))
    rows = []
    for row in run.recipes:
        visited = Recipe.parse(row["recipe"]).repeat_map
        jumps = [(before, after) for before, after in pairwise(visited) if after != before + 1]
        back, forward = [jump for jump in jumps if jump[1] <= jump[0]], [jump for jump in jumps if jump[1] > jump[0]]
        left_out = _ranges([layer for layer in every if layer not in set(visited)])
        rows.append(row | {"back": _jumps(back), "forward": _jumps(forward), "left_out": left_out})
    return ("Seams", part("seams", rows)) if rows else None


_MOST_JUMPS = 12


def _jumps(jumps: Sequence[tuple[int, int]]) -> list[str]:
    counted = Counter(f"{before} → {after}" for before, after in jumps)
    texts = [text if times == 1 else f"{text} ×{times}" for text, times in counted.items()]
    return texts if len(texts) <= _MOST_JUMPS else [*texts[:_MOST_JUMPS], f"and {len(texts) - _MOST_JUMPS} more"]


def _ranges(layers: Sequence[int]) -> str:
    """Layers in order, neighbours drawn together: `3, 7–9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _was_run(run: _Run) -> Section:
    """What was run: model, data, search, versions; and what failed."""
    about, base = run.about, run.about["base"]
    every = run.study.get_trials(deepcopy=False)
    model = [
        ("Model", base["model"] or "not told", False),
        ("Revision", base.get("revision") or "not told", False),
        ("Architecture", base["architecture"] or "not told", False),
        ("Layers", str(base["num_layers"]), False),
        ("Weights in", about["dtype"], False),
        ("Fingerprint", base["fingerprint"] or "not told", True),
        ("Run with", ", ".join(f"{name} {version}" for name, version in about["made_with"].items()), False),
    ]
    search = [
        ("Space", about["space"], True),
        ("Sampler", about["sampler"], False),
        *[("Strategy", name, True) for name in _strategies(run.study)],
        ("Seed", "the study’s own" if about["seed"] is None else str(about["seed"]), False),
        ("Objective", about["objective"], True),
        *[(f"Also minimised: {name}", _also(what), True) for name, what in about.get("also", [])],
        ("Convention", _convention(about, results.base_trial(run.study)), False),
        ("Trials", _trial_counts(every), False),
    ]
    groups = [
        ("Base", model),
        ("Search", search),
        ("Search windows", _data(about["search_data"], about["window"])),
        ("Held-out windows", _data(about["held_out_data"], about["window"])),
    ]
    failed = (trial for trial in every if trial.state == TrialState.FAIL)
    errors = Counter(str(trial.user_attrs.get("error", "broken off: no reason was kept")) for trial in failed)
    return "What was run", part("facts", groups, errors.most_common(5))


def _also(what: Any) -> str:
    """What a study minimises beside the NLL: a function, or an objective on other data."""
    return what if isinstance(what, str) else f"{what['objective']} on {_windows(None, what['data'])}"


def _convention(about: Mapping[str, Any], base: FrozenTrial | None) -> str:
    name = "" if base is None else f"{base.user_attrs['convention']}, "
    return f"{name}windows of {about['window']} tokens, {'with' if about['bos'] else 'without'} BOS"


def _trial_counts(every: Sequence[FrozenTrial]) -> str:
    """How many trials there are of each kind."""
    complete = [trial for trial in every if trial.state == TrialState.COMPLETE]
    duplicates = sum("duplicate_of" in trial.user_attrs for trial in complete)
    counts = {
        "complete": len(complete),
        "of these duplicates": duplicates,
        "dropped early": sum(trial_attributes.PARTIAL in trial.user_attrs for trial in complete),
        "failed": sum(trial.state == TrialState.FAIL for trial in every),
        "unfinished": sum(not trial.state.is_finished() for trial in every),
    }
    return f"{len(every):,} in all: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _data(data: Mapping[str, Any] | None, window: int) -> list[tuple[str, str, bool]]:
    if data is None:
        return [("Source", "none: nothing is kept apart", False)]
    data = Data(**data).model_dump()
    documents = data["documents"]
    spread = f", of {counted(documents, 'document')}" if documents else ""
    return [
        ("Source", data["source"], False),
        ("Slice", data["slice"] or "all of it", False),
        ("Windows", f"{sum(map(len, ranges_of(data['windows'] or '0:0')))} of {window} tokens{spread}", False),
        ("Their numbers", data["windows"] or "not told", True),
        ("SHA-256 of the text", data["sha256"], True),
        *([("SHA-256 of the tokens", tokens, True)] if (tokens := data["tokens_sha256"]) else []),
    ]


def _windows(run: _Run | None, data: Mapping[str, Any]) -> str:
    told = Data(**data)
    if run is not None and (item := results.item_of(run.study)) != "window":
        return f"{counted(told.documents or 0, item)} of {told.source}"
    return f"{counted(sum(map(len, ranges_of(told.windows or '0:0'))), 'window')} of {told.source}"


def _how_to_read(_: _Run) -> Section:
    return "How to read this", part("reading")


# In this order; a section with nothing to show is left out. One more is a function here.
_SECTIONS: tuple[Callable[[_Run], Section | None], ...] = (
    _leaderboard,
    _paths,
    _heatmap,
    _course,
    _front,
    _baseline,
    _luck,
    _rankings,
    _seams,
    _was_run,
    _how_to_read,
)

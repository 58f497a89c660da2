"""The sections of the page. `SECTIONS` lists them in order: to add one, add a function to it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np
from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState

from david.metrics import units
from david.recipe.picture import svg_picture
from david.recipe.recipe import Recipe
from david.recipe.schema import Data, ranges_of
from david.report import sentences
from david.report.columns import BASE, leaderboard_columns, page_cells
from david.report.formatting import capitalised, rounded_up, signed
from david.report.rendering import inline_svg, part
from david.report.study_plots import BLOCKS_SECTION, SEARCH_SECTION, drawings
from david.report.study_report import StudyReport
from david.report.tables import is_map
from david.storage.queue import STRATEGY
from david.storage.results import StudyResults
from david.storage.study_metadata import StudyMetadata
from david.storage.trial_attributes import CONVENTION, DUPLICATE_OF, ERROR, PARTIAL
from david.support.text import counted

Section = tuple[str, Markup]  # heading and content

_LOWEST_BLOCKS = 8
_MOST_JUMPS = 12
_MOST_ERRORS = 5


@dataclass(frozen=True)
class PageContent:
    """What the sections of a page are made from.

    Attributes:
        report: The study's report.
        mark: Stands before the ids of the drawings, so that two pages in one document do not mix.
    """

    report: StudyReport
    mark: str

    @property
    def results(self) -> StudyResults:
        """The study's results."""
        return self.report.results

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the leaderboard, best first."""
        return cast(list[dict[str, Any]], self.report.board.to_dict("records"))

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The rows of the leaderboard without the base."""
        return [row for row in self.rows if row["recipe"] != BASE]

    @property
    def measure(self) -> str:
        """What people read of a score: `perplexity`, or the name of a metric."""
        return units.readable(self.results.unit, 0.0)[0]


def _leaderboard(page: PageContent) -> Section | None:
    """Render the leaderboard, with a bar for each interval, all on one scale."""
    bounds = [abs(row[end]) for row in page.recipes for end in ("low95", "high95", "nll_difference")]
    reach = rounded_up(max((bound for bound in bounds if math.isfinite(bound)), default=0.0))
    results = page.results
    columns = leaderboard_columns(results.unit, results.metadata.extra_objectives, generates=results.generates)
    cells = page_cells(columns)
    rows = [
        row
        | {
            "is_base": row["recipe"] == BASE,
            "bar": _bar(row, reach),
            "figures": [(cell.text(row), cell.note(row)) for cell in cells],
        }
        for row in page.rows
    ]
    is_choice = results.unit == units.QUESTION
    headings = [cell.heading for cell in cells]
    content = part("leaderboard", rows, reach, is_choice, results.unit, page.measure, headings, page.report.cut_note)
    return ("Leaderboard", content) if rows else None


def _bar(row: Mapping[str, Any], reach: float) -> dict[str, Any] | None:
    """Return where an interval's ends and middle stand in a drawing 200 wide, 0 nats at 100; None without one."""
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


def _paths(page: PageContent) -> Section | None:
    """Render a picture of each of the best recipes."""
    cards = []
    for row in page.recipes[: page.report.top]:
        recipe = Recipe.parse(row["recipe"])
        svg = svg_picture(recipe.repeat_map, recipe.scales, page.results.n_layers, room=290)
        cards.append(row | {"svg": Markup(svg)})
    return ("Paths of the best recipes", part("paths", cards)) if cards else None


def _plots(page: PageContent, section: str) -> list[dict[str, Any]]:
    """Draw the plots of a section."""
    return [
        inline_svg(item.draw, item.plot.page_size, f"{page.mark}{item.name.replace('_', '-')}", item.plot.page_style)
        for item in drawings(page.report)
        if item.plot.section == section
    ]


def _blocks(page: PageContent) -> Section | None:
    """Render the heatmap of single blocks, and the lowest of them."""
    svgs = _plots(page, BLOCKS_SECTION)
    grid = page.report.blocks
    if not is_map(grid):
        return (BLOCKS_SECTION, part("plots", svgs)) if svgs else None
    values = grid.to_numpy(dtype=float)
    lowest = sorted((values[i, j], int(i), int(j)) for i, j in np.argwhere(~np.isnan(values)))[:_LOWEST_BLOCKS]
    best = [(i, int(grid.columns[j]), difference) for difference, i, j in lowest]
    return BLOCKS_SECTION, part("blocks", svgs, best, page.results.unit)


def _search(page: PageContent) -> Section | None:
    """Render the NLL in the order of the trials, and against depth and extra objectives."""
    svgs = _plots(page, SEARCH_SECTION)
    return (SEARCH_SECTION, part("plots", svgs)) if svgs else None


def _front(page: PageContent) -> Section | None:
    """Render the Pareto front; the base alone makes none."""
    results = page.results
    rows = page.report.front.to_dict("records")
    heading = "The Pareto front" if results.extra_columns else "What depth buys"
    names = results.metadata.extra_objectives, results.extra_columns
    return (heading, part("front", rows, *names, results.unit, page.measure)) if len(rows) > 1 else None


def _baseline(page: PageContent) -> Section | None:
    """Render what random recipes as deep as the best finalist score."""
    sentence, baseline = sentences.baseline(page.results), page.results.baseline
    if not sentence or baseline is None:
        return None
    rows = sorted(baseline.nll.items(), key=lambda item: item[1])
    return "Beside random recipes", part("baseline", f"{capitalised(sentence)}.", rows, page.results.unit)


def _luck(page: PageContent) -> Section | None:
    """Render what luck alone would show on the search windows, beside what was seen there."""
    sentence = page.report.luck_sentence
    content = part("luck", f"{capitalised(sentence)}.", page.report.luck, page.results.unit) if sentence else None
    return None if content is None else ("Luck", content)


def _shrinkage(page: PageContent) -> Section | None:
    """Render how much of the finalists' gain is left on the held-out data."""
    found, sentence = page.report.shrinkage, page.report.shrinkage_sentence
    if found is None or not sentence:
        return None
    has_gain = not math.isnan(found.left)
    return "What is left of the gain", part("shrinkage", f"{capitalised(sentence)}.", has_gain)


def _rankings(page: PageContent) -> Section | None:
    """Render how similarly the study's objectives, and other measures, rank the recipes."""
    lines = page.report.ranking_sentences
    heading = "Other objectives and measures" if page.report.objective_correlations else "Other measures"
    return (heading, part("rankings", [f"{capitalised(line)}." for line in lines])) if lines else None


def _seams(page: PageContent) -> Section | None:
    """Render where each finalist jumps."""
    rows = []
    for row in page.recipes:
        visited = Recipe.parse(row["recipe"]).repeat_map
        jumps = [(before, after) for before, after in pairwise(visited) if after != before + 1]
        back, forward = [jump for jump in jumps if jump[1] <= jump[0]], [jump for jump in jumps if jump[1] > jump[0]]
        skipped = _ranges([layer for layer in range(page.results.n_layers) if layer not in set(visited)])
        rows.append(row | {"back": _jumps(back), "forward": _jumps(forward), "left_out": skipped})
    return ("Seams", part("seams", rows)) if rows else None


def _jumps(jumps: Sequence[tuple[int, int]]) -> list[str]:
    times = Counter(f"{before} → {after}" for before, after in jumps)
    texts = [text if n == 1 else f"{text} ×{n}" for text, n in times.items()]
    return texts if len(texts) <= _MOST_JUMPS else [*texts[:_MOST_JUMPS], f"and {len(texts) - _MOST_JUMPS} more"]


def _ranges(layers: Sequence[int]) -> str:
    """Return sorted layers with neighbours joined: `3, 7–9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _facts(page: PageContent) -> Section:
    """Render what was run (model, data, search, versions) and what failed."""
    results, metadata, base = page.results, page.results.metadata, page.results.metadata.base
    model = [
        ("Model", base.model or "unknown", False),
        ("Revision", base.revision or "unknown", False),
        ("Architecture", base.architecture or "unknown", False),
        ("Layers", str(base.num_layers), False),
        ("Weights in", metadata.dtype, False),
        ("Fingerprint", base.fingerprint or "unknown", True),
        ("Run with", ", ".join(f"{name} {version}" for name, version in metadata.made_with.items()), False),
    ]
    search = [
        ("Space", metadata.space, True),
        ("Sampler", metadata.sampler, False),
        *[("Strategy", name, True) for name in strategies(results)],
        ("Seed", "the study’s own" if metadata.seed is None else str(metadata.seed), False),
        ("Objective", metadata.objective, True),
        *[(f"Also minimised: {name}", _extra_objective(what), True) for name, what in metadata.also],
        ("Convention", _convention(metadata, results.base_trial), False),
        ("Trials", _trial_counts(results.trials), False),
    ]
    groups = [
        ("Base", model),
        ("Search", search),
        ("Search windows", _data(metadata.search_data, metadata.window)),
        ("Held-out windows", _data(metadata.held_out_data, metadata.window)),
    ]
    failed = (trial for trial in results.trials if trial.state == TrialState.FAIL)
    errors = Counter(str(trial.user_attrs.get(ERROR, "interrupted: no reason was stored")) for trial in failed)
    return "What was run", part("facts", groups, errors.most_common(_MOST_ERRORS))


def strategies(results: StudyResults) -> list[str]:
    """Return the strategies that proposed recipes, in the order of their first."""
    names = (trial.user_attrs.get(STRATEGY) for trial in results.trials)
    return list(dict.fromkeys(name for name in names if name is not None))


def _extra_objective(description: str | Mapping[str, Any]) -> str:
    """Return an extra objective in words: a function, or an objective on other data."""
    if isinstance(description, str):
        return description
    return f"{description['objective']} on {data_text(Data(**description['data']))}"


def _convention(metadata: StudyMetadata, base: FrozenTrial | None) -> str:
    name = "" if base is None else f"{base.user_attrs[CONVENTION]}, "
    return f"{name}windows of {metadata.window} tokens, {'with' if metadata.bos else 'without'} BOS"


def _trial_counts(trials: Sequence[FrozenTrial]) -> str:
    """Return how many trials there are of each kind."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    counts = {
        "complete": len(complete),
        "of these duplicates": sum(DUPLICATE_OF in trial.user_attrs for trial in complete),
        "dropped early": sum(PARTIAL in trial.user_attrs for trial in complete),
        "failed": sum(trial.state == TrialState.FAIL for trial in trials),
        "unfinished": sum(not trial.state.is_finished() for trial in trials),
    }
    return f"{len(trials):,} in all: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _data(data: Data | None, window: int) -> list[tuple[str, str, bool]]:
    if data is None:
        return [("Source", "none: nothing is held out", False)]
    spread = f", of {counted(data.documents, 'document')}" if data.documents else ""
    return [
        ("Source", data.source, False),
        ("Slice", data.slice or "all of it", False),
        ("Windows", f"{_n_windows(data)} of {window} tokens{spread}", False),
        ("Their numbers", data.windows or "unknown", True),
        ("SHA-256 of the text", data.sha256, True),
        *([("SHA-256 of the tokens", data.tokens_sha256, True)] if data.tokens_sha256 else []),
    ]


def data_text(data: Data, item: str = "window") -> str:
    """Return how much data was scored, and from where: `12 windows of words.txt`.

    Args:
        data: The data.
        item: What they are counted in: windows, questions or documents.
    """
    n = _n_windows(data) if item == "window" else data.documents or 0
    return f"{counted(n, item)} of {data.source}"


def _n_windows(data: Data) -> int:
    return sum(map(len, ranges_of(data.windows or "0:0")))


def _reading(_: PageContent) -> Section:
    return "How to read this", part("reading")


# In the order of the page. A section with nothing to show returns None and is left out.
SECTIONS: tuple[Callable[[PageContent], Section | None], ...] = (
    _leaderboard,
    _paths,
    _blocks,
    _search,
    _front,
    _shrinkage,
    _baseline,
    _luck,
    _rankings,
    _seams,
    _facts,
    _reading,
)

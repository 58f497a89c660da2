"""What a study found, in sentences, and the leaderboard as text for a terminal."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import pandas as pd
from optuna import Study

from david.errors import SearchError
from david.metrics import units
from david.metrics.paired_test import BETTER, FEWEST_DOCUMENTS, GROUP, UNDECIDED, Correlation
from david.metrics.selection_bias import Luck
from david.metrics.shrinkage import Shrinkage
from david.report import tables
from david.report.columns import BASE, leaderboard_columns, terminal_columns
from david.storage.results import StudyResults
from david.support.arguments import check_type
from david.support.text import counted, plain


def verdict(board: pd.DataFrame) -> str:
    """Return the leaderboard in a sentence.

    Args:
        board: The table of `tables.leaderboard`.
    """
    check_type("board", board, pd.DataFrame, SearchError)
    recipes = board[board["recipe"] != BASE] if not board.empty else board
    if recipes.empty:
        return "nothing but the base is scored yet"
    items = f"{board.attrs.get('item', 'window')}s"
    judged = recipes[recipes["verdict"] != "not judged"]
    if judged.empty:
        return f"not judged yet: no recipe is measured on held-out {items}"
    better = judged[judged["verdict"] == BETTER]
    if better.empty:
        n, undecided = len(judged), int((judged["verdict"] == UNDECIDED).sum())
        reason = f"{undecided} of {n} inconclusive" if undecided else f"every one is worse ({n} of {n})"
        return f"no finalist beats the base on held-out {items}: {reason}"
    first, corrected = better.iloc[0], f"corrected for {counted(len(judged), 'finalist')}"
    by = f"{-first['nll_difference']:.4f} {units.difference_unit(board.attrs.get('unit', units.TOKEN))}"
    return (
        f"better than the base on held-out {items}: {first['recipe']} by {by} "
        f"(95% interval {-first['high95']:.4f} to {-first['low95']:.4f}, {corrected})"
    )


def looks(study: Study | StudyResults) -> str:
    """Return how often the held-out data were evaluated, and for how many recipes, in a sentence.

    Args:
        study: The study.

    Returns:
        The sentence; empty if they were never evaluated.
    """
    results = StudyResults.read(study)
    times = results.evaluations
    if not times:
        return ""
    how_often = "once" if times == 1 else f"{times} times"
    warning = "" if times == 1 else ": each further evaluation makes a lucky winner likelier"
    return f"held-out data evaluated {how_often}, for {counted(len(results.judged), 'recipe')} and the base{warning}"


def luck(line: Luck | None, recipes: int, unit: str = units.TOKEN, item: str = "window") -> str:
    """Return the luck line in a sentence.

    Args:
        line: The luck line.
        recipes: How many recipes were scored, without the base.
        unit: Unit of the scores.
        item: What the search's data are counted in.

    Returns:
        The sentence; empty if the luck line is unknown.
    """
    if line is not None and line.best >= 0:
        shown = f"the best shows {line.best:+.4f} {units.difference_unit(unit)}"
        return f"no recipe is below the base on the search {item}s: {shown}, so there is no gain that could be luck"
    if line is None or math.isnan(line.typical):
        return ""
    typical = (
        f"by luck alone the best of {recipes} recipes would show {line.typical:+.4f} {units.difference_unit(unit)}"
    )
    sentence = f"{typical} on the search {item}s"
    if math.isnan(line.chance):
        return sentence
    return f"{sentence}; the best shows {line.best:+.4f}, and luck alone is as low in {line.chance:.0%} of draws"


def shrinkage(found: Shrinkage | None, unit: str = units.TOKEN, item: str = "window") -> str:
    """Return how much of the finalists' gain is left on the held-out data, in a sentence.

    Args:
        found: The shrinkage.
        unit: Unit of the scores.
        item: What the data are counted in.

    Returns:
        The sentence; empty if nothing was judged, or a finalist has no finite score.
    """
    if found is None or not (math.isfinite(found.search_gain) and math.isfinite(found.held_out_gain)):
        return ""
    one, unit = found.finalists == 1, units.difference_unit(unit)
    finalists, on_average = ("the finalist", "") if one else (f"the {found.finalists} finalists", "on average ")
    if math.isnan(found.left):
        return (
            f"{finalists} {'has' if one else 'have'} no gain over the base on the search {item}s: {on_average}"
            f"{found.search_gain:+.4f} {unit}, and {found.held_out_gain:+.4f} on the held-out {item}s"
        )
    interval = "no interval: too few held-out data"
    if math.isfinite(found.low) and math.isfinite(found.high):
        interval = f"95% interval {found.low:.0%} to {found.high:.0%}"
    return (
        f"{finalists} {'gains' if one else 'gain'} {on_average}{found.search_gain:+.4f} {unit} over the base on the "
        f"search {item}s; {found.left:.0%} of that is left on the held-out {item}s ({interval})"
    )


def few_documents(name: str, documents: Sequence[Hashable], purpose: str = "an interval") -> str:
    """Return in a sentence that windows come from too few documents to conclude anything from them.

    Args:
        name: What the windows are, in the singular.
        documents: The document or group of each window.
        purpose: What they are too few for.

    Returns:
        The sentence; empty if they are enough, or if there is one window.
    """
    distinct = set(documents)
    has_groups = any(str(document).startswith(GROUP) for document in distinct)
    if len(documents) < 2 or len(distinct) >= FEWEST_DOCUMENTS:
        return ""
    if len(distinct) == 1 and not has_groups:
        return f"{name} is of one document: its windows were taken as independent, which they are not; take more"
    count = counted(len(distinct), "group" if has_groups else "document")
    return f"{name} is of {count}, too few for {purpose}; take data of {FEWEST_DOCUMENTS} or more"


def scarcity(results: StudyResults) -> list[str]:
    """Return in sentences where a study has too few documents: for its luck line, for its verdict.

    One document is left out: a note says so when the search begins.
    """
    base, searched = results.base_trial, results.metadata.search_documents or []
    score = None if base is None else results.held_out(base)
    judged = () if score is None else score.documents
    sentences = [
        few_documents("the search part", searched, "a luck line"),
        few_documents("the held-out part", judged, "its intervals to say much"),
    ]
    return [sentence for sentence in sentences if sentence and "one document" not in sentence]


def baseline(study: Study | StudyResults) -> str:
    """Return how random recipes as deep as the best finalist do on the held-out data, in a sentence.

    Args:
        study: The study.

    Returns:
        The sentence; empty if none were scored.
    """
    results = StudyResults.read(study)
    random, base = results.baseline, results.base_trial
    if random is None or base is None or not random.nll:
        return ""
    finalist = next((trial for trial in results.judged if trial.number == random.trial), None)
    score = None if finalist is None else results.held_out(finalist)
    base_score = results.held_out(base)
    if score is None or base_score is None:
        return ""
    differences = sorted(nll - base_score.nll for nll in random.nll.values())
    unit, items = units.difference_unit(results.unit), f"{results.item}s"
    n_beaten = sum(score.nll < nll for nll in random.nll.values())
    return (
        f"random recipes as deep as the best finalist (trial {random.trial}) show {differences[0]:+.4f} to "
        f"{differences[-1]:+.4f} {unit} on the held-out {items}; it is lower than {n_beaten} of {len(differences)}"
    )


def rankings(study: Study | StudyResults) -> list[str]:
    """Return how well the search windows rank the recipes for each other measure, a sentence for each.

    Args:
        study: The study.
    """
    return ranking_sentences(tables.rank_correlations(study))


def ranking_sentences(correlations: Mapping[str, Correlation]) -> list[str]:
    """Return rank correlations in sentences, without those that are unknown.

    Args:
        correlations: Correlation of the search NLL with each measure, by the measure's name.
    """
    return [
        f"search NLL ranks {correlation.pairs} recipes for {name} with a rank correlation of {correlation.rho:+.2f} "
        f"(95% interval {correlation.low:+.2f} to {correlation.high:+.2f})"
        for name, correlation in correlations.items()
        if not math.isnan(correlation.rho)
    ]


def objective_sentences(correlations: Mapping[tuple[str, str], Correlation]) -> list[str]:
    """Return the rank correlations of a study's objectives in sentences, without those that are unknown.

    Args:
        correlations: Correlation of each two objectives, by their names.
    """
    return [
        f"{plain(first)} and {plain(second)} rank {correlation.pairs} recipes with a rank correlation of "
        f"{correlation.rho:+.2f} "
        f"(95% interval {correlation.low:+.2f} to {correlation.high:+.2f})"
        for (first, second), correlation in correlations.items()
        if not math.isnan(correlation.rho)
    ]


def board_text(board: pd.DataFrame) -> str:
    """Return the leaderboard as text for a terminal.

    Args:
        board: The table of `tables.leaderboard`.
    """
    check_type("board", board, pd.DataFrame, SearchError)
    if board.empty:
        return "(nothing is scored yet)"
    extra = [str(name).removeprefix("also_") for name in board if str(name).startswith("also_")]
    unit, generates = board.attrs.get("unit", units.TOKEN), "search_cut" in board
    columns = terminal_columns(leaderboard_columns(unit, extra, generates=generates))
    rows = cast(list[dict[str, Any]], board.to_dict("records"))
    shown, to_the_left = {}, {}
    for column in columns:
        cells = [column.cell(row) for row in rows]
        heading = column.heading or ""
        if column.is_text:
            heading = heading.ljust(max(map(len, cells)))
            to_the_left[heading] = f"{{:<{len(heading)}}}".format
        shown[heading] = cells
    lines = str(pd.DataFrame(shown).to_string(index=False, formatters=to_the_left)).splitlines()
    return "\n".join(line.rstrip() for line in lines)

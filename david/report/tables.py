"""A study as pandas tables: `trials`, `leaderboard`, `blocks`, `front`; its luck line, shrinkage and correlations.

Functions that take a study also take its `StudyResults`, which are then not read again.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from david.errors import SearchError
from david.metrics import units
from david.metrics.paired_test import Correlation, Difference, paired_difference, rank_correlation
from david.metrics.selection_bias import Luck
from david.metrics.selection_bias import luck as luck_of
from david.metrics.shrinkage import Shrinkage
from david.metrics.shrinkage import shrinkage as shrinkage_of
from david.recipe.blocks import blocks_of
from david.recipe.recipe import Recipe
from david.report.columns import BASE, Entry, leaderboard_columns
from david.storage import trial_attributes
from david.storage.results import StudyResults
from david.storage.trial_attributes import DUPLICATE_OF, PARTIAL, RECIPE, RIGHT, WINDOW_NLL, WINDOW_TOKENS
from david.support.arguments import check_type

__all__ = [
    "BASE",
    "blocks",
    "difference_to_base",
    "front",
    "is_map",
    "leaderboard",
    "luck",
    "objective_correlations",
    "paths",
    "rank_correlations",
    "shrinkage",
    "trials",
]


def trials(study: Study | StudyResults) -> pd.DataFrame:
    """Return a row for each trial, in order.

    Args:
        study: The study.

    Returns:
        A table with the columns

        - `trial`, `state`, `recipe`, `visits`, `extra_depth` (visits over the base's, minus 1);
        - `nll` (mean, nats a token), `perplexity` and `nll_difference` (recipe minus base);
        - `accuracy`: share of multiple-choice questions answered right;
        - `also_…`: what the study minimises beside the NLL;
        - `partial`: number of windows that a recipe dropped early has scored; its NLL is then an estimate;
        - `duplicate_of`: number of the trial that had the same recipe before;
        - `seconds` between asking for the trial and its result: recipes scored together have their batch's;
        - `param_…`: the parameters of the space.

        `attrs["unit"]` is the unit of what is minimised. If the objective is no NLL, `nll` holds its value (such as
        `1 − acc`), and the metric that people read of it (`acc`) replaces `perplexity`.

    Raises:
        SearchError: No search has run on the study.

    Example:
        >>> trials(study)[["trial", "visits"]].head(1).values.tolist()
        [[0, 30]]
    """
    results = StudyResults.read(study)
    base_nll = math.nan if results.base_trial is None else trial_attributes.value_of(results.base_trial)
    rows = [_trial_row(results, trial, base_nll) for trial in results.trials]
    columns = ["trial", "state", "recipe", "visits", "extra_depth", "nll", "perplexity", "nll_difference"]
    table = pd.DataFrame(rows, columns=None if rows else [*columns, "partial", "duplicate_of", "seconds"])
    table = table.astype({"visits": "Int64", "partial": "Int64", "duplicate_of": "Int64", "extra_depth": "float64"})
    table.attrs["unit"] = results.unit
    return table


def leaderboard(study: Study | StudyResults, top: int = 5) -> pd.DataFrame:
    """Return the base and the best recipes, best first: by held-out NLL where they were judged.

    Args:
        study: The study.
        top: How many of the search's best to include, if they are not judged yet.

    Returns:
        A table with the columns of `columns.leaderboard_columns`. `nll_difference` is recipe minus base in nats a
        token on the held-out data; `low95` and `high95` are its paired 95% interval, corrected for the number of
        finalists; `verdict` is better, worse, not told apart, or not judged. In multiple choice each question counts
        as a token, and `search_accuracy` and `held_out_accuracy` are the shares answered right. Where the model
        generates answers, `search_cut` and `held_out_cut` are the shares of them that were cut (see `Score.cut`).

        `attrs["unit"]`, and the columns of an objective that is no NLL, are as in `trials`; `attrs["item"]` is what
        the data are counted in: windows, questions, or the documents of tasks.

    Raises:
        SearchError: No search has run on the study.

    Example:
        >>> board = leaderboard(study)
        >>> board["rank"].tolist(), set(board["verdict"]) <= {"", "better", "worse", "not told apart"}
        ([1, 2, 3, 4, 5, 6], True)
    """
    results = StudyResults.read(study)
    base = results.base_trial
    columns = leaderboard_columns(results.unit, results.metadata.extra_objectives, generates=results.generates)
    rows: list[dict[str, Any]] = []
    for trial in [*([base] if base is not None else []), *results.finalists(top)]:
        entry = Entry(
            trial,
            Recipe.parse(trial.user_attrs[RECIPE]),
            is_base=trial is base,
            n_layers=results.n_layers,
            held_out=results.held_out(trial),
            difference=difference_to_base(results, trial),
        )
        rows.append({column.name: column.value(entry) for column in columns})
    rows.sort(key=lambda row: (math.isnan(row["held_out_nll"]), row["held_out_nll"], row["search_nll"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    board = pd.DataFrame(rows)
    board.attrs |= {"unit": results.unit, "item": results.item}
    return board


def blocks(study: Study | StudyResults) -> pd.DataFrame:
    """Return what repeating each single block (i, j) once does to the NLL.

    Args:
        study: The study.

    Returns:
        NLL minus the base's in nats a token: rows i, columns j, NaN where unknown; empty if the study has no such
        trial. `attrs["partial"]` lists the (i, j) whose value is an estimate, since a race dropped them early;
        `attrs["unit"]` is the unit of the differences.

    Example:
        >>> blocks(study).shape
        (30, 30)
    """
    results = StudyResults.read(study)
    base, n_layers = results.base_trial, results.n_layers
    cells: dict[tuple[int, int], float] = {}
    partial: list[tuple[int, int]] = []
    for trial in results.scored:
        parts = blocks_of(Recipe.parse(trial.user_attrs[RECIPE]), n_layers)
        if base is not None and parts and len(parts) == 1 and parts[0][2:] == (2, 1.0):
            cells[parts[0][:2]] = trial_attributes.value_of(trial) - trial_attributes.value_of(base)
            if PARTIAL in trial.user_attrs:
                partial.append(parts[0][:2])
    if not cells:
        return pd.DataFrame()
    table = pd.Series(cells).unstack()  # noqa: PD010  # one value a cell: nothing to aggregate
    table.index.name, table.columns.name = "i", "j"
    table = table.reindex(index=range(n_layers), columns=range(1, n_layers + 1)).astype("float64")
    table.attrs |= {"partial": partial, "unit": results.unit}
    return table


def is_map(grid: pd.DataFrame) -> bool:
    """Return whether the table of `blocks` is worth drawing: at least as many values as the base has layers.

    Example:
        >>> is_map(blocks(study))  # a search of six recipes
        False
    """
    return bool(grid.notna().to_numpy().sum() >= max(1, len(grid)))


def front(trials: pd.DataFrame, costs: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the Pareto front of `trials`: the rows that no other recipe beats in both NLL and all costs.

    The values are those of the search windows: the best of many is low by luck too. Recipes that a race dropped early
    are left out.

    Args:
        trials: The table of `trials`.
        costs: Columns to minimise beside the NLL; by default `also_…`, or if there are none the visits.

    Returns:
        Rows of `trials`, fewest visits first.

    Example:
        >>> int(front(trials(study))["visits"].min())
        30
    """
    scored = trials[trials["duplicate_of"].isna() & trials["partial"].isna() & trials["nll"].lt(math.inf)]
    ordered = scored.sort_values(["visits", "nll", "trial"])
    costs = costs or [str(name) for name in trials if str(name).startswith("also_")] or ["visits"]
    values = ordered[["nll", *costs]].to_numpy(dtype=float)
    return ordered[trial_attributes.unbeaten(values)].reset_index(drop=True)


def paths(board: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """Return a row for each visit of each recipe of a leaderboard.

    Args:
        board: The table of `leaderboard`.
        n_layers: Number of layers of the base.

    Returns:
        A table with the columns `recipe`, `visit` (its number), `layer` and `scale`.

    Example:
        >>> paths(leaderboard(study, top=1), 30).columns.tolist()
        ['recipe', 'visit', 'layer', 'scale']
    """
    rows = []
    for name in board["recipe"]:
        recipe = Recipe.identity(n_layers) if name == BASE else Recipe.parse(name)
        rows += [{"recipe": name, "visit": i, "layer": layer, "scale": s} for i, (layer, s) in enumerate(recipe)]
    return pd.DataFrame(rows)


def difference_to_base(study: Study | StudyResults, trial: FrozenTrial) -> Difference | None:
    """Return a finalist's held-out NLL minus the base's, with an interval corrected for the number of finalists.

    Args:
        study: The study.
        trial: The trial of the finalist.

    Returns:
        The difference; None for the base itself, and if one of the two was not judged.

    Example:
        >>> difference_to_base(study, study.trials[0]) is None  # the base itself
        True
    """
    check_type("trial", trial, FrozenTrial, SearchError)
    results = StudyResults.read(study)
    base = results.base_trial
    if base is None or trial.number == base.number:
        return None
    score, base_score = results.held_out(trial), results.held_out(base)
    if score is None or base_score is None:
        return None
    return paired_difference(
        score.window_nll,
        base_score.window_nll,
        base_score.window_tokens,
        documents=base_score.documents,
        finalists=results.n_picked,
    )


def luck(study: Study | StudyResults) -> Luck | None:
    """Return how low the best NLL on the search windows would be by luck alone, if no recipe beat the base.

    It is computed from all recipes that were scored. If the study does not store the documents of its search windows
    (`search_documents`), each window counts as one.

    Args:
        study: The study.

    Returns:
        The luck line; None if no recipe was scored, or the base has no finite score.

    Example:
        >>> luck(study).chance  # the search windows come from fewer than four documents: no luck line
        nan
    """
    results = StudyResults.read(study)
    base = results.base_trial
    if base is None or not np.all(np.isfinite(base.user_attrs[WINDOW_NLL])):
        return None
    others = [
        trial
        for trial in results.scored
        if trial.number != base.number and _is_paired(trial.user_attrs, base.user_attrs)
    ]
    if not others:
        return None
    base_nll, tokens = np.array(base.user_attrs[WINDOW_NLL]), base.user_attrs[WINDOW_TOKENS]
    differences = np.full((len(others), len(base_nll)), math.nan)
    for row, trial in zip(differences, others, strict=True):
        nll = trial.user_attrs[WINDOW_NLL]
        row[: len(nll)] = nll - base_nll[: len(nll)]
    documents = results.metadata.search_documents  # an objective of a user may have windows of its own
    return luck_of(differences, tokens, documents if documents and len(documents) == len(tokens) else None)


def rank_correlations(study: Study | StudyResults) -> dict[str, Correlation]:
    """Return how well the NLL on the search windows ranks the recipes for each other measure.

    Args:
        study: The study.

    Returns:
        A rank correlation for each measure of `david.measure`, by its name.

    Example:
        >>> rank_correlations(study)  # of a study whose recipes were measured on nothing else
        {}
    """
    results = StudyResults.read(study)
    values = {trial.number: trial_attributes.value_of(trial) for trial in results.fully_scored}
    correlations = {}
    for name, nll in results.measured.items():
        both = [number for number in nll if number in values]
        correlations[name] = rank_correlation([values[number] for number in both], [nll[number] for number in both])
    return correlations


def shrinkage(study: Study | StudyResults) -> Shrinkage | None:
    """Return how much of the finalists' mean gain on the search windows is left on the held-out ones.

    Args:
        study: The study.

    Returns:
        The shrinkage over all recipes that were judged; None if none was, or the base was not.

    Example:
        >>> shrinkage(study).finalists
        5
    """
    results = StudyResults.read(study)
    base = results.base_trial
    base_score = None if base is None else results.held_out(base)
    if base is None or base_score is None or not results.judged:
        return None
    base_nll = trial_attributes.value_of(base)
    scores = [results.held_out(trial) for trial in results.judged]
    return shrinkage_of(
        [trial_attributes.value_of(trial) - base_nll for trial in results.judged],
        [score.window_nll for score in scores if score is not None],
        base_score.window_nll,
        base_score.window_tokens,
        base_score.documents,
    )


def objective_correlations(study: Study | StudyResults) -> dict[tuple[str, str], Correlation]:
    """Return how similarly each two of a study's objectives rank its recipes.

    Args:
        study: The study.

    Returns:
        A rank correlation of the recipes that scored all search windows, the base among them, for each two objectives
        by their names; the first objective is `search NLL`, or the unit of what is minimised. Empty for a study with
        one objective.

    Example:
        >>> objective_correlations(study)  # of a study that minimises the NLL alone
        {}
    """
    results = StudyResults.read(study)
    first = "search NLL" if units.is_nll(results.unit) else results.unit
    names = [first, *results.metadata.extra_objectives]
    values = [trial_attributes.values_of(trial) for trial in results.fully_scored]
    columns = zip(names, zip(*values, strict=True), strict=False)
    return {(a, b): rank_correlation(of_a, of_b) for (a, of_a), (b, of_b) in combinations(columns, 2)}


def _trial_row(results: StudyResults, trial: FrozenTrial, base_nll: float) -> dict[str, Any]:
    notation = trial.user_attrs.get(RECIPE)
    recipe = None if notation is None else Recipe.parse(notation)
    nll, *extra = trial_attributes.values_of(trial) or [math.nan]
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "recipe": notation,
        "visits": None if recipe is None else len(recipe),
        "extra_depth": None if recipe is None else len(recipe) / results.n_layers - 1,
        "nll": nll,
        **dict([units.readable(results.unit, nll)]),
        "nll_difference": nll - base_nll,
        **({"accuracy": trial_attributes.accuracy(trial)} if RIGHT in trial.user_attrs else {}),
        **{f"also_{name}": value for name, value in zip(results.metadata.extra_objectives, extra, strict=False)},
        "partial": trial.user_attrs.get(PARTIAL),
        "duplicate_of": trial.user_attrs.get(DUPLICATE_OF),
        "seconds": trial.duration.total_seconds() if trial.duration is not None else math.nan,
        **{f"param_{name}": value for name, value in trial.params.items()},
    }


def _is_paired(attributes: Mapping[str, Any], base_attributes: Mapping[str, Any]) -> bool:
    """Return whether a trial has scored the windows of the base, or the first of them."""
    n = len(attributes.get(WINDOW_NLL, []))
    return (
        0 < n <= len(base_attributes[WINDOW_NLL])
        and attributes[WINDOW_TOKENS][:n] == base_attributes[WINDOW_TOKENS][:n]
    )

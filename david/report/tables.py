"""A study as pandas tables, and the numbers that sum it up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from david.metrics import units
from david.metrics.paired_test import Correlation, Difference, paired_difference, rank_correlation
from david.metrics.selection_bias import Luck
from david.metrics.selection_bias import luck as luck_of
from david.recipe.blocks import blocks_of
from david.recipe.recipe import Recipe
from david.storage import results, trial_attributes
from david.storage.trial_attributes import PARTIAL, RIGHT, WINDOW_NLL, WINDOW_TOKENS

BASE = "base"


def trials(study: Study) -> pd.DataFrame:
    """A row for each trial, in order: recipe, depth, NLL (nats a token), perplexity and the difference to the base.

    `accuracy` is the share of multiple-choice questions answered right, `also_…` what the study minimises beside the
    NLL. `partial` is the number of windows that a recipe dropped early has seen; its NLL is then an estimate. `seconds`
    is from when a trial was asked for until it was told: recipes that are scored together have their batch's.
    `attrs["unit"]` is what is minimised: nats a token, or of an objective that is no NLL something else, such as
    `1 − acc`. Then `nll` holds that, and instead of the perplexity stands what a person reads of it, here `acc`.

    Example:
        >>> trials(study)[["trial", "visits"]].head(1).values.tolist()
        [[0, 30]]
    """
    unit = results.unit_of(study)
    n_layers = results.depth_of(study)
    base = results.base_trial(study)
    base_nll = math.nan if base is None else trial_attributes.value_of(base)
    names = results.also(study)
    rows = []
    for trial in study.get_trials(deepcopy=False):
        notation = trial.user_attrs.get("recipe")
        recipe = None if notation is None else Recipe.parse(notation)
        nll = trial_attributes.value_of(trial)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "recipe": notation,
                "visits": None if recipe is None else len(recipe),
                "extra_depth": None if recipe is None else len(recipe) / n_layers - 1,
                "nll": nll,
                **dict([units.read(unit, nll)]),
                "nll_difference": nll - base_nll,
                **({"accuracy": trial_attributes.accuracy(trial)} if RIGHT in trial.user_attrs else {}),
                **{
                    f"also_{name}": value
                    for name, value in zip(names, trial_attributes.values_of(trial)[1:], strict=False)
                },
                "partial": trial.user_attrs.get(PARTIAL),
                "duplicate_of": trial.user_attrs.get("duplicate_of"),
                "seconds": trial.duration.total_seconds() if trial.duration is not None else math.nan,
                **{f"param_{name}": value for name, value in trial.params.items()},
            }
        )
    columns = ["trial", "state", "recipe", "visits", "extra_depth", "nll", "perplexity", "nll_difference"]
    table = pd.DataFrame(rows, columns=None if rows else [*columns, "partial", "duplicate_of", "seconds"])
    table = table.astype({"visits": "Int64", "partial": "Int64", "duplicate_of": "Int64", "extra_depth": "float64"})
    table.attrs["unit"] = unit
    return table


def leaderboard(study: Study, top: int = 5) -> pd.DataFrame:
    """The base and the best recipes, best first, as judged on held-out windows where they have been.

    Differences are recipe minus base in nats a token; the interval is the paired 95% one on held-out windows,
    corrected for the number of finalists; `verdict` is better, worse, not told apart, or not judged. Of multiple
    choice, each question counts as a token, and `search_accuracy` and `held_out_accuracy` are the shares answered
    right. `attrs["unit"]`, and the columns of an objective that is no NLL, are as in `trials`; `attrs["item"]` is what
    the data are counted in: windows, questions, or the documents of tasks.

    Example:
        >>> board = leaderboard(study)
        >>> board["rank"].tolist(), set(board["verdict"]) <= {"", "better", "worse", "not told apart"}
        ([1, 2, 3, 4, 5, 6], True)
    """
    base = results.base_trial(study)
    ranked = results.finalists(study, top)
    n_layers = results.depth_of(study)
    rows: list[dict[str, Any]] = []
    chosen = [*([base] if base is not None else []), *ranked]
    unit, names = results.unit_of(study), results.also(study)
    asked = unit == units.QUESTION
    for trial in chosen:
        recipe = Recipe.parse(trial.user_attrs["recipe"])
        kept = results.held_out(study, trial)
        difference = difference_to_base(study, trial)
        rows.append(
            {
                "rank": 0,
                "trial": trial.number,
                "recipe": BASE if trial is base else str(recipe),
                "visits": len(recipe),
                "extra_depth": len(recipe) / n_layers - 1,
                "search_nll": trial_attributes.value_of(trial),
                **_told("search", unit, trial_attributes.value_of(trial)),
                "held_out_nll": math.nan if kept is None else kept.nll,
                **_told("held_out", unit, math.nan if kept is None else kept.nll),
                **({"search_accuracy": trial_attributes.accuracy(trial)} if asked else {}),
                **({"held_out_accuracy": math.nan if kept is None else kept.accuracy} if asked else {}),
                **{
                    f"also_{name}": value
                    for name, value in zip(names, trial_attributes.values_of(trial)[1:], strict=False)
                },
                "nll_difference": math.nan if difference is None else difference.mean,
                "low95": math.nan if difference is None else difference.low,
                "high95": math.nan if difference is None else difference.high,
                "verdict": "" if trial is base else "not judged" if difference is None else difference.word,
            }
        )
    rows.sort(key=lambda row: (math.isnan(row["held_out_nll"]), row["held_out_nll"], row["search_nll"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    board = pd.DataFrame(rows)
    board.attrs |= {"unit": unit, "item": results.item_of(study)}
    return board


def blocks(study: Study) -> pd.DataFrame:
    """NLL minus the base's (nats a token) of every single block (i, j) run twice: rows i, columns j, NaN where unknown.

    Empty where the study has no such trial. `attrs["partial"]` lists the (i, j) whose value is an estimate, since a
    race dropped them early; `attrs["unit"]` is what the differences are in.

    Example:
        >>> blocks(study).shape
        (30, 30)
    """
    base = results.base_trial(study)
    n_layers = results.depth_of(study)
    cells: dict[tuple[int, int], float] = {}
    partial: list[tuple[int, int]] = []
    for trial in results.complete(study):
        parts = blocks_of(Recipe.parse(trial.user_attrs["recipe"]), n_layers)
        if base is not None and parts and len(parts) == 1 and parts[0][2:] == (2, 1.0):
            cells[parts[0][:2]] = trial_attributes.value_of(trial) - trial_attributes.value_of(base)
            if PARTIAL in trial.user_attrs:
                partial.append(parts[0][:2])
    if not cells:
        return pd.DataFrame()
    table = pd.Series(cells).unstack()  # noqa: PD010  # one value a cell: nothing to aggregate
    table.index.name, table.columns.name = "i", "j"
    table = table.reindex(index=range(n_layers), columns=range(1, n_layers + 1)).astype("float64")
    table.attrs |= {"partial": partial, "unit": results.unit_of(study)}
    return table


def is_map(grid: pd.DataFrame) -> bool:
    """Whether the scores of single blocks make a map worth drawing: as many as the base has layers, at least.

    Example:
        >>> is_map(blocks(study))  # a search of six recipes
        False
    """
    return bool(grid.notna().to_numpy().sum() >= max(1, len(grid)))


def front(trials: pd.DataFrame, costs: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of `trials` that no other recipe beats in both NLL and all `costs` (the Pareto front), shallowest first.

    Left out, the costs are the columns of what the study minimises beside the NLL, `also_…`; where it has none, the
    visits. On the search windows: the best of many is low by luck too. What a race dropped is left out.

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
    """A row for each visit of each recipe of a leaderboard: its recipe, the number of the visit, layer and scale.

    Example:
        >>> paths(leaderboard(study, top=1), 30).columns.tolist()
        ['recipe', 'visit', 'layer', 'scale']
    """
    rows = []
    for name in board["recipe"]:
        recipe = Recipe.identity(n_layers) if name == BASE else Recipe.parse(name)
        rows += [{"recipe": name, "visit": i, "layer": layer, "scale": s} for i, (layer, s) in enumerate(recipe)]
    return pd.DataFrame(rows)


def difference_to_base(study: Study, trial: FrozenTrial) -> Difference | None:
    """A finalist minus the base on the held-out windows, corrected for the number of finalists.

    Example:
        >>> difference_to_base(study, study.trials[0]) is None  # the base itself
        True
    """
    base = results.base_trial(study)
    mine, its = results.held_out(study, trial), None if base is None else results.held_out(study, base)
    if mine is None or its is None or base is None or trial.number == base.number:
        return None
    return paired_difference(
        mine.window_nll, its.window_nll, its.window_tokens, documents=its.documents, finalists=results.picked(study)
    )


def luck(study: Study) -> Luck | None:
    """How low the best recipe's NLL on the search windows would be by luck alone, were none better than the base.

    Made of all recipes that were scored. None where none was, or the base has no finite score. Where the study does not
    tell the documents of its search windows (`search_documents`), each window counts as one.

    Example:
        >>> found = luck(study)
        >>> found.extreme <= found.typical, 0 <= found.chance <= 1
        (True, True)
    """
    base = results.base_trial(study)
    if base is None or not np.all(np.isfinite(base.user_attrs[WINDOW_NLL])):
        return None
    others = [
        trial
        for trial in results.complete(study)
        if trial.number != base.number and _pairs(trial.user_attrs, base.user_attrs)
    ]
    if not others:
        return None
    its, tokens = np.array(base.user_attrs[WINDOW_NLL]), base.user_attrs[WINDOW_TOKENS]
    differences = np.full((len(others), len(its)), math.nan)
    for row, trial in zip(differences, others, strict=True):
        seen = trial.user_attrs[WINDOW_NLL]
        row[: len(seen)] = seen - its[: len(seen)]
    documents = results.about(study).get("search_documents")  # an objective of one's own may have windows of its own
    return luck_of(differences, tokens, documents if documents and len(documents) == len(tokens) else None)


def _pairs(mine: Mapping[str, Any], its: Mapping[str, Any]) -> bool:
    """Whether a trial has scored the base's windows, or the first of them."""
    seen = len(mine.get(WINDOW_NLL, []))
    return 0 < seen <= len(its[WINDOW_NLL]) and mine[WINDOW_TOKENS][:seen] == its[WINDOW_TOKENS][:seen]


def rank_correlations(study: Study) -> dict[str, Correlation]:
    """How alike the NLL on the search windows and each other measure rank the recipes.

    Example:
        >>> rank_correlations(study)  # of a study whose recipes were measured on nothing else
        {}
    """
    values = {trial.number: trial_attributes.value_of(trial) for trial in results.whole(study)}
    found = {}
    for name, nll in results.measured(study).items():
        both = [number for number in nll if number in values]
        found[name] = rank_correlation([values[number] for number in both], [nll[number] for number in both])
    return found


def _told(side: str, unit: str, mean: float) -> dict[str, float]:
    """What a person reads of a mean on one side, as a column."""
    name, value = units.read(unit, mean)
    return {f"{side}_{name}": value}

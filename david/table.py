"""A study as pandas tables.

What a search writes, and these tables read, besides Optuna's own: on the study, `david` (see `study.search`); on a
trial, `recipe` (its notation), `window_nll`, `window_tokens` and `convention` of its score on the search windows, and
`duplicate_of` where another trial had the recipe before. A finalist's score on the held-out windows is kept on the
study (Optuna closes a finished trial), as `held_out:<trial>`, and how often they were looked at as `held_out_looks`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.errors import SearchError
from david.luck import Luck
from david.luck import luck as luck_of
from david.recipe import Recipe
from david.space import blocks_of
from david.verdict import Correlation, Difference, paired_difference, rank_correlation

BASE = "base"
TOKEN, QUESTION = "token", "question"  # what an NLL is a mean of
WINDOW_NLL = "window_nll"  # of a trial: the NLL of each window it has seen, summed over the window's tokens
WINDOW_TOKENS = "window_tokens"  # … and how many tokens of each were scored
_LOOKS = "held_out_looks"  # of a study
_BASELINE = "baseline"
_MEASURED = "measured:"  # … behind which the name of another measure stands
RIGHT = "right"  # of a trial: which multiple-choice questions were answered right
PARTIAL = "partial"  # of a trial that was dropped before the last window: how many it has seen


def trials(study: Study) -> pd.DataFrame:
    """A row for each trial, in order: recipe, depth, NLL (nats a token), perplexity and the difference to the base.

    `accuracy` is the share of multiple-choice questions answered right, `also_…` what the study minimises beside the
    NLL. `partial` is the number of windows that a recipe dropped early has seen; its NLL is then an estimate. `seconds`
    is from when a trial was asked for until it was told: recipes that are scored together have their batch's.
    """
    n_layers = depth_of(study)
    base = base_trial(study)
    base_nll = math.nan if base is None else value_of(base)
    names = also(study)
    rows = []
    for trial in study.get_trials(deepcopy=False):
        notation = trial.user_attrs.get("recipe")
        recipe = None if notation is None else Recipe.parse(notation)
        nll = value_of(trial)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "recipe": notation,
                "visits": None if recipe is None else len(recipe),
                "extra_depth": None if recipe is None else len(recipe) / n_layers - 1,
                "nll": nll,
                "perplexity": _exp(nll),
                "nll_difference": nll - base_nll,
                **({"accuracy": accuracy(trial)} if RIGHT in trial.user_attrs else {}),
                **{f"also_{name}": value for name, value in zip(names, values_of(trial)[1:], strict=False)},
                "partial": trial.user_attrs.get(PARTIAL),
                "duplicate_of": trial.user_attrs.get("duplicate_of"),
                "seconds": trial.duration.total_seconds() if trial.duration is not None else math.nan,
                **{f"param_{name}": value for name, value in trial.params.items()},
            }
        )
    columns = ["trial", "state", "recipe", "visits", "extra_depth", "nll", "perplexity", "nll_difference"]
    table = pd.DataFrame(rows, columns=None if rows else [*columns, "partial", "duplicate_of", "seconds"])
    return table.astype({"visits": "Int64", "partial": "Int64", "duplicate_of": "Int64", "extra_depth": "float64"})


def leaderboard(study: Study, top: int = 5) -> pd.DataFrame:
    """The base and the best recipes, best first, as judged on held-out windows where they have been.

    Differences are recipe minus base in nats a token; the interval is the paired 95% one on held-out windows,
    corrected for the number of finalists; `verdict` is better, worse, not told apart, or not judged. Of multiple
    choice, each question counts as a token, and `search_accuracy` and `held_out_accuracy` are the shares answered
    right.
    """
    base = base_trial(study)
    ranked = finalists(study, top)
    n_layers = depth_of(study)
    rows: list[dict[str, Any]] = []
    chosen = [*([base] if base is not None else []), *ranked]
    asked, names = unit_of(study) == QUESTION, also(study)
    for trial in chosen:
        recipe = Recipe.parse(trial.user_attrs["recipe"])
        kept = held_out(study, trial)
        difference = difference_to_base(study, trial)
        rows.append(
            {
                "rank": 0,
                "trial": trial.number,
                "recipe": BASE if trial is base else str(recipe),
                "visits": len(recipe),
                "extra_depth": len(recipe) / n_layers - 1,
                "search_nll": value_of(trial),
                "search_perplexity": _exp(value_of(trial)),
                "held_out_nll": math.nan if kept is None else kept.nll,
                "held_out_perplexity": math.nan if kept is None else _exp(kept.nll),
                **({"search_accuracy": accuracy(trial)} if asked else {}),
                **({"held_out_accuracy": math.nan if kept is None else kept.accuracy} if asked else {}),
                **{f"also_{name}": value for name, value in zip(names, values_of(trial)[1:], strict=False)},
                "nll_difference": math.nan if difference is None else difference.mean,
                "low95": math.nan if difference is None else difference.low,
                "high95": math.nan if difference is None else difference.high,
                "verdict": "" if trial is base else "not judged" if difference is None else difference.word,
            }
        )
    rows.sort(key=lambda row: (math.isnan(row["held_out_nll"]), row["held_out_nll"], row["search_nll"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    return pd.DataFrame(rows)


def blocks(study: Study) -> pd.DataFrame:
    """NLL minus the base's (nats a token) of every single block (i, j) run twice: rows i, columns j, NaN where unknown.

    Empty where the study has no such trial. `attrs["partial"]` lists the (i, j) whose value is an estimate, since a
    race dropped them early; `attrs["unit"]` is what the NLL is a mean of.
    """
    base = base_trial(study)
    n_layers = depth_of(study)
    cells: dict[tuple[int, int], float] = {}
    partial: list[tuple[int, int]] = []
    for trial in complete(study):
        parts = blocks_of(Recipe.parse(trial.user_attrs["recipe"]), n_layers)
        if base is not None and parts and len(parts) == 1 and parts[0][2:] == (2, 1.0):
            cells[parts[0][:2]] = value_of(trial) - value_of(base)
            if PARTIAL in trial.user_attrs:
                partial.append(parts[0][:2])
    if not cells:
        return pd.DataFrame()
    table = pd.Series(cells).unstack()  # noqa: PD010  # one value a cell: nothing to aggregate
    table.index.name, table.columns.name = "i", "j"
    table = table.reindex(index=range(n_layers), columns=range(1, n_layers + 1)).astype("float64")
    table.attrs |= {"partial": partial, "unit": unit_of(study)}
    return table


def front(trials: pd.DataFrame, costs: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of `trials` that no other recipe beats in both NLL and all `costs` (the Pareto front), shallowest first.

    Left out, the costs are the columns of what the study minimises beside the NLL, `also_…`; where it has none, the
    visits. On the search windows: the best of many is low by luck too. What a race dropped is left out.
    """
    scored = trials[trials["duplicate_of"].isna() & trials["partial"].isna() & trials["nll"].lt(math.inf)]
    ordered = scored.sort_values(["visits", "nll", "trial"])
    costs = costs or [str(name) for name in trials if str(name).startswith("also_")] or ["visits"]
    values = ordered[["nll", *costs]].to_numpy(dtype=float)
    return ordered[_unbeaten(values)].reset_index(drop=True)


def _unbeaten(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of `values` `[R, K]` no other beats: none is as low in all and lower in one, or equal and before."""
    kept = np.ones(len(values), dtype=bool)
    for i, row in enumerate(values):
        as_low = (values <= row).all(axis=1)
        equal = (values == row).all(axis=1)
        kept[i] = not (as_low & ~equal).any() and not equal[:i].any()
    return kept


def paths(board: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """A row for each visit of each recipe of a leaderboard: its recipe, the number of the visit, layer and scale."""
    rows = []
    for name in board["recipe"]:
        recipe = Recipe.identity(n_layers) if name == BASE else Recipe.parse(name)
        rows += [{"recipe": name, "visit": i, "layer": layer, "scale": s} for i, (layer, s) in enumerate(recipe)]
    return pd.DataFrame(rows)


def finalists(study: Study, top: int = 5) -> list[FrozenTrial]:
    """The recipes judged on held-out windows, best there first; behind them those of the `top` best not judged yet.

    Never the base.
    """
    done = sorted(judged(study), key=lambda trial: (_held_out_nll(study, trial), trial.number))
    numbers = {trial.number for trial in done}
    return done + [trial for trial in best_of_search(study, top) if trial.number not in numbers]


def judged(study: Study) -> list[FrozenTrial]:
    """The recipes that have been measured on held-out windows, the base left out."""
    base, kept = str(Recipe.identity(depth_of(study))), study.user_attrs  # read once: Optuna copies all of it each time
    return [
        trial for trial in complete(study) if trial.user_attrs["recipe"] != base and f"held_out:{trial.number}" in kept
    ]


def judged_best(study: Study) -> FrozenTrial | None:
    """The recipe that is lowest on the held-out windows, the base left out; None where none was judged."""
    return min(judged(study), key=lambda trial: (_held_out_nll(study, trial), trial.number), default=None)


def best_of_search(study: Study, top: int) -> list[FrozenTrial]:
    """The `top` recipes with the lowest NLL on all search windows, the base left out, lowest first.

    Where more than the NLL is minimised, of those that no other one of them beats in all of it.
    """
    base = str(Recipe.identity(depth_of(study)))
    scored = [trial for trial in whole(study) if trial.user_attrs["recipe"] != base]
    if scored and also(study):
        unbeaten = _unbeaten(np.array([values_of(trial) for trial in scored]))
        scored = [trial for trial, best in zip(scored, unbeaten, strict=True) if best]
    return scored[:top]


def complete(study: Study) -> list[FrozenTrial]:
    """The finished trials with a recipe of their own: of one recipe the first that saw all windows, or the first."""
    first: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "recipe" in trial.user_attrs and "duplicate_of" not in trial.user_attrs:
            before = first.setdefault(trial.user_attrs["recipe"], trial)
            if PARTIAL in before.user_attrs and PARTIAL not in trial.user_attrs:
                first[trial.user_attrs["recipe"]] = trial
    return list(first.values())


def base_trial(study: Study) -> FrozenTrial | None:
    """The finished trial of the base itself."""
    base = str(Recipe.identity(depth_of(study)))
    return next((trial for trial in complete(study) if trial.user_attrs["recipe"] == base), None)


def depth_of(study: Study) -> int:
    """Layers of the base that a study was made on."""
    return int(about(study)["base"]["num_layers"])


def about(study: Study) -> Mapping[str, Any]:
    """What a search wrote of itself into the study: base, space, data, versions."""
    found: Mapping[str, Any] | None = study.user_attrs.get("david")
    if found is None:
        raise SearchError(f"the study {study.study_name!r} is not one of David's: no search has run on it")
    return found


@dataclass(frozen=True)
class HeldOut:
    """A finalist's score on the held-out windows: of each the NLL in nats, the scored tokens and the document.

    Of multiple-choice questions also which were answered `right`.
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int, ...]
    right: tuple[bool, ...] = ()

    @property
    def nll(self) -> float:
        """Mean NLL in nats a token."""
        return sum(self.window_nll) / sum(self.window_tokens)

    @property
    def accuracy(self) -> float:
        """The share of questions answered right; NaN of what is no multiple choice."""
        return _share(self.right)


def held_out(study: Study, trial: FrozenTrial) -> HeldOut | None:
    """The held-out score of a trial, where it has one."""
    kept = study.user_attrs.get(f"held_out:{trial.number}")
    return None if kept is None else HeldOut(**{name: tuple(values) for name, values in kept.items()})


def keep_held_out(study: Study, trial: FrozenTrial, score: HeldOut) -> None:
    """Keep a trial's held-out score in the study."""
    study.set_user_attr(f"held_out:{trial.number}", {name: list(values) for name, values in vars(score).items()})


def look(study: Study, picked: Sequence[FrozenTrial]) -> None:
    """Remember that held-out windows are looked at once more, for these."""
    study.set_user_attr(_LOOKS, [*study.user_attrs.get(_LOOKS, []), [trial.number for trial in picked]])


def looks(study: Study) -> int:
    """How often a study's held-out windows have been looked at: the more often, the less they are held out."""
    return len(study.user_attrs.get(_LOOKS, []))


def picked(study: Study) -> int:
    """How many recipes were ever picked to be judged, the base left out: what intervals are corrected for."""
    base = base_trial(study)
    numbers = {number for look in study.user_attrs.get(_LOOKS, []) for number in look}
    numbers |= {trial.number for trial in judged(study)}
    return len(numbers - ({base.number} if base is not None else set()))


@dataclass(frozen=True)
class Baseline:
    """The mean NLL on the held-out windows of random recipes as deep as the finalist `trial`; `asked` were drawn."""

    trial: int
    asked: int
    nll: Mapping[str, float]


def baseline(study: Study) -> Baseline | None:
    """What random recipes as deep as the best finalist have, where that was measured."""
    kept = study.user_attrs.get(_BASELINE)
    return None if kept is None else Baseline(**kept)


def keep_baseline(study: Study, found: Baseline) -> None:
    """Keep what random recipes have."""
    study.set_user_attr(_BASELINE, vars(found))


def difference_to_base(study: Study, trial: FrozenTrial) -> Difference | None:
    """A finalist minus the base on the held-out windows, corrected for the number of finalists."""
    base = base_trial(study)
    mine, its = held_out(study, trial), None if base is None else held_out(study, base)
    if mine is None or its is None or base is None or trial.number == base.number:
        return None
    return paired_difference(
        mine.window_nll, its.window_nll, its.window_tokens, documents=its.documents, finalists=picked(study)
    )


def luck(study: Study) -> Luck | None:
    """How low the best recipe's NLL on the search windows would be by luck alone, were none better than the base.

    Made of all recipes that were scored. None where none was, or the base has no finite score. Where the study does not
    tell the documents of its search windows (`search_documents`), each window counts as one.
    """
    base = base_trial(study)
    if base is None or not np.all(np.isfinite(base.user_attrs[WINDOW_NLL])):
        return None
    others = [
        trial for trial in complete(study) if trial.number != base.number and _pairs(trial.user_attrs, base.user_attrs)
    ]
    if not others:
        return None
    its, tokens = np.array(base.user_attrs[WINDOW_NLL]), base.user_attrs[WINDOW_TOKENS]
    differences = np.full((len(others), len(its)), math.nan)
    for row, trial in zip(differences, others, strict=True):
        seen = trial.user_attrs[WINDOW_NLL]
        row[: len(seen)] = seen - its[: len(seen)]
    documents = about(study).get("search_documents")  # an objective of one's own may have windows of its own
    return luck_of(differences, tokens, documents if documents and len(documents) == len(tokens) else None)


def _pairs(mine: Mapping[str, Any], its: Mapping[str, Any]) -> bool:
    """Whether a trial has scored the base's windows, or the first of them."""
    seen = len(mine.get(WINDOW_NLL, []))
    return 0 < seen <= len(its[WINDOW_NLL]) and mine[WINDOW_TOKENS][:seen] == its[WINDOW_TOKENS][:seen]


def whole(study: Study) -> list[FrozenTrial]:
    """The trials that saw all search windows, the base among them, lowest NLL first; none with an infinite one."""
    scored = [t for t in complete(study) if PARTIAL not in t.user_attrs and math.isfinite(value_of(t))]
    return sorted(scored, key=lambda trial: (value_of(trial), trial.number))


def measured(study: Study) -> dict[str, dict[int, float]]:
    """By each measure that `measures.measure` made, the NLL of trials by their numbers."""
    attrs = study.user_attrs
    names = [key.removeprefix(_MEASURED) for key in attrs if key.startswith(_MEASURED)]
    return {name: {int(number): nll for number, nll in attrs[_MEASURED + name].items()} for name in names}


def keep_measured(study: Study, name: str, nll: Mapping[int, float]) -> None:
    """Keep what a measure found."""
    study.set_user_attr(_MEASURED + name, {str(number): value for number, value in nll.items()})


def rank_correlations(study: Study) -> dict[str, Correlation]:
    """How alike the NLL on the search windows and each other measure rank the recipes."""
    values = {trial.number: value_of(trial) for trial in whole(study)}
    found = {}
    for name, nll in measured(study).items():
        both = [number for number in nll if number in values]
        found[name] = rank_correlation([values[number] for number in both], [nll[number] for number in both])
    return found


def value_of(trial: FrozenTrial) -> float:
    """The mean NLL of a trial on the search windows, nats a token; NaN where it has none."""
    return next(iter(values_of(trial)), math.nan)


def values_of(trial: FrozenTrial) -> list[float]:
    """All that a study minimises of a finished trial, the mean NLL first; nothing of any other."""
    return list(trial.values or ()) if trial.state == TrialState.COMPLETE else []  # noqa: PD011  # no pandas


def also(study: Study) -> list[str]:
    """The names of what a study minimises beside the NLL."""
    return [name for name, _ in about(study).get("also", [])]


def unit_of(study: Study) -> str:
    """What the NLL is a mean of: a token, or of multiple choice a question."""
    return QUESTION if about(study)["objective"].partition("(")[0] == "multiple_choice" else TOKEN


def traded(study: Study) -> list[str]:
    """Of these, the ones that the tables do not have anyway, as they have the visits."""
    return [name for name in also(study) if name != "visits"]


def accuracy(trial: FrozenTrial) -> float:
    """The share of multiple-choice questions of the search that a trial answered right; NaN where there are none."""
    return _share(trial.user_attrs.get(RIGHT, ()))


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else math.nan


def _held_out_nll(study: Study, trial: FrozenTrial) -> float:
    kept = held_out(study, trial)
    return math.inf if kept is None else kept.nll


def _exp(nll: float) -> float:
    return math.inf if nll > 700 else math.exp(nll)

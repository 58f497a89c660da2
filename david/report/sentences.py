"""The findings of a study in sentences, and the leaderboard as text."""

import math

import pandas as pd
from optuna import Study

from david.metrics import units
from david.metrics.paired_test import BETTER, UNDECIDED
from david.metrics.selection_bias import Luck
from david.report import tables
from david.storage import results


def verdict(board: pd.DataFrame) -> str:
    """The leaderboard in a sentence."""
    recipes = board[board["recipe"] != tables.BASE] if not board.empty else board
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
    times, recipes = results.evaluations(study), len(results.judged(study))
    if not times:
        return ""
    often = "once" if times == 1 else f"{times} times"
    again = "" if times == 1 else ": with each look they are less held out, and a lucky winner is likelier"
    items = f"{results.item_of(study)}s"
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
    found, base = results.baseline(study), results.base_trial(study)
    if found is None or base is None or not found.nll:
        return ""
    judged = next((trial for trial in results.judged(study) if trial.number == found.trial), None)
    best = None if judged is None else results.held_out(study, judged)
    its = results.held_out(study, base)
    if best is None or its is None:
        return ""
    apart = sorted(nll - its.nll for nll in found.nll.values())
    unit, items = units.behind(results.unit_of(study)), f"{results.item_of(study)}s"
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
        for name, its in tables.rank_correlations(study).items()
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


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if value < 1e5 else f"{value:.2e}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1%}"

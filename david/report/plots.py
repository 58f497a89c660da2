"""Plots of tables, with matplotlib. Each function draws one table of `david.table` and returns the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from david.errors import SearchError
from david.metrics import units
from david.support.arguments import check_type
from david.support.text import plain

__all__ = ["blocks", "depth", "history", "influence", "paths", "profile", "tradeoff"]

_TRIALS = ("trial", "nll", "duplicate_of", "visits")  # columns of `table.trials` that are drawn
_BASE, _RECIPE, _BEST = "#6b7280", "#3b82c4", "#e8743b"


def paths(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the path of each recipe over the base's layers: one line for each recipe, the best on top.

    The legend numbers them in the order of the table, the base among them: as the leaderboard ranks them.

    Dots mark the visits whose strength is not 1; weaker visits have smaller dots. A recipe with the repeat map of a
    better one and other strengths is dashed over it, with rings around the other's dots.

    Args:
        table: The table of `table.paths`.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> ax = paths(table.paths(table.leaderboard(study), 30))
        >>> ax.get_xlabel()
        'visit'
    """
    _check_table(table, "table.paths", "recipe", "visit", "layer")
    ax = ax or _axes((8, 5.5))
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(table["recipe"]))}  # the base has its own
    names = [name for name in ranks if name != "base"]
    colours = plt.get_cmap("tab10")
    base = table[table["recipe"] == "base"]
    ax.plot(base["visit"], base["layer"], color=_BASE, lw=1.2, ls=":", label="base")
    drawn: list[tuple[int, ...]] = []
    for rank, name in enumerate(names):
        part, colour = table[table["recipe"] == name], colours(rank % 10)
        again = drawn.count(visits := tuple(part["layer"]))
        drawn.append(visits)
        over, style = (20 + rank, (4 * again, (4, 8))) if again else (10 - rank, "-")
        label = _label(ranks[name], name)
        ax.plot(part["visit"], part["layer"], color=colour, lw=1.4, ls=style, alpha=0.85, zorder=over, label=label)
        damped = part[part["scale"] != 1]
        sizes = 4 + 14 * np.minimum(1.0, damped["scale"].abs().to_numpy()) + 30 * again
        face = "none" if again else colour
        ax.scatter(damped["visit"], damped["layer"], s=sizes, facecolors=face, edgecolors=colour, zorder=over)
    ax.set(title="Path of the best recipes over the base's layers", xlabel="visit", ylabel="layer of the base")
    _whole_numbers(ax, "both")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, handlelength=4)
    return ax


def blocks(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw a heatmap of what repeating the block of layers i … j − 1 once does to the NLL.

    Colours are centred at the base and saturate at the 0.9 quantile of the values. Dots mark estimates: blocks that a
    race dropped early.

    Args:
        table: The table of `table.blocks`.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> ax = blocks(table.blocks(study))
        >>> ax.get_xlabel()
        'block end j (the layer after its last)'
    """
    _check_table(table, "table.blocks")
    if not all(kind.kind in "fiu" for kind in table.dtypes):
        raise SearchError("expected the table of table.blocks; this one holds other values than numbers")
    ax = ax or _axes((7.5, 6))
    values = table.to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    ax.set(xlabel="block end j (the layer after its last)", ylabel="block start i (its first layer)")
    _whole_numbers(ax, "both")
    if not len(finite):
        ax.set_title("Repeating one block (i, j) once: no finite score")
        return ax
    high = max(float(np.quantile(finite, 0.9)), 1e-3)
    low = min(float(finite.min()), -high / 20, -1e-3)
    columns = table.columns.to_numpy()
    image = ax.imshow(
        np.where(values == np.inf, 2 * high, values),
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0.0, low, high),
        extent=(columns[0] - 0.5, columns[-1] + 0.5, len(table) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    over = bool((values > high).any())
    bar = ax.figure.colorbar(image, ax=ax, extend="max" if over else "neither", format="%+.3g", spacing="proportional")
    bar.set_ticks([*([low] if -low > high / 10 else []), 0.0, high / 2, high])
    if finite.min() >= 0:
        bar.ax.set_ylim(0.0, high)  # no block is better: no blue to show
    unit = table.attrs.get("unit", units.TOKEN)
    what, within = ("NLL", f"{unit}; ") if units.is_nll(unit) else (unit, "")
    bar.set_label(f"{what} minus the base's ({within}blue is better)")
    partial = table.attrs.get("partial", [])
    ax.scatter([j for _, j in partial], [i for i, _ in partial], s=3, color="black", alpha=0.5, lw=0)
    best = divmod(int(np.nanargmin(values)), values.shape[1])
    i, j = int(table.index[best[0]]), int(columns[best[1]])
    ax.plot(j, i, marker="o", ms=14, mew=1.5, mfc="none", mec="black", ls="none")
    worse = " (none is better)" if values[best] >= 0 else ""
    early = f"\n{len(partial)} dropped early (dots)" if partial else ""
    lowest = f"lowest: ({i}, {j}), {values[best]:+.4f} {units.difference_unit(unit)}"
    ax.set_title(f"Repeating one block (i, j) once\n{lowest}{worse}{early}")
    return ax


def profile(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what repeating each layer, and skipping it, does to the NLL.

    Args:
        table: The table `profile.Profile.layers`.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> ax = profile(david.profile.profile(model, windows).layers)
        >>> ax.get_xlabel()
        'layer'
    """
    _check_table(table, "profile.Profile.layers", "layer", "repeat", "skip")
    ax = ax or _axes((9, 4.5))
    for column, colour, offset in (("repeat", _RECIPE, -0.2), ("skip", _BEST, 0.2)):
        ax.bar(table["layer"] + offset, table[column], width=0.4, color=colour, label=column)
    ax.axhline(0, color=_BASE, lw=1)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set(title="What each layer costs", xlabel="layer", ylabel="NLL minus the base's (nats a token)")
    _whole_numbers(ax, "x")
    ax.legend(fontsize=8)
    return ax


def influence(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how much each layer turns the hidden state.

    Args:
        table: The table `profile.Profile.layers`.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> ax = influence(david.profile.profile(model, windows).layers)
        >>> ax.get_xlabel()
        'layer'
    """
    _check_table(table, "profile.Profile.layers", "layer", "influence")
    ax = ax or _axes((9, 3))
    ax.bar(table["layer"], table["influence"], color=_RECIPE)
    ax.set(title="How much each layer turns the hidden state", xlabel="layer", ylabel="influence (1 − cos)")
    _whole_numbers(ax, "x")
    return ax


def history(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the NLL of each trial in their order, with the best so far and the base.

    Args:
        table: The table of `table.trials`.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> ax = history(table.trials(study))
        >>> ax.get_xlabel()
        'trial'
    """
    _check_table(table, "table.trials", *_TRIALS)
    ax = ax or _axes((8, 4.5))
    scored = _scored(table)
    above = _scatter(ax, scored["trial"].astype(float), scored)
    ax.step(scored["trial"], scored["nll"].cummin(), where="post", color=_BEST, lw=1.5, label="best so far")
    return _whole_numbers(_finish(ax, scored, "Search history" + above, "trial"), "x")


def depth(table: pd.DataFrame, ax: Axes | None = None, *, front: pd.DataFrame | None = None) -> Axes:
    """Draw the NLL of each trial against its visits: what depth costs and buys.

    Args:
        table: The table of `table.trials`.
        ax: Where to draw; by default a new figure.
        front: Trials to join by a line, from `table.front`: the best for each number of visits.

    Returns:
        The axes.

    Example:
        >>> ax = depth(table.trials(study), front=table.front(table.trials(study)))
        >>> ax.get_xlabel()
        'visits (layers run for each token)'
    """
    _check_table(table, "table.trials", *_TRIALS)
    ax = ax or _axes((8, 4.5))
    title, x_label = f"{_minimised(table)} against depth", "visits (layers run for each token)"
    return _whole_numbers(_draw_against(table, "visits", front, ax, title, x_label), "x")


def tradeoff(table: pd.DataFrame, name: str, ax: Axes | None = None, *, front: pd.DataFrame | None = None) -> Axes:
    """Draw the NLL of each trial against an extra objective.

    Args:
        table: The table of `table.trials`.
        name: Name of the extra objective, whose column is `also_…`.
        ax: Where to draw; by default a new figure.
        front: Trials to join by a line: the front of both, from `table.front`.

    Returns:
        The axes.

    Example:
        >>> trials = table.trials(study).assign(also_visits=table.trials(study)["visits"])
        >>> tradeoff(trials, "visits").get_xlabel()
        'visits'
    """
    check_type("name", name, str, SearchError)
    _check_table(table, "table.trials", *_TRIALS, f"also_{name}")
    label = plain(name).replace("$", r"\$")  # between two of them matplotlib reads formulas
    title = f"{_minimised(table)} against {label}"
    return _draw_against(table, f"also_{name}", front, ax or _axes((8, 4.5)), title, label)


def _check_table(table: object, function: str, *columns: str) -> None:
    """Raise `SearchError` if something is no table, or not that of a function."""
    check_type("table", table, pd.DataFrame, SearchError)
    missing = [column for column in columns if column not in table.columns]  # type: ignore[attr-defined]
    if missing:
        raise SearchError(f"expected the table of {function}; this one has no column {missing[0]!r}")


def _draw_against(
    table: pd.DataFrame, column: str, front: pd.DataFrame | None, ax: Axes, title: str, x_label: str
) -> Axes:
    if front is not None:
        _check_table(front, "table.front", column, "nll")
    scored = _scored(table)
    above = _scatter(ax, scored[column].astype(float), scored)
    if front is not None and len(front):
        line = front.sort_values(column)
        ax.step(line[column], line["nll"], where="post", color=_BEST, lw=1.5, marker="o", ms=3, label="Pareto front")
    return _finish(ax, scored, title + above, x_label)


def _minimised(table: pd.DataFrame) -> str:
    unit = str(table.attrs.get("unit", units.TOKEN))
    return "NLL" if units.is_nll(unit) else unit


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    finite = np.isfinite(table["nll"].to_numpy(dtype=float))
    scored: pd.DataFrame = table.loc[finite & table["duplicate_of"].isna().to_numpy()]
    return scored


def _scatter(ax: Axes, x: "pd.Series[float]", scored: pd.DataFrame) -> str:
    """Draw points, those far above the others at the upper edge; return what the title says of them."""
    nll = scored["nll"]
    if nll.empty:
        return " (nothing scored yet)"
    most = float(max([nll.quantile(0.75), *nll[_is_base(scored)]]))
    low = float(nll.min())
    room = max(most - low, 0.01)
    far = (nll > most + room).to_numpy()
    top = most + room if far.any() else float(nll.max())
    ax.scatter(x[~far], nll[~far], s=18, color=_RECIPE, alpha=min(0.7, max(0.1, 300 / len(nll))), label="recipe")
    if far.any():
        ax.scatter(x[far], np.full(int(far.sum()), top), s=28, marker="^", color=_RECIPE, alpha=0.5)
    ax.set_ylim(low - 0.08 * max(top - low, 0.01), top + 0.08 * max(top - low, 0.01))
    return f" (▲ {int(far.sum())} above the edge)" if far.any() else ""


def _finish(ax: Axes, scored: pd.DataFrame, title: str, x_label: str) -> Axes:
    for nll in scored["nll"][_is_base(scored)].head(1):
        ax.axhline(nll, color=_BASE, ls="--", lw=1.2, label=f"base, {nll:.4f}")
    unit = scored.attrs.get("unit", units.TOKEN)
    what = f"NLL on the search windows ({unit})" if units.is_nll(unit) else f"{unit} in the search"
    ax.set(title=title, xlabel=x_label, ylabel=what)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)
    return ax


def _is_base(scored: pd.DataFrame) -> "pd.Series[bool]":
    return (scored["nll_difference"] == 0) & (scored["extra_depth"] == 0)


def _whole_numbers(ax: Axes, which: str) -> Axes:
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if which in (name, "both"):
            axis.set_major_locator(MaxNLocator(integer=True))
    return ax


def _label(rank: int, recipe: str) -> str:
    return f"{rank + 1} · {recipe}" if len(recipe) <= 100 else f"{rank + 1} · {recipe[:99]}…"


def _axes(size: tuple[float, float]) -> Axes:
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax

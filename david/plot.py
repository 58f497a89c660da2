"""Tables → matplotlib axes. Each function draws one table of `david.table` and returns the axes it drew on."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

_BASE, _RECIPE, _BEST = "#6b7280", "#3b82c4", "#e8743b"


def paths(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The path of each recipe over the base's layers, from `table.paths`: a line a recipe, weaker visits smaller."""
    ax = ax or _axes((8, 4.5))
    names = list(dict.fromkeys(table["recipe"]))
    colours = plt.get_cmap("tab10")
    for place, name in enumerate(names):
        part = table[table["recipe"] == name]
        is_base = name == "base"
        colour = _BASE if is_base else colours(place % 10)
        ax.plot(
            part["visit"], part["layer"], color=colour, lw=1.2, ls="--" if is_base else "-", label=_shorten(name, 60)
        )
        if not is_base:
            sizes = 4 + 14 * np.minimum(1.0, part["scale"].abs().to_numpy())
            ax.scatter(part["visit"], part["layer"], s=sizes, color=colour, zorder=3)
    ax.set(title="Path of the best recipes over the base's layers", xlabel="visit", ylabel="layer of the base")
    ax.legend(fontsize=8, loc="upper left", title="recipe (layers in order)", title_fontsize=8)
    return ax


def blocks(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heatmap of `table.blocks`: what repeating the block of layers i … j − 1 once does to the NLL."""
    ax = ax or _axes((7.5, 6))
    values = table.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    low, high = float(min(known.min(), -1e-9)), float(max(np.quantile(known, 0.9), 1e-9))
    columns = table.columns.to_numpy()
    image = ax.imshow(
        values,
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0.0, min(low, -high / 20), high),
        extent=(columns[0] - 0.5, columns[-1] + 0.5, len(table) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    bar = ax.figure.colorbar(image, ax=ax, extend="max" if known.max() > high else "neither", spacing="proportional")
    bar.set_label("NLL minus the base's (nats a token; blue is better)")
    best = divmod(int(np.nanargmin(values)), values.shape[1])
    i, j = int(table.index[best[0]]), int(columns[best[1]])
    ax.plot(j, i, marker="s", ms=9, mfc="none", mec="black", ls="none")
    ax.set(
        title=f"Repeating one block (i, j) once; best marked: ({i}, {j}), {values[best]:+.4f}",
        xlabel="block end j (the layer after its last)",
        ylabel="block start i (its first layer)",
    )
    return ax


def history(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """NLL of each trial of `table.trials` in the order they were made, with the best so far and the base."""
    ax = ax or _axes((8, 4.5))
    scored = _scored(table)
    above = _scatter(ax, scored["trial"], scored["nll"])
    ax.step(scored["trial"], scored["nll"].cummin(), where="post", color=_BEST, lw=1.5, label="best so far")
    _base_line(ax, table)
    ax.set(title="Search history" + above, xlabel="trial", ylabel="NLL on the search windows (nats a token)")
    ax.legend(fontsize=8)
    return ax


def depth(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """NLL of each trial of `table.trials` against the visits it makes: what depth costs and buys."""
    ax = ax or _axes((8, 4.5))
    scored = _scored(table)
    above = _scatter(ax, scored["visits"].astype(float), scored["nll"])
    _base_line(ax, table)
    ax.set(
        title="NLL against depth" + above,
        xlabel="visits (layers run for each token)",
        ylabel="NLL on the search windows (nats a token)",
    )
    ax.legend(fontsize=8)
    return ax


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    finite = np.isfinite(table["nll"].to_numpy(dtype=float))
    scored: pd.DataFrame = table.loc[finite & table["duplicate_of"].isna().to_numpy()]
    return scored


def _scatter(ax: Axes, x: "pd.Series[Any]", nll: "pd.Series[float]") -> str:
    """Points, with those far above the others held at the upper edge; says so for the title."""
    if nll.empty:
        return " (nothing scored yet)"
    low, high = float(nll.min()), float(nll.quantile(0.9))
    top = high + 0.15 * max(high - low, 0.01)
    far = (nll > top).to_numpy()
    ax.scatter(x[~far], nll[~far], s=18, color=_RECIPE, alpha=0.7, label="recipe")
    if far.any():
        ax.scatter(x[far], np.full(int(far.sum()), top), s=28, marker="^", color=_RECIPE, alpha=0.5)
    ax.set_ylim(low - 0.08 * (top - low), top + 0.05 * (top - low))
    return f" (▲ {int(far.sum())} above the edge)" if far.any() else ""


def _base_line(ax: Axes, table: pd.DataFrame) -> None:
    base = table[table["nll_difference"] == 0]
    if not base.empty:
        nll = float(base["nll"].iloc[0])
        ax.axhline(nll, color=_BASE, ls="--", lw=1.2, label=f"base, {nll:.4f}")


def _axes(size: tuple[float, float]) -> Axes:
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

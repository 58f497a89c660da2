"""Plots are data first: what is drawn, in which units, and what the title says of it."""

import math
from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backend_bases import MouseEvent
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.report import plots, tables
from david.storage.results import StudyResults
from tests.helpers.handmade_studies import add, new_study


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def ax() -> Axes:
    return plt.figure().add_subplot()


def line(ax: Axes, label: str) -> Line2D:
    """The one line with a label."""
    [found] = [line for line in ax.lines if line.get_label() == label]
    return found


def points(ax: Axes) -> set[tuple[float, float]]:
    """Every point that is scattered, in data coordinates."""
    return {(float(x), float(y)) for dots in ax.collections for x, y in np.asarray(dots.get_offsets())}


def trials_of(nlls: Sequence[float], n_layers: int = 6) -> pd.DataFrame:
    """The trials table of a study: the base, then single blocks in the order of a scan."""
    study = new_study(n_layers)
    for recipe, nll in zip([Recipe.identity(n_layers), *all_blocks(n_layers)], nlls, strict=False):
        add(study, recipe, nll)
    return tables.trials(study)


def grid_of(cells: dict[tuple[int, int], float], n_layers: int) -> pd.DataFrame:
    """A grid as `table.blocks` makes it, from differences by (i, j)."""
    grid = pd.DataFrame(math.nan, index=range(n_layers), columns=range(1, n_layers + 1))
    for (i, j), difference in cells.items():
        grid.loc[i, j] = difference
    return grid


# Paths


def paths_table(*notations: str, base: int = 6) -> pd.DataFrame:
    recipes = {notation: Recipe.parse(notation) for notation in notations} | {"base": Recipe.identity(base)}
    rows = [(name, visit, *step) for name, recipe in recipes.items() for visit, step in enumerate(recipe)]
    return pd.DataFrame(rows, columns=["recipe", "visit", "layer", "scale"])


def test_a_path_is_a_line_from_visit_to_layer_and_the_bases_is_dotted(ax: Axes) -> None:
    plots.paths(paths_table("0:4, 2:6", "0:6, 5"), ax)
    assert list(line(ax, "1 · 0:4, 2:6").get_xydata()[:, 0]) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(line(ax, "1 · 0:4, 2:6").get_ydata()) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert list(line(ax, "2 · 0:6, 5").get_ydata()) == [0, 1, 2, 3, 4, 5, 5]
    assert list(line(ax, "base").get_ydata()) == [0, 1, 2, 3, 4, 5]
    assert [found.get_linestyle() for found in ax.lines] == [":", "-", "-"]
    assert len({to_hex(found.get_color()) for found in ax.lines}) == 3


def test_recipes_with_one_map_and_other_strengths_are_both_seen(ax: Axes) -> None:
    names = ["base", "0:4, 2:4*0.5, 4:6", "0:4, 2:4*0.1, 4:6", "0:5, 2:6"]
    plots.paths(tables.paths(pd.DataFrame({"recipe": names}), 6), ax)
    first, second, third = (line(ax, f"{rank} · {name}") for rank, name in enumerate(names[1:], start=2))
    assert first.get_linestyle() == third.get_linestyle() == "-"
    assert second.get_linestyle() == "--"  # as matplotlib calls every pattern
    assert second.get_zorder() > first.get_zorder()
    full, rings, _ = ax.collections
    assert len(full.get_facecolors()) == 1
    assert len(rings.get_facecolors()) == 0
    assert rings.get_sizes().min() > full.get_sizes().max()


def test_a_path_has_the_number_that_its_recipe_has_in_the_leaderboard(ax: Axes) -> None:
    study = new_study(6)
    for recipe, nll in {"0:6": 2.0, "0:4, 2:6": 1.9, "0:6, 5": 2.1, "0:5, 2:6": 2.2}.items():
        add(study, recipe, nll)
    board = tables.leaderboard(study)
    plots.paths(tables.paths(board, 6), ax)
    assert board["recipe"].tolist()[1] == "base"
    ranked = {f"{rank} · {name}" for rank, name in zip(board["rank"], board["recipe"], strict=True) if name != "base"}
    assert {text.get_text() for text in ax.get_legend().get_texts()} == ranked | {"base"}


def test_a_path_says_what_its_axes_are_and_which_line_is_which_recipe(ax: Axes) -> None:
    plots.paths(paths_table("0:4, 2:6"), ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("visit", "layer of the base")
    assert "best recipes" in ax.get_title()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["base", "1 · 0:4, 2:6"]


def test_visits_that_are_not_plain_are_marked_the_weaker_the_smaller(ax: Axes) -> None:
    plots.paths(paths_table("0:3, 2*0.5, 2*0.1, 3:6"), ax)
    size = {}
    for dots in ax.collections:
        offsets = np.asarray(dots.get_offsets())
        for (visit, _), area in zip(offsets, np.broadcast_to(dots.get_sizes(), len(offsets)), strict=True):
            size[int(visit)] = float(area)
    assert set(size) == {3, 4}
    assert 0 < size[4] < size[3]  # 0.1 and 0.5


def test_a_long_recipe_is_shortened_in_the_legend_and_drawn_whole(ax: Axes) -> None:
    notation = str(Recipe.from_blocks(80, [(i, i + 2, 2, 0.35) for i in range(0, 80, 2)]))
    plots.paths(paths_table(notation, base=80), ax)
    label = ax.get_legend().get_texts()[1].get_text()
    assert label.endswith("…")
    assert len(label) < 110 < len(notation)
    assert len(ax.lines[1].get_xdata()) == 160


# Blocks


def value_at(ax: Axes, i: int, j: int) -> float | None:
    """What the image shows at row i and column j of the axes, as a mouse there would read it."""
    ax.figure.canvas.draw()
    x, y = ax.transData.transform((j, i))
    shown = ax.images[0].get_cursor_data(MouseEvent("motion_notify_event", ax.figure.canvas, x, y))
    return None if np.ma.is_masked(shown) or shown is None or math.isnan(shown) else float(shown)


CELLS = {(0, 1): 0.4, (0, 2): 0.3, (1, 2): -0.2, (2, 3): 0.1}


def test_the_heatmap_shows_each_difference_at_its_i_and_j(ax: Axes) -> None:
    plots.blocks(grid_of(CELLS, 4), ax)
    expected = np.full((4, 4), math.nan)
    for (i, j), difference in CELLS.items():
        expected[i, j - 1] = difference
    np.testing.assert_array_equal(np.ma.filled(ax.images[0].get_array().astype(float), math.nan), expected)
    assert [value_at(ax, i, j) for i, j in CELLS] == list(CELLS.values())
    assert value_at(ax, 3, 1) is None


@pytest.mark.parametrize(
    ("cells", "best"),
    [
        (CELLS, (1, 2)),
        ({(0, 1): 0.5}, (0, 1)),
        ({(2, 3): 0.2, (0, 4): 0.1, (1, 1): 0.3}, (0, 4)),
        ({(0, 1): -0.1, (2, 4): -0.3}, (2, 4)),
        ({(3, 4): 0.1, (0, 1): math.inf}, (3, 4)),
    ],
)
def test_the_heatmap_marks_the_best_block_and_its_title_names_it(
    ax: Axes, cells: dict[tuple[int, int], float], best: tuple[int, int]
) -> None:
    plots.blocks(grid_of(cells, 4), ax)
    i, j = best
    assert [tuple(mark.get_xydata()[0]) for mark in ax.lines] == [(j, i)]
    assert f"({i}, {j})" in ax.get_title()
    assert f"{cells[best]:+.4f}" in ax.get_title()


@pytest.mark.parametrize(
    "cells",
    [
        CELLS,
        {(0, 1): 0.5},
        {(0, 1): -0.5},
        {(0, 1): 0.0, (1, 2): 0.0},
        {(0, 1): -0.1, (2, 4): -0.3},
        {(0, 1): 0.1, (2, 4): 0.3},
        {(0, 1): -1e-4, (2, 4): 3.0},
    ],
    ids=["mixed", "one worse", "one better", "equal", "all better", "all worse", "hardly better"],
)
def test_white_is_the_base_blue_is_better_and_red_is_worse(ax: Axes, cells: dict[tuple[int, int], float]) -> None:
    plots.blocks(grid_of(cells, 4), ax)
    image = ax.images[0]
    ax.figure.canvas.draw()
    assert image.norm(0.0) == pytest.approx(0.5)
    red, _, blue, _ = image.cmap(image.norm(0.0))
    assert red == pytest.approx(blue, abs=0.01)
    for difference in cells.values():
        red, _, blue, _ = image.cmap(image.norm(difference))
        assert math.copysign(1, red - blue) == math.copysign(1, difference) or difference == 0


def test_the_colour_bar_says_the_unit_and_points_on_where_values_lie_beyond_it(ax: Axes) -> None:
    plots.blocks(grid_of({(i, i + 1): 0.01 for i in range(19)} | {(19, 20): 9.0}, 20), ax)
    bar = ax.images[0].colorbar
    assert "nats a token" in bar.ax.get_ylabel()
    assert "blue is better" in bar.ax.get_ylabel()
    assert bar.extend == "max"
    assert ax.images[0].norm.vmax < 1  # one ruined block does not wash the others out


def test_the_heatmap_has_a_dot_on_each_block_that_was_dropped_early(ax: Axes) -> None:
    grid = grid_of(CELLS, 4)
    plots.blocks(grid, ax)
    assert "dropped" not in ax.get_title()
    ax.clear()
    grid.attrs["partial"] = [(0, 2), (2, 3)]
    plots.blocks(grid, ax)
    assert ax.collections[-1].get_offsets().tolist() == [[2, 0], [3, 2]]
    assert "2 dropped early" in ax.get_title()


def test_the_heatmaps_axes_say_what_i_and_j_are(ax: Axes) -> None:
    plots.blocks(grid_of(CELLS, 4), ax)
    assert "j" in ax.get_xlabel().split()
    assert "i" in ax.get_ylabel().split()
    assert ax.yaxis.get_inverted()  # the first layer is at the top


# History and depth


def test_the_history_has_each_trial_the_best_so_far_and_the_base(ax: Axes) -> None:
    plots.history(trials_of([2.0, 2.0, 1.5, 1.75, 1.0]), ax)
    assert points(ax) == {(0, 2.0), (1, 2.0), (2, 1.5), (3, 1.75), (4, 1.0)}
    best = line(ax, "best so far")
    assert list(best.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(best.get_ydata()) == [2.0, 2.0, 1.5, 1.5, 1.0]
    assert best.get_drawstyle() == "steps-post"  # a record holds from its trial on
    assert set(line(ax, "base, 2.0000").get_ydata()) == {2.0}
    assert ax.get_xlabel() == "trial"


def test_depth_has_each_trial_over_its_visits(ax: Axes) -> None:
    plots.depth(trials_of([2.0, 2.0, 1.5, 1.75]), ax)
    assert points(ax) == {(6, 2.0), (7, 2.0), (8, 1.5), (9, 1.75)}
    assert set(line(ax, "base, 2.0000").get_ydata()) == {2.0}
    assert "visits" in ax.get_xlabel()


@pytest.mark.parametrize("draw", [plots.history, plots.depth])
def test_the_axis_says_nats_on_the_search_windows(draw: object, ax: Axes) -> None:
    draw(trials_of([2.0, 2.5]), ax)  # type: ignore[operator]
    assert ax.get_ylabel() == "NLL on the search windows (nats a token)"
    assert "base, 2.0000" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_duplicates_failures_and_infinite_scores_are_not_drawn(ax: Axes) -> None:
    study = new_study(6)
    add(study, "0:6", 2.0)
    add(study, "0:6, 5", math.inf)
    add(study, "0:4, 2:6", 1.5)
    add(study, "0:4, 2:6", 1.5, duplicate_of=2)
    add(study, "0:5, 4:6", None, state="FAIL")
    add(study, None, None, state="RUNNING")
    plots.history(tables.trials(study), ax)
    assert points(ax) == {(0, 2.0), (2, 1.5)}


NEAR = [2.0, *(2.0 + 0.02 * (i % 4) for i in range(18))]


@pytest.mark.parametrize("draw", [plots.history, plots.depth])
def test_points_far_above_are_held_at_the_edge_and_told_in_the_title(draw: object, ax: Axes) -> None:
    draw(trials_of([*NEAR, 9.0, 50.0]), ax)  # type: ignore[operator]
    low, high = ax.get_ylim()
    assert high < 3  # the others are not squeezed
    assert "2 above the edge" in ax.get_title()
    drawn = points(ax)
    assert {nll for _, nll in drawn if nll <= 2.06} == set(NEAR)
    held = {nll for _, nll in drawn if nll > 2.06}
    assert len(held) == 1
    assert low < held.pop() < high


@pytest.mark.parametrize("draw", [plots.history, plots.depth])
def test_where_no_point_is_far_the_title_tells_of_none(draw: object, ax: Axes) -> None:
    draw(trials_of(NEAR), ax)  # type: ignore[operator]
    assert "edge" not in ax.get_title()


# Every table


STUDIES = {
    "one trial": ([2.0], 6),
    "two trials": ([2.0, 1.0], 6),
    "all equal": ([2.0] * 12, 6),
    "all better": ([2.0, *(1.5 + 0.01 * i for i in range(12))], 6),
    "all worse": ([2.0, *(2.5 + 0.01 * i for i in range(12))], 6),
    "huge": ([2.0, 1e9, 1e12], 6),
    "one layer": ([2.0, 3.0], 1),
    "80 layers": ([2.0, *(2.0 + math.sin(i) for i in range(600))], 80),
}


@pytest.mark.parametrize("kind", STUDIES)
@pytest.mark.parametrize("draw", [plots.history, plots.depth])
def test_of_any_study_every_score_is_drawn_inside_the_axes(draw: object, kind: str, ax: Axes) -> None:
    trials = trials_of(*STUDIES[kind])
    draw(trials, ax)  # type: ignore[operator]
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == len(trials)
    assert all(low < nll < high for _, nll in points(ax))


@pytest.mark.parametrize("kind", [kind for kind in STUDIES if kind != "one trial"])
def test_of_any_study_with_blocks_the_heatmap_and_the_paths_are_drawn(kind: str, ax: Axes) -> None:
    nlls, n_layers = STUDIES[kind]
    study = new_study(n_layers)
    for recipe, nll in zip([Recipe.identity(n_layers), *all_blocks(n_layers)], nlls, strict=False):
        add(study, recipe, nll)
    plots.paths(tables.paths(tables.leaderboard(study), StudyResults.read(study).n_layers), ax)
    ax.figure.canvas.draw()
    assert len(ax.lines) == min(len(nlls), 6)
    heat = plt.figure().add_subplot()
    plots.blocks(tables.blocks(study), heat)
    heat.figure.canvas.draw()
    assert heat.images[0].get_array().shape == (n_layers, n_layers)


def test_a_history_of_nothing_says_so(ax: Axes) -> None:
    plots.history(tables.trials(new_study()), ax)
    assert "nothing scored yet" in ax.get_title()
    assert points(ax) == set()


@pytest.mark.parametrize(
    ("draw", "data"),
    [
        (plots.history, trials_of([2.0, 1.0])),
        (plots.depth, trials_of([2.0, 1.0])),
        (plots.paths, paths_table("0:4, 2:6")),
        (plots.blocks, grid_of(CELLS, 4)),
    ],
    ids=["history", "depth", "paths", "blocks"],
)
def test_without_axes_a_plot_makes_a_figure_and_with_axes_it_makes_none(draw: object, data: pd.DataFrame) -> None:
    made = draw(data)  # type: ignore[operator]
    assert plt.get_fignums() == [made.figure.number]
    mine = made.figure.add_subplot()
    assert draw(data, mine) is mine  # type: ignore[operator]
    assert len(plt.get_fignums()) == 1


def test_the_depth_plot_joins_the_front(ax: Axes) -> None:
    trials = trials_of([2.0, 2.2, 1.9])
    plots.depth(trials, ax, front=tables.front(trials))
    line = next(line for line in ax.lines if line.get_label() == "Pareto front")
    front = tables.front(trials)
    assert line.get_xydata().tolist() == front[["visits", "nll"]].astype(float).to_numpy().tolist()
    ax.clear()
    plots.depth(trials, ax)
    assert not [line for line in ax.lines if line.get_label() == "Pareto front"]

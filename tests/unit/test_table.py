"""A study as tables: what each row says, what is left out, and the types of the columns."""

import json
import math
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna import Study
from scipy import stats

from david.errors import SearchError
from david.metrics.score import Score
from david.metrics.selection_bias import luck
from david.recipe.recipe import Recipe
from david.report import tables
from david.storage import results
from david.storage.results import StudyResults
from tests.helpers.handmade_studies import add, data, judge, new_study

BASE = "0:6"
TRIALS = ["trial", "state", "recipe", "visits", "extra_depth", "nll", "perplexity", "nll_difference"]
TRIALS += ["partial", "duplicate_of", "seconds"]
BOARD = ["rank", "trial", "recipe", "visits", "extra_depth", "search_nll", "search_perplexity", "held_out_nll"]
BOARD += ["held_out_perplexity", "nll_difference", "low95", "high95", "verdict"]


@pytest.fixture
def study() -> Study:
    """Every kind of trial on a base of six layers."""
    study = new_study(6)
    add(study, BASE, 2.0)  # 0
    add(study, "0:4, 2:6", 1.5)  # 1
    add(study, "0:6, 5", math.inf)  # 2
    add(study, "0:4, 2:6", 1.5, duplicate_of=1)  # 3
    add(study, "0:5, 4*0.5, 5", None, state="FAIL")  # 4
    add(study, None, None, state="FAIL")  # 5
    add(study, None, None, state="RUNNING")  # 6
    add(study, "0:3, 1:3*0.5, 3:6", 1.75)  # 7
    return study


def cells(column: Any) -> list[Any]:
    """The values of a column, None where one is missing."""
    return [None if pd.isna(value) else value for value in column]


def test_each_trial_has_a_row_in_order(study: Study) -> None:
    found = tables.trials(study)
    assert list(found.columns) == TRIALS
    assert list(found["trial"]) == list(range(8))
    assert list(found["state"]) == ["complete"] * 4 + ["fail"] * 2 + ["running", "complete"]
    recipes = [BASE, "0:4, 2:6", "0:6, 5", "0:4, 2:6", "0:5, 4*0.5, 5", None, None, "0:3, 1:3*0.5, 3:6"]
    assert cells(found["recipe"]) == recipes
    assert cells(found["visits"]) == [6, 8, 7, 8, 7, None, None, 8]
    extra = [0, 1 / 3, 1 / 6, 1 / 3, 1 / 6, math.nan, math.nan, 1 / 3]
    assert list(found["extra_depth"]) == pytest.approx(extra, nan_ok=True)
    assert cells(found["nll"]) == [2.0, 1.5, math.inf, 1.5, None, None, None, 1.75]
    assert cells(found["nll_difference"]) == [0.0, -0.5, math.inf, -0.5, None, None, None, -0.25]
    assert cells(found["duplicate_of"]) == [None, None, None, 1, None, None, None, None]


def test_perplexity_is_the_exponential_of_the_nll(study: Study) -> None:
    found = tables.trials(study)["perplexity"]
    assert list(found[[0, 1, 7]]) == pytest.approx([7.38905609893, 4.48168907034, 5.75460267601])
    assert found[2] == math.inf
    assert found[[4, 5, 6]].isna().all()


def test_a_trials_parameters_and_duration_are_columns() -> None:
    study = new_study(6)
    trial = study.ask()
    trial.suggest_int("start", 3, 3)
    trial.set_user_attr("recipe", BASE)
    study.tell(trial, 2.0)
    add(study, "0:6, 5", 3.0)
    found = tables.trials(study)
    assert list(found.columns) == [*TRIALS, "param_start"]
    assert cells(found["param_start"]) == [3, None]
    assert found["seconds"][0] == study.trials[0].duration.total_seconds()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["whole", "base only", "failed only"])
def test_the_columns_of_trials_have_their_types_whatever_the_study_holds(study: Study, kind: str) -> None:
    if kind != "whole":
        study = new_study(6)
        add(
            study,
            *((BASE, 2.0) if kind == "base only" else (None, None)),
            state="COMPLETE" if "base" in kind else "FAIL",
        )
    types = tables.trials(study).dtypes
    assert types["trial"] == "int64"
    assert {types[name] for name in ("visits", "duplicate_of")} == {pd.Int64Dtype()}
    numbers = ("extra_depth", "nll", "perplexity", "nll_difference", "seconds")
    assert {types[name] for name in numbers} == {np.dtype("float64")}


def test_an_empty_study_is_an_empty_table_with_its_columns() -> None:
    found = tables.trials(new_study())
    assert list(found.columns) == TRIALS
    assert found.empty
    assert tables.leaderboard(new_study()).empty
    assert tables.blocks(new_study()).empty
    assert StudyResults.read(new_study()).finalists() == []
    assert StudyResults.read(new_study()).base_trial is None


def test_without_the_base_there_is_no_difference_to_it() -> None:
    study = new_study(6)
    add(study, "0:6, 5", 3.0)
    assert cells(tables.trials(study)["nll_difference"]) == [None]
    assert tables.blocks(study).empty


# The leaderboard


def test_before_the_judging_the_leaderboard_has_the_best_of_the_search_and_the_base(study: Study) -> None:
    board = tables.leaderboard(study)
    assert list(board.columns) == BOARD
    assert list(board["rank"]) == [1, 2, 3]
    assert list(board["trial"]) == [1, 7, 0]  # no duplicate, nothing infinite, nothing failed
    assert list(board["recipe"]) == ["0:4, 2:6", "0:3, 1:3*0.5, 3:6", "base"]
    assert list(board["visits"]) == [8, 8, 6]
    assert list(board["search_nll"]) == [1.5, 1.75, 2.0]
    assert list(board["verdict"]) == ["not judged", "not judged", ""]
    assert board[["held_out_nll", "held_out_perplexity", "nll_difference", "low95", "high95"]].isna().all(axis=None)


def test_the_leaderboard_takes_as_many_as_it_is_told(study: Study) -> None:
    assert list(tables.leaderboard(study, top=1)["trial"]) == [1, 0]


@pytest.fixture
def judged(study: Study) -> Study:
    """The same, with three judged: windows of 10, 10 and 20 tokens."""
    judge(study, 0, [20.0, 22.0, 40.0], [10, 10, 20])
    judge(study, 1, [25.0, 22.0, 42.0], [10, 10, 20])  # 5, 0 and 2 nats worse: the search was lucky
    judge(study, 7, [18.8, 20.8, 37.3], [10, 10, 20])  # 1.2, 1.2 and 2.7 nats better
    return study


def test_after_the_judging_the_held_out_windows_decide_the_ranks(judged: Study) -> None:
    board = tables.leaderboard(judged)
    assert list(board["trial"]) == [7, 0, 1]
    assert list(board["recipe"]) == ["0:3, 1:3*0.5, 3:6", "base", "0:4, 2:6"]
    assert list(board["held_out_nll"]) == pytest.approx([76.9 / 40, 82 / 40, 89 / 40])
    assert list(board["held_out_perplexity"]) == pytest.approx([math.exp(76.9 / 40), math.exp(2.05), math.exp(2.225)])
    assert list(board["search_nll"]) == [1.75, 2.0, 1.5]
    assert cells(board["nll_difference"].round(9)) == [-0.1275, None, 0.175]


def test_the_leaderboards_intervals_are_corrected_for_its_finalists(judged: Study) -> None:
    board = tables.leaderboard(judged).set_index("trial")
    tokens = np.array([10, 10, 20])
    for number, differences in ((1, [5, 0, 2]), (7, [-1.2, -1.2, -2.7])):
        mean = sum(differences) / 40
        moved = (differences - mean * tokens) / (40 - tokens)
        half = stats.t.ppf(1 - 0.05 / 2 / 2, 1600 / 600 - 1) * math.sqrt(
            2 / 3 * sum(moved**2)
        )  # two finalists, two sides
        assert list(board.loc[number, ["low95", "high95"]]) == pytest.approx([mean - half, mean + half])
    assert list(board["verdict"]) == ["better", "", "not told apart"]


def test_once_judged_all_who_were_stay_on_the_leaderboard_and_what_is_better_since_stands_behind(judged: Study) -> None:
    add(judged, "0:2, 1:6", 0.5)  # found later, not judged yet
    assert [trial.number for trial in StudyResults.read(judged).finalists(top=1)] == [7, 1, 8]
    board = tables.leaderboard(judged, top=1)
    assert list(board["trial"]) == [7, 0, 1, 8]
    assert board["verdict"].iloc[-1] == "not judged"


def test_an_infinite_held_out_score_is_last_and_worse(judged: Study) -> None:
    add(judged, "0:2, 1:6", 1.0)
    judge(judged, 8, [20.0, math.inf, 40.0], [10, 10, 20])
    last = tables.leaderboard(judged).iloc[-1]
    assert (last["trial"], last["held_out_nll"], last["held_out_perplexity"]) == (8, math.inf, math.inf)
    assert (last["nll_difference"], last["low95"], last["high95"], last["verdict"]) == (*[math.inf] * 3, "worse")


def test_with_the_base_alone_the_leaderboard_has_one_row() -> None:
    study = new_study(6)
    add(study, BASE, 2.0)
    judge(study, 0, [20.0], [10])
    board = tables.leaderboard(study)
    assert list(board["recipe"]) == ["base"]
    assert list(board["held_out_nll"]) == [2.0]
    assert list(board["verdict"]) == [""]


def test_the_columns_of_the_leaderboard_have_their_types(study: Study, judged: Study) -> None:
    for board in (tables.leaderboard(study), tables.leaderboard(judged)):
        whole = [name for name, kind in board.dtypes.items() if kind == "int64"]
        real = [name for name, kind in board.dtypes.items() if kind == "float64"]
        assert whole == ["rank", "trial", "visits"]
        assert sorted([*whole, *real, "recipe", "verdict"]) == sorted(BOARD)


# Who is who


def test_a_recipe_that_was_dropped_early_is_never_among_the_best(study: Study) -> None:
    add(study, "0:5, 3:6", 0.1, partial=1)
    assert [trial.number for trial in StudyResults.read(study).best_of_search(9)] == [1, 7]
    assert tables.trials(study)["partial"].dropna().tolist() == [1]


def test_the_best_of_a_search_are_finite_distinct_and_never_the_base(study: Study) -> None:
    assert [trial.number for trial in StudyResults.read(study).best_of_search(9)] == [1, 7]
    assert [trial.number for trial in StudyResults.read(study).best_of_search(1)] == [1]
    assert [trial.number for trial in StudyResults.read(study).finalists()] == [1, 7]
    assert StudyResults.read(study).base_trial.number == 0  # type: ignore[union-attr]


def test_of_equal_recipes_the_earlier_trial_is_the_better_one() -> None:
    study = new_study(6)
    for notation in ("0:6, 5", "0:1, 0:6", BASE):
        add(study, notation, 2.0)
    assert [trial.number for trial in StudyResults.read(study).best_of_search(5)] == [0, 1]


def test_complete_trials_are_finished_have_a_recipe_and_are_no_duplicates(study: Study) -> None:
    add(study, None, 1.0)  # a stranger's trial
    assert [trial.number for trial in results.scored_trials(study)] == [0, 1, 2, 7]


def test_a_held_out_score_is_kept_with_the_study_and_comes_back(study: Study) -> None:
    trial = study.trials[1]
    assert StudyResults.read(study).held_out(trial) is None
    results.store_held_out(study, trial, Score((30.0, 60.0), (10, 30), (0, 4), "window"))
    kept = StudyResults.read(study).held_out(trial)
    assert kept == Score((30.0, 60.0), (10, 30), (0, 4), "window")
    assert kept.nll == 90 / 40  # over all tokens, not a mean of windows
    assert study.user_attrs["held_out:1"] == {
        "window_nll": [30.0, 60.0],
        "window_tokens": [10, 30],
        "documents": [0, 4],
        "right": [],
    }


@pytest.mark.parametrize("held_out", [False, True])
def test_a_score_comes_back_from_what_is_stored_of_it(held_out: bool) -> None:
    documents = (4, 5) if held_out else ()
    for score in (
        Score((4.0, math.inf), (2, 3), documents, "window"),
        Score((0.5, 1.5), (1, 1), documents, "tasks", right=(True, False), unit="nats a question"),
        Score((0.0, 1.0), (1, 1), documents, "acc", unit="1 − acc"),
    ):
        stored = score.to_attributes(held_out=held_out)
        assert json.loads(json.dumps(stored)) == stored
        assert Score.from_attributes(stored, convention=score.convention, unit=score.unit) == score
    keys = ["window_nll", "window_tokens", "documents", "right"]
    assert list(Score((4.0,), (2,), (0,), "window").to_attributes(held_out=True)) == keys  # no other: 0.1 reads these


def test_metadata_of_later_versions_and_of_older_ones_are_read() -> None:
    more = {"model": "six", "num_layers": 6, "of_tomorrow": 1}
    study = new_study(6, base=more, search_data={**data(0, 2), "of_tomorrow": 2}, of_tomorrow=3)
    metadata = results.read_metadata(study)
    assert (metadata.base.num_layers, metadata.search_data.source, metadata.also) == (6, "words", [])
    for objective, kind in (
        ("perplexity(convention='llamacpp')", "perplexity"),
        ("multiple_choice", "multiple_choice"),
        ("tasks(acc of mine, max_length=9)", "tasks"),
        ("mine", "custom"),
    ):
        assert results.read_metadata(new_study(6, objective=objective)).objective_kind == kind
    assert results.read_metadata(new_study(6, objective="tasks", objective_kind="custom")).objective_kind == "custom"
    with pytest.raises(ValueError, match="num_layers"):
        results.read_metadata(new_study(0))


def test_there_is_no_difference_of_the_base_to_itself_nor_of_what_is_not_judged(judged: Study) -> None:
    assert tables.difference_to_base(judged, judged.trials[0]) is None
    assert tables.difference_to_base(judged, judged.trials[2]) is None
    assert tables.difference_to_base(judged, judged.trials[7]) is not None


# The luck line


WINDOWS = [30.0, 28.0, 33.0, 20.0, 25.0]  # of the base, ten tokens each


def searched(study: Study, recipe: str, differences: list[float], **attrs: Any) -> None:
    """Add a trial that has seen some of the search windows."""
    nll = [base + difference for base, difference in zip(WINDOWS, differences, strict=False)]
    add(study, recipe, sum(nll) / 10 / len(nll), window_nll=nll, window_tokens=[10] * len(nll), **attrs)


def test_the_luck_line_is_that_of_all_recipes_scored_each_once_and_not_of_the_base() -> None:
    study = new_study(6)
    searched(study, BASE, [0.0] * 4)
    searched(study, "0:4, 2:6", [0.5, -1.0, 0.25, -0.5])
    searched(study, "0:6, 5", [2.0, 1.0], partial=2)
    add(study, "0:4, 2:6", 2.7, duplicate_of=1)
    add(study, "0:6, 0", None, state="FAIL")
    searched(study, "0:2, 1:6", [-1.0, -0.5, 0.0, 1.0])
    differences = [[0.5, -1.0, 0.25, -0.5], [2.0, 1.0, math.nan, math.nan], [-1.0, -0.5, 0.0, 1.0]]
    found = tables.luck(study)
    assert found == luck(differences, [10] * 4)
    assert found.best == pytest.approx(-0.75 / 40)


def test_the_luck_line_draws_the_documents_of_the_search_windows_where_the_study_tells_them() -> None:
    documents, difference = [3, 3, 4, 5, 6], [0.5, -1.0, 0.25, -0.5, 0.125]
    study = new_study(6, search_documents=documents)
    searched(study, BASE, [0.0] * 5)
    searched(study, "0:4, 2:6", difference)
    assert tables.luck(study) == luck([difference], [10] * 5, documents) != luck([difference], [10] * 5)


def test_there_is_no_luck_line_without_recipes_or_a_finite_base() -> None:
    study = new_study(6)
    assert tables.luck(study) is None
    add(study, "0:6, 5", 3.0)
    assert tables.luck(study) is None
    add(study, BASE, math.inf)
    assert tables.luck(study) is None
    study = new_study(6)
    add(study, BASE, 2.0)
    assert tables.luck(study) is None
    add(study, "0:6, 5", math.inf)
    assert all(math.isnan(value) for value in vars(tables.luck(study)).values())


def test_intervals_are_corrected_for_all_that_were_ever_picked(judged: Study) -> None:
    before = tables.difference_to_base(judged, judged.trials[1])
    assert StudyResults.read(judged).n_picked == len(StudyResults.read(judged).judged)
    results.log_evaluation(judged, judged.trials)  # of which not all came to be judged
    after = tables.difference_to_base(judged, judged.trials[1])
    assert StudyResults.read(judged).n_picked == len(judged.trials) - 1
    assert before is not None
    assert after is not None
    assert after.low < before.low < before.high < after.high


# Blocks and paths


def test_the_block_grid_has_the_difference_to_the_base_at_row_i_and_column_j(study: Study) -> None:
    add(study, "0:2, 1:6", 2.5)
    add(study, "0:3, 1:3, 1:6", 0.1)  # three times: no cell
    add(study, "0:3, 1:5, 3:6", 0.1)  # two blocks: no cell
    add(study, "0:3, 4:6", 0.1)  # a skip: no cell
    grid = tables.blocks(study)
    assert list(grid.index) == [0, 1, 2, 3, 4, 5]
    assert list(grid.columns) == [1, 2, 3, 4, 5, 6]
    assert (grid.index.name, grid.columns.name) == ("i", "j")
    known = {(i, j): grid.loc[i, j] for i in grid.index for j in grid.columns if not math.isnan(grid.loc[i, j])}
    assert known == {(2, 4): -0.5, (5, 6): math.inf, (1, 2): 0.5}  # not the weaker (1, 3) of trial 7
    assert set(grid.dtypes) == {np.dtype("float64")}


def test_the_front_is_what_no_other_recipe_beats_in_both_nll_and_visits() -> None:
    study = new_study()
    rows = {"0:6": 2.0, "0:3, 2:6": 1.9, "0:4, 3:6": 1.95, "0:3, 4:6": 2.5, "0:2, 3:5": 2.5, "0:3, 1:6": 1.9}
    for recipe, nll in {**rows, "0:4, 2:6": 1.5, "0:2, 1:6": math.inf}.items():
        add(study, recipe, nll)
    add(study, "0:5, 4:6", 1.0, partial=1)
    add(study, "0:6, 5", 1.0, duplicate_of=1)
    found = tables.front(tables.trials(study))
    assert found["recipe"].tolist() == ["0:2, 3:5", "0:6", "0:3, 2:6", "0:4, 2:6"]
    assert found["visits"].tolist() == [4, 6, 7, 8]
    assert found["nll"].is_monotonic_decreasing
    assert tables.front(tables.trials(new_study())).empty


def test_the_block_grid_says_which_blocks_a_race_dropped(study: Study) -> None:
    assert tables.blocks(study).attrs["partial"] == []
    add(study, "0:4, 3:6", 2.5, partial=1)
    assert tables.blocks(study).attrs["partial"] == [(3, 4)]


def test_the_paths_have_a_row_for_each_visit_of_each_recipe(study: Study) -> None:
    paths = tables.paths(tables.leaderboard(study), StudyResults.read(study).n_layers)
    assert list(paths.columns) == ["recipe", "visit", "layer", "scale"]
    assert list(paths["recipe"].drop_duplicates()) == ["0:4, 2:6", "0:3, 1:3*0.5, 3:6", "base"]
    damped = paths[paths["recipe"] == "0:3, 1:3*0.5, 3:6"]
    assert list(damped["visit"]) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(damped["layer"]) == [0, 1, 2, 1, 2, 3, 4, 5]
    assert list(damped["scale"]) == [1, 1, 1, 0.5, 0.5, 1, 1, 1]
    assert list(paths[paths["recipe"] == "base"]["layer"]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n_layers", [1, 3, 30, 81, 126])
def test_the_paths_know_the_base_whatever_recipe_comes_first(n_layers: int) -> None:
    study = new_study(n_layers)
    add(study, Recipe.identity(n_layers), 2.0)
    add(study, Recipe.from_blocks(n_layers, [(0, n_layers, 8)]), 1.0)
    paths = tables.paths(tables.leaderboard(study), StudyResults.read(study).n_layers)
    assert list(paths[paths["recipe"] == "base"]["layer"]) == list(range(n_layers))


# What a study is about


def test_a_study_tells_what_it_is_about() -> None:
    study = new_study(7, seed=3)
    assert StudyResults.read(study).n_layers == 7
    assert results.read_metadata(study).seed == 3


@pytest.mark.parametrize(
    "read", [tables.trials, tables.leaderboard, tables.blocks, StudyResults.read, results.read_metadata]
)
def test_a_study_that_no_search_has_run_on_is_refused_by_name(read: Any) -> None:
    study = optuna.create_study(study_name="mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(SearchError, match="'mine' is not one of David's"):
        read(study)

"""What a study leaves behind: the promised files and no other, a verdict in plain words, a study found again."""

import errno
import html
import json
import math
import os
import random
import re
import resource
import shutil
import statistics
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna import Study, create_study
from optuna.trial import create_trial
from PIL import Image
from scipy import stats

from david.cli import app
from david.errors import SearchError
from david.metrics.selection_bias import Luck
from david.metrics.shrinkage import Shrinkage
from david.recipe.recipe import Recipe
from david.report import artifacts, best_json, columns, page, page_sections, plots, sentences, study_plots, tables
from david.storage import results, studies
from david.storage.backend import RetryingStorage
from david.storage.results import StudyResults
from david.support import files
from tests.helpers.handmade_studies import add, judge, new_study
from tests.helpers.recipes import DESIGN_FILE
from tests.helpers.source_tree import HOUSE, in_fresh_python

BASE, BEST, OTHER = "0:6", "0:4, 2:6", "0:2, 1:3*0.5, 3:6"


@pytest.fixture
def study() -> Study:
    """The base, a single block, two blocks, a duplicate, a failure; nothing judged."""
    study = new_study(6)
    add(study, BASE, 2.0)
    add(study, BEST, 1.5)
    add(study, "0:3, 1:3*0.5, 3:6", 1.75)
    add(study, BEST, 1.5, duplicate_of=1)
    add(study, None, None, state="FAIL")
    return study


@pytest.fixture
def judged(study: Study) -> Study:
    """The block is better on held-out windows, by 0.1, 0.12 and 0.14 nats a token; the other is not told apart."""
    judge(study, 0, [20.0, 21.0, 22.0], [10, 10, 10])
    judge(study, 1, [19.0, 19.8, 20.6], [10, 10, 10])
    judge(study, 2, [20.5, 20.8, 21.9], [10, 10, 10])
    return study


PLOTS = {"path.png", "history.png", "depth.png"}
TABLES = {"trials.csv", "leaderboard.csv", "front.csv"}


def only_base() -> Study:
    study = new_study(6)
    add(study, BASE, 2.0)
    return study


def every_layer_twice() -> Study:
    study = only_base()
    for layer in range(6):
        add(study, Recipe.from_blocks(6, [(layer, layer + 1, 2)]), 2.5)
    return study


def no_single_block() -> Study:
    study = only_base()
    add(study, "0:3, 2, 2:6", 1.5)
    return study


# Files


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (new_study, TABLES),
        (only_base, TABLES | PLOTS),
        (no_single_block, TABLES | PLOTS | {"best.json"}),
        (every_layer_twice, TABLES | PLOTS | {"best.json", "blocks.png"}),
    ],
)
def test_a_folder_gets_exactly_the_files_that_its_study_has_data_for(
    make: Any, names: set[str], tmp_path: Path
) -> None:
    written = artifacts.write(make(), tmp_path)
    assert {path.name for path in written} == set(os.listdir(tmp_path)) == names


def test_a_whole_run_leaves_every_promised_file_and_nothing_temporary(judged: Study, tmp_path: Path) -> None:
    for _ in range(2):  # again over the files of the last time
        written = artifacts.write(judged, tmp_path / "new" / "run")
        names = TABLES | PLOTS | {"best.json"}
        assert {path.name for path in written} == set(os.listdir(tmp_path / "new" / "run")) == names
        assert all(path.parent == tmp_path / "new" / "run" for path in written)


def test_what_else_is_in_the_folder_is_left_alone(judged: Study, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    artifacts.write(judged, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_tables_read_back_equal(judged: Study, tmp_path: Path) -> None:
    artifacts.write(judged, tmp_path)
    for name, expected in (("trials.csv", tables.trials(judged)), ("leaderboard.csv", tables.leaderboard(judged))):
        whole = {column: "Int64" for column, kind in expected.dtypes.items() if kind == "Int64"}
        found = pd.read_csv(tmp_path / name, dtype=whole)
        if name == "leaderboard.csv":
            found["verdict"] = found["verdict"].fillna("")
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-14)


def test_the_plots_are_whole_pictures_with_something_on_them(judged: Study, tmp_path: Path) -> None:
    for path in artifacts.write(judged, tmp_path):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
                assert picture.format == "PNG"
                assert min(picture.size) > 400
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_folder_that_cannot_be_written_is_refused_by_name(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SearchError, match=f"output folder {re.escape(str(folder))} cannot be .+: .+"):
            artifacts.write(study, folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_refused(study: Study, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SearchError, match="Permission denied"):
        artifacts.write(study, tmp_path)
    tmp_path.chmod(0o700)


def test_a_file_that_cannot_be_put_in_its_place_is_told(study: Study, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").mkdir()
    with pytest.raises(SearchError, match=r"cannot write .*leaderboard\.csv: "):
        artifacts.write(study, tmp_path)


def test_a_recipe_that_does_not_fit_on_the_disk_is_told_in_a_line_without_the_file_beside(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # bytes of a file
    try:
        with pytest.raises(SearchError) as caught:
            files.write_atomically(tmp_path / "best.json", Recipe((0, 1)).save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"cannot write {tmp_path / 'best.json'}: {os.strerror(errno.EFBIG)}"
    assert list(tmp_path.iterdir()) == []


def test_a_ready_folder_is_there_and_empty(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


# The best recipe


MORE = {"tokens_sha256": None, "documents": None, "scored_sha256": None}


def test_the_best_recipe_carries_its_scores_its_origin_and_its_base(judged: Study, tmp_path: Path) -> None:
    artifacts.write(judged, tmp_path)
    best = Recipe.load(tmp_path / "best.json")
    assert best == Recipe.parse(BEST)
    document = json.loads((tmp_path / "best.json").read_text())
    made = document.pop("made_with")
    assert {key: made[key] for key in ("david", "torch", "transformers")} == judged.user_attrs["david"]["made_with"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["created"])
    assert document["base"] == judged.user_attrs["david"]["base"]
    assert document["search"] == {
        "study": "david",
        "trial": 1,
        "space": "block",
        "sampler": "TPESampler",
        "strategy": None,
        "trials": 3,  # neither the duplicate nor the failure
        "seed": 0,
    }
    on_search, held_out = document["scores"]
    assert on_search == {
        "metric": "perplexity",
        "value": pytest.approx(math.exp(1.5)),
        "base": pytest.approx(math.exp(2.0)),
        "nll_difference": -0.5,
        "interval95": None,
        "accuracy": None,
        "base_accuracy": None,
        "tokens": 20,
        "held_out": False,
        "convention": {"name": "window", "window": 8, "bos": False},
        "data": {"source": "words", "slice": None, "sha256": "ab", "windows": "0:2"} | MORE,
    }
    row = tables.leaderboard(judged).set_index("trial").loc[1]
    assert held_out == on_search | {
        "value": pytest.approx(math.exp(59.4 / 30)),
        "base": pytest.approx(math.exp(63 / 30)),
        "nll_difference": pytest.approx(-0.12),
        "interval95": [row["low95"], row["high95"]],
        "tokens": 30,
        "held_out": True,
        "data": {"source": "words", "slice": None, "sha256": "ab", "windows": "2:5"} | MORE,
    }


def test_the_best_file_is_the_best_recipe(judged: Study, tmp_path: Path) -> None:
    artifacts.write(judged, tmp_path)
    filed, best = Recipe.load(tmp_path / "best.json"), best_json.best_recipe(judged)
    assert best is not None
    assert (filed, filed.base, filed.scores, filed.search) == (best, best.base, best.scores, best.search)


def test_the_best_recipe_is_the_held_out_windows_choice_not_the_searchs(study: Study) -> None:
    assert best_json.best_recipe(study) == Recipe.parse(BEST)
    assert len(best_json.best_recipe(study).scores) == 1  # type: ignore[union-attr]  # not judged yet
    judge(study, 0, [20.0, 21.0], [10, 10])
    judge(study, 1, [25.0, 26.0], [10, 10])
    judge(study, 2, [19.0, 20.0], [10, 10])
    assert best_json.best_recipe(study) == Recipe.parse("0:3, 1:3*0.5, 3:6")


def test_the_file_of_a_study_whose_base_stands_says_so_with_the_keys_of_the_first_version(
    study: Study, tmp_path: Path
) -> None:
    judge(study, 0, [20.0, 21.0], [10, 10])
    judge(study, 1, [25.0, 26.0], [10, 10])
    judge(study, 2, [29.0, 30.0], [10, 10])
    artifacts.write(study, tmp_path)
    best = Recipe.load(tmp_path / "best.json")
    assert best.written_as is not None
    assert best.written_as.endswith("no finalist beats the base on held-out windows: every one is worse (2 of 2)")
    assert best.verdict == "worse"
    assert set(json.loads((tmp_path / "best.json").read_text())) == set(json.loads(DESIGN_FILE))  # others are refused


def test_the_best_is_the_first_that_is_better_not_a_lower_one_that_is_inconclusive(study: Study) -> None:
    judge(study, 0, [20.0, 20.0, 20.0], [10, 10, 10])
    judge(study, 1, [19.0, 19.1, 18.9], [10, 10, 10])
    judge(study, 2, [2.0, 10.0, 30.0], [10, 10, 10])
    board = tables.leaderboard(study).set_index("trial")
    assert (board.loc[2, "rank"], board.loc[2, "verdict"]) == (1, "not told apart")
    best = best_json.best_recipe(study)
    assert best is not None
    assert best.verdict == "better"
    assert str(best.written_as).startswith("trial 1 of the study david; better than the base")


def test_one_held_out_window_gives_a_score_without_an_interval(study: Study) -> None:
    judge(study, 0, [20.0], [10])
    judge(study, 1, [19.0], [10])
    held_out = best_json.best_recipe(study).scores[1]  # type: ignore[union-attr]
    assert (held_out.nll_difference, held_out.interval95) == (pytest.approx(-0.1), None)


def test_without_a_recipe_or_without_the_base_there_is_no_best() -> None:
    assert best_json.best_recipe(only_base()) is None
    study = new_study(6)
    add(study, BEST, 1.5)
    assert best_json.best_recipe(study) is None


# Words


def test_the_verdict_names_a_better_recipe_its_gain_and_how_sure_it_is(judged: Study) -> None:
    board = tables.leaderboard(judged)
    said = sentences.verdict(board)
    low, high = board.loc[board["trial"] == 1, ["low95", "high95"]].iloc[0]
    assert said == (
        f"better than the base on held-out windows: 0:4, 2:6 by 0.1200 nats a token "
        f"(95% interval {-high:.4f} to {-low:.4f}, corrected for 2 finalists)"
    )
    assert 0 < -high < 0.12 < -low


WORSE, EVEN = [21.0, 22.1, 23.0], [20.5, 20.8, 21.9]


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (WORSE, WORSE, "no finalist beats the base on held-out windows: every one is worse (2 of 2)"),
        (
            WORSE,
            EVEN,
            "no finalist beats the base on held-out windows: 1 of 2 inconclusive",
        ),
        (EVEN, EVEN, "no finalist beats the base on held-out windows: 2 of 2 inconclusive"),
    ],
)
def test_the_verdict_says_so_when_the_base_wins(
    study: Study, first: list[float], second: list[float], sentence: str
) -> None:
    for number, window_nll in enumerate([[20.0, 21.0, 22.0], first, second]):
        judge(study, number, window_nll, [10, 10, 10])
    assert sentences.verdict(tables.leaderboard(study)) == sentence


def test_the_verdict_counts_those_that_are_judged(judged: Study) -> None:
    add(judged, "0:6, 2:6", 1.8)
    board = tables.leaderboard(judged, top=5)
    assert "not judged" in set(board["verdict"])
    worse = board.assign(verdict=board["verdict"].replace({"better": "worse", "not told apart": "worse"}))
    assert sentences.verdict(worse) == "no finalist beats the base on held-out windows: every one is worse (2 of 2)"


@pytest.mark.parametrize("path", sorted(Path("experiments").rglob("best.json")), ids=str)
def test_every_recipe_that_is_committed_can_be_read(path: Path) -> None:
    assert Recipe.load(path).scores


def test_how_often_the_held_out_windows_were_looked_at_is_told(judged: Study) -> None:
    assert sentences.looks(judged) == ""
    results.log_evaluation(judged, judged.trials[:2])
    assert sentences.looks(judged) == "held-out data evaluated once, for 2 recipes and the base"
    results.log_evaluation(judged, judged.trials[1:3])
    assert "evaluated 2 times, for 2 recipes and the base: each further evaluation" in sentences.looks(judged)


def test_the_luck_line_is_told_in_a_sentence() -> None:
    told = sentences.luck(Luck(-0.012, -0.02, -0.005, 0.88), 40)
    assert told == (
        "by luck alone the best of 40 recipes would show -0.0120 nats a token on the search windows; "
        "the best shows -0.0050, and luck alone is as low in 88% of draws"
    )
    assert sentences.luck(Luck(-0.012, -0.02, math.nan, math.nan), 3).endswith("on the search windows")
    assert sentences.luck(None, 3) == sentences.luck(Luck(*[math.nan] * 4), 3) == ""


def test_what_is_left_of_the_gain_is_computed_from_the_judged_recipes(judged: Study) -> None:
    found = tables.shrinkage(judged)
    assert found is not None
    gains = [0.025, 0.07, 0.075]  # mean of the finalists, a token, on each held-out window
    half = stats.t.ppf(0.975, 2) * statistics.stdev(gains) / math.sqrt(3)
    mean = statistics.mean(gains)
    assert (found.search_gain, found.held_out_gain, found.finalists) == (0.375, pytest.approx(mean), 2)
    assert [found.left, found.low, found.high] == pytest.approx([x / 0.375 for x in (mean, mean - half, mean + half)])
    told = (
        "the 2 finalists gain on average +0.3750 nats a token over the base on the search windows; "
        "15% of that is left on the held-out windows (95% interval -3% to 33%)"
    )
    assert sentences.shrinkage(found) == told
    assert f"The{told[3:]}." in html.unescape(page.page(judged))


def test_without_held_out_scores_or_a_gain_nothing_is_left_to_say(study: Study) -> None:
    assert tables.shrinkage(study) is None
    assert sentences.shrinkage(None) == ""
    assert "What is left of the gain" not in page.page(study)
    judge(study, 0, [20.0], [10])
    judge(study, 1, [19.0], [10])
    assert sentences.shrinkage(tables.shrinkage(study)) == (
        "the finalist gains +0.5000 nats a token over the base on the search windows; "
        "20% of that is left on the held-out windows (no interval: too few held-out data)"
    )
    judge(study, 2, [math.inf], [10])
    assert sentences.shrinkage(tables.shrinkage(study)) == ""
    worse = Shrinkage(-0.0012, 0.003, math.nan, math.nan, math.nan, 1)
    assert sentences.shrinkage(worse, "1 − acc", "document") == (
        "the finalist has no gain over the base on the search documents: -0.0012 in 1 − acc, "
        "and +0.0030 on the held-out documents"
    )


def test_objectives_are_ranked_against_one_another() -> None:
    about = new_study(6, also=[["visits", "len"], ["code", "perplexity"]]).user_attrs["david"]
    study = create_study(directions=["minimize"] * 3)
    study.set_user_attr("david", about)
    rng = random.Random(0)
    recipes = [BASE, *(str(Recipe.from_blocks(6, [(i, i + 2, 2)])) for i in range(5)), "0:5", "1:6", "0:6, 5"]
    values = [[2 - n / 9 + rng.random() / 3, len(Recipe.parse(text)), rng.random()] for n, text in enumerate(recipes)]
    for text, of_recipe in zip(recipes, values, strict=True):
        score = {"window_nll": [10 * of_recipe[0]], "window_tokens": [10], "convention": "window"}
        study.add_trial(create_trial(values=of_recipe, user_attrs={"recipe": text, **score}))
    found = tables.objective_correlations(study)
    columns = dict(zip(("search NLL", "visits", "code"), zip(*values, strict=True), strict=True))
    assert list(found) == [("search NLL", "visits"), ("search NLL", "code"), ("visits", "code")]
    for (first, second), correlation in found.items():
        assert correlation.rho == pytest.approx(stats.spearmanr(columns[first], columns[second]).statistic)
        assert -1 <= correlation.low < correlation.rho < correlation.high <= 1
        assert correlation.pairs == 9
    lines = sentences.objective_sentences(found)
    assert re.fullmatch(
        r"search NLL and code rank 9 recipes with a rank correlation of [+-]\d\.\d\d "
        r"\(95% interval [+-]\d\.\d\d to [+-]\d\.\d\d\)",
        lines[1],
    )
    text = page.page(study)
    assert "Other objectives and measures" in text
    assert all(f"{line[0].upper()}{line[1:]}." in text for line in lines)


def test_the_verdict_says_that_nothing_is_judged_or_scored_yet(study: Study) -> None:
    assert sentences.verdict(tables.leaderboard(study)) == "not judged yet: no recipe is measured on held-out windows"
    for empty in (only_base(), new_study()):
        assert sentences.verdict(tables.leaderboard(empty)) == "nothing but the base is scored yet"


def test_the_leaderboard_for_a_terminal_has_a_line_a_row_and_nothing_missing(study: Study, judged: Study) -> None:
    add(judged, "0:2, 1:6", 1.0)
    judge(judged, 5, [20.0, math.inf, 22.0], [10, 10, 10])
    long = Recipe.from_blocks(6, [(i, j, 3, 0.35) for i in range(6) for j in range(i + 1, 7)])
    add(judged, long, 9e9)
    judge(judged, 6, [22.0, 24.0, 25.0], [10, 10, 10])
    for board in (tables.leaderboard(judged), tables.leaderboard(only_base())):
        head, *lines = sentences.board_text(board).splitlines()
        assert re.split(r"\s{2,}|\s(?=\d|trial|visits|depth|held|verdict)", head.strip())[0] == "rank"
        assert len(lines) == len(board)
        assert "nan" not in sentences.board_text(board).lower()
        for line, notation, number in zip(lines, board["recipe"], board["trial"], strict=True):
            assert line.rstrip().endswith(notation)  # whole, however long
            assert line.split()[1] == str(number)


def test_the_leaderboard_for_a_terminal_shows_the_figures(judged: Study) -> None:
    text = sentences.board_text(tables.leaderboard(judged))
    best = text.splitlines()[1]
    for shown in ("+33%", f"{math.exp(1.5):.3f}", f"{math.exp(1.98):.3f}", "-0.1200", "better", BEST):
        assert shown in best
    assert "inconclusive" in text


def test_an_empty_leaderboard_says_that_nothing_is_scored() -> None:
    assert sentences.board_text(tables.leaderboard(new_study())) == "(nothing is scored yet)"


# A study found again


def stored(folder: Path, *names: str) -> str:
    """A storage URL with studies of these names."""
    storage = f"sqlite:///{folder / 'study.db'}"
    for name in names:
        add(new_study(6, storage=storage, name=name), BASE, 2.0)
    return storage


def test_a_runs_study_is_found_by_its_folder_and_by_its_url(tmp_path: Path) -> None:
    storage = stored(tmp_path, "night")
    for found in (studies.open_existing(tmp_path, None), studies.open_existing(None, storage)):
        assert found.study_name == "night"
        assert list(tables.trials(found)["nll"]) == [2.0]


def test_of_several_studies_one_must_be_named(tmp_path: Path) -> None:
    stored(tmp_path, "night", "day")
    assert studies.open_existing(tmp_path, None, "day").study_name == "day"
    with pytest.raises(SearchError, match=r"name one of the studies in .*: (night, day|day, night)"):
        studies.open_existing(tmp_path, None)
    with pytest.raises(SearchError, match="name one of the studies"):
        studies.open_existing(tmp_path, None, "noon")


def test_a_single_study_of_another_name_is_not_taken_for_the_wanted_one(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"name one of the studies in .*: night"):
        studies.open_existing(None, stored(tmp_path, "night"), "day")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SearchError, match=r"holds no run: expected a study\.db"):
            studies.open_existing(folder, None)
        assert not (folder / "study.db").exists()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is no database, whatever its name says. " * 40)
    with pytest.raises(SearchError, match="cannot be used"):
        studies.open_existing(tmp_path, None)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/db", "", "sqlite:////nowhere/at/all/study.db"])
def test_a_storage_that_cannot_be_read_is_told_in_a_line(url: str) -> None:
    with pytest.raises(SearchError, match=f"the storage {re.escape(url)} cannot be used: .+") as error:
        studies.open_existing(None, url)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_or_a_url_not_both_nor_neither(tmp_path: Path) -> None:
    for folder, storage in ((None, None), (tmp_path, "sqlite://")):
        with pytest.raises(SearchError, match="one of the two"):
            studies.open_existing(folder, storage)


# Read once


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[str]) -> None:
    """Count the calls of a function or a property."""
    original = owner.__dict__[name]
    call = original.fget if isinstance(original, property) else original

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, property(count) if isinstance(original, property) else count)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_report_reads_the_study_once_and_makes_each_table_once(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(HOUSE.parent / "tests" / "fixtures" / "study_0_1" / "search", tmp_path / "run")
    calls = Counter[str]()
    reads = ("get_trials", "user_attrs")
    made = ("trials", "leaderboard", "blocks", "luck", "shrinkage", "rank_correlations", "objective_correlations")
    for owner, names in ((Study, reads), (RetryingStorage, ["get_all_trials"]), (tables, made)):
        for name in names:
            counted(monkeypatch, owner, name, calls)
    monkeypatch.setattr(sys, "argv", ["david", "report", str(tmp_path / "run"), *options])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code in (0, None), capsys.readouterr().err
    assert calls == dict.fromkeys([*reads, *made, "get_all_trials"], 1)


def test_results_that_were_read_serve_in_the_place_of_their_study_and_are_not_read_again(
    judged: Study, tmp_path: Path
) -> None:
    read = StudyResults.read(judged)
    assert StudyResults.read(read) is read
    before = tables.leaderboard(judged), page.page(judged), sentences.looks(judged), best_json.best_recipe(judged)
    add(judged, "0:2, 1:6", 1.0)
    after = tables.leaderboard(read), page.page(read), sentences.looks(read), best_json.best_recipe(read)
    pd.testing.assert_frame_equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert len(tables.trials(read)) + 1 == len(tables.trials(judged))
    assert [path.name for path in page.write(read, tmp_path)][-1] == page.NAME


@pytest.mark.parametrize("module", ["david.storage.studies", "david.study.create"])
def test_opening_a_study_loads_no_matplotlib(module: str, tmp_path: Path) -> None:
    url = stored(tmp_path, "night")
    code = {
        "david.storage.studies": f"from {module} import open_existing; open_existing(None, {url!r})",
        "david.study.create": f"from {module} import open_study; open_study({url!r}, 'night')",
    }[module]
    assert in_fresh_python(f"{code}\nimport sys; print('matplotlib' in sys.modules)").splitlines()[-1] == "False"


def test_each_column_of_the_leaderboard_and_each_plot_is_one_entry(
    judged: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new column reaches the table, the terminal and the page; a new plot the folder and the page."""
    column = columns.Column(
        "seams",
        lambda _: 7,
        "seams",
        lambda row: f"{row['seams']}!",
        page=columns.PageCell(9, ("Seams", "there"), lambda row: f"{row['seams']}?"),
    )
    every = columns.leaderboard_columns

    def extended(*args: Any, **options: Any) -> tuple[columns.Column, ...]:
        return (*every(*args, **options), column)

    for module in (columns, tables, sentences, page_sections):
        monkeypatch.setattr(module, "leaderboard_columns", extended)
    plot = study_plots.StudyPlot("again", data=lambda report, _: report.trials, draw=plots.history)
    monkeypatch.setattr(study_plots, "STUDY_PLOTS", (*study_plots.STUDY_PLOTS, plot))
    board = tables.leaderboard(judged)
    assert set(board["seams"]) == {7}
    assert "7!" in sentences.board_text(board)
    source = page.page(judged)
    assert "Seams<br>there" in source
    assert "7?" in source
    assert source.count("Search history") > 1
    assert (tmp_path / "again.png") in artifacts.write(judged, tmp_path)


def test_a_plot_in_a_section_that_the_page_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="SEARCH_SECTION"):
        study_plots.StudyPlot("lost", data=lambda report, _: report.trials, draw=plots.history, section="Luck")


def test_a_plot_stands_beside_the_blocks_also_where_there_is_no_map(
    judged: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = study_plots.BLOCKS_SECTION
    plot = study_plots.StudyPlot("again", data=lambda report, _: report.trials, draw=plots.history, section=section)
    monkeypatch.setattr(study_plots, "STUDY_PLOTS", (plot,))
    source = page.page(judged)
    assert section in source
    assert source.count("Search history") == 2  # its caption and its label


# Files of others


@pytest.mark.parametrize("name", ["best.json", "leaderboard.csv", "front.csv", "trials.csv", "report.html", "path.png"])
def test_a_file_of_somebody_else_is_not_replaced(name: str, judged: Study, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SearchError, match=f"that are not David's and would be replaced .{name}.: name another"):
        page.write(judged, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_a_study_replaces_its_own_files_but_not_the_best_recipe_of_another(judged: Study, tmp_path: Path) -> None:
    for _ in range(2):
        page.write(judged, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "path.png").unlink()  # a killed run may have left some only
    page.write(judged, tmp_path)
    for sent in (Recipe.parse("0:3, 1:6"), replace(best_json.best_recipe(judged), search=None)):  # type: ignore[type-var]
        sent.save(tmp_path / "best.json")
        with pytest.raises(SearchError, match=r"best\.json is no file of a study and would be replaced"):
            page.write(judged, tmp_path)
        assert Recipe.load(tmp_path / "best.json") == sent
    theirs = json.loads(before["best.json"])
    theirs["search"]["study"] = "theirs"
    (tmp_path / "best.json").write_text(json.dumps(theirs))
    with pytest.raises(SearchError, match=r"best\.json is of another study, theirs, and would be replaced"):
        page.write(judged, tmp_path)
    assert json.loads((tmp_path / "best.json").read_text()) == theirs


def test_a_file_of_somebody_else_is_not_replaced_by_a_profile(tmp_path: Path) -> None:
    layers = pd.DataFrame({"layer": [0], "influence": [0.5], "repeat": [0.1], "skip": [0.1]})
    distances = pd.DataFrame([[0.5]])
    for _ in range(2):
        artifacts.write_profile(layers, distances, tmp_path / "own")
    (tmp_path / "distances.csv").write_text("mine")
    with pytest.raises(SearchError, match=r"distances\.csv"):
        artifacts.write_profile(layers, distances, tmp_path)
    assert (tmp_path / "distances.csv").read_text() == "mine"

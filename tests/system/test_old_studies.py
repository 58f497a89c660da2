"""Studies that David 0.1.0 made read, report, judge and go on today: see `tests/fixtures/study_0_1/README.md`."""

import json
import shlex
import shutil
from pathlib import Path

import optuna
import pytest
import torch
from optuna import Study

from david.recipe.recipe import Recipe
from david.report import tables
from david.storage.results import StudyResults
from david.storage.studies import open_existing
from tests.helpers.command import Run, runner

FIXTURE = Path(__file__).parents[1] / "fixtures" / "study_0_1"
KINDS = {"search": "perplexity", "scan": "perplexity", "choices": "multiple_choice"}
COMMANDS = {
    "search": "search demo --data notes.jsonl --window 64 --windows 4 --held-out 8 --scales 0.1:1 --max-length 4 "
    "--trials {trials} --top 2 --baseline 2 --device cpu --out search",
    "scan": "scan demo --data notes.jsonl --window 64 --windows 6 --held-out 6 --max-length 1 --pruner race "
    "--top 2 --baseline 0 --device cpu --out scan",
    "choices": "search demo --data questions.jsonl --prompt-column question --column answers --gold-column right "
    "--windows 4 --held-out 8 --also visits --strategy refine --trials {trials} --top 2 --baseline 1 --device cpu "
    "--out choices",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the studies and of what they were made from."""
    return shutil.copytree(FIXTURE, tmp_path / "studies")


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(place, monkeypatch, capsys)


def opened(folder: Path) -> Study:
    return open_existing(folder, None)


@pytest.mark.parametrize("name", KINDS)
def test_a_report_writes_the_tables_of_then_byte_for_byte_and_the_same_best_recipe(
    name: str, run: Run, place: Path
) -> None:
    for path in (place / name).iterdir():
        if path.name != "study.db":
            path.unlink()
    code, out, err = run("report", name, "--top", "2")
    assert code == 0, err
    for table in ("trials.csv", "leaderboard.csv", "front.csv"):
        assert (place / name / table).read_bytes() == (FIXTURE / name / table).read_bytes()
    now, then = (json.loads((folder / name / "best.json").read_text()) for folder in (place, FIXTURE))
    for document in (now, then):
        del document["made_with"]["created"]
    said = now.pop("written_as")  # the first version wrote no verdict there
    assert (then.pop("written_as"), now) == (None, then)
    assert said.startswith(f"trial {now['search']['trial']} of the study {now['search']['study']}; no finalist beats")
    assert "no finalist beats the base" in out
    assert (place / name / "report.html").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_the_objective_is_known_though_it_was_not_stored(name: str, place: Path) -> None:
    results = StudyResults.read(opened(place / name))
    assert "objective_kind" not in results.attributes["david"]
    assert results.metadata.objective_kind == KINDS[name]
    assert results.item == ("question" if name == "choices" else "window")
    assert results.unit == ("nats a question" if name == "choices" else "nats a token")


@pytest.mark.parametrize("name", KINDS)
def test_the_best_recipe_of_then_reads(name: str) -> None:
    recipe = Recipe.load(FIXTURE / name / "best.json")
    assert recipe.base is not None
    assert recipe.search is not None
    results = StudyResults.read(opened(FIXTURE / name))
    best = results.judged_best
    assert best is not None
    assert (best.user_attrs["recipe"], best.number) == (str(recipe), recipe.search.trial)


@pytest.mark.parametrize("name", ["search", pytest.param("choices", marks=pytest.mark.slow)])
def test_the_same_command_goes_on_with_two_more_trials_and_judges_what_is_new(name: str, run: Run, place: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = StudyResults.read(opened(place / name))
        code, _, err = run(*shlex.split(COMMANDS[name].format(trials=8)))
    finally:
        torch.set_num_threads(threads)
    assert code == 0, err
    study = opened(place / name)
    after = StudyResults.read(study)
    assert len(after.scored) == 8
    for old, new in zip(before.trials, after.trials, strict=False):
        assert (old.number, old.values, old.state, old.user_attrs) == (
            new.number,
            new.values,
            new.state,
            new.user_attrs,
        )
    for key, value in before.attributes.items():
        if key.startswith("held_out:") or key == "david":
            assert after.attributes[key] == value
    best = {trial.number for trial in after.best_of_search(2)}
    assert best <= {trial.number for trial in after.judged}
    board = tables.leaderboard(study, 2)
    assert set(board["trial"]) == {trial.number for trial in after.judged} | {0}


@pytest.mark.slow
def test_a_scan_of_then_is_complete_today_and_nothing_is_scored_again(run: Run, place: Path) -> None:
    before = optuna.load_study(study_name="scan", storage=f"sqlite:///{place}/scan/study.db").trials
    code, _, err = run(*shlex.split(COMMANDS["scan"]))
    assert code == 0, err
    assert opened(place / "scan").trials == before

"""Storages, studies and runs as an attacker, a stranger or a failed disk leaves them: one clear line, nothing lost."""

import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from david.cli import app
from david.models.load import load_model
from david.recipe.recipe import Recipe
from tests.helpers.command import MOST, SEARCH, TURNED, Run, cut, furnish, matches, refusal, same_levels, written


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


STORAGES = {
    "a missing folder": ("sqlite:///gone/study.db", "unable to open database file", "there is no file"),
    "a file of another kind": ("sqlite:///data.txt", "file is not a database", "file is not a database"),
    "a folder": ("sqlite:///model", "unable to open database file", "there is no file model"),
    "a name that breaks the line": ("sqlite:///a\nb/c.db", "unable to open database file", "there is no file a b/c.db"),
    "nobody there": ("postgresql://me:secret@127.0.0.1:{port}/x", "refused", "refused"),
    "a driver that is not there": ("mysql://me:secret@127.0.0.1/x", "needs another package", "needs another package"),
    "an unknown driver": ("evil://me:secret@127.0.0.1/x", "Can't load plugin", "Can't load plugin"),
    "a password of a file": ("sqlite://me:secret@/gone.db", "cannot be used", "cannot be used"),
    "a port that is no number": ("postgresql://me:secret@127.0.0.1:abc/x", "invalid literal", "invalid literal"),
    "a password as an option": ("postgresql://me@127.0.0.1:{port}/x?password=secret", "refused", "refused"),
    "a URL without a driver": ("me:secret@host/x", "Could not parse", "Could not parse"),
    "a URL without a colon": ("postgresql//me:secret@host/x", "Could not parse", "Could not parse"),
    "no URL": ("study", "Could not parse", "Could not parse"),
    "nothing": ("", "Could not parse", "Could not parse"),
}


@pytest.mark.parametrize(("url", "to_search", "to_read"), STORAGES.values(), ids=STORAGES)
def test_a_storage_that_cannot_be_reached_is_told_in_a_line_without_its_password(
    url: str, to_search: str, to_read: str, run: Run, place: Path
) -> None:
    url = url.format(port=closed_port())
    for line, says in ((f"{SEARCH} --out new --storage", to_search), ("report --out new --storage", to_read)):
        said = refusal(run, place, line, url)
        assert says in said
        assert "secret" not in said


# ---- studies of others, and runs that are not whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    place = furnish(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch, same_levels():
        patch.chdir(place)
        patch.setattr(sys, "argv", ["david", *SEARCH.split(), "--trials", "3", "--baseline", "0"])
        with pytest.raises(SystemExit):
            app.main()
    return place / "run"


def test_names_of_odd_characters_are_names_like_others(run: Run, place: Path, bad: Path, finished: Path) -> None:
    odd = bad.with_name("bad rün %41?#&'\"<b>\n" + TURNED)
    shutil.copytree(finished, odd)
    code, out, err = run("report", str(odd))
    assert code == 0, err
    assert "on held-out windows" in out
    assert not list(place.glob("study.db*"))


def other_weights(place: Path) -> str:
    shutil.copytree(place / "model", place / "bad_model")
    model, _ = load_model(place / "model", device="cpu")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(place / "bad_model")
    return "search bad_model --data data.txt --window 16"


JOINS: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "another model": (
        other_weights,
        "another base: model 'model', .*now model 'bad_model', fingerp",
        "",
    ),
    "other windows": (lambda _: "search model --data data.txt --window 32", "another window: 16, now 32", ""),
    "another text": (lambda _: "search model --data bad.txt --window 16", "another search data: .*now .*bad.txt", ""),
    "another space": (
        lambda _: "search model --data data.txt --window 16 --space removal",
        "another space: Blocks",
        "Removal",
    ),
}


@pytest.mark.parametrize(("make", "says", "too"), JOINS.values(), ids=JOINS)
def test_a_study_of_another_is_refused_with_both_sides_named(
    make: Callable[[Path], str], says: str, too: str, run: Run, place: Path, bad: Path, finished: Path
) -> None:
    shutil.copytree(finished, bad)
    (place / "bad.txt").write_text(" ".join((place / "data.txt").read_text().split()[::-1]))
    line = make(place)
    before = kept(bad)
    code, out, err = run(f"{line} --windows 3 --held-out 4 --top 2 --out bad --trials 4")
    said = err.replace("\r", "\n").splitlines()[-1]
    assert (code, out) == (1, "")
    assert said.startswith("error: the study 'david' was made with ")
    assert matches(says, said)
    assert too in said
    assert "Traceback" not in err
    assert kept(bad) == before


def kept(folder: Path) -> Any:
    """What a run has found: its trials, and what it was made on."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
    return study.user_attrs["david"], study.trials


def changed_database(statement: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with sqlite3.connect(folder / "study.db") as connection:
            connection.execute(statement)
        connection.close()

    return change


def folder_for_a_file(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


STUDY, TRIAL = "update study_user_attributes set value_json=", "update trial_user_attributes set value_json="
RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no study": (lambda folder: (folder / "study.db").unlink(), "bad holds no run: expected a study.db in it"),
    "a folder for a study": (folder_for_a_file("study.db"), "bad holds no run: expected a study.db in it"),
    "an empty study": (cut("study.db", 0), "bad cannot be used: the file bad/study.db is empty"),
    "garbage": (written("study.db", "garbage" * 999), "study.db cannot be used: file is not a database"),
    "half a study": (cut("study.db", 0.5), "study.db cannot be used: database disk image is malformed"),
    "a study of another version": (
        changed_database("update alembic_version set version_num='v9.9.9'"),
        "study.db cannot be used: The runtime optuna version",
    ),
    "a study of another's": (
        changed_database("delete from study_user_attributes"),
        "the study 'david' is not one of David's: no search has run on it",
    ),
    "attributes of another shape": (changed_database(f"{STUDY}'3' where key='david'"), "david' is damaged, or others"),
    "attributes that are no JSON": (changed_database(f"{STUDY}'nil' where key='david'"), "is damaged, or others have"),
    "scores of another shape": (changed_database(f"{STUDY}'3' where key like 'held%'"), "is damaged, or others have"),
    "recipes that are none": (changed_database(f"{TRIAL}'\"0:x\"' where key='recipe'"), "is damaged, or others have"),
    "recipes that are numbers": (changed_database(f"{TRIAL}'3' where key='recipe'"), "is damaged, or others have"),
    "recipes without end": (changed_database(f"{TRIAL}'\"0:999999999\"' where key='recipe'"), MOST),
    "a folder for a table": (folder_for_a_file("trials.csv"), "cannot write bad/trials.csv: Is a directory"),
}


@pytest.mark.parametrize(("change", "says"), RUNS.values(), ids=RUNS)
def test_a_run_that_is_not_whole_is_told_in_a_line(
    change: Callable[[Path], Any], says: str, run: Run, place: Path, bad: Path, finished: Path
) -> None:
    shutil.copytree(finished, bad)
    change(bad)
    assert says in refusal(run, place, "report bad")


@pytest.mark.parametrize("name", ["garbage", "half a study", "attributes of another shape", "recipes without end"])
def test_a_search_does_not_go_on_in_a_study_that_is_not_whole(
    name: str, run: Run, place: Path, bad: Path, finished: Path
) -> None:
    shutil.copytree(finished, bad)
    change, says = RUNS[name]
    change(bad)
    assert says in refusal(run, place, f"{SEARCH} --trials 4 --out bad")


def test_tables_that_were_left_half_written_are_written_again(run: Run, bad: Path, finished: Path) -> None:
    shutil.copytree(finished, bad)
    for name in ("best.json", "trials.csv", "leaderboard.csv", "path.png", "report.html"):
        cut(name, 0.5)(bad)
    code, _, err = run("report bad")
    assert code == 0, err
    assert Recipe.load(bad / "best.json") == Recipe.load(finished / "best.json")
    assert (bad / "trials.csv").read_bytes() == (finished / "trials.csv").read_bytes()
    assert not [path.name for path in bad.iterdir() if path.name.startswith(".")]


def test_of_optuna_nothing_unpickles_but_cma_es_and_the_journal() -> None:
    """The README says so: who lets others write into a storage does not search it with cmaes."""
    house = Path(optuna.__file__).parent
    used = {path.relative_to(house).as_posix() for path in house.rglob("*.py") if "pickle.loads" in path.read_text()}
    assert used - {"testing/pytest_storages.py"} == {"samplers/_cmaes.py", "storages/journal/_storage.py"}

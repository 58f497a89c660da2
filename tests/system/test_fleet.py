"""Several workers on one machine by one command."""

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from david.cli import local_workers
from david.errors import SearchError
from david.storage.heartbeat import OWNER
from tests.helpers.processes import command_in


@pytest.mark.parametrize(
    ("workers", "device", "n"), [("1", None, 1), ("3", None, 3), ("3", "cpu", 3), ("1", "cuda:1", 1)]
)
def test_a_number_is_a_number(workers: str, device: str | None, n: int) -> None:
    assert local_workers.count_workers(workers, device) == n


def test_auto_is_one_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert local_workers.count_workers("auto", None) == 4
    assert local_workers.count_workers("auto", "cpu") == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert local_workers.count_workers("auto", None) == 1


@pytest.mark.parametrize("workers", ["0", "-1", "257", "many", "1.5", ""])
def test_what_is_no_number_of_workers_is_refused(workers: str) -> None:
    with pytest.raises(SearchError, match="--workers must be auto, or 1 to 256; got"):
        local_workers.count_workers(workers, None)


def test_a_device_for_several_is_refused() -> None:
    with pytest.raises(SearchError, match="leave --device cuda:1 out"):
        local_workers.count_workers("2", "cuda:1")


def test_a_model_that_is_spread_over_the_devices_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert local_workers.count_workers("auto", None, "auto") == local_workers.count_workers("1", None, "balanced") == 1
    with pytest.raises(SearchError, match="--device-map auto gives one worker all devices: leave --workers 2 out"):
        local_workers.count_workers("2", None, "auto")


@pytest.mark.parametrize(
    "given", ["search demo --workers 3 --trials 9", "search --workers=3 demo --trials 9", "search --workers 3 -- demo"]
)
def test_the_others_are_started_as_one_each(given: str) -> None:
    found = local_workers._as_one_worker(given.split())
    assert found[:3] == ["search", "--workers", "1"]
    assert [each for each in found[3:] if each != "--"] == [
        each for each in ["demo", "--trials", "9"] if each in given.split()
    ]


def test_each_worker_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_workers._machine_share(1, 4, 0) == {"OMP_NUM_THREADS": "4"}
    assert [local_workers._machine_share(i, 3, 2)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [local_workers._machine_share(i, 2, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["5", "7"]


@pytest.mark.slow
def test_two_workers_by_one_command_share_a_study_and_end_together(tmp_path: Path) -> None:
    command = [*command_in(tmp_path, n_trials=60), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    log = (tmp_path / "run" / "worker-1.log").read_text()
    assert done.returncode == 0, done.stderr + log
    study = optuna.load_study(study_name="david", storage=f"sqlite:///{tmp_path / 'run' / 'study.db'}")
    trials = study.get_trials()
    assert len({trial.user_attrs[OWNER] for trial in trials if OWNER in trial.user_attrs}) == 2, log
    counted = [t for t in trials if t.state == TrialState.COMPLETE and "duplicate_of" not in t.user_attrs]
    assert 60 <= len(counted) <= 62
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert len(study.user_attrs["held_out_looks"]) == 1
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_the_first_worker_ends_all_of_them_gently(number: int, tmp_path: Path) -> None:
    command = [*command_in(tmp_path, n_trials=5000), "--workers", "2"]
    log, database = tmp_path / "run" / "worker-1.log", tmp_path / "run" / "study.db"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        patience, owners = time.monotonic() + 120, set[str]()
        while len(owners) < 2 and time.monotonic() < patience:
            time.sleep(0.5)
            if database.is_file():
                owners = owners_in(database)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    for said in (told, log.read_text()):
        assert said.count(f"{name}: stopping after the windows in progress") == 1
        assert "recipes scored; repeat the same call to resume" in said
        assert "Traceback" not in said
    study = optuna.load_study(study_name="david", storage=f"sqlite:///{database}")
    assert not [trial for trial in study.get_trials() if trial.state == TrialState.RUNNING]


def heed() -> None:
    """As in a terminal: a shell lets what it starts in the background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


OWNERS = "SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = ?"


def owners_in(database: Path) -> set[str]:
    """The workers a trial is known of, read without a hand on the file (Optuna would make missing tables)."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as file:
            return {owner for (owner,) in file.execute(OWNERS, [OWNER])}
    except sqlite3.OperationalError:  # not made yet, or being written
        return set()

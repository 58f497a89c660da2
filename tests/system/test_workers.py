"""Signs of life, and what only one worker may do at a time."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial, create_trial

from david.storage import heartbeat
from david.storage.backend import open_storage
from david.storage.heartbeat import BEAT_PREFIX, MACHINE, OWNER, WorkerHeartbeat
from david.storage.lock import LOCK_SUFFIX, exclusive_lock, release_lock
from david.support import signals


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path / 'study.db'}"), study_name="david")


@pytest.fixture
def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def beats_of(study: Study) -> dict[str, Any]:
    return {name: beat for name, beat in study.user_attrs.items() if name.startswith(BEAT_PREFIX)}


def test_a_worker_tells_that_it_lives_and_that_it_has_ended(study: Study) -> None:
    with WorkerHeartbeat(study) as heart:
        assert heart.is_alive(heart.name)
        assert heart.workers() == 1
        assert beats_of(study) == {BEAT_PREFIX + heart.name: 0}
    assert beats_of(study) == {BEAT_PREFIX + heart.name: None}
    assert not heart.is_alive(heart.name)


def test_a_study_in_memory_keeps_no_beats() -> None:
    study = optuna.create_study()
    with WorkerHeartbeat(study) as one, WorkerHeartbeat(study) as two:
        assert one.is_alive(two.name)
    assert study.user_attrs == {}
    assert not one.is_alive(two.name)


def test_a_worker_of_this_machine_is_dead_when_its_process_is(study: Study, dead_process: int) -> None:
    with WorkerHeartbeat(study) as heart:
        assert not heart.is_alive(f"{MACHINE}:{dead_process}:ab")
        assert not heart.is_alive(f"{MACHINE}:{dead_process}")  # as versions before wrote it
        assert not heart.is_alive(f"{MACHINE}:{os.getpid()}:ab")  # this process, before it was this one
        assert heart.is_alive(f"{MACHINE}:1:ab")


def test_a_worker_that_was_killed_is_dead_also_before_anybody_asks_how(study: Study) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with WorkerHeartbeat(study) as heart:
        assert heart.is_alive(f"{MACHINE}:{child.pid}:ab")
        child.kill()
        patience = time.monotonic() + 20
        while heart.is_alive(f"{MACHINE}:{child.pid}:ab") and time.monotonic() < patience:
            time.sleep(0.05)
        assert child.returncode is None
        assert not heart.is_alive(f"{MACHINE}:{child.pid}:ab")
    child.communicate()


@pytest.mark.parametrize("machine", [socket.gethostname(), f"{socket.gethostname()}/another", "a:b:c", ""])
def test_a_process_that_cannot_be_seen_from_here_is_not_looked_for(
    machine: str, study: Study, dead_process: int
) -> None:
    with WorkerHeartbeat(study) as heart:  # as in containers that share a host's name
        assert heart.is_alive(f"{machine}:{dead_process}:ab")


def test_that_a_silent_worker_is_dead_is_told_to_all(study: Study) -> None:
    other = "elsewhere:1:ab"
    study.set_user_attr(BEAT_PREFIX + other, 5)
    with WorkerHeartbeat(study) as heart:
        for _ in range(heartbeat.MISSED_BEATS + 1):
            heart._beat()
        assert study.user_attrs[BEAT_PREFIX + other] is None
    with WorkerHeartbeat(study) as later:
        assert later.workers() == 1
        assert not later.is_alive(other)


def test_a_worker_elsewhere_is_dead_when_it_is_silent_for_so_many_of_ones_own_beats(study: Study) -> None:
    other = "elsewhere:1:ab"
    study.set_user_attr(BEAT_PREFIX + other, 0)
    with WorkerHeartbeat(study) as heart:
        for beat in range(1, 20):  # it gives a beat for each of ours
            study.set_user_attr(BEAT_PREFIX + other, beat)
            heart._beat()
            assert heart.is_alive(other)
        assert heart.workers() == 2
        for _ in range(heartbeat.MISSED_BEATS):
            assert heart.is_alive(other)
            heart._beat()
        assert not heart.is_alive(other)
        assert heart.workers() == 1
        study.set_user_attr(BEAT_PREFIX + other, 77)  # it was only slow
        heart._beat()
        assert heart.is_alive(other)
        study.set_user_attr(BEAT_PREFIX + other, None)
        heart._beat()
        assert not heart.is_alive(other)


def test_a_worker_that_never_gave_a_beat_is_dead_after_as_long(study: Study) -> None:
    with WorkerHeartbeat(study) as heart:
        assert heart.is_alive("elsewhere:1")
        for _ in range(heartbeat.MISSED_BEATS):
            heart._beat()
        assert not heart.is_alive("elsewhere:1")


def test_while_the_storage_is_gone_nobody_dies(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "elsewhere:1:ab"
    with WorkerHeartbeat(study) as heart:
        assert heart.is_alive(other)
        with monkeypatch.context() as patch:
            patch.setattr(study, "set_user_attr", lambda *_: (_ for _ in ()).throw(OSError))
            for _ in range(3 * heartbeat.MISSED_BEATS):
                with pytest.raises(OSError):  # noqa: PT011
                    heart._beat()
        assert heart.is_alive(other)


def test_the_heart_beats_by_itself(study: Study) -> None:
    with WorkerHeartbeat(study, beat_seconds=0.02) as heart:
        patience = time.monotonic() + 20
        while study.user_attrs[BEAT_PREFIX + heart.name] < 3 and time.monotonic() < patience:
            time.sleep(0.02)
        assert study.user_attrs[BEAT_PREFIX + heart.name] >= 3


def trial_of(owner: str | None) -> FrozenTrial:
    return create_trial(value=1.0, user_attrs={} if owner is None else {OWNER: owner})


def test_a_trial_without_an_owner_is_left_after_a_while(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    with WorkerHeartbeat(study) as heart:
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        assert not heart.is_orphaned(trial_of(None))
        now[0] += heartbeat.UNSIGNED_SECONDS + 1
        assert heart.is_orphaned(trial_of(None))
        assert not heart.is_orphaned(trial_of(heart.name))


# ---- one at a time


def take_turns(folder: Path) -> None:
    """Adds one to a number in a file, slowly, which goes wrong where two do."""
    study = optuna.load_study(study_name="david", storage=open_storage(f"sqlite:///{folder / 'study.db'}"))
    file = folder / "number"
    with WorkerHeartbeat(study) as heart:
        for _ in range(5):
            with exclusive_lock(study, heart, "counting"):
                number = int(file.read_text())
                time.sleep(0.05)
                file.write_text(str(number + 1))


def test_two_workers_never_do_the_same_at_once(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=take_turns, args=(tmp_path,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    assert (tmp_path / "number").read_text() == "10"
    assert [its.study_name for its in optuna.get_all_study_summaries(study._storage)] == ["david"]


def die_at_work(folder: Path) -> None:
    study = optuna.load_study(study_name="david", storage=open_storage(f"sqlite:///{folder / 'study.db'}"))
    with WorkerHeartbeat(study) as heart, exclusive_lock(study, heart, "counting"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_at_it_is_not_waited_for(study: Study, tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=die_at_work, args=(tmp_path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    names = [its.study_name for its in optuna.get_all_study_summaries(study._storage)]
    assert f"david: counting{LOCK_SUFFIX}" in names
    with WorkerHeartbeat(study) as heart, exclusive_lock(study, heart, "counting"):
        pass
    assert [its.study_name for its in optuna.get_all_study_summaries(study._storage)] == ["david"]


def test_a_lock_that_nobody_has_signed_is_broken(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(signals, "interruptible_sleep", pauses.append)
    study._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], f"david: counting{LOCK_SUFFIX}")
    with WorkerHeartbeat(study) as heart, exclusive_lock(study, heart, "counting"):
        pass
    assert sum(pauses) == heartbeat.UNSIGNED_SECONDS


def test_only_a_lock_is_taken_away_and_only_its_owners(study: Study) -> None:
    storage, name = study._storage, f"david: counting{LOCK_SUFFIX}"
    with WorkerHeartbeat(study) as heart, exclusive_lock(study, heart, "counting"):
        lock = storage.get_study_id_from_name(name)
        storage.set_study_user_attr(lock, OWNER, "elsewhere:1:ab")  # who took this worker for dead
    assert storage.get_study_id_from_name(name) == lock
    release_lock(storage, lock, "another name", "elsewhere:1:ab")
    optuna.load_study(study_name=name, storage=storage).add_trial(trial_of(None))
    release_lock(storage, lock, name, "elsewhere:1:ab")
    assert storage.get_study_id_from_name(name) == lock

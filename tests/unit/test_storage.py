"""Storages by their URLs, and a database that is gone for a while."""

import multiprocessing
import signal
import sqlite3
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from david.errors import SearchError, StorageError
from david.storage import backend
from david.storage.backend import cached_reads, open_storage, without_password
from david.support import signals


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, in seconds, by a clock of their own."""
    found: list[float] = []
    monkeypatch.setattr(signals, "interruptible_sleep", found.append)
    monkeypatch.setattr(backend.time, "monotonic", lambda: sum(found))
    return found


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def away(message: str = "server closed the connection unexpectedly") -> Exception:
    """What Optuna raises where a database is gone."""
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError(message))
    return error


def fail(monkeypatch: pytest.MonkeyPatch, opened: Any, errors: list[Exception]) -> None:
    """Let the next calls of a storage raise these, one after the other."""
    inner = opened._inner.get_all_studies

    def get_all_studies() -> Any:
        if errors:
            raise errors.pop(0)
        return inner()

    monkeypatch.setattr(opened._inner, "get_all_studies", get_all_studies)


def test_a_database_that_is_gone_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away()] * 6)
    assert opened.get_all_studies() == []
    assert len(pauses) == 6
    assert pauses == sorted(pauses) or max(pauses) <= 10 * 0.1 * 2**6
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("storage not answering; retrying for 5 minutes: ")
    assert "server closed the connection" in lines[0]
    assert lines[1] == "storage answering again"


def test_after_five_minutes_a_search_ends_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away()] * 1000)
    with pytest.raises(SearchError, match=r"no longer usable: .*server closed the connection"):
        opened.get_all_studies()
    assert backend.RETRY_SECONDS / 2 <= sum(pauses) <= backend.RETRY_SECONDS + backend.LONGEST_PAUSE
    waited = len(pauses)
    with pytest.raises(SearchError, match="no longer usable"):  # what comes behind does not wait again
        opened.get_all_studies()
    assert len(pauses) == waited


@pytest.mark.parametrize("message", ["no such table: studies", "attempt to write a readonly database"])
def test_what_waiting_cannot_mend_ends_at_once(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away(message)])
    with pytest.raises(SearchError, match=message):
        opened.get_all_studies()
    assert pauses == []


def test_what_takes_long_to_say_that_it_is_away_is_not_tried_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opened = open_storage(sqlite(tmp_path))

    def get_all_studies() -> Any:
        pauses.append(60.0)  # as SQLite waits for a lock
        raise away("database is locked")

    monkeypatch.setattr(opened._inner, "get_all_studies", get_all_studies)
    with pytest.raises(SearchError, match="database is locked"):
        opened.get_all_studies()
    assert pauses.count(60.0) <= backend.RETRY_SECONDS / 60 + 1


@pytest.mark.parametrize(("code", "tries"), [("UNAVAILABLE", 3), ("UNKNOWN", 3), ("RESOURCE_EXHAUSTED", 0)])
def test_of_a_proxy_what_may_pass_is_waited_for(
    code: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    class Gone(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode[code]

    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [Gone("told by the proxy")] * 3)
    monkeypatch.setattr(Gone, "__module__", "grpc._channel")
    if tries:
        assert opened.get_all_studies() == []
    else:
        with pytest.raises(SearchError, match="told by the proxy"):
            opened.get_all_studies()
    assert len(pauses) == tries


def test_a_signal_that_came_before_does_not_keep_a_score_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away()])
    with signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        assert opened.get_all_studies() == []
        with pytest.raises(KeyboardInterrupt):
            signals.raise_if_asked()


def test_where_it_has_been_asked_to_end_a_storage_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away()] * 1000)
    with signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StorageError):
            opened.get_all_studies()
    assert sum(pauses) <= backend.RETRY_SECONDS_AT_END + backend.LONGEST_PAUSE


def test_whoever_ends_while_the_storage_is_gone_waits_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    fail(monkeypatch, opened, [away()] * 1000)
    monkeypatch.setattr(signals, "interruptible_sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opened.get_all_studies()
    with pytest.raises(StorageError):
        opened.get_all_studies()
    assert pauses == []


def interrupt(_seconds: float) -> None:
    raise KeyboardInterrupt


def test_another_error_is_raised_as_it_is(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(KeyError):
        open_storage(sqlite(tmp_path)).get_study_id_from_name("none")
    assert pauses == []


def test_every_method_of_optunas_storages_goes_through(tmp_path: Path) -> None:
    opened: Any = open_storage(sqlite(tmp_path))
    ours = {name for name in vars(type(opened)) if not name.startswith("_")}
    assert ours == {name for name, its in vars(BaseStorage).items() if callable(its) and not name.startswith("_")}


def test_no_url_is_memory() -> None:
    assert isinstance(open_storage(None), InMemoryStorage)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "the storage nonsense cannot be used"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("postgresql://me:secret@localhost:1/none", r"me:\*\*\*@localhost:1/none"),
        ("mysql+nodriver://localhost/none", "the storage mysql"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line(url: str, says: str) -> None:
    with pytest.raises(SearchError, match=says) as caught:
        open_storage(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


def make(folder: Path, gate: Any) -> None:
    gate.wait()
    optuna.create_study(storage=open_storage(sqlite(folder)), study_name="david", load_if_exists=True)


def test_several_workers_may_make_a_database_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    workers = [context.Process(target=make, args=(tmp_path, gate)) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
    assert [each.exitcode for each in workers] == [0] * 4
    assert len(optuna.get_all_study_names(sqlite(tmp_path))) == 1


def reads(monkeypatch: pytest.MonkeyPatch, opened: Any) -> list[str]:
    """What is asked of the storage behind."""
    asked: list[str] = []
    for name in ("get_all_trials", "get_study_user_attrs"):
        inner = getattr(opened._inner, name)
        monkeypatch.setattr(opened._inner, name, partial(noted, asked, name, inner))
    return asked


def noted(asked: list[str], name: str, inner: Any, *args: Any, **kwargs: Any) -> Any:
    asked.append(name)
    return inner(*args, **kwargs)


def test_in_one_look_each_is_read_once_until_something_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(sqlite(tmp_path))
    study = optuna.create_study(storage=opened)
    study.enqueue_trial({})
    study.tell(study.ask(), 1.0)
    study.enqueue_trial({})
    asked = reads(monkeypatch, opened)
    with cached_reads(study):
        for _ in range(3):
            assert [trial.number for trial in study.get_trials(states=[TrialState.WAITING])] == [1]
            assert [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))] == [0]
            assert study.user_attrs == {}
        assert Counter(asked) == {"get_all_trials": 1, "get_study_user_attrs": 1}
        study.set_user_attr("name", "value")
        study.enqueue_trial({})
        assert len(study.get_trials(states=[TrialState.WAITING])) == 2
        assert study.user_attrs == {"name": "value"}
    asked.clear()
    study.get_trials()
    study.get_trials()
    assert asked == ["get_all_trials"] * 2


def test_another_thread_does_not_see_with_the_same_look(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(sqlite(tmp_path)))
    with cached_reads(study):
        assert study.user_attrs == {}
        thread = threading.Thread(target=study.set_user_attr, args=("name", "value"))
        thread.start()
        thread.join()
        assert study.user_attrs == {}  # it is one look
    assert study.user_attrs == {"name": "value"}


def test_a_full_disk_that_can_be_read_is_still_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_storage(sqlite(tmp_path))
    study = optuna.create_study(storage=opened)
    with monkeypatch.context() as patch:
        patch.setattr(opened._inner, "set_study_user_attr", full)
        for tries in range(3):
            with pytest.raises(StorageError, match="disk is full"):
                study.set_user_attr("name", tries)
            waited = len(pauses)
            assert study.user_attrs == {}
            assert tries == 0 or len(pauses) == waited
    assert sum(pauses) <= backend.RETRY_SECONDS + backend.LONGEST_PAUSE
    assert "answering again" not in capsys.readouterr().err
    study.set_user_attr("name", 4)
    assert "answering again" in capsys.readouterr().err


def full(*_: Any) -> None:
    raise away("database or disk is full")

"""Ending on a signal: gently at the first, at once at the second, and never with anything lost."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from david.support import signals
from tests.helpers.processes import command_in, context, finished, trials_of, worker


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """As in a terminal: a shell lets what it starts in the background ignore Ctrl-C."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals._SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_kept_and_the_second_is_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals.deferred_signals():
        signals.raise_if_asked()
        signal.raise_signal(signal.SIGINT)
        assert "SIGINT: stopping after the windows in progress" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signals.raise_if_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert signals.exit_code() == 130
    with signals.deferred_signals():
        assert signals.exit_code() == 0
        signals.raise_if_asked()
    signals.raise_if_asked()


def test_a_pause_ends_when_a_signal_comes() -> None:
    with signals.deferred_signals():
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            signals.interruptible_sleep(30)
        assert time.monotonic() - start < 10
    assert signals.exit_code() == 143
    with signals.deferred_signals():
        pass


def test_in_another_thread_nothing_changes() -> None:
    handlers = []

    def run() -> None:
        with signals.deferred_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_another_thread_goes_on_when_the_main_one_is_told_to_end() -> None:
    done: list[str] = []

    def run() -> None:
        signals.raise_if_asked()
        signals.interruptible_sleep(0.01)
        done.append("both")

    with signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert done == ["both"]


def test_a_pause_behind_a_signal_is_made() -> None:
    with signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        signals.interruptible_sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signals.raise_if_asked()


def test_what_a_process_was_started_to_ignore_it_ignores() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.deferred_signals():
            signal.raise_signal(signal.SIGHUP)
            signals.raise_if_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_sigterm_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # of a scheduler, and of the first worker
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_signals_are_passed_on() -> None:
    told: list[int] = []
    with signals.forwarded_to(told.append), signals.deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
    assert told == [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_leaves_nothing_in_hand(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    process = context().Process(target=worker, args=(url, "ended", 500, 0, tmp_path / "run"))
    process.start()
    patience, seen = time.monotonic() + 60, {}
    while len(seen) < 3 and time.monotonic() < patience:
        time.sleep(0.1)
        try:
            seen = finished(trials_of(url, "ended"))
        except KeyError:  # nobody has made the study yet
            continue
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    trials = trials_of(url, "ended")
    assert seen.items() <= finished(trials).items()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING}
    assert (tmp_path / "run" / "trials.csv").is_file()


@pytest.mark.slow
def test_the_command_exits_as_the_signal_tells_it_to(tmp_path: Path) -> None:
    with subprocess.Popen(command_in(tmp_path, n_trials=5000), stderr=subprocess.PIPE, text=True) as process:
        patience, folder = time.monotonic() + 120, tmp_path / "run"
        while not (folder / "study.db").is_file() and time.monotonic() < patience:
            time.sleep(0.1)
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "SIGTERM: stopping after the windows in progress" in told
    assert "recipes scored; repeat the same call to resume" in told
    assert "Traceback" not in told
    assert (folder / "leaderboard.csv").is_file()

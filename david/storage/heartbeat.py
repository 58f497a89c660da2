"""Recognise dead workers by the heartbeats that they keep in the study.

How a dead worker is recognised (`WorkerHeartbeat.is_alive`, the only place that decides):

1. A worker is named `machine:pid:token`. It writes its name on each trial that it runs (attribute `OWNER`).
2. Every `BEAT_SECONDS` a thread writes the worker's beat number into the study, under `BEAT_PREFIX` and its name.
3. With each beat a worker reads the beats of all others, and notes at which of its own beats each one last changed.
4. A worker of this process is alive while its `WorkerHeartbeat` is entered.
5. A worker of this machine is dead when its process has ended; the operating system says so at once.
6. Any other worker is dead when its beat has not changed for `MISSED_BEATS` beats of the worker that asks.
7. A worker that ends in order replaces its beat by null; so does whoever finds another one dead, for all to read.
8. Time is counted in the asking worker's own beats, not by clocks: clocks that differ or jump change nothing, and while
   the storage does not answer nobody can beat, so nobody is declared dead.
9. A worker that was declared dead but was only slow comes back with its next beat; others may by then have ended its
   trials, and of two that tell a trial the first counts.
10. A running trial that no worker has signed for `UNSIGNED_SECONDS` is orphaned too: its worker died in between.
"""

import hashlib
import os
import secrets
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from optuna import Study
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

OWNER = "david_worker"  # trial and lock attribute: the name of the worker that runs the trial or holds the lock
BEAT_PREFIX = "beat:"  # study attribute, followed by a worker's name: its last beat; null once it has ended

BEAT_SECONDS = 15.0  # between two beats of a worker
MISSED_BEATS = 8  # own beats without a beat of another worker, after which that one counts as dead
UNSIGNED_SECONDS = 10.0  # a worker signs its trial a moment after asking for it; one unsigned for longer is orphaned
_JOIN_SECONDS = 5.0  # for which the end of a search waits for the beating thread

_local_workers: set[str] = set()  # the workers of this process


def _machine_id() -> str:
    """Return a name for the set of processes that can see each other: host name, boot and process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity = f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers may share a host's name, not its processes
    except OSError:
        identity = str(uuid.getnode())
    return f"{socket.gethostname()}/{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


MACHINE = _machine_id()


def _is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended; a zombie, whose parent has not read its status, has ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's
        return True


class WorkerHeartbeat:
    """The heartbeat of one worker, and what it knows of the others. A context manager: it beats while it is entered.

    The module docstring explains how a dead worker is recognised.

    Args:
        study: The study that the worker searches in. A study in memory has no other process, and keeps no beats.
        beat_seconds: The time between two beats.
    """

    def __init__(self, study: Study, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self.name = f"{MACHINE}:{os.getpid()}:{secrets.token_hex(4)}"
        self._study = study
        self._beat_seconds = beat_seconds
        self._in_memory = isinstance(study._storage, InMemoryStorage)
        self._beats = 0
        self._last_heard: dict[str, tuple[int | None, int]] = {}  # by worker: its last beat, and our beat at that time
        self._first_seen_unsigned: dict[int, float] = {}  # by trial number: when it was first seen without an owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, name="david-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Write the first beat, read those of the others, and start the beating thread."""
        _local_workers.add(self.name)
        if not self._in_memory:
            self._beat()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop beating, and write into the study that this worker has ended."""
        self._ended.set()
        if not self._in_memory:
            self._thread.join(_JOIN_SECONDS)  # it may be waiting for a storage that does not answer
            with suppress(Exception):  # the error that ended the search is the one to report
                self._study.set_user_attr(BEAT_PREFIX + self.name, None)
        _local_workers.discard(self.name)

    def workers(self) -> int:
        """Return how many workers are alive, this one among them."""
        others = [name for name, (beat, _) in list(self._last_heard.items()) if beat is not None and name != self.name]
        return 1 + sum(self.is_alive(name) for name in others)

    def is_alive(self, worker: str) -> bool:
        """Return whether a worker is alive, as far as this worker can know.

        Args:
            worker: The worker's name, `machine:pid:token` (`machine:pid` in studies of earlier versions).
        """
        if worker in _local_workers:
            return True
        machine, _, rest = worker.partition(":")
        pid = rest.partition(":")[0]
        if machine == MACHINE and pid.isdecimal() and (int(pid) == os.getpid() or not _is_running(int(pid))):
            return False
        beat, heard_at = self._last_heard.setdefault(worker, (0, self._beats))
        return beat is not None and self._beats - heard_at < MISSED_BEATS

    def is_orphaned(self, trial: FrozenTrial) -> bool:
        """Return whether no living worker will finish a running trial."""
        if (owner := trial.user_attrs.get(OWNER)) is not None:
            return not self.is_alive(owner)
        first_seen = self._first_seen_unsigned.setdefault(trial.number, time.monotonic())
        return time.monotonic() - first_seen > UNSIGNED_SECONDS

    def _beat_until_ended(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            with suppress(Exception):  # the search itself reports a storage that does not answer
                self._beat()

    def _beat(self) -> None:
        """Write one beat, and note which other workers have beaten since the last one."""
        self._study.set_user_attr(BEAT_PREFIX + self.name, self._beats)
        self._beats += 1
        for name, beat in self._study.user_attrs.items():
            if name.startswith(BEAT_PREFIX):
                worker = name.removeprefix(BEAT_PREFIX)
                if self._last_heard.get(worker, (None, 0))[0] != beat or beat is None:
                    self._last_heard[worker] = beat, self._beats
                elif not self.is_alive(worker):
                    # later workers need not wait for it; if it was only slow, its next beat brings it back
                    self._study.set_user_attr(name, None)

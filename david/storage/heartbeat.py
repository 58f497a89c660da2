"""Who works on a study: signs of life, trials that nobody will finish, and what only one worker may do at a time."""

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

OWNER = "david_worker"  # of a trial: who has it in hand
BEAT = "beat:"  # of a study, … behind which a worker's name stands: its last sign of life; null once it has ended

_EVERY = 15.0  # seconds between two beats
_GRACE = 8  # beats of one's own without one of another's: that one is dead
UNSIGNED_SECONDS = 10.0  # seconds: a worker signs its trial a moment after asking; longer without a name is death
_LAST = 5.0  # seconds that an end waits for a beat
POLL_SECONDS = 0.5  # seconds between two looks at what another does

_HERE: set[str] = set()  # the workers of this process


def _machine() -> str:
    """What tells this machine from all others, and the processes that can see each other from those that cannot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        its_own = f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers may share a host's name, not its processes
    except OSError:
        its_own = str(uuid.getnode())
    return f"{socket.gethostname()}/{hashlib.sha256(its_own.encode()).hexdigest()[:12]}"


MACHINE = _machine()


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended, be it that nobody has asked how."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's
        return True


class WorkerHeartbeat:
    """One worker's signs of life, kept in the study, and those of others as it hears them.

    A worker of the same machine is dead when its process is. Of any other one, time is told by one's own beats: clocks
    that differ or jump have no say, and while the storage is gone nobody's heart stops.
    """

    def __init__(self, study: Study) -> None:
        self.name = f"{MACHINE}:{os.getpid()}:{secrets.token_hex(4)}"
        self._study = study
        self._alone = isinstance(study._storage, InMemoryStorage)
        self._beats = 0
        self._heard: dict[str, tuple[int | None, int]] = {}  # by worker: its last beat, and which of mine it came with
        self._unsigned: dict[int, float] = {}  # by trial: when it was first seen without an owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="david-heart", daemon=True)

    def __enter__(self) -> Self:
        """Begin to beat, and hear who else is there."""
        _HERE.add(self.name)
        if not self._alone:
            self._beat()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and say so."""
        self._ended.set()
        if not self._alone:
            self._thread.join(_LAST)  # it may be waiting for a storage that is gone
            with suppress(Exception):  # whatever ended the search is told, not this
                self._study.set_user_attr(BEAT + self.name, None)
        _HERE.discard(self.name)

    def workers(self) -> int:
        """How many live, this one among them."""
        others = [name for name, (beat, _) in list(self._heard.items()) if beat is not None and name != self.name]
        return 1 + sum(self.is_alive(name) for name in others)

    def is_alive(self, worker: str) -> bool:
        """Whether a worker is alive, as far as one can know."""
        if worker in _HERE:
            return True
        machine, _, rest = worker.partition(":")
        pid = rest.partition(":")[0]
        if machine == MACHINE and pid.isdecimal() and (int(pid) == os.getpid() or not _runs(int(pid))):
            return False
        beat, heard = self._heard.setdefault(worker, (0, self._beats))
        return beat is not None and self._beats - heard < _GRACE

    def is_left(self, trial: FrozenTrial) -> bool:
        """Whether a running trial has nobody any more who would finish it."""
        if (owner := trial.user_attrs.get(OWNER)) is not None:
            return not self.is_alive(owner)
        first = self._unsigned.setdefault(trial.number, time.monotonic())
        return time.monotonic() - first > UNSIGNED_SECONDS

    def _live(self) -> None:
        while not self._ended.wait(_EVERY):
            with suppress(Exception):  # the search itself tells of a storage that is gone
                self._beat()

    def _beat(self) -> None:
        self._study.set_user_attr(BEAT + self.name, self._beats)
        self._beats += 1
        for name, beat in self._study.user_attrs.items():
            if name.startswith(BEAT):
                worker = name.removeprefix(BEAT)
                if self._heard.get(worker, (None, 0))[0] != beat or beat is None:
                    self._heard[worker] = beat, self._beats
                elif not self.is_alive(worker):
                    self._study.set_user_attr(name, None)  # nobody waits for it again; were it only slow, it comes back

"""Who works on a study: signs of life, trials that nobody will finish, and what only one worker may do at a time."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import optuna
import psutil
from optuna import Study
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from david.stopping import pause

OWNER = "worker"  # of a trial: who has it in hand
BEAT = "beat:"  # of a study, … behind which a worker's name stands: its last sign of life; null once it has ended
LOCKED = " (locked)"  # ends the name of a study that is there for as long as one worker does what others may not

_EVERY = 15.0  # seconds between two beats
_GRACE = 8  # beats of one's own without one of another's: that one is dead
_UNSIGNED = 10.0  # seconds: a worker signs its trial a moment after asking; longer without a name is death
_WAIT = 0.5  # seconds between two looks at what another does

_HERE: set[str] = set()  # the workers of this process


class Heart:
    """One worker's signs of life, kept in the study, and those of others as it hears them.

    A worker of the same machine is dead when its process is. Of any other one, time is told by one's own beats: clocks
    that differ or jump have no say, and while the storage is gone nobody's heart stops.
    """

    def __init__(self, study: Study) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
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
            self._thread.join(_EVERY)
            with suppress(Exception):  # whatever ended the search is told, not this
                self._study.set_user_attr(BEAT + self.name, None)
        _HERE.discard(self.name)

    def workers(self) -> int:
        """How many live, this one among them."""
        others = [name for name, (beat, _) in list(self._heard.items()) if beat is not None and name != self.name]
        return 1 + sum(self.lives(name) for name in others)

    def lives(self, worker: str) -> bool:
        """Whether a worker is alive, as far as one can know."""
        if worker in _HERE:
            return True
        host, _, rest = worker.partition(":")
        pid = int(rest.partition(":")[0])
        if host == socket.gethostname() and (pid == os.getpid() or not psutil.pid_exists(pid)):
            return False
        beat, heard = self._heard.setdefault(worker, (0, self._beats))
        return beat is not None and self._beats - heard < _GRACE

    def is_left(self, trial: FrozenTrial) -> bool:
        """Whether a running trial has nobody any more who would finish it."""
        owner = trial.user_attrs.get(OWNER)
        if owner is not None:
            return not self.lives(owner)
        first = self._unsigned.setdefault(trial.number, time.monotonic())
        return time.monotonic() - first > _UNSIGNED

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


def _made(storage: BaseStorage, name: str) -> int:
    """A new study, of which Optuna does not tell the person in front of the screen."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return storage.create_new_study([StudyDirection.MINIMIZE], name)
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def alone(study: Study, heart: Heart, what: str) -> Iterator[None]:
    """Wait until no other worker does this; one that dies while it does is not waited for."""
    storage, name = study._storage, f"{study.study_name}: {what}{LOCKED}"
    nameless = 0.0  # seconds for which nobody has said that the lock is his
    while True:
        with suppress(DuplicatedStudyError):
            lock = _made(storage, name)
            storage.set_study_user_attr(lock, OWNER, heart.name)
            break
        with suppress(KeyError):  # it is gone
            lock = storage.get_study_id_from_name(name)
            owner = storage.get_study_user_attrs(lock).get(OWNER)
            nameless = nameless + _WAIT if owner is None else 0.0
            if nameless > _UNSIGNED or (owner is not None and not heart.lives(owner)):
                storage.delete_study(lock)
                continue
        pause(_WAIT)
    try:
        yield
    finally:
        with suppress(KeyError):  # taken for dead, this worker has lost it
            storage.delete_study(lock)

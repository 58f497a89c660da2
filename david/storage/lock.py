"""Locks in a study: one worker at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from optuna import Study
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from david.storage.backend import without_creation_log
from david.storage.heartbeat import OWNER, POLL_SECONDS, UNSIGNED_SECONDS, WorkerHeartbeat
from david.support import signals

LOCKED = " (locked)"  # ends the name of a study that is there for as long as one worker does what others may not


@contextmanager
def exclusive_lock(study: Study, heart: WorkerHeartbeat, what: str) -> Iterator[None]:
    """Wait until no other worker does this; one that dies while it does is not waited for."""
    storage, name = study._storage, f"{study.study_name}: {what}{LOCKED}"
    nameless = 0.0  # seconds for which nobody has said that the lock is his
    while True:
        with suppress(DuplicatedStudyError, KeyError):  # another has it, or has just taken this one away
            with without_creation_log():
                lock = storage.create_new_study([StudyDirection.MINIMIZE], name)
            storage.set_study_user_attr(lock, OWNER, heart.name)
            break
        with suppress(KeyError):  # it is gone
            lock = storage.get_study_id_from_name(name)
            owner = storage.get_study_user_attrs(lock).get(OWNER)
            nameless = nameless + POLL_SECONDS if owner is None else 0.0
            if nameless > UNSIGNED_SECONDS or (owner is not None and not heart.is_alive(owner)):
                release_lock(storage, lock, name, owner)
                continue
        signals.raise_if_asked()
        signals.interruptible_sleep(POLL_SECONDS)
    try:
        yield
    finally:
        release_lock(storage, lock, name, heart.name)


def release_lock(storage: BaseStorage, lock: int, name: str, owner: str | None) -> None:
    """Take a lock away, where it still is this owner's: SQLite gives the number of a study that is gone to the next."""
    with suppress(KeyError):
        its = storage.get_study_name_from_id(lock), storage.get_study_user_attrs(lock).get(OWNER)
        if its == (name, owner) and not storage.get_n_trials(lock):
            storage.delete_study(lock)

"""Locks in a study's storage: only one worker at a time.

Optuna's storages have no lock, but the name of a study is unique in each of them: creating a study is an atomic
test-and-set. The protocol of `exclusive_lock`:

1. A worker creates a study named "STUDY: PURPOSE (locked)". If that succeeds, it holds the lock.
2. It writes its name into that study (attribute `OWNER`), so that others can see whether the holder is alive.
3. If the name is taken, it waits `POLL_SECONDS` and tries again.
4. If the holder is dead (`WorkerHeartbeat.is_alive`), or nobody has signed the lock for `UNSIGNED_SECONDS` (the holder
   died between 1 and 2), it deletes the study, and everybody tries again.
5. The holder deletes the study when it has finished.

A deletion first checks name, owner and emptiness: SQLite gives the number of a deleted study to the next one.
Whatever lists studies leaves out names that end with `LOCK_SUFFIX`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from optuna import Study
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from david.storage.backend import without_creation_log
from david.storage.heartbeat import OWNER, UNSIGNED_SECONDS, WorkerHeartbeat
from david.support import signals

LOCK_SUFFIX = " (locked)"  # ends the name of each study that is a lock
POLL_SECONDS = 0.5  # between two attempts to take a lock


@contextmanager
def exclusive_lock(study: Study, heartbeat: WorkerHeartbeat, purpose: str) -> Iterator[None]:
    """Hold a lock within the context: wait until no other living worker holds it.

    Args:
        study: The study whose storage keeps the lock.
        heartbeat: This worker's, which owns the lock and knows which other workers are alive.
        purpose: The name of the lock; locks of different purposes do not exclude each other.

    Raises:
        KeyboardInterrupt: If a signal asks to end while the lock is waited for.
    """
    storage, name = study._storage, f"{study.study_name}: {purpose}{LOCK_SUFFIX}"
    unsigned_seconds = 0.0
    while True:
        with suppress(DuplicatedStudyError, KeyError):  # another worker holds it, or has just deleted this one
            with without_creation_log():
                lock = storage.create_new_study([StudyDirection.MINIMIZE], name)
            storage.set_study_user_attr(lock, OWNER, heartbeat.name)
            break
        with suppress(KeyError):  # it was released in the meantime
            lock = storage.get_study_id_from_name(name)
            owner = storage.get_study_user_attrs(lock).get(OWNER)
            unsigned_seconds = unsigned_seconds + POLL_SECONDS if owner is None else 0.0
            if unsigned_seconds > UNSIGNED_SECONDS or (owner is not None and not heartbeat.is_alive(owner)):
                release_lock(storage, lock, name, owner)
                continue
        signals.raise_if_asked()
        signals.interruptible_sleep(POLL_SECONDS)
    try:
        yield
    finally:
        release_lock(storage, lock, name, heartbeat.name)


def release_lock(storage: BaseStorage, lock: int, name: str, owner: str | None) -> None:
    """Delete a lock if it is still the lock of that name and owner.

    Args:
        storage: The storage that keeps the lock.
        lock: The number of the study that is the lock; SQLite gives the number of a deleted study to the next one.
        name: The name of that study.
        owner: The worker that held the lock; None if nobody has signed it.
    """
    with suppress(KeyError):
        current = storage.get_study_name_from_id(lock), storage.get_study_user_attrs(lock).get(OWNER)
        if current == (name, owner) and not storage.get_n_trials(lock):
            storage.delete_study(lock)

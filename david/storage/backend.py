"""Opens Optuna's storages by their URLs, and waits for a database that is gone for a while."""

import abc
import copy
import random
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import optuna
import sqlalchemy
from optuna import Study
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, InMemoryStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from david.errors import StorageError
from david.support import signals
from david.support.console import say
from david.support.text import one_line

RETRY_SECONDS = 300.0  # seconds for which a storage may be gone before a search ends
_LAST_PATIENCE = 10.0  # … where it has been asked to end
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds between two tries
_MAKING = 20  # tries to make the tables of a new database, which several workers may do at once
_CONNECT = 10  # seconds until a database that does not answer counts as gone
_POSTGRESQL = {  # libpq's: of a connection that has gone silent, as where a machine has lost its power
    "connect_timeout": _CONNECT,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")  # what a proxy says that is gone, or whose database is
_LOCKED = 60  # seconds that a worker waits for another's hand on an SQLite file
_SECRET = re.compile(r"(?<=:)(?!//)[^@]+(?=@)|(?<=password=)[^&]*")
_FOR_GOOD = (  # what waiting does not mend
    "no such table",
    "no such column",
    "readonly",
    "read-only",
    "authentication",
    "permission denied",
    "malformed",
    "could not decode",
)


def open_storage(url: str | None) -> BaseStorage:
    """The storage of a URL: a database's (`sqlite:///…`, `postgresql://…`), or `grpc://host:port` of Optuna's proxy.

    None keeps a study in memory. Raises `StorageError` where there is none that answers. Later, its calls are tried
    again where it does not answer, for `RETRY_SECONDS` seconds.
    """
    if url is None:
        return InMemoryStorage()
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "grpc":
            proxy = _proxy(parsed)
            return RetryingStorage(proxy, proxy.close)  # type: ignore[abstract]
        database = _database(parsed)
        return RetryingStorage(get_storage(database), database.engine.dispose)  # type: ignore[abstract]
    except ImportError as error:
        raise StorageError(
            f"the storage {without_password(url)} needs another package: {_package(url)} ({error})"
        ) from error
    except Exception as error:  # SQLAlchemy, drivers and Optuna each have their own kinds
        raise StorageError(f"the storage {without_password(url)} cannot be used: {_said(error)}") from error


def cached_reads(study: Study) -> AbstractContextManager[None]:
    """Within this, the study is read once, as long as nothing is written: each read asks the database."""
    storage = study._storage
    return storage._one_look() if isinstance(storage, RetryingStorage) else nullcontext()


@contextmanager
def without_creation_log() -> Iterator[None]:
    """Without Optuna's word of each study that is made: in a notebook a red one, which looks like an error."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def without_password(url: str) -> str:
    """A URL as it may be shown: without its password, also where that is an option, or the URL cannot be read."""
    return _SECRET.sub("***", url)


def _database(url: URL) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    backend = url.get_backend_name()
    if backend == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # which SQLAlchemy before 2.1 does not take by itself
        options["connect_args"] = _POSTGRESQL | dict(url.query)  # what the URL says goes first
    elif backend == "sqlite":
        options["connect_args"] = {"timeout": _LOCKED}
    for tries_left in range(_MAKING, -1, -1):
        try:
            return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
        except Exception as error:
            if not tries_left or not _is_collision(error):
                raise
        time.sleep(random.uniform(0, 0.2))  # another worker makes the tables
    raise AssertionError


def _is_collision(error: BaseException) -> bool:
    """Whether another worker was making a database's tables at the same time."""
    text = str(_root(error)).lower()
    return isinstance(_root(error), IntegrityError) or any(
        part in text for part in ("already exists", "unique constraint", "duplicate", "locked")
    )


def _proxy(url: URL) -> GrpcStorageProxy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=url.host or "localhost", port=url.port or 13000)
    proxy.wait_server_ready(timeout=_CONNECT)
    return proxy


def _package(url: str) -> str:
    if url.startswith("postgresql"):
        return "pip install 'david[postgres]'"
    return "pip install 'david[grpc]'" if url.startswith("grpc") else "install the driver that the URL names"


class RetryingStorage(BaseStorage):
    """A storage whose calls are tried again while it does not answer."""

    def __init__(self, inner: BaseStorage, close: Callable[[], None]) -> None:
        self._inner = inner
        self._away: str | None = None  # the call that was not answered
        self._gave_up = False
        self._look: tuple[int, dict[str, Any]] | None = None  # whose thread, and what each call has found
        weakref.finalize(self, close)  # drivers warn of connections that are left to the garbage collector

    @contextmanager
    def _one_look(self) -> Iterator[None]:
        """Within this, what is read again is not asked for again, as long as nothing is written."""
        self._look = threading.get_ident(), {}
        try:
            yield
        finally:
            self._look = None

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        look = self._look
        if look is None or look[0] != threading.get_ident():
            return self._answer(name, *args, **kwargs)
        _, seen = look
        if not name.startswith("get_"):
            seen.clear()
            return self._answer(name, *args, **kwargs)
        if name == "get_all_trials":  # which is asked for by this state and by that
            return self._of_states(seen, *args, **kwargs)
        call = f"{name} {args} {kwargs}"
        if call not in seen:
            seen[call] = self._answer(name, *args, **kwargs)
        return seen[call]

    def _of_states(
        self,
        seen: dict[str, Any],
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        call = f"trials {study_id}"
        if call not in seen:
            seen[call] = self._answer("get_all_trials", study_id, deepcopy=False)
        found = [trial for trial in seen[call] if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        pause, start = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                found = getattr(self._inner, name)(*args, **kwargs)
            except Exception as error:
                if not _is_of_storage(error):
                    raise
                reason = _said(error)
                waits = _is_away(error) and not any(part in reason.lower() for part in _FOR_GOOD)
                patience = min(RETRY_SECONDS, _LAST_PATIENCE) if signals.is_asked() else RETRY_SECONDS
                if self._gave_up or not waits or time.monotonic() - start >= patience:
                    self._gave_up |= waits
                    raise StorageError(f"the storage cannot be used any longer: {reason}") from error
                if self._away is None:
                    say(f"the storage does not answer, trying again for {RETRY_SECONDS / 60:.0f} minutes: {reason}")
                    self._away = name
            else:
                if self._away is not None and (_reads(self._away) or not _reads(name)):  # a full disk can be read
                    say("the storage answers again")
                    self._away, self._gave_up = None, False
                return found
            try:
                signals.interruptible_sleep(
                    pause * random.uniform(0.5, 1)
                )  # so that workers do not come back all at once
            except KeyboardInterrupt:
                self._gave_up = True  # what is still to be told waits no more
                raise
            pause = min(2 * pause, _LONGEST_PAUSE)


def _reads(name: str) -> bool:
    return name.startswith("get_")


def _patiently(name: str) -> Callable[..., Any]:
    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._call(name, *args, **kwargs)

    return method


for _name, _method in vars(BaseStorage).items():
    if callable(_method) and not _name.startswith("_"):
        setattr(RetryingStorage, _name, _patiently(_name))
abc.update_abstractmethods(RetryingStorage)  # type: ignore[type-abstract]


def _is_of_storage(error: BaseException) -> bool:
    """Whether an error comes from the database or the network, not from what was asked of the study."""
    root = _root(error)
    return isinstance(root, SQLAlchemyError | StorageInternalError) or _is_of_proxy(root)


def _is_of_proxy(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "grpc"


def _is_away(error: BaseException) -> bool:
    """Whether an error may be over when the same is tried again."""
    root: Any = _root(error)
    if isinstance(root, DBAPIError):
        return isinstance(root, OperationalError | InterfaceError) or root.connection_invalidated
    if _is_of_proxy(root):
        return root.code().name in _AWAY if hasattr(root, "code") else True
    return isinstance(
        root, PendingRollbackError | sqlalchemy.exc.TimeoutError
    )  # the latter: no connection of the pool is free


def _said(error: BaseException) -> str:
    """What the database, or the network, said, in a line."""
    root = _root(error)
    return one_line(root.orig if isinstance(root, DBAPIError) and root.orig is not None else root)


def _root(error: BaseException) -> BaseException:
    """What lies behind an error of Optuna's own."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error

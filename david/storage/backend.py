"""Open Optuna storages by their URLs; retry calls while a database or proxy does not answer.

`open_storage` opens one, `cached_reads` saves reads of a study, `RetryingStorage` wraps the
methods of Optuna's storages.
"""

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
from david.support.extras import install_hint
from david.support.text import one_line

RETRY_SECONDS = 300.0  # for which a storage that does not answer is tried again, before a search ends
RETRY_SECONDS_AT_END = 10.0  # … once a signal has asked the search to end
_FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two tries
_CREATION_TRIES = 20  # to create the tables of a new database, which several workers may do at once
_CONNECT_SECONDS = 10  # after which a database that does not answer counts as gone
_POSTGRESQL_OPTIONS = {  # libpq's, for a connection that has gone silent, as when a machine has lost its power
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
_TRANSIENT_CODES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")  # gRPC: the proxy is gone, or its database is
_SQLITE_LOCK_SECONDS = 60  # for which a worker waits while another one writes into an SQLite file
_PASSWORD = re.compile(r"(?<=:)(?!//)[^@]+(?=@)|(?<=password=)[^&]*")
_PERMANENT_REASONS = (  # parts of messages of errors that waiting does not repair
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
    """Open the Optuna storage of a URL, with retries.

    A call that the storage does not answer is tried again for `RETRY_SECONDS` seconds.

    Args:
        url: A database's (`sqlite:///…`, `postgresql://…`), or `grpc://host:port` of Optuna's proxy; None for a storage
            in memory.

    Raises:
        StorageError: If no storage answers at the URL, or its driver is not installed.
    """
    if url is None:
        return InMemoryStorage()
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "grpc":
            proxy = _open_proxy(parsed)
            return RetryingStorage(proxy, proxy.close)  # type: ignore[abstract]
        database = _open_database(parsed)
        return RetryingStorage(get_storage(database), database.engine.dispose)  # type: ignore[abstract]
    except ImportError as error:
        raise StorageError(
            f"the storage {without_password(url)} needs another package: {_package_hint(url)} ({error})"
        ) from error
    except Exception as error:  # SQLAlchemy, drivers and Optuna each have their own kinds
        raise StorageError(f"the storage {without_password(url)} cannot be used: {_reason(error)}") from error


def cached_reads(study: Study) -> AbstractContextManager[None]:
    """Return a context within which this thread reads the study from a cache, until it writes to it.

    Without it, each read asks the database.
    """
    storage = study._storage
    return storage._cached_reads() if isinstance(storage, RetryingStorage) else nullcontext()


@contextmanager
def without_creation_log() -> Iterator[None]:
    """Silence Optuna's log line about a new study; a notebook shows it in red, like an error."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def without_password(url: str) -> str:
    """Return a URL without its password, for messages; also if the password is an option, or the URL is malformed."""
    return _PASSWORD.sub("***", url)


def _open_database(url: URL) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    backend = url.get_backend_name()
    if backend == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # which SQLAlchemy before 2.1 does not take by itself
        options["connect_args"] = _POSTGRESQL_OPTIONS | dict(url.query)  # options of the URL take precedence
    elif backend == "sqlite":
        options["connect_args"] = {"timeout": _SQLITE_LOCK_SECONDS}
    for tries_left in range(_CREATION_TRIES, -1, -1):
        try:
            return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
        except Exception as error:
            if not tries_left or not _is_collision(error):
                raise
        time.sleep(random.uniform(0, 0.2))  # another worker is creating the tables
    raise AssertionError


def _is_collision(error: BaseException) -> bool:
    """Return whether a creation failed because another worker was creating the same tables."""
    text = str(_root_cause(error)).lower()
    return isinstance(_root_cause(error), IntegrityError) or any(
        part in text for part in ("already exists", "unique constraint", "duplicate", "locked")
    )


def _open_proxy(url: URL) -> GrpcStorageProxy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=url.host or "localhost", port=url.port or 13000)
    proxy.wait_server_ready(timeout=_CONNECT_SECONDS)
    return proxy


def _package_hint(url: str) -> str:
    if url.startswith("postgresql"):
        return install_hint("postgres")
    return install_hint("grpc") if url.startswith("grpc") else "install the driver that the URL names"


class RetryingStorage(BaseStorage):
    """A storage that tries its calls again while the storage behind it does not answer.

    Each public method of `BaseStorage` is passed on to `inner` (below the class).

    Args:
        inner: The storage that answers.
        close: Called when this object is garbage collected; drivers warn of connections that are left open.
    """

    def __init__(self, inner: BaseStorage, close: Callable[[], None]) -> None:
        self._inner = inner
        self._failing_call: str | None = None  # the name of the call that was not answered
        self._gave_up = False
        self._cache: tuple[int, dict[str, Any]] | None = None  # the thread that reads from it; result by call
        weakref.finalize(self, close)

    @contextmanager
    def _cached_reads(self) -> Iterator[None]:
        """Answer repeated reads of this thread from a cache, which each write clears."""
        self._cache = threading.get_ident(), {}
        try:
            yield
        finally:
            self._cache = None

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        cache = self._cache  # read once: the main thread may end it while the heartbeat's thread is here
        if cache is None or cache[0] != threading.get_ident():
            return self._call_with_retries(name, *args, **kwargs)
        results = cache[1]
        if not _is_read(name):
            results.clear()
            return self._call_with_retries(name, *args, **kwargs)
        if name == "get_all_trials":  # asked for with many sets of states: read all once
            return self._cached_trials(results, *args, **kwargs)
        call = f"{name} {args} {kwargs}"
        if call not in results:
            results[call] = self._call_with_retries(name, *args, **kwargs)
        return results[call]

    def _cached_trials(
        self,
        results: dict[str, Any],
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        call = f"trials {study_id}"
        if call not in results:
            results[call] = self._call_with_retries("get_all_trials", study_id, deepcopy=False)
        trials = [trial for trial in results[call] if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _call_with_retries(self, name: str, *args: Any, **kwargs: Any) -> Any:
        pause, start = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                result = getattr(self._inner, name)(*args, **kwargs)
            except Exception as error:
                if not _is_storage_error(error):
                    raise
                self._check_retry(name, error, time.monotonic() - start)
            else:
                self._note_answer(name)
                return result
            try:
                # a random part, so that workers do not come back all at once
                signals.interruptible_sleep(pause * random.uniform(0.5, 1))
            except KeyboardInterrupt:
                self._gave_up = True  # what is still to be written waits no more
                raise
            pause = min(2 * pause, LONGEST_PAUSE)

    def _check_retry(self, name: str, error: Exception, seconds: float) -> None:
        """Raise `StorageError` unless a call that has failed for so many seconds should be tried again."""
        reason = _reason(error)
        is_transient = _is_transient(error) and not any(part in reason.lower() for part in _PERMANENT_REASONS)
        limit = min(RETRY_SECONDS, RETRY_SECONDS_AT_END) if signals.is_asked() else RETRY_SECONDS
        if self._gave_up or not is_transient or seconds >= limit:
            self._gave_up |= is_transient
            raise StorageError(f"the storage is no longer usable: {reason}") from error
        if self._failing_call is None:
            say(f"storage not answering; retrying for {RETRY_SECONDS / 60:.0f} minutes: {reason}")
            self._failing_call = name

    def _note_answer(self, name: str) -> None:
        """End an outage, unless a write failed and this was a read: a full disk can still be read."""
        if self._failing_call is not None and (_is_read(self._failing_call) or not _is_read(name)):
            say("storage answering again")
            self._failing_call, self._gave_up = None, False


def _is_read(name: str) -> bool:
    return name.startswith("get_")


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._call(name, *args, **kwargs)

    return method


for _name, _method in vars(BaseStorage).items():
    if callable(_method) and not _name.startswith("_"):
        setattr(RetryingStorage, _name, _passed_on(_name))
abc.update_abstractmethods(RetryingStorage)  # type: ignore[type-abstract]


def _is_storage_error(error: BaseException) -> bool:
    """Return whether an error comes from the database or the network, not from a wrong call."""
    root = _root_cause(error)
    return isinstance(root, SQLAlchemyError | StorageInternalError) or _is_grpc_error(root)


def _is_grpc_error(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "grpc"


def _is_transient(error: BaseException) -> bool:
    """Return whether a call that raised this error may succeed later."""
    root: Any = _root_cause(error)
    if isinstance(root, DBAPIError):
        return isinstance(root, OperationalError | InterfaceError) or root.connection_invalidated
    if _is_grpc_error(root):
        return root.code().name in _TRANSIENT_CODES if hasattr(root, "code") else True
    # SQLAlchemy's TimeoutError: no connection of the pool is free
    return isinstance(root, PendingRollbackError | sqlalchemy.exc.TimeoutError)


def _reason(error: BaseException) -> str:
    """Return the message of the database or the network, in one line."""
    root = _root_cause(error)
    return one_line(root.orig if isinstance(root, DBAPIError) and root.orig is not None else root)


def _root_cause(error: BaseException) -> BaseException:
    """Return the error that Optuna has wrapped in errors of its own."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error

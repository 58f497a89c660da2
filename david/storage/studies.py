"""Open the study that a run left in its folder or in a storage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from optuna import Study
from optuna.exceptions import StorageInternalError

from david.errors import SearchError
from david.storage.backend import open_storage, without_password
from david.storage.lock import LOCK_SUFFIX
from david.support.text import one_line


def open_existing(folder: str | os.PathLike[str] | None, storage: str | None, name: str | None = None) -> Study:
    """Open the study of a run's folder or of a storage URL.

    Args:
        folder: The run's folder; or None.
        storage: The storage URL; or None. Exactly one of the two must be given.
        name: The study's name; needed if the storage has several studies.

    Raises:
        SearchError: There is no such study, it cannot be read, or several could be meant.
    """
    if (folder is None) == (storage is None):
        raise SearchError("give a run's folder or a storage URL, one of the two")
    if folder is not None:
        storage = storage_in(folder)
        if not os.path.isfile(Path(folder) / "study.db"):
            raise SearchError(f"{os.fspath(folder)} holds no run: expected a study.db in it")
    assert storage is not None
    where = folder or without_password(storage)
    try:
        url = sqlalchemy.make_url(storage)  # raises a ValueError if the port is no number
        if url.get_backend_name() == "sqlite" and url.database:
            if not os.path.isfile(url.database):
                raise FileNotFoundError(f"there is no file {url.database}")  # SQLite would make one
            if not Path(url.database).stat().st_size:
                raise FileNotFoundError(f"the file {url.database} is empty")  # … or fill it
    except (OSError, ValueError, sqlalchemy.exc.ArgumentError) as error:
        raise SearchError(f"the storage {where} cannot be used: {one_line(error)}") from error
    with damage_reported(f"the storage {where}"):
        opened = open_storage(storage)
        names = [name for name in optuna.get_all_study_names(opened) if not name.endswith(LOCK_SUFFIX)]
        study_name = name or (names[0] if len(names) == 1 else None)
        if study_name is None or study_name not in names:
            raise SearchError(f"name one of the studies in {where}: {', '.join(names) or 'it has none'}")
        return optuna.load_study(study_name=study_name, storage=opened)


@contextmanager
def damage_reported(what: str) -> Iterator[None]:
    """Turn errors of reading a study into a `SearchError`: others can write into a storage, too.

    Args:
        what: What is read, as the message names it.

    Raises:
        SearchError: The study holds something that no search writes.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StorageInternalError) as error:
        reason = one_line(error.__cause__ or error)
        raise SearchError(f"{what} is damaged, or others have written into it: {reason}") from error


def storage_in(folder: str | os.PathLike[str]) -> str:
    """Return the storage URL of the study in a run's folder.

    Args:
        folder: The run's folder.
    """
    return sqlalchemy.URL.create("sqlite", database=str(Path(folder) / "study.db")).render_as_string()

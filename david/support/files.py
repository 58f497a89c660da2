"""Files and folders: expand paths, write atomically, check that a folder can be written."""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from david.errors import RecipeError, SearchError
from david.support.text import one_line


def expand_home(path: str | os.PathLike[str]) -> str:
    """Replace `~` in a path by the home folder; keep the path if there is no such user."""
    try:
        return os.path.expanduser(os.fspath(path))
    except ValueError:
        return os.fspath(path)


def reason(error: Exception) -> str:
    """Return the system's reason why a file cannot be read or written, without the file's name."""
    return getattr(error, "strerror", None) or one_line(error)


def write_atomically(path: Path, make: Callable[[Path], object]) -> Path:
    """Write a file beside its place, then rename it, so that no reader sees half of one.

    Args:
        path: The file.
        make: Write the file at the path that it is given.

    Returns:
        The path.

    Raises:
        SearchError: The file cannot be written.
    """
    beside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # containers that share a folder have one pid
    try:
        make(beside)
        return beside.replace(path)
    except (OSError, RecipeError) as error:
        cause = error.__context__ if isinstance(error, RecipeError) else error
        raise SearchError(f"cannot write {path}: {getattr(cause, 'strerror', None) or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Check that files can be written into a folder, or that the folder could be made; make nothing.

    Raises:
        SearchError: They cannot.
    """
    target = Path(folder)
    existing = next((place for place in (target, *target.absolute().parents) if os.path.exists(place)), target)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {target} cannot be written: {reason(error)}") from None


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder if it does not exist, and check that files can be written there.

    Raises:
        SearchError: The folder cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {os.fspath(folder)} cannot be made: {reason(error)}") from None
    check_folder(folder)

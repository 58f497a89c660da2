"""Files and folders: expanded paths, atomic writes, checks that a folder can be written."""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from david.errors import RecipeError, SearchError
from david.support.text import one_line


def expand_home(path: str | os.PathLike[str]) -> str:
    """A path with one's home for its `~`; as it is where that is no name of a user."""
    try:
        return os.path.expanduser(os.fspath(path))
    except ValueError:
        return os.fspath(path)


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, as the system says it, without the name of the file."""
    return getattr(error, "strerror", None) or one_line(error)


def write_atomically(path: Path, make: Callable[[Path], object]) -> Path:
    """Have a file made beside its place, then rename it into it; `SearchError` where that fails."""
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
    """`SearchError` unless files can be written into a folder, or one can be made there. Makes nothing."""
    wanted = Path(folder)
    existing = next((place for place in (wanted, *wanted.absolute().parents) if os.path.exists(place)), wanted)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {wanted} cannot be written: {reason(error)}") from None


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder where there is none, and make sure that files can be written there; `SearchError` if not."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SearchError(f"the output folder {os.fspath(folder)} cannot be made: {reason(error)}") from None
    check_folder(folder)

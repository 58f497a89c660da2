"""Sources of data: the rows of a local file, a Hub dataset, or the help topics that come with every Python.

`read_rows` reads the columns that a corpus needs, all at once, and takes the slice of rows that was asked for.
"""

import contextlib
import importlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from david.errors import CorpusError
from david.support.console import say
from david.support.text import brief, one_line

BUILT_IN = "python-topics"
_READERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Rows:
    """Columns of a source, in the rows of a slice.

    Attributes:
        source: The source, for error messages.
        first: The number of the first row in the source.
        columns: Each column's values by its name, all equally long. A source of text has its one column under
            whatever name it was asked for.
    """

    source: str
    first: int
    columns: dict[str, list[Any]]

    def texts(self, column: str) -> list[str]:
        """Return the values of a column that must hold texts.

        Raises:
            CorpusError: A value is something else.
        """
        values = self.columns[column]
        for number, value in enumerate(values, start=self.first):
            if not isinstance(value, str):
                raise CorpusError(
                    f"row {number} of {self.source} must hold text; got {type(value).__name__} in column {column!r}: "
                    "name another column"
                )
        return values


def read_rows(source: str, rows: str | None, columns: Sequence[str]) -> Rows:
    """Read columns of a source, in one go.

    Args:
        source: The path of a file, `owner/name` or `owner/name:configuration` of a Hub dataset, or `BUILT_IN`.
        rows: A slice such as `test[:200]`, `[10%:20%]`; None for all rows.
        columns: The names of the columns; of a text they do not matter.

    Raises:
        CorpusError: The source cannot be read, lacks a column, or does not reach as far as the slice.
    """
    path = Path(os.path.expanduser(source))  # Path's own raises for a user who is not there
    if rows is not None and _parse_slice(rows)[0] not in (None, "train") and (source == BUILT_IN or is_file(source)):
        raise CorpusError(f"{source} has no split {_parse_slice(rows)[0]!r}: slice it as [:200]")
    if source == BUILT_IN:
        values = _text_columns(list(_python_topics().values()), columns)
    elif is_file(source):
        values = _read_file(source, path, columns)
    else:
        looks_local = path.suffix in _READERS or source.startswith((".", "/", "~", "\\"))
        if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
            raise CorpusError(
                f"no such file: {source} (give a text, JSON lines, parquet or CSV file, or a Hub dataset as owner/name)"
            )
        values = _read_hub(source, rows, columns)
    length = len(values[columns[0]])
    start, stop = (0, length) if rows is None else _slice_bounds(rows, length, source)
    return Rows(source, start, {name: column[start:stop] for name, column in values.items()})


def is_file(source: str) -> bool:
    """Return whether a source is a local file."""
    return os.path.isfile(os.path.expanduser(source))  # unlike Path.is_file, this is False for a name that is too long


def is_text(source: str) -> bool:
    """Return whether a source is text without columns: a text file, or the built-in one."""
    return source == BUILT_IN or (is_file(source) and _READERS.get(Path(source).suffix.lower()) == "text")


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Show no progress bar of `datasets`, and nothing that it prints to stderr, while it reads a local file."""
    import datasets

    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _python_topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return dict(sorted(topics.items()))


def _read_file(source: str, path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{source}: expected a file that ends in {', '.join(_READERS)}; got {path.suffix or 'no ending'}"
        )
    return _text_columns(_read_text(path), columns) if reader == "text" else _read_table(path, reader, columns)


def _text_columns(texts: list[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    return {name: texts for name in columns}  # noqa: C420  # a text has one column, under any name


def _read_text(path: Path) -> list[str]:
    """Return a text file as one document, exact to the byte: line ends stay as they are."""
    try:
        return [path.read_bytes().decode("utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read as text: {error}") from None


def _read_table(path: Path, reader: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    import datasets

    # A cache of its own: the shared one takes a replaced file of the same age for the old one.
    with tempfile.TemporaryDirectory() as cache, quiet_datasets():
        try:
            table = datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=cache)
            return _columns(table, columns, str(path))
        except CorpusError:
            raise
        except Exception as error:  # each builder raises its own kinds
            raise CorpusError(f"{path} cannot be read as {reader}: {_reason(error)}") from None


def _read_hub(source: str, rows: str | None, columns: Sequence[str]) -> dict[str, list[Any]]:
    import datasets

    name, _, configuration = source.partition(":")
    split = None if rows is None else _parse_slice(rows)[0]
    say(f"no file here is called {source}: asking the Hub for a dataset")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise CorpusError(f"no file and no Hub dataset could be read as {source!r}: {_reason(error)}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            splits = list(loaded)
            raise CorpusError(f"{source} has the splits {', '.join(splits)}: give a slice such as {splits[0]}[:200]")
        loaded = next(iter(loaded.values()))
    return _columns(loaded, columns, source)


def _columns(table: Any, columns: Sequence[str], source: str) -> dict[str, list[Any]]:
    for column in columns:
        if column not in table.column_names:
            raise CorpusError(
                f"{source} has no column {column!r}: it has {', '.join(table.column_names[:20])}"
                f"{' and more' * (len(table.column_names) > 20)}; name one of them"
            )
    return {column: list(table[column]) for column in columns}


def _parse_slice(rows: str) -> tuple[str | None, str | None, str | None]:
    """Return the split, the start and the stop of a slice; None for each that is left out."""
    match = re.fullmatch(r"([\w.-]{1,99})? *(?:\[ *(\d{1,18}%?)? *: *(\d{1,18}%?)? *\])?", rows.strip())
    if not match or not match[0]:
        expected = "expected such as test, test[:200], train[10%:20%], [5:50]"
        raise CorpusError(f"cannot read the slice {brief(rows)}: {expected}")
    return match[1], match[2], match[3]


def _slice_bounds(rows: str, length: int, source: str) -> tuple[int, int]:
    """Return the half-open range of rows that a slice of a source with so many rows is."""

    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise CorpusError(f"the slice {rows} reaches {bound} of {source}: there is no more than 100%")
        return int(bound[:-1]) * length // 100

    _, low, high = _parse_slice(rows)
    rows = rows.strip()
    start, stop = row(low, 0), row(high, length)
    if stop > length:
        raise CorpusError(f"the slice {rows} reaches row {stop}, but {source} has {length} rows")
    if start >= stop:
        raise CorpusError(f"the slice {rows} of {source} is empty: its start must come before its end")
    return start, stop


def _reason(error: Exception) -> str:
    return "it has no rows" if isinstance(error, StopIteration) else one_line(error.__cause__ or error)

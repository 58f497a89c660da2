"""Sources of data: the rows of a local file, a Hub dataset, or the help topics that come with every Python.

`open_rows` opens the columns that a corpus needs, in the slice of rows that was asked for. Rows are read one by one.
"""

import codecs
import contextlib
import hashlib
import importlib
import io
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from david.errors import CorpusError
from david.scoring.hold_out import copy_key
from david.scoring.tokens import BETWEEN, Piece
from david.support.console import say
from david.support.text import brief, one_line

BUILT_IN = "python-topics"
_READERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_PART = 1 << 16  # bytes of a text file that are read together


@dataclass(frozen=True)
class Rows:
    """Columns of a source, in the rows of a slice.

    Attributes:
        source: The source, for error messages.
        first: The number of the first row in the source.
        columns: Each column's values by its name, all equally many; of a table they are read while they are iterated
            over. A source of text has its one column under whatever name it was asked for.
        text_file: The file that is the one text of the source; None for other sources, which have `columns`.
    """

    source: str
    first: int
    columns: Mapping[str, Collection[Any]]
    text_file: Path | None = None

    def texts(self, column: str) -> Iterator[str]:
        """Yield the values of a column that must hold texts.

        Raises:
            CorpusError: A value is something else.
        """
        for number, value in enumerate(self.columns[column], start=self.first):
            if not isinstance(value, str):
                raise CorpusError(
                    f"row {number} of {self.source} must hold text; got {type(value).__name__} in column {column!r}: "
                    "name another column"
                )
            yield value

    def pieces(self, column: str) -> Iterator[Piece]:
        """Yield the texts of a column: a row in one piece, a text file in several; `CorpusError` as `texts` raises."""
        if self.text_file is None:
            return enumerate(self.texts(column))
        return ((0, part) for part in _read_text(self.text_file))


class TextRecord:
    """What is kept of texts after they have been read.

    Attributes:
        copy_keys: The `copy_key` of each text.
    """

    def __init__(self, *, fewest_words: int) -> None:
        self.copy_keys: list[bytes | None] = []
        self._fewest_words = fewest_words
        self._sha256 = hashlib.sha256()

    def add(self, number: int, text: str) -> None:
        """Record the text of a document, or a further part of it."""
        if number == len(self.copy_keys):
            self._sha256.update((BETWEEN if number else "").encode())
            self.copy_keys.append(copy_key(text, self._fewest_words))
        self._sha256.update(text.encode())

    def passed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces of texts, each after it is recorded."""
        for piece in pieces:
            self.add(*piece)
            yield piece

    @property
    def sha256(self) -> str:
        """The SHA-256 of the joined text."""
        return self._sha256.hexdigest()


@contextlib.contextmanager
def open_rows(source: str, rows: str | None, columns: Sequence[str]) -> Iterator[Rows]:
    """Open columns of a source, to read them within a `with` block.

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
    with contextlib.ExitStack() as stack:
        if source == BUILT_IN:
            topics = list(_python_topics().values())
            start, stop = _slice_bounds(rows, len(topics), source)
            yield Rows(source, start, dict.fromkeys(columns, topics[start:stop]))
        elif is_text_file(source):
            _slice_bounds(rows, 1, source)
            yield Rows(source, 0, {}, path)
        else:
            if is_file(source):
                table = _open_table(source, path, columns, stack)
            else:
                table = _open_hub(source, path, rows, columns)
            start, stop = _slice_bounds(rows, len(table), source)
            if rows is not None:
                table = table.select(range(start, stop))
            yield Rows(source, start, {name: table[name] for name in columns})


def is_file(source: str) -> bool:
    """Return whether a source is a local file."""
    return os.path.isfile(os.path.expanduser(source))  # unlike Path.is_file, this is False for a name that is too long


def is_text(source: str) -> bool:
    """Return whether a source is text without columns: a text file, or the built-in one."""
    return source == BUILT_IN or is_text_file(source)


def is_text_file(source: str) -> bool:
    """Return whether a source is a text file, which is one document."""
    return is_file(source) and _READERS.get(Path(source).suffix.lower()) == "text"


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


def _read_text(path: Path) -> Iterator[str]:
    """Yield a text file part by part, exact to the byte: line ends stay as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    try:
        with path.open("rb") as file:
            while part := file.read(_PART):
                position += len(part)
                yield decoder.decode(part)
            yield decoder.decode(b"", final=True)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read as text: {error}") from None
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], position - len(error.object) + error.start
        reason = f"'utf-8' codec can't decode byte 0x{byte:02x} in position {place}: {error.reason}"
        raise CorpusError(f"{path} cannot be read as text: {reason}") from None


def _open_table(source: str, path: Path, columns: Sequence[str], stack: contextlib.ExitStack) -> Any:
    """Return a file as a dataset, whose rows can be read as long as the stack is open."""
    import datasets

    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{source}: expected a file that ends in {', '.join(_READERS)}; got {path.suffix or 'no ending'}"
        )
    # A cache of its own: the shared one takes a replaced file of the same age for the old one.
    cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    try:
        with quiet_datasets():
            table = datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=cache)
            _check_columns(table, columns, str(path))
            next(iter(table.select_columns(list(columns))), None)  # a kind of value that cannot be decoded
    except CorpusError:
        raise
    except Exception as error:  # each builder raises its own kinds
        raise CorpusError(f"{path} cannot be read as {reader}: {_reason(error)}") from None
    return table


def _open_hub(source: str, path: Path, rows: str | None, columns: Sequence[str]) -> Any:
    """Return a dataset on the Hub, in the split that a slice names."""
    looks_local = path.suffix in _READERS or source.startswith((".", "/", "~", "\\"))
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
        raise CorpusError(
            f"no such file: {source} (give a text, JSON lines, parquet or CSV file, or a Hub dataset as owner/name)"
        )
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
    _check_columns(loaded, columns, source)
    return loaded


def _check_columns(table: Any, columns: Sequence[str], source: str) -> None:
    for column in columns:
        if column not in table.column_names:
            raise CorpusError(
                f"{source} has no column {column!r}: it has {', '.join(table.column_names[:20])}"
                f"{' and more' * (len(table.column_names) > 20)}; name one of them"
            )


def _parse_slice(rows: str) -> tuple[str | None, str | None, str | None]:
    """Return the split, the start and the stop of a slice; None for each that is left out."""
    match = re.fullmatch(r"([\w.-]{1,99})? *(?:\[ *(\d{1,18}%?)? *: *(\d{1,18}%?)? *\])?", rows.strip())
    if not match or not match[0]:
        expected = "expected such as test, test[:200], train[10%:20%], [5:50]"
        raise CorpusError(f"cannot read the slice {brief(rows)}: {expected}")
    return match[1], match[2], match[3]


def _slice_bounds(rows: str | None, length: int, source: str) -> tuple[int, int]:
    """Return the half-open range of rows that a slice of a source with so many rows is."""

    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise CorpusError(f"the slice {rows} reaches {bound} of {source}: there is no more than 100%")
        return int(bound[:-1]) * length // 100

    if rows is None:
        return 0, length
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

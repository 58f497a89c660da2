"""The texts of a source's rows: of a file, a Hub dataset, or the help that comes with every Python."""

import contextlib
import importlib
import io
import os
import re
import reprlib
import string
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from david.errors import CorpusError
from david.support.text import brief, one_line

BUILT_IN = "python-topics"
_READERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: a prompt, its answers, and the number of the right one, from 0 on."""

    prompt: str
    answers: tuple[str, ...]
    right: int


def documents_of(source: str, rows: str | None, column: str) -> list[str]:
    """The texts of a source's rows."""
    found, first = _values(source, rows, column)
    for number, value in enumerate(found, start=first):
        if not isinstance(value, str):
            raise CorpusError(f"row {number} of {source} must hold text; got {type(value).__name__}")
    return found


def questions_of(source: str, rows: str | None, prompt: str, answers: str, gold: str) -> list[Question]:
    """The multiple-choice questions of a source's rows.

    The column `answers` holds a list of texts, or `{"text": [...], "label": [...]}` as ARC has it on the Hub; `gold`
    the number of the right one from 0 on, or its label (left out, labels are A, B, …).
    """
    prompts = documents_of(source, rows, prompt)
    choices, first = _values(source, rows, answers)
    rights, _ = _values(source, rows, gold)
    found = []
    for row, (asked, choice, right) in enumerate(zip(prompts, choices, rights, strict=True), start=first):
        texts, labels = (choice.get("text"), choice.get("label")) if isinstance(choice, dict) else (choice, None)
        if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
            raise CorpusError(
                f"row {row} of {source}: {answers} must hold a list of two or more texts; got {reprlib.repr(choice)}"
            )
        listed = labels if isinstance(labels, list) and len(labels) == len(texts) else []
        known = [str(label) for label in listed or string.ascii_uppercase[: len(texts)]]
        number = None if listed else _whole_number(right)
        place = known.index(str(right)) if str(right) in known else number
        if place is None or not 0 <= place < len(texts):
            raise CorpusError(
                f"row {row} of {source}: {gold} must be {'' if listed else f'0 … {len(texts) - 1} or '}one of "
                f"{', '.join(known)}; got {reprlib.repr(right)}"
            )
        found.append(Question(asked, tuple(texts), place))
    return found


def _whole_number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | str) and re.fullmatch(r"\d{1,9}", brief(value).strip("'")) else None


def _values(source: str, rows: str | None, column: str) -> tuple[list[Any], int]:
    """What a column holds in a source's rows, and the number of the first of these."""
    path = Path(os.path.expanduser(source))  # Path's own raises for a user who is not there
    if rows is not None and _slice_parts(rows)[0] not in (None, "train") and (source == BUILT_IN or is_file(source)):
        raise CorpusError(f"{source} has no split {_slice_parts(rows)[0]!r}: slice it as [:200]")
    if source == BUILT_IN:
        return _rows(list(_topics().values()), rows, source)
    if is_file(source):
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise CorpusError(
                f"{source}: expected a file that ends in {', '.join(_READERS)}; got {path.suffix or 'no ending'}"
            )
        return _rows(_read_text(path) if reader == "text" else _read_table(path, reader, column), rows, source)
    looks_local = path.suffix in _READERS or source.startswith((".", "/", "~", "\\"))
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
        raise CorpusError(
            f"no such file: {source} (give a text, JSON lines, parquet or CSV file, or a Hub dataset as owner/name)"
        )
    return _rows(_read_hub(source, rows, column), rows, source)


def _topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return dict(sorted(topics.items()))


def is_file(source: str) -> bool:
    """Whether a source is a local file."""
    return os.path.isfile(os.path.expanduser(source))  # which, unlike Path's, are False for a name too long


def is_text(source: str) -> bool:
    """Whether a source is text without columns: a text file, or the built-in one."""
    return source == BUILT_IN or (is_file(source) and _READERS.get(Path(source).suffix.lower()) == "text")


def _read_text(path: Path) -> list[str]:
    """A text file as one document, to the byte: line ends stay what they are."""
    try:
        return [path.read_bytes().decode("utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read as text: {error}") from None


def _read_table(path: Path, reader: str, column: str) -> list[Any]:
    import datasets

    # A cache of its own: the shared one takes a replaced file of the same age for the old one.
    with tempfile.TemporaryDirectory() as cache, quiet_datasets():
        try:
            table = datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=cache)
            return _column(table, column, str(path))
        except CorpusError:
            raise
        except Exception as error:  # every builder has its own kinds
            raise CorpusError(f"{path} cannot be read as {reader}: {_reason(error)}") from None


def _read_hub(source: str, rows: str | None, column: str) -> list[Any]:
    import datasets

    name, _, configuration = source.partition(":")
    split = None if rows is None else _slice_parts(rows)[0]
    sys.stderr.write(f"no file here is called {source}: asking the Hub for a dataset\n")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise CorpusError(f"no file and no Hub dataset could be read as {source!r}: {_reason(error)}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            splits = list(loaded)
            raise CorpusError(f"{source} has the splits {', '.join(splits)}: give a slice such as {splits[0]}[:200]")
        loaded = next(iter(loaded.values()))
    return _column(loaded, column, source)


def _column(table: Any, column: str, source: str) -> list[Any]:
    if column not in table.column_names:
        raise CorpusError(
            f"{source} has no column {column!r}: it has {', '.join(table.column_names[:20])}"
            f"{' and more' * (len(table.column_names) > 20)}; name one of them"
        )
    return list(table[column])


def _rows(values: list[Any], rows: str | None, source: str) -> tuple[list[Any], int]:
    start, stop = (0, len(values)) if rows is None else _slice_bounds(rows, len(values), source)
    return values[start:stop], start


def _slice_parts(rows: str) -> tuple[str | None, str | None, str | None]:
    match = re.fullmatch(r"([\w.-]{1,99})? *(?:\[ *(\d{1,18}%?)? *: *(\d{1,18}%?)? *\])?", rows.strip())
    if not match or not match[0]:
        expected = "expected such as test, test[:200], train[10%:20%], [5:50]"
        raise CorpusError(f"cannot read the slice {brief(rows)}: {expected}")
    return match[1], match[2], match[3]


def _slice_bounds(rows: str, length: int, source: str) -> tuple[int, int]:
    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise CorpusError(f"the slice {rows} reaches {bound} of {source}: there is no more than 100%")
        return int(bound[:-1]) * length // 100

    _, low, high = _slice_parts(rows)
    rows = rows.strip()
    start, stop = row(low, 0), row(high, length)
    if stop > length:
        raise CorpusError(f"the slice {rows} reaches row {stop}, but {source} has {length} rows")
    if start >= stop:
        raise CorpusError(f"the slice {rows} of {source} is empty: its start must come before its end")
    return start, stop


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Reading one local file needs no progress bar."""
    import datasets

    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _reason(error: Exception) -> str:
    return "it has no rows" if isinstance(error, StopIteration) else one_line(error.__cause__ or error)

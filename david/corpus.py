"""A slice of a dataset as windows of tokens."""

import contextlib
import hashlib
import importlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from david.errors import CorpusError, one_line

BUILT_IN = "python-topics"
_ATTEMPTS = 20  # at drawing parts that share no document, before it counts as impossible
_BETWEEN = "\n\n"  # between the documents of a dataset, as the transformers perplexity guide joins them
_READERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


class Tokenizer(Protocol):
    """What a corpus asks of a tokenizer; every transformers tokenizer has it."""

    bos_token_id: int | None
    is_fast: bool

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Windows of tokens that are scored one by one.

    `windows` is `[W, T]` (int64), `documents` the number of the document each window begins in, `last_documents` of
    that it ends in. `sha256` is of the text's UTF-8 bytes, `numbers` those of the windows in that text: together with
    `source`, `slice`, the window's length and `bos` they say which tokens these are. Left out, the windows are the
    text's first, and each lies in one document.
    """

    windows: Tensor
    documents: tuple[int, ...]
    source: str
    slice: str | None
    sha256: str
    bos: bool
    numbers: tuple[int, ...] = ()
    last_documents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", self.numbers or tuple(range(len(self))))
        object.__setattr__(self, "last_documents", self.last_documents or self.documents)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = BUILT_IN,
        tokenizer: Tokenizer | None = None,
        *,
        slice: str | None = None,  # noqa: A002  # the field's word
        window: int = 512,
        column: str = "text",
        bos: bool | None = None,
    ) -> "Corpus":
        """Read a text and cut it into windows that follow one another; what does not fill a last one is left out.

        `source` is a local file (text as one document; JSON lines, parquet or CSV as a document a row), a Hub dataset
        (`owner/name`, or `owner/name:configuration`), or the built-in default: the help topics that come with every
        Python. `slice` picks rows: `test[:200]`, `train[10%:20%]`, or `[:200]` for a file. With `bos`, the first
        token of each window (which is never scored) is the tokenizer's BOS; left out, the tokenizer's own
        habit decides.

        Raises `CorpusError` when the data cannot be read, a slice reaches beyond it, or it cannot fill a window.
        """
        if tokenizer is None:
            raise CorpusError("a corpus needs the tokenizer of its model: Corpus.load(source, tokenizer)")
        if window < 2:
            raise CorpusError(f"a window needs at least 2 tokens, one to read and one to score; got {window}")
        source = os.fspath(source)
        documents = _documents(source, slice, column)
        text = _BETWEEN.join(documents)
        tokens, starts = _encode(tokenizer, documents, text)
        n_windows = len(tokens) // window
        if n_windows == 0:
            where = source if slice is None else f"{source} {slice}"
            raise CorpusError(
                f"{where} has {len(tokens)} tokens, too few for one window of {window}: "
                "take more of it or a shorter window"
            )
        windows = torch.from_numpy(tokens[: n_windows * window].reshape(n_windows, window).copy())
        lead = _adds_bos(tokenizer) if bos is None else bos
        if lead:
            if tokenizer.bos_token_id is None:
                raise CorpusError("bos=True needs a tokenizer with a BOS token; this one has none")
            windows[:, 0] = tokenizer.bos_token_id
        ends = np.arange(n_windows) * window + [[0], [window - 1]]
        first, last = np.searchsorted(starts, ends, side="right") - 1
        return cls(
            windows=windows,
            documents=tuple(first.tolist()),
            last_documents=tuple(last.tolist()),
            source=Path(source).name if _is_file(source) else source,
            slice=slice,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            bos=lead,
        )

    @property
    def window(self) -> int:
        """Tokens in a window."""
        return self.windows.shape[1]

    @property
    def places(self) -> str:
        """Which windows of the text these are, in their order: `"0:12"` (half-open), `"7, 3, 20:22"`."""
        runs: list[list[int]] = []
        for number in self.numbers:
            if runs and runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, number + 1])
        return ", ".join(f"{start}:{stop}" if stop > start + 1 else f"{start}" for start, stop in runs)

    @property
    def tokens_sha256(self) -> str:
        """Of the windows' tokens, as little-endian int64."""
        return hashlib.sha256(self.windows.numpy().astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return self.windows.shape[0]

    def __repr__(self) -> str:
        where = self.source if self.slice is None else f"{self.source} {self.slice}"
        which = self.places if len(self.places) < 40 else f"{len(self)}"
        return f"Corpus({where}: windows {which} of {self.window} tokens)"

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.windows)

    def take(self, n: int) -> "Corpus":
        """The first n windows; `CorpusError` when there are fewer."""
        if not 0 < n <= len(self):
            raise CorpusError(f"take({n}) of a corpus of {len(self)} windows: ask for 1 … {len(self)}")
        return self.part(0, n)

    def split(self, *sizes: int) -> tuple["Corpus", ...]:
        """Consecutive disjoint parts of so many windows each, such as `corpus.split(16, 32)`.

        Raises `CorpusError` when there are fewer windows than asked for.
        """
        if min(sizes, default=0) < 1 or sum(sizes) > len(self):
            wanted = " + ".join(map(str, sizes))
            raise CorpusError(
                f"cannot split {len(self)} windows of {self.window} tokens into {wanted}: "
                "take a longer text, fewer windows or shorter ones"
            )
        bounds = np.cumsum([0, *sizes]).tolist()
        return tuple(self.part(start, stop) for start, stop in itertools.pairwise(bounds))

    def hold_out(self, search: int, held_out: int, *, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Two parts of so many windows, to search on and to judge by: no document is in both.

        Documents are drawn at random; a first window of each before a second of any, so that both parts hold as many
        documents as they can, and neighbouring windows come from different ones. Where documents are too few or too
        long for that, the parts follow one another as `split` has them, and share one document at least.

        Raises `CorpusError` when there are fewer windows than asked for.
        """
        consecutive = self.split(search, held_out)
        for attempt in range(_ATTEMPTS):
            drawn = _drawn(self, (search, held_out), np.random.default_rng([seed, attempt]))
            if drawn is not None:
                return self._at(drawn[0]), self._at(drawn[1])
        return consecutive[0], consecutive[1]

    def shared_documents(self, other: "Corpus") -> int:
        """How many documents of the same text both have a part of."""
        return len(_spanned(self) & _spanned(other)) if self.sha256 == other.sha256 else 0

    def shared_tokens(self, other: "Corpus") -> int:
        """How many tokens of the same text both have."""
        if self.sha256 != other.sha256:
            return 0
        mine, its = (np.add.outer(np.multiply(c.numbers, c.window), np.arange(c.window)) for c in (self, other))
        return int(np.intersect1d(mine, its).size)

    def part(self, start: int, stop: int) -> "Corpus":
        """Its windows start … stop − 1."""
        return self._at(range(start, stop))

    def _at(self, places: Sequence[int]) -> "Corpus":
        return replace(
            self,
            windows=self.windows[list(places)],
            documents=tuple(self.documents[place] for place in places),
            last_documents=tuple(self.last_documents[place] for place in places),
            numbers=tuple(self.numbers[place] for place in places),
        )


def _spanned(corpus: Corpus) -> set[int]:
    """The documents that windows lie in, wholly or in part."""
    ends = zip(corpus.documents, corpus.last_documents, strict=True)
    return {document for first, last in ends for document in range(first, last + 1)}


def _drawn(corpus: Corpus, sizes: Sequence[int], draw: np.random.Generator) -> list[list[int]] | None:
    """The places of windows of two parts that share no document; None where this draw does not fill them."""
    begun: dict[int, list[int]] = {}
    for place in draw.permutation(len(corpus)).tolist():
        begun.setdefault(corpus.documents[place], []).append(place)
    parts: list[list[int]] = [[] for _ in sizes]
    owners: dict[int, int] = {}  # of a document, the part that has windows of it
    for places in itertools.zip_longest(*begun.values()):
        for place in places:
            if place is None:
                continue
            documents = range(corpus.documents[place], corpus.last_documents[place] + 1)
            owned = {owners[document] for document in documents if document in owners}
            open_ = [i for i, size in enumerate(sizes) if len(parts[i]) < size and owned <= {i}]
            if open_:
                part = min(open_, key=lambda i: len(parts[i]) / sizes[i])
                parts[part].append(place)
                owners |= dict.fromkeys(documents, part)
    return parts if [len(part) for part in parts] == list(sizes) else None


def _encode(tokenizer: Tokenizer, documents: Sequence[str], text: str) -> tuple[np.ndarray, np.ndarray]:
    """The joined text's tokens, and the position of each document's first token. No special tokens are added."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = np.asarray(encoded["input_ids"], dtype=np.int64)
        at = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
        first_characters = np.cumsum([0] + [len(document) + len(_BETWEEN) for document in documents[:-1]])
        return tokens, np.searchsorted(at, first_characters, side="left")
    parts = [
        tokenizer(document + (_BETWEEN if i + 1 < len(documents) else ""), add_special_tokens=False)["input_ids"]
        for i, document in enumerate(documents)
    ]
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    return np.asarray([token for part in parts for token in part], dtype=np.int64), starts


def _adds_bos(tokenizer: Tokenizer) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def _documents(source: str, rows: str | None, column: str) -> list[str]:
    """The texts of a source's rows."""
    path = Path(source).expanduser()
    if rows is not None and _slice_parts(rows)[0] not in (None, "train") and (source == BUILT_IN or path.is_file()):
        raise CorpusError(f"{source} has no split {_slice_parts(rows)[0]!r}: slice it as [:200]")
    if source == BUILT_IN:
        return _rows(list(_topics().values()), rows, source)
    if path.is_file():
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


def _is_file(source: str) -> bool:
    return Path(source).expanduser().is_file()


def _read_text(path: Path) -> list[str]:
    """A text file as one document, to the byte: line ends stay what they are."""
    try:
        return [path.read_bytes().decode("utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read as text: {error}") from None


def _read_table(path: Path, reader: str, column: str) -> list[Any]:
    import datasets

    # A cache of its own: the shared one takes a replaced file of the same age for the old one.
    with tempfile.TemporaryDirectory() as cache, _quiet_datasets():
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
            f"{source} has no column {column!r}: it has {', '.join(table.column_names)}; name one of them"
        )
    return list(table[column])


def _rows(values: list[Any], rows: str | None, source: str) -> list[str]:
    start, stop = (0, len(values)) if rows is None else _slice_bounds(rows, len(values), source)
    for number in range(start, stop):
        if not isinstance(values[number], str):
            raise CorpusError(f"row {number} of {source} must hold text; got {type(values[number]).__name__}")
    return values[start:stop]


def _slice_parts(rows: str) -> tuple[str | None, str | None, str | None]:
    match = re.fullmatch(r"\s*([\w.-]+)?\s*(?:\[\s*(\d+%?)?\s*:\s*(\d+%?)?\s*\])?\s*", rows)
    if not match or not rows.strip():
        raise CorpusError(f"cannot read the slice {rows!r}: expected such as test, test[:200], train[10%:20%], [5:50]")
    return match[1], match[2], match[3]


def _slice_bounds(rows: str, length: int, source: str) -> tuple[int, int]:
    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        return int(bound[:-1]) * length // 100 if bound.endswith("%") else int(bound)

    _, low, high = _slice_parts(rows)
    start, stop = row(low, 0), row(high, length)
    if stop > length:
        raise CorpusError(f"the slice {rows} reaches row {stop}, but {source} has {length} rows")
    if start >= stop:
        raise CorpusError(f"the slice {rows} of {source} is empty: its start must come before its end")
    return start, stop


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
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

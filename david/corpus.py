"""A slice of a dataset as windows of tokens."""

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from david.errors import CorpusError
from david.sources import BUILT_IN, documents_of, is_file

_SHARES = [Fraction(n, 12) for n in (6, 4, 8, 3, 9, 2, 10, 1, 11)]  # of documents, to search on; the first that does
_UNIT = 4  # windows at least that begin in documents which come to the same side
_BETWEEN = "\n\n"  # between the documents of a dataset, as the transformers perplexity guide joins them


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
    text's first, and each lies in one document. Where each window is a prompt and its completion, `completions`
    `[W, T]` (bool) says which tokens are of the completion; what lies behind it only fills the window.
    """

    windows: Tensor
    documents: tuple[int, ...]
    source: str
    slice: str | None
    sha256: str
    bos: bool
    numbers: tuple[int, ...] = ()
    last_documents: tuple[int, ...] = ()
    completions: Tensor | None = None

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
        prompt: str | None = None,
        bos: bool | None = None,
    ) -> "Corpus":
        """Read a text and cut it into windows that follow one another; what does not fill a last one is left out.

        `source` is a local file (text as one document; JSON lines, parquet or CSV as a document a row), a Hub dataset
        (`owner/name`, or `owner/name:configuration`), or the built-in default: the help topics that come with every
        Python. `slice` picks rows: `test[:200]`, `train[10%:20%]`, or `[:200]` for a file. With `bos`, the first
        token of each window (which is never scored) is the tokenizer's BOS; left out, the tokenizer's own
        habit decides.

        With `prompt`, another column, each row is a window of its own: its prompt, a space where the two would touch,
        and the completion, which `column` holds and which alone is scored. Of a row longer than `window` the end is
        kept.

        Raises `CorpusError` when the data cannot be read, a slice reaches beyond it, or it cannot fill a window.
        """
        if tokenizer is None:
            raise CorpusError("a corpus needs the tokenizer of its model: Corpus.load(source, tokenizer)")
        if window < 2:
            raise CorpusError(f"a window needs at least 2 tokens, one to read and one to score; got {window}")
        source = os.fspath(source)
        if prompt is not None:
            return cls._of_pairs(source, tokenizer, slice, window, _pairs(source, slice, prompt, column), bos)
        documents = documents_of(source, slice, column)
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
        first = _bos(tokenizer, bos)
        if first is not None:
            windows[:, 0] = first
        ends = np.arange(n_windows) * window + [[0], [window - 1]]
        documents_, last_documents = np.searchsorted(starts, ends, side="right") - 1
        return cls(
            windows=windows,
            documents=tuple(documents_.tolist()),
            last_documents=tuple(last_documents.tolist()),
            source=_name(source),
            slice=slice,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            bos=first is not None,
        )

    @classmethod
    def _of_pairs(
        cls,
        source: str,
        tokenizer: Tokenizer,
        rows: str | None,
        window: int,
        pairs: Sequence[tuple[str, str]],
        bos: bool | None,
    ) -> "Corpus":
        """A window for each prompt and its completion, filled up to the longest."""
        lead = _bos(tokenizer, bos)
        before = [] if lead is None else [lead]
        made = []
        for number, (prompt, completion) in enumerate(pairs):
            tokens = tokenizer(prompt + completion, add_special_tokens=False, verbose=False)["input_ids"]
            asked = len(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
            answered = len(tokens) - asked
            if not 0 < answered <= window - 1 or len(before) + len(tokens) < 2:
                raise CorpusError(
                    f"row {number} of {source}: its completion has {max(answered, 0)} tokens; expected "
                    f"1 … {window - 1} and one to read before them: take a longer window or other rows"
                )
            made.append(([*before, *tokens[-(window - len(before)) :]], answered))
        longest = max(len(tokens) for tokens, _ in made)
        windows = torch.zeros(len(made), longest, dtype=torch.int64)  # what lies behind a completion is not looked at
        completions = torch.zeros(len(made), longest, dtype=torch.bool)
        for row, (tokens, answered) in enumerate(made):
            windows[row, : len(tokens)] = torch.tensor(tokens)
            completions[row, max(1, len(tokens) - answered) : len(tokens)] = True
        return cls(
            windows=windows,
            documents=tuple(range(len(made))),
            source=_name(source),
            slice=rows,
            sha256=hashlib.sha256(_BETWEEN.join(map("".join, pairs)).encode()).hexdigest(),
            bos=lead is not None,
            completions=completions,
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

        Which documents are on which side is drawn by the seed, half of them each (other shares where that does not do),
        short ones together with their neighbours. So more or fewer windows of the same text with the same seed are
        more or fewer of the same sides. Of each document one window comes before a second of any. Where no share does,
        as in a text of one document, the parts follow one another as `split` has them.

        Raises `CorpusError` when there are fewer windows than asked for.
        """
        consecutive = self.split(search, held_out)
        for share in _SHARES:
            sides = _sides(self, share, np.random.default_rng(seed))
            if len(sides[0]) >= search and len(sides[1]) >= held_out:
                return self._at(sides[0][:search]), self._at(sides[1][:held_out])
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
            completions=None if self.completions is None else self.completions[list(places)],
        )


def _spanned(corpus: Corpus) -> set[int]:
    """The documents that windows lie in, wholly or in part."""
    ends = zip(corpus.documents, corpus.last_documents, strict=True)
    return {document for first, last in ends for document in range(first, last + 1)}


def _sides(corpus: Corpus, share: Fraction, draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """The places of all windows that lie wholly in documents to search on, and in those to judge by.

    `share` is of the documents, those to search on.
    """
    units = _units(corpus)
    order = draw.permutation(max(units.values()) + 1).tolist()
    rank = {unit: i for i, unit in enumerate(order)}
    begun: dict[int, list[int]] = {}
    for place in draw.permutation(len(corpus)).tolist():
        begun.setdefault(corpus.documents[place], []).append(place)
    documents = sorted(begun, key=lambda document: rank[units[document]])
    turns = sorted((turn, i, place) for i, d in enumerate(documents) for turn, place in enumerate(begun[d]))
    sides: tuple[list[int], list[int]] = [], []
    for _, _, place in turns:
        spanned = range(corpus.documents[place], corpus.last_documents[place] + 1)
        ranks = {rank[units[document]] for document in spanned}
        owners = {math.floor((i + 1) * share) > math.floor(i * share) for i in ranks}
        if len(owners) == 1:
            sides[0 if owners.pop() else 1].append(place)
    return sides


def _units(corpus: Corpus) -> dict[int, int]:
    """Of each document the number of its unit: neighbours until a few windows begin in them."""
    begun = Counter(corpus.documents)
    units, unit, windows = {}, 0, 0
    for document in range(min(corpus.documents), max(corpus.last_documents) + 1):
        if windows >= _UNIT:
            unit, windows = unit + 1, 0
        units[document] = unit
        windows += begun[document]
    return units


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


def _bos(tokenizer: Tokenizer, wanted: bool | None) -> int | None:
    """The token that begins each window; None for none. Left open, what the tokenizer itself does."""
    if wanted is None:
        ids = tokenizer("a")["input_ids"]
        return ids[0] if len(ids) > 0 and ids[0] == tokenizer.bos_token_id else None
    if wanted and tokenizer.bos_token_id is None:
        raise CorpusError("bos=True needs a tokenizer with a BOS token; this one has none")
    return tokenizer.bos_token_id if wanted else None


def _name(source: str) -> str:
    return Path(source).name if is_file(source) else source


def _pairs(source: str, rows: str | None, prompt: str, column: str) -> list[tuple[str, str]]:
    """The prompt and the completion of each row, with a space between them where they would touch."""
    asked, answered = (documents_of(source, rows, name) for name in (prompt, column))
    pairs = zip(asked, answered, strict=True)
    return [(one, other if one[-1:].isspace() or other[:1].isspace() else f" {other}") for one, other in pairs]

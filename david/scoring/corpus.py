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

import numpy as np
import torch
from torch import Tensor

from david.errors import CorpusError
from david.scoring import windows
from david.scoring.sources import BUILT_IN, Question, documents_of, is_file, is_text, questions_of
from david.scoring.windows import Tokenizer, TokenWindows

_SHARES = [Fraction(n, 12) for n in (6, 4, 8, 3, 9, 2, 10, 1, 11)]  # of documents, to search on; the first that does
TASKS = "lm-eval"  # the convention of a corpus that holds the documents of tasks
_UNIT = 4  # windows at least that begin in documents which come to the same side


@dataclass(frozen=True)
class Choice:
    """An answer to a multiple-choice question: whether it is the right one, and its characters."""

    right: bool
    length: int


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Windows of tokens that are scored one by one.

    `windows` is `[W, T]` (int64), `documents` the number of the document each window begins in, `last_documents` of
    that it ends in. `sha256` is of the text's UTF-8 bytes, `numbers` those of the windows in that text: together with
    `source`, `slice`, the window's length, `convention` and `bos` they say which tokens these are. Left out, the
    windows are the text's first, and each lies in one document.

    `convention` is how the text was cut: `window`, or else `scored` `[W, T]` (bool) says which tokens count (of
    completions, strided and rolling windows); what lies behind these only fills the window. `starts` is the place of
    each window's first token in the text, `window_bytes` how many UTF-8 bytes its scored tokens stand for, where that
    is known. Of multiple-choice questions, `choices` tells of each window's answer; `documents` are the questions. Of
    lm-eval's tasks (`tasks.load`) a window is a document, its prompt and answers.
    """

    windows: Tensor
    documents: tuple[int, ...]
    source: str
    slice: str | None
    sha256: str
    bos: bool
    numbers: tuple[int, ...] = ()
    last_documents: tuple[int, ...] = ()
    convention: str = "window"
    scored: Tensor | None = None
    starts: tuple[int, ...] = ()
    window_bytes: tuple[int, ...] = ()
    choices: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", self.numbers or tuple(range(len(self))))
        object.__setattr__(self, "last_documents", self.last_documents or self.documents)
        object.__setattr__(self, "starts", self.starts or tuple(number * self.window for number in self.numbers))

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
        gold: str | None = None,
        stride: int | None = None,
        rolling: bool = False,
        bos: bool | None = None,
    ) -> "Corpus":
        """Read a text and cut it into windows that follow one another; what does not fill a last one is left out.

        `source` is a local file (text as one document; JSON lines, parquet or CSV as a document a row), a Hub dataset
        (`owner/name`, or `owner/name:configuration`), or the built-in default: the help topics that come with every
        Python. `slice` picks rows: `test[:200]`, `train[10%:20%]`, or `[:200]` for a file. With `bos`, the first
        token of each window (which is never scored) is the tokenizer's BOS; left out, the tokenizer's own
        habit decides.

        With a `stride`, windows begin so many tokens apart, and each scores what none before it has: a sliding window,
        as in the transformers perplexity guide. `rolling` is lm-eval's: each document by itself behind a BOS (or else
        EOS), every token scored once; a window of T, at most the model's positions, is its max_length of T − 1.

        With `prompt`, another column, each row is a window of its own: its prompt, a space where the two would touch,
        and the completion, which `column` holds and which alone is scored. Of a row longer than `window` the end is
        kept. With `gold` beside it, each row is a multiple-choice question: `column` holds its answers, a list, each of
        which is a window, and `gold` which one is right: its number from 0 on, or its label (see
        `score.multiple_choice`).

        Raises `CorpusError` when the data cannot be read, a slice reaches beyond it, or it cannot fill a window.

        Example:
            >>> Corpus.load(tokenizer=tokenizer, window=128).take(8)  # the help topics of this Python
            Corpus(python-topics: windows 0:8 of 128 tokens)
        """
        source = os.fspath(source)
        tokenizer = _checked(tokenizer, source, window, prompt, gold, stride, rolling, bos)
        lead = None if rolling else _bos(tokenizer, bos)
        choices: tuple[Choice, ...] = ()
        if prompt is None:
            texts, where = documents_of(source, slice, column), source if slice is None else f"{source} {slice}"
            if rolling:
                cut, convention = windows.rolling(tokenizer, texts, window, where), "rolling"
            elif stride is not None:
                cut, convention = windows.strided(tokenizer, texts, window, stride, lead, where), f"strided {stride}"
            else:
                cut, convention = windows.plain(tokenizer, texts, window, lead, where), "window"
        elif gold is None:
            asked = zip(documents_of(source, slice, prompt), documents_of(source, slice, column), strict=True)
            rows = [windows.joined(*row) for row in asked]
            cut = windows.pairs(tokenizer, [(i, *row) for i, row in enumerate(rows)], window, lead, source)
            texts, convention = ["".join(row) for row in rows], "completion"
        else:
            questions = questions_of(source, slice, prompt, column, gold)
            cut, choices = _of_questions(tokenizer, questions, window, lead, source)
            texts, convention = ["\n".join((q.prompt, *q.answers)) for q in questions], "multiple choice"
        return cls(
            windows=torch.from_numpy(cut.windows),
            documents=cut.documents,
            last_documents=cut.last_documents,
            source=Path(source).name if is_file(source) else source,
            slice=slice,
            sha256=hashlib.sha256(windows.BETWEEN.join(texts).encode()).hexdigest(),
            bos=rolling or lead is not None,
            convention=convention,
            scored=None if cut.scored is None else torch.from_numpy(cut.scored),
            starts=cut.starts,
            window_bytes=cut.window_bytes,
            choices=choices,
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

    @property
    def scored_sha256(self) -> str | None:
        """Of which tokens are scored, and of which answers are right; None of plain windows."""
        if self.scored is None:
            return None
        answers = "".join(f"{choice.right:d}{choice.length};" for choice in self.choices)
        return hashlib.sha256(self.scored.numpy().tobytes() + answers.encode()).hexdigest()

    def __len__(self) -> int:
        return self.windows.shape[0]

    def __repr__(self) -> str:
        where = self.source if self.slice is None else f"{self.source} {self.slice}"
        which = self.places if len(self.places) < 40 else f"{len(self)}"
        if self.convention == TASKS:
            return f"Corpus({where}: documents {which})"
        return f"Corpus({where}: windows {which} of {self.window} tokens)"

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.windows)

    def take(self, n: int) -> "Corpus":
        """The first n windows (of multiple choice: questions); `CorpusError` when there are fewer."""
        items = self.items()
        if not 0 < n <= len(items):
            raise CorpusError(f"take({n}) of a corpus of {self._count(len(items))}: ask for 1 … {len(items)}")
        return self.part(0, items[n - 1].stop)

    def split(self, *sizes: int) -> tuple["Corpus", ...]:
        """Consecutive disjoint parts of so many windows (questions) each, such as `corpus.split(16, 32)`.

        Raises `CorpusError` when there are fewer than asked for.
        """
        items = self.items()
        if min(sizes, default=0) < 1 or sum(sizes) > len(items):
            wanted = " + ".join(map(str, sizes))
            raise CorpusError(
                f"cannot split {self._count(len(items))} of {self.window} tokens into {wanted}: "
                "take a longer text, fewer windows or shorter ones"
            )
        bounds = np.cumsum([0, *sizes]).tolist()
        return tuple(self.part(items[a].start, items[b - 1].stop) for a, b in itertools.pairwise(bounds))

    def hold_out(self, search: int, held_out: int, *, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Two parts of so many windows (questions), to search on and to judge by: no document is in both.

        Which documents are on which side is drawn by the seed, half of them each (other shares where that does not do),
        short ones together with their neighbours. So more or fewer windows of the same text with the same seed are
        more or fewer of the same sides. Of each document one window comes before a second of any. Where no share does,
        as in a text of one document, the parts follow one another as `split` has them.

        Raises `CorpusError` when there are fewer windows than asked for, or for a negative seed.

        Example:
            >>> windows, others = corpus.hold_out(12, 24)
            >>> len(windows), len(others), windows.shared_tokens(others)
            (12, 24, 0)
        """
        if seed < 0:
            raise CorpusError(f"the seed must be 0 or more; got {seed}")
        consecutive, items = self.split(search, held_out), self.items()
        firsts = self._at([item.start for item in items])
        for share in _SHARES:
            sides = _sides(firsts, share, np.random.default_rng(seed))
            if len(sides[0]) >= search and len(sides[1]) >= held_out:
                picked = sides[0][:search], sides[1][:held_out]
                first, second = ([place for item in side for place in items[item]] for side in picked)
                return self._at(first), self._at(second)
        return consecutive[0], consecutive[1]

    def shared_documents(self, other: "Corpus") -> int:
        """How many documents of the same text both have a part of."""
        return len(_spanned(self) & _spanned(other)) if self.sha256 == other.sha256 else 0

    def shared_tokens(self, other: "Corpus") -> int:
        """How many tokens of the same text both have; of texts that differ, such as two slices, in windows alike."""
        if self.sha256 != other.sha256:
            mine, its = ({tuple(window.tolist()) for window in corpus.windows} for corpus in (self, other))
            return self.window * len(mine & its)
        return int(np.intersect1d(_places(self), _places(other)).size)

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
            scored=None if self.scored is None else self.scored[list(places)],
            starts=tuple(self.starts[place] for place in places),
            window_bytes=tuple(self.window_bytes[place] for place in places if self.window_bytes),
            choices=tuple(self.choices[place] for place in places if self.choices),
        )

    def items(self) -> list[range]:
        """The places of the windows that are taken as one: each by itself, or all answers to a question."""
        if not self.choices:
            return [range(place, place + 1) for place in range(len(self))]
        sizes = [len(list(same)) for _, same in itertools.groupby(self.documents)]
        return [range(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]

    def _count(self, items: int) -> str:
        return f"{items} {'questions' if self.choices else 'documents' if self.convention == TASKS else 'windows'}"


def _checked(
    tokenizer: Tokenizer | None,
    source: str,
    window: int,
    prompt: str | None,
    gold: str | None,
    stride: int | None,
    rolling: bool,
    bos: bool | None,
) -> Tokenizer:
    """The tokenizer; `CorpusError` where it is missing, or options do not go together."""
    if tokenizer is None:
        raise CorpusError("a corpus needs the tokenizer of its model: Corpus.load(source, tokenizer)")
    if window < 2:
        raise CorpusError(f"a window needs at least 2 tokens, one to read and one to score; got {window}")
    if (prompt is not None) + (stride is not None) + rolling > 1:
        raise CorpusError("give one of prompt, stride and rolling: each says how to cut the data into windows")
    if gold is not None and prompt is None:
        raise CorpusError("gold says which answer to a prompt is right: name the column of prompts too")
    if prompt is not None and is_text(source):
        raise CorpusError(f"{source} is text: prompts need a table (JSON lines, parquet, CSV or a Hub dataset)")
    if rolling and bos is False:
        raise CorpusError("rolling windows begin each document with a BOS or EOS: leave bos out")
    return tokenizer


def _of_questions(
    tokenizer: Tokenizer, questions: Sequence[Question], window: int, lead: int | None, source: str
) -> tuple[TokenWindows, tuple[Choice, ...]]:
    """A window for each answer to each question."""
    rows, choices = [], []
    for number, question in enumerate(questions):
        for place, answer in enumerate(question.answers):
            rows.append((number, *windows.joined(question.prompt, answer)))
            choices.append(Choice(place == question.right, len(answer)))
    return windows.pairs(tokenizer, rows, window, lead, source), tuple(choices)


def _places(corpus: Corpus) -> np.ndarray:
    """The places in the text of a corpus's tokens; where some alone are scored, of these."""
    places = np.add.outer(corpus.starts, np.arange(corpus.window))
    return places if corpus.scored is None else places[corpus.scored.numpy()]


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


def _bos(tokenizer: Tokenizer, wanted: bool | None) -> int | None:
    """The token that begins each window; None for none. Left open, what the tokenizer itself does."""
    if wanted is None:
        ids = tokenizer("a")["input_ids"]
        return ids[0] if len(ids) > 0 and ids[0] == tokenizer.bos_token_id else None
    if wanted and tokenizer.bos_token_id is None:
        raise CorpusError("bos=True needs a tokenizer with a BOS token; this one has none")
    return tokenizer.bos_token_id if wanted else None

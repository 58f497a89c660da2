"""Corpora: slices of a dataset as windows of tokens, which models are scored on.

`Corpus.load` reads and cuts the data; `take`, `split` and `hold_out` pick windows of it.
"""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from david.errors import CorpusError
from david.scoring import tokens
from david.scoring.completions import Choice, cut_completions, cut_questions
from david.scoring.conventions import (
    CONSECUTIVE,
    DEFAULT_CONVENTION,
    TASKS,
    Convention,
    ConventionName,
    convention_of_cut,
)
from david.scoring.hold_out import comparable, draw_sides, groups_of_keys, share_groups, window_clusters
from david.scoring.sources import BUILT_IN, TextRecord, is_file, is_text, open_rows
from david.scoring.tokens import Tokenizer
from david.scoring.windows import CUTTERS, CutOptions
from david.support.arguments import check_tokenizer, check_type, check_whole
from david.support.console import say
from david.support.text import counted

_FEWEST_WORDS = 16  # of a copy among texts that are joined: shorter ones are headings and phrases


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Windows of tokens that are scored one by one: W windows of T tokens.

    `source`, `slice`, `sha256`, `numbers`, the window's length, `convention` and `bos` together say which tokens these
    are. `numbers`, `last_documents` and `starts` are filled in if they are left out: the windows are the text's first
    ones, and each lies in one document.

    Attributes:
        windows: Token ids `[W, T]` (int64).
        documents: The number of the document that each window begins in. Answers to a multiple-choice question have
            the question's number.
        source: The data's name: a file's name, a Hub dataset, `python-topics`, or the names of lm-eval's tasks.
        slice: The rows of the source, as `Corpus.load` takes them; None for all.
        sha256: The SHA-256 of the text's UTF-8 bytes.
        bos: Whether each window (or document, of rolling windows) begins with the BOS token.
        numbers: The number of each window in the text.
        last_documents: The number of the document that each window ends in.
        convention: How the text was cut: `window` for consecutive windows, which leave open what is scored; else a name
            such as `strided 256`, `rolling`, `completion`, `multiple choice`, or `lm-eval` for the documents of tasks
            (see `tasks.load`), where a window is a prompt with its answers.
        scored: Which tokens are scored `[W, T]` (bool), where the cut decides that; what lies behind them only fills
            the window. None if the convention of the score decides.
        starts: The position of each window's first token in the text.
        window_bytes: How many UTF-8 bytes the scored tokens of each window stand for; empty if unknown.
        choices: The answer to a multiple-choice question that each window ends with; empty for other data.
        groups: The group of each document of the data, as the number of its first document: copies of one text, or rows
            that `Corpus.load` was told belong together. Empty if each document is a group of its own.
    """

    windows: Tensor
    documents: tuple[int, ...]
    source: str
    slice: str | None
    sha256: str
    bos: bool
    numbers: tuple[int, ...] = ()
    last_documents: tuple[int, ...] = ()
    convention: str = DEFAULT_CONVENTION
    scored: Tensor | None = None
    starts: tuple[int, ...] = ()
    window_bytes: tuple[int, ...] = ()
    choices: tuple[Choice, ...] = ()
    groups: tuple[int, ...] = ()

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
        group: str | None = None,
        convention: ConventionName | None = None,
        stride: int | None = None,
        rolling: bool = False,
        bos: bool | None = None,
        windows: int | None = None,
    ) -> "Corpus":
        """Read data and cut it into windows of tokens.

        A text is cut into consecutive windows, and a rest that fills no window is left out, unless `convention`,
        `stride` or `rolling` names another cut. Rows with a `prompt` are a window each, or with `gold` beside it a
        multiple-choice question each (see `score.multiple_choice`).

        Copies of one text count as one document: `hold_out` keeps them on one side, and intervals count them once. So
        do rows of one `group`. (Texts are copies if they differ in white space at most. Among texts that are joined,
        those of fewer than 16 words are headings and phrases, no copies.)

        Args:
            source: A local file (a text is one document, JSON lines, parquet and CSV have a document a row), a Hub
                dataset (`owner/name` or `owner/name:configuration`), or the built-in default, the help topics that
                come with every Python.
            tokenizer: The tokenizer of the model; required.
            slice: Which rows to read: `test[:200]`, `train[10%:20%]`, or `[:200]` for a file. Default: all.
            window: Tokens in a window, at most the positions of the model.
            column: The column that holds the texts, with `prompt` the completions, with `gold` the lists of answers.
            prompt: The column of prompts. Each row is a window: its prompt, a space where the two would touch, and its
                completion, which alone is scored. If a row is longer than `window`, its beginning is cut off.
            gold: The column of right answers. Each answer of a row is a window behind the row's prompt; the right one
                is given by its number from 0 on, or by its label.
            group: The column that says which rows belong together: rows with the same value are one document to
                `hold_out` and to intervals. Samples of one problem have the problem's column, chunks of one article its
                title. A row with no value is a group of its own.
            convention: The name of a cut: `window` (consecutive windows), or an entry of `david.scoring.conventions`
                that has a cut of its own. Those that decide only which tokens are scored belong to `perplexity`.
            stride: Convention `strided`, as in the transformers perplexity guide: windows begin so many tokens apart,
                and each scores the tokens that no window before it has. If only the convention is given, half a window.
            rolling: Convention `rolling`, as in lm-eval: each document by itself behind BOS (or else EOS), each token
                scored once. A window of T tokens is lm-eval's `max_length` of T − 1.
            bos: Whether the BOS token takes the place of each window's first token, which is never scored. Default: as
                the tokenizer itself begins a text.
            windows: How many windows (or multiple-choice questions) to load, the first ones, as `take` picks them. No
                more of the data is tokenised and held in memory than they need. Default: all.

        Returns:
            The corpus.

        Raises:
            CorpusError: The data cannot be read, the slice reaches beyond it, it cannot fill a window, or the options
                contradict one another.

        Example:
            >>> Corpus.load(tokenizer=tokenizer, window=128).take(8)  # the help topics of this Python
            Corpus(python-topics: windows 0:8 of 128 tokens)
        """
        check_type("source", source, (str, os.PathLike), CorpusError)
        source = os.fspath(source)
        if stride is not None:
            check_whole("stride", stride, CorpusError)
        cut_by = convention_of_cut(convention, stride=stride, rolling=rolling)
        tokenizer = _check_options(tokenizer, source, window, windows, prompt, gold, group, cut_by, bos)
        if cut_by.starts_documents:
            lead: int | None = tokens.document_lead(tokenizer, cut_by.name)
        else:
            lead = tokens.window_lead(tokenizer, bos)
        choices: tuple[Choice, ...] = ()
        names: list[Hashable] | None = None
        joins_texts = prompt is None and not cut_by.starts_documents
        record = TextRecord(fewest_words=_FEWEST_WORDS if joins_texts else 1)
        options = CutOptions(window, lead, source, cut_by.name, stride, windows)
        with open_rows(source, slice, [name for name in (prompt, column, gold, group) if name is not None]) as rows:
            if prompt is None:
                options = replace(options, source=source if slice is None else f"{source} {slice}")
                pieces = record.passed(rows.pieces(column))
                cut = CUTTERS[cut_by.cut](tokenizer, pieces, options)
                deque(pieces, maxlen=0)  # what no window needed is only recorded
            elif gold is None:
                cut = cut_completions(tokenizer, rows, prompt, column, options, record)
            else:
                cut, choices = cut_questions(tokenizer, rows, prompt, column, gold, options, record)
            if group is not None:
                names = list(map(comparable, rows.columns[group]))
        groups, n_copies = groups_of_keys(record.copy_keys, names)
        if n_copies and source != BUILT_IN:
            texts = counted(len(record.copy_keys), "text")
            say(f"{n_copies} of {texts} of {source} are copies: copies count as one document")
        return cls(
            windows=torch.from_numpy(cut.windows),
            documents=cut.documents,
            last_documents=cut.last_documents,
            source=Path(source).name if is_file(source) else source,
            slice=slice,
            sha256=record.sha256,
            bos=lead is not None,
            convention=cut.label,
            scored=None if cut.scored is None else torch.from_numpy(cut.scored),
            starts=cut.starts,
            window_bytes=cut.window_bytes,
            choices=choices,
            groups=groups,
        )

    @property
    def window(self) -> int:
        """Tokens in a window, T."""
        return self.windows.shape[1]

    @property
    def places(self) -> str:
        """The numbers of the windows in the text, in their order, as half-open ranges: `"0:12"`, `"7, 3, 20:22"`."""
        runs: list[list[int]] = []
        for number in self.numbers:
            if runs and runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, number + 1])
        return ", ".join(f"{start}:{stop}" if stop > start + 1 else f"{start}" for start, stop in runs)

    @cached_property
    def clusters(self) -> tuple[int | str, ...]:
        """What each window counts as in intervals: its document's number, or a name such as `group 3` for several.

        A score of this corpus has them as its `documents`.
        """
        return window_clusters(self.documents, self.last_documents, self.groups)

    @property
    def tokens_sha256(self) -> str:
        """The SHA-256 of the windows' tokens, as little-endian int64."""
        return hashlib.sha256(self.windows.numpy().astype("<i8").tobytes()).hexdigest()

    @property
    def scored_sha256(self) -> str | None:
        """The SHA-256 of which tokens are scored and which answers are right; None for consecutive windows."""
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
        """Return the first n windows, or the first n multiple-choice questions.

        Raises:
            CorpusError: There are fewer.
        """
        check_whole("the number of windows to take", n, CorpusError)
        items = self.items()
        if not 0 < n <= len(items):
            raise CorpusError(f"take({n}) of a corpus of {self._count(len(items))}: ask for 1 … {len(items)}")
        return self.part(0, items[n - 1].stop)

    def split(self, *sizes: int) -> tuple["Corpus", ...]:
        """Return consecutive disjoint parts of the corpus, such as `corpus.split(16, 32)`.

        Args:
            *sizes: The windows (or multiple-choice questions) of each part.

        Returns:
            A corpus for each size.

        Raises:
            CorpusError: The corpus has fewer windows than all parts together.
        """
        for size in sizes:
            check_whole("a number of windows", size, CorpusError)
        items = self.items()
        if min(sizes, default=0) < 1 or sum(sizes) > len(items):
            parts = " + ".join(map(str, sizes))
            raise CorpusError(
                f"cannot split {self._count(len(items))} of {self.window} tokens into {parts}: "
                "take a longer text, fewer windows or shorter ones"
            )
        bounds = np.cumsum([0, *sizes]).tolist()
        return tuple(self.part(items[a].start, items[b - 1].stop) for a, b in itertools.pairwise(bounds))

    def hold_out(self, search: int, held_out: int, *, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Return two parts that share no document: one to search on, one to judge the winners by.

        The seed draws the documents of each side: half of them each, or other shares where half is too few. Short
        documents come together with their neighbours, and documents of one group (`groups`) to one side. Each document
        or group gives one window before any gives a second. If no share does, as in a text of one document, the parts
        follow one another as those of `split` do.

        Args:
            search: The windows (or multiple-choice questions) to search on.
            held_out: The windows (or questions) to judge by.
            seed: The seed of the draw, 0 or more. For the same text and seed, more or fewer windows are more or fewer
                of the same sides.

        Returns:
            The part to search on, and the part to judge by.

        Raises:
            CorpusError: The corpus has fewer windows than both parts together, no draw keeps copies of one text or rows
                of one group on one side, or the seed is negative.

        Example:
            >>> windows, others = corpus.hold_out(12, 24)
            >>> len(windows), len(others), windows.shared_tokens(others)
            (12, 24, 0)
        """
        check_whole("the seed", seed, CorpusError, least=0)
        first, second = self.split(search, held_out)
        items = self.items()
        documents = [self.documents[item.start] for item in items]
        last_documents = [self.last_documents[item.start] for item in items]
        sides = draw_sides(documents, last_documents, search, held_out, seed, self.groups)
        if sides is None:
            if first.shares_copies(second):
                distinct = counted(len(set(self.groups)), "document")
                raise CorpusError(
                    f"cannot search on {search} of {self._count(len(items))} and hold out {held_out}: copies of one "
                    "text, or rows of one group, would be on both sides; the data have "
                    f"{distinct} or groups that differ: take more data, or fewer windows"
                )
            return first, second
        searched, judged = ([place for item in side for place in items[item]] for side in sides)
        return self._at(searched), self._at(judged)

    def shared_documents(self, other: "Corpus") -> int:
        """Return how many documents or groups of the same text both corpora have; 0 for different texts."""
        check_type("other", other, Corpus, CorpusError)
        if self.sha256 != other.sha256:
            return 0
        documents = (_spanned_documents(corpus) for corpus in (self, other))
        one, two = ({self.groups[n] if self.groups else n for n in numbers} for numbers in documents)
        return len(one & two)

    def shares_copies(self, other: "Corpus") -> bool:
        """Return whether both corpora have documents of one group of the same text: copies, or rows of a named group.

        Two parts of one document are no copies.
        """
        one, two = _spanned_documents(self), _spanned_documents(other)
        return self.sha256 == other.sha256 and share_groups(one, two, self.groups)

    def shared_tokens(self, other: "Corpus") -> int:
        """Return how many tokens both corpora have.

        In the same text these are tokens at the same position, where the cut marks the scored tokens only those. In
        different texts, such as two slices, they are the tokens of windows that are equal.
        """
        check_type("other", other, Corpus, CorpusError)
        if self.sha256 != other.sha256:
            first, second = ({tuple(window.tolist()) for window in corpus.windows} for corpus in (self, other))
            return self.window * len(first & second)
        return int(np.intersect1d(_positions(self), _positions(other)).size)

    def part(self, start: int, stop: int) -> "Corpus":
        """Return the windows start … stop − 1 of this corpus."""
        return self._at(range(start, stop))

    def items(self) -> list[range]:
        """Return the places of the windows that belong together: one window each, or all answers to a question."""
        if not self.choices:
            return [range(place, place + 1) for place in range(len(self))]
        sizes = [len(list(answers)) for _, answers in itertools.groupby(self.documents)]
        return [range(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]

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

    def _count(self, items: int) -> str:
        return counted(items, "question" if self.choices else "document" if self.convention == TASKS else "window")


def _check_options(
    tokenizer: Tokenizer | None,
    source: str,
    window: int,
    windows: int | None,
    prompt: str | None,
    gold: str | None,
    group: str | None,
    convention: Convention,
    bos: bool | None,
) -> Tokenizer:
    """Return the tokenizer; `CorpusError` if it is missing, or options contradict one another."""
    if tokenizer is None:
        raise CorpusError("a corpus needs the tokenizer of its model: Corpus.load(source, tokenizer)")
    check_tokenizer(tokenizer, CorpusError)
    check_whole("window", window, CorpusError)
    if window < 2:
        raise CorpusError(f"a window needs at least 2 tokens, one to read and one to score; got {window}")
    if windows is not None:
        check_whole("windows", windows, CorpusError, least=1)
    if prompt is not None and convention.cut != CONSECUTIVE:
        raise CorpusError(
            f"rows with a prompt are a window each, convention {convention.name} cuts a text: leave one of them out"
        )
    if gold is not None and prompt is None:
        raise CorpusError("gold says which answer to a prompt is right: name the column of prompts too")
    if prompt is not None and is_text(source):
        raise CorpusError(f"{source} is text: prompts need a table (JSON lines, parquet, CSV or a Hub dataset)")
    if group is not None and is_text(source):
        raise CorpusError(f"{source} is text: groups need a table (JSON lines, parquet, CSV or a Hub dataset)")
    if convention.starts_documents and bos is False:
        raise CorpusError(f"{convention.name} windows begin each document with a BOS or EOS: leave bos out")
    return tokenizer


def _positions(corpus: Corpus) -> np.ndarray:
    """Return the positions in the text of a corpus's tokens; where the cut marks the scored ones, of those."""
    positions = np.add.outer(corpus.starts, np.arange(corpus.window))
    return positions if corpus.scored is None else positions[corpus.scored.numpy()]


def _spanned_documents(corpus: Corpus) -> set[int]:
    """Return the documents that windows lie in, wholly or in part."""
    ends = zip(corpus.documents, corpus.last_documents, strict=True)
    return {document for first, last in ends for document in range(first, last + 1)}

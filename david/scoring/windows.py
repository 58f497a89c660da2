"""Texts cut into windows of tokens: `CUTTERS` holds a function for each way that a convention can name.

`cut_consecutive` lets windows follow one another, `cut_strided` slides a window, `cut_rolling` takes each document by
itself. To add a way, write a function of the same form and add it to `CUTTERS`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from david.errors import CorpusError
from david.scoring.conventions import CONSECUTIVE, DEFAULT_CONVENTION
from david.scoring.tokens import Piece, Tokenizer, Tokens, encode

Span = tuple[int, int, int]  # where a window begins and ends in the tokens, and how many at its end are scored


@dataclass(frozen=True)
class CutOptions:
    """How to cut a text.

    Attributes:
        window: Tokens in a window.
        lead: The leading token: it replaces the first token of a window, or stands before each document if the
            convention says so. None to have no leading token.
        source: The name of the data in error messages.
        convention: The name of the convention, which scores and studies keep.
        stride: Tokens from the start of a window to the start of the next, for a sliding window; None: half a window.
        most: How many windows (or questions) to cut, the first ones; None for all.
    """

    window: int
    lead: int | None
    source: str
    convention: str = DEFAULT_CONVENTION
    stride: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class TokenWindows:
    """Windows of tokens, and where they lie in the text.

    Attributes:
        windows: Token ids `[W, T]` (int64).
        scored: Which tokens are scored `[W, T]`; None if all but the first of each window can be.
        starts: The position in the text of each window's first token.
        documents: The number of the document that each window begins in.
        last_documents: The number of the document that each window ends in.
        window_bytes: How many UTF-8 bytes the scored tokens of each window stand for; empty if unknown.
        label: What scores and studies call the cut.
    """

    windows: NDArray[np.int64]
    scored: NDArray[np.bool_] | None
    starts: tuple[int, ...]
    documents: tuple[int, ...]
    last_documents: tuple[int, ...]
    window_bytes: tuple[int, ...] = ()
    label: str = DEFAULT_CONVENTION


Cutter = Callable[[Tokenizer, Iterable[Piece], CutOptions], TokenWindows]


def cut_consecutive(tokenizer: Tokenizer, pieces: Iterable[Piece], options: CutOptions) -> TokenWindows:
    """Cut the joined text into windows that follow one another; a rest that fills no window is left out.

    Raises:
        CorpusError: The text has fewer tokens than one window.
    """
    window = options.window
    tokens = encode(tokenizer, pieces, None if options.most is None else options.most * window)
    n = len(tokens) // window
    if n == 0:
        raise CorpusError(
            f"{options.source} has {len(tokens)} tokens, too few for one window of {window}: "
            "take more of it or a shorter window"
        )
    spans = [(i * window, (i + 1) * window, window - 1) for i in range(n)]
    return _windows_of_spans(tokens, spans, options.lead, DEFAULT_CONVENTION, masked=False)


def cut_strided(tokenizer: Tokenizer, pieces: Iterable[Piece], options: CutOptions) -> TokenWindows:
    """Cut the joined text with a sliding window: each window scores the tokens that no window before it has.

    The last window ends with the text.

    Raises:
        CorpusError: The stride is not shorter than the window, or the text has fewer than two tokens.
    """
    window = options.window
    stride = window // 2 if options.stride is None else options.stride
    if not 1 <= stride < window:
        raise CorpusError(f"a stride must be 1 … {window - 1}, less than the window; got {stride}")
    tokens = encode(tokenizer, pieces, None if options.most is None else (options.most - 1) * stride + window)
    if len(tokens) < 2:
        raise CorpusError(
            f"{options.source} has {len(tokens)} tokens: a window needs one to read and one to score; take more of it"
        )
    spans, covered = [], 1
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        spans.append((begin, end, end - covered))
        covered = end
        if end == len(tokens):
            break
    return _windows_of_spans(tokens, spans, options.lead, f"{options.convention} {stride}")


def cut_rolling(tokenizer: Tokenizer, pieces: Iterable[Piece], options: CutOptions) -> TokenWindows:
    """Cut each document by itself, behind the leading token, so that each of its tokens is scored once.

    This is lm-eval's rolling log-likelihood. A window scores T − 1 tokens, the last window of a document the ones that
    are left, behind as many tokens of context as fill the window.

    Raises:
        CorpusError: No document has a token.
    """
    window, most = options.window, options.most
    cuts, n_windows, longest, before = [], 0, 0, 0
    for number, document in itertools.groupby(pieces, itemgetter(0)):
        n_left = None if most is None else most - n_windows
        if n_left == 0 and longest == window:
            break  # before that, a longer document may follow, by which all windows are padded
        parts = ((0, part) for _, part in document)
        tokens = encode(tokenizer, parts, None if n_left is None else max(1, n_left) * (window - 1) + 1)
        tokens = tokens if options.lead is None else tokens.with_lead(options.lead)
        spans, covered = [], 1
        while covered < len(tokens):
            end = min(covered + window - 1, len(tokens))
            spans.append((max(0, end - window), end, end - covered))
            covered = end
        longest = max([longest, *(end - begin for begin, end, _ in spans)])
        if spans := spans[:n_left]:
            cuts.append((number, before, _windows_of_spans(tokens, spans, None, options.convention)))
            n_windows += len(spans)
        before += len(tokens)
    if not cuts:
        raise CorpusError(f"{options.source} has no tokens: take other rows")
    numbers = tuple(number for number, _, cut in cuts for _ in cut.starts)
    has_bytes = all(cut.window_bytes for _, _, cut in cuts)
    return TokenWindows(
        windows=_stacked([cut.windows for _, _, cut in cuts], longest),
        scored=_stacked([cut.scored for _, _, cut in cuts if cut.scored is not None], longest),
        starts=tuple(before + start for _, before, cut in cuts for start in cut.starts),
        documents=numbers,
        last_documents=numbers,
        window_bytes=tuple(size for _, _, cut in cuts for size in cut.window_bytes) if has_bytes else (),
        label=options.convention,
    )


CUTTERS: dict[str, Cutter] = {CONSECUTIVE: cut_consecutive, "strided": cut_strided, "rolling": cut_rolling}


def _windows_of_spans(
    tokens: Tokens, spans: Sequence[Span], lead: int | None, label: str, *, masked: bool = True
) -> TokenWindows:
    """Return the windows of spans of tokens, padded with zeros to the longest; `masked` marks the scored tokens."""
    longest = max(end - begin for begin, end, _ in spans)
    windows = np.zeros((len(spans), longest), dtype=np.int64)  # nothing that is scored reads the zeros behind a window
    scored = np.zeros((len(spans), longest), dtype=bool) if masked else None
    for row, (begin, end, n_scored) in enumerate(spans):
        windows[row, : end - begin] = tokens.ids[begin:end]
        if scored is not None:
            scored[row, end - begin - n_scored : end - begin] = True
    if lead is not None:
        windows[:, 0] = lead
    begins, ends = ([span[side] for span in spans] for side in (0, 1))
    first, last = (np.searchsorted(tokens.starts, at, side="right") - 1 for at in (begins, np.array(ends) - 1))
    sizes: Iterator[int] = iter(())
    if tokens.nbytes is not None:
        sums = np.append(0, np.cumsum(tokens.nbytes))
        sizes = (int(sums[end] - sums[end - n_scored]) for _, end, n_scored in spans)
    return TokenWindows(
        windows=windows,
        scored=scored,
        starts=tuple(begins),
        documents=tuple(first.tolist()),
        last_documents=tuple(last.tolist()),
        window_bytes=tuple(sizes),
        label=label,
    )


def _stacked(parts: Sequence[NDArray[Any]], longest: int) -> NDArray[Any]:
    """Return the rows of all parts, padded with zeros to the longest."""
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])

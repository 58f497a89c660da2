"""Texts cut into windows of tokens: one behind the other, strided, rolling, or a prompt and its completion each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from david.errors import CorpusError

BETWEEN = "\n\n"  # between the documents of a dataset, as the transformers perplexity guide joins them


class Tokenizer(Protocol):
    """What a corpus asks of a tokenizer; every transformers tokenizer has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    is_fast: bool

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text."""
        ...


@dataclass(frozen=True)
class TokenWindows:
    """Windows of tokens `[W, T]` (int64), and which of these are scored `[W, T]`; None: all but a window's first.

    `starts` is the place of each window's first token in the text, `documents` the number of the document it begins
    in, `last_documents` of that it ends in, `window_bytes` how many UTF-8 bytes its scored tokens stand for (empty
    where that is not known).
    """

    windows: NDArray[np.int64]
    scored: NDArray[np.bool_] | None
    starts: tuple[int, ...]
    documents: tuple[int, ...]
    last_documents: tuple[int, ...]
    window_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    """A text's tokens `[N]`, the place of each document's first one, and the bytes that each stands for, if known."""

    ids: NDArray[np.int64]
    starts: NDArray[np.intp]
    nbytes: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.ids)


def plain(tokenizer: Tokenizer, documents: Sequence[str], window: int, lead: int | None, source: str) -> TokenWindows:
    """Windows that follow one another through the joined text; what does not fill a last one is left out."""
    tokens = _encoded(tokenizer, documents)
    n = len(tokens) // window
    if n == 0:
        raise CorpusError(
            f"{source} has {len(tokens)} tokens, too few for one window of {window}: "
            "take more of it or a shorter window"
        )
    return _of_spans(tokens, [(i * window, (i + 1) * window, window - 1) for i in range(n)], lead, masked=False)


def strided(
    tokenizer: Tokenizer, documents: Sequence[str], window: int, stride: int, lead: int | None, source: str
) -> TokenWindows:
    """Windows that begin `stride` tokens apart; each scores what none before it has. The last ends with the text."""
    if not 1 <= stride < window:
        raise CorpusError(f"a stride must be 1 … {window - 1}, less than the window; got {stride}")
    tokens = _encoded(tokenizer, documents)
    if len(tokens) < 2:
        raise CorpusError(f"{source} has {len(tokens)} tokens: a window needs one to read and one to score")
    spans, seen = [], 1
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        spans.append((begin, end, end - seen))
        seen = end
        if end == len(tokens):
            break
    return _of_spans(tokens, spans, lead)


def rolling(tokenizer: Tokenizer, documents: Sequence[str], window: int, source: str) -> TokenWindows:
    """Every token of each document once, behind a leading BOS (or else EOS), as lm-eval's rolling likelihood has it.

    A window scores `window` − 1 tokens, a document's last one what is left, behind all that fills the window.
    """
    lead = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if lead is None:
        raise CorpusError("rolling windows need a tokenizer with a BOS or an EOS token to begin with; it has neither")
    cuts, before = [], 0
    for number, document in enumerate(documents):
        tokens = _encoded(tokenizer, [document])
        led = _Tokens(np.append(lead, tokens.ids), tokens.starts, _behind_one(tokens.nbytes))
        spans, seen = [], 1
        while seen < len(led):
            end = min(seen + window - 1, len(led))
            spans.append((max(0, end - window), end, end - seen))
            seen = end
        if spans:
            cuts.append((number, before, _of_spans(led, spans, None)))
        before += len(led)
    if not cuts:
        raise CorpusError(f"{source} has no tokens")
    own = tuple(number for number, _, cut in cuts for _ in cut.starts)
    known = all(cut.window_bytes for _, _, cut in cuts)
    return TokenWindows(
        windows=_together([cut.windows for _, _, cut in cuts]),
        scored=_together([cut.scored for _, _, cut in cuts if cut.scored is not None]),
        starts=tuple(before + start for _, before, cut in cuts for start in cut.starts),
        documents=own,
        last_documents=own,
        window_bytes=tuple(size for _, _, cut in cuts for size in cut.window_bytes) if known else (),
    )


def pairs(
    tokenizer: Tokenizer, rows: Sequence[tuple[int, str, str]], window: int, lead: int | None, source: str
) -> TokenWindows:
    """A window for each prompt and its completion, filled up to the longest; of a longer row the end is kept.

    `rows` are a document's number, a prompt and a completion each. White space between the two belongs to the
    completion, as in lm-eval: most tokenizers put it before a word.
    """
    before = [] if lead is None else [lead]
    made, sizes = [], []
    for number, prompt, completion in rows:
        asked = prompt.rstrip()
        answer = prompt[len(asked) :] + completion
        tokens = tokenizer(asked + answer, add_special_tokens=False, verbose=False)["input_ids"]
        answered = len(tokens) - len(tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"])
        answered *= bool(completion.strip())
        if not 0 < answered <= window - 1 or len(before) + len(tokens) < 2:
            raise CorpusError(
                f"row {number} of {source}: its completion has {max(answered, 0)} tokens; expected "
                f"1 … {window - 1} and one to read before them: take a longer window or other rows"
            )
        made.append(([*before, *tokens[-(window - len(before)) :]], answered))
        sizes.append(len(answer.encode()))
    longest = max(len(tokens) for tokens, _ in made)
    windows = np.zeros((len(made), longest), dtype=np.int64)  # what lies behind a completion is not looked at
    scored = np.zeros((len(made), longest), dtype=bool)
    for row, (tokens, answered) in enumerate(made):
        windows[row, : len(tokens)] = tokens
        scored[row, max(1, len(tokens) - answered) : len(tokens)] = True
    documents = tuple(number for number, _, _ in rows)
    starts = tuple(range(0, longest * len(made), longest))
    return TokenWindows(windows, scored, starts, documents, documents, tuple(sizes))


def joined(prompt: str, completion: str) -> tuple[str, str]:
    """A prompt and its completion, with a space between them where they would touch."""
    touch = not (prompt[-1:].isspace() or completion[:1].isspace())
    return prompt, " " * touch + completion


def _of_spans(
    tokens: _Tokens, spans: Sequence[tuple[int, int, int]], lead: int | None, *, masked: bool = True
) -> TokenWindows:
    """Windows of tokens from one place to another, of which so many at the end are scored."""
    longest = max(end - begin for begin, end, _ in spans)
    windows = np.zeros((len(spans), longest), dtype=np.int64)  # what lies behind a shorter one is not looked at
    scored = np.zeros((len(spans), longest), dtype=bool)
    for row, (begin, end, some) in enumerate(spans):
        windows[row, : end - begin] = tokens.ids[begin:end]
        scored[row, end - begin - some : end - begin] = True
    if lead is not None:
        windows[:, 0] = lead
    begins, ends = ([span[side] for span in spans] for side in (0, 1))
    first, last = (np.searchsorted(tokens.starts, at, side="right") - 1 for at in (begins, np.array(ends) - 1))
    sizes: Iterator[int] = iter(())
    if tokens.nbytes is not None:
        sums = np.append(0, np.cumsum(tokens.nbytes))
        sizes = (int(sums[end] - sums[end - some]) for _, end, some in spans)
    return TokenWindows(
        windows, scored if masked else None, tuple(begins), tuple(first.tolist()), tuple(last.tolist()), tuple(sizes)
    )


def _together(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows below one another, the shorter ones filled up with zeros."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])


def _encoded(tokenizer: Tokenizer, documents: Sequence[str]) -> _Tokens:
    """The joined text's tokens. No special tokens are added."""
    if tokenizer.is_fast:
        text = BETWEEN.join(documents)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        at = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
        first_characters = np.cumsum([0] + [len(document) + len(BETWEEN) for document in documents[:-1]])
        return _Tokens(ids, np.searchsorted(at, first_characters, side="left"), _bytes_from(text, at))
    parts = [
        tokenizer(document + (BETWEEN if i + 1 < len(documents) else ""), add_special_tokens=False)["input_ids"]
        for i, document in enumerate(documents)
    ]
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    return _Tokens(np.asarray([token for part in parts for token in part], dtype=np.int64), starts, None)


def _bytes_from(text: str, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many UTF-8 bytes lie between the character where each token begins and that where the next one does."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (characters > 0x7F).astype(np.int64) + (characters > 0x7FF) + (characters > 0xFFFF)
    places = np.append(0, np.cumsum(sizes))
    ends = np.append(at, len(text))
    ends[:1] = 0  # white space that a tokenizer drops before the first token belongs to it
    found: NDArray[np.int64] = np.diff(places[ends])
    return found


def _behind_one(nbytes: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return None if nbytes is None else np.append(0, nbytes)

"""Documents as tokens: the token ids of a joined text, where each document begins, and the bytes behind each token.

A tokenizer needs some hundred bytes of memory for each character. So a long text is encoded in chunks that overlap.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from david.errors import CorpusError

BETWEEN = "\n\n"  # between the documents of a dataset, as the transformers perplexity guide joins them
Piece = tuple[int, str]  # the number of a document, and a part of its text; the parts of a document follow one another

_CHUNK = 1 << 16  # characters that are encoded together; more where they are few tokens
_OVERLAP = 256  # tokens of a chunk with which the next one begins
_AGREEING = 32  # tokens before and behind the place where two chunks are joined, which both must have


class Tokenizer(Protocol):
    """The part of a tokenizer that a corpus needs; every transformers tokenizer has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    is_fast: bool

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text."""
        ...


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: Token ids `[N]` (int64).
        starts: The position of each document's first token `[documents]`.
        nbytes: How many UTF-8 bytes each token stands for `[N]`; None if the tokenizer has no offsets.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.intp]
    nbytes: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.ids)

    def with_lead(self, lead: int) -> "Tokens":
        """Return these tokens behind a leading one, which stands for no bytes."""
        nbytes = None if self.nbytes is None else np.append(0, self.nbytes)
        return Tokens(np.append(lead, self.ids), self.starts, nbytes)


def encode(tokenizer: Tokenizer, pieces: Iterable[Piece], most: int | None = None) -> Tokens:
    """Return the tokens of documents that are joined to one text; no special tokens are added.

    A fast tokenizer encodes the joined text. One without offsets encodes document by document, because nothing else
    tells where a document begins.

    Args:
        tokenizer: The tokenizer of the model.
        pieces: The text. No more of it is read than the tokens need.
        most: How many tokens are needed, from the beginning of the text; None for all.

    Raises:
        CorpusError: The text is long, and its tokens cannot be had part by part.
    """
    if not tokenizer.is_fast:
        return _encode_documents(tokenizer, pieces, most)
    text, chunks, n_tokens = _JoinedText(pieces), [], 0
    for chunk in _joined_chunks(tokenizer, text):
        chunks.append(chunk)
        n_tokens += len(chunk.ids)
        if most is not None and n_tokens >= most:
            break
    ids, offsets, nbytes = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])[:most] for name in ("ids", "offsets", "nbytes")
    )
    return Tokens(ids, np.searchsorted(offsets, text.first_characters, side="left"), nbytes)


def _encode_documents(tokenizer: Tokenizer, pieces: Iterable[Piece], most: int | None) -> Tokens:
    parts, starts, n_tokens = [], [], 0
    texts = ("".join(part for _, part in document) for _, document in itertools.groupby(pieces, itemgetter(0)))
    for text, next_text in itertools.pairwise(itertools.chain(texts, [None])):
        ids = tokenizer(f"{text}{'' if next_text is None else BETWEEN}", add_special_tokens=False)["input_ids"]
        parts.append(np.asarray(ids, dtype=np.int64))
        starts.append(n_tokens)
        n_tokens += len(ids)
        if most is not None and n_tokens >= most:
            break
    return Tokens(np.concatenate([np.empty(0, np.int64), *parts])[:most], np.asarray(starts, dtype=np.intp), None)


def window_lead(tokenizer: Tokenizer, bos: bool | None) -> int | None:
    """Return the token that takes the place of each window's first one.

    Args:
        tokenizer: The tokenizer of the model.
        bos: Whether that is the BOS token; None to do as the tokenizer itself does at the start of a text.

    Returns:
        The id of the BOS token, or None if windows keep their first token.

    Raises:
        CorpusError: `bos` is True, and the tokenizer has no BOS token.
    """
    if bos is None:
        ids = tokenizer("a")["input_ids"]
        return ids[0] if len(ids) > 0 and ids[0] == tokenizer.bos_token_id else None
    if bos and tokenizer.bos_token_id is None:
        raise CorpusError("bos=True needs a tokenizer with a BOS token; this one has none: leave bos out")
    return tokenizer.bos_token_id if bos else None


def document_lead(tokenizer: Tokenizer, convention: str) -> int:
    """Return the token that stands before each document: BOS, or else EOS.

    Raises:
        CorpusError: The tokenizer has neither; `convention` is named in the message.
    """
    lead = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if lead is None:
        raise CorpusError(
            f"{convention} windows need a tokenizer with a BOS or an EOS token to begin with; it has neither: "
            "take another convention"
        )
    return lead


class _JoinedText:
    """Documents joined to one text, which is read as far as it is needed.

    Attributes:
        first_characters: The position of the first character of each document that has been reached.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.first_characters: list[int] = []
        self._parts = self._joined(pieces)
        self._rest = ""

    def read(self, n: int) -> str:
        """Return the next n characters; fewer at the end of the text."""
        parts = []
        while n > 0:
            self._rest = self._rest or next(self._parts, "")
            if not self._rest:
                break
            parts.append(self._rest[:n])
            self._rest = self._rest[n:]
            n -= len(parts[-1])
        return "".join(parts)

    def _joined(self, pieces: Iterable[Piece]) -> Iterator[str]:
        """Yield parts of the text, none of them empty."""
        length = 0
        for number, piece in pieces:
            is_new = number == len(self.first_characters)
            part = BETWEEN + piece if is_new and number else piece
            length += len(part)
            if is_new:
                self.first_characters.append(length - len(piece))
            for start in range(0, len(part), _CHUNK):
                yield part[start : start + _CHUNK]


def _joined_chunks(tokenizer: Tokenizer, text: _JoinedText) -> Iterator["_Chunk"]:
    """Yield the tokens of a text, part by part, each as in the encoding of the whole text.

    Tokens near the end of a chunk depend on what was cut off. So chunks overlap, and two are joined in the middle of
    the overlap, where both must have the same tokens. If they do not, as within a long run of one character, the first
    of the two is encoded again together with the text of the second.
    """
    start, written, size = 0, "", _CHUNK  # the place of a chunk in the text, its text, and how long that should be
    head: _Chunk | None = None  # the tokens that it shares with the chunk before it
    before: tuple[int, str, _Chunk | None] | None = None  # start, text and head of the chunk before it,
    held: _Chunk | None = None  # and its tokens, which are yielded once this one is joined to them
    while True:
        written += text.read(size - len(written))
        is_last = len(written) < size
        chunk = _encode_chunk(tokenizer, written, start)
        first = 0 if head is None else _place_of(head, chunk)
        if first is None:
            if before is None:
                raise CorpusError(
                    "the text is too long for this tokenizer, whose tokens depend on text far away: take less of it"
                )
            written = before[1] + written[before[0] + len(before[1]) - start :]
            (start, _, head), before, held, size = before, None, None, 2 * len(written)
            continue
        shared = len(chunk.ids) - _OVERLAP
        if not is_last and shared < first + _OVERLAP:
            size *= 2
            continue
        if held is not None:
            yield held
        if is_last:
            yield chunk.part(first, None)
            return
        held, head, before = chunk.part(first, shared + _OVERLAP // 2), chunk.part(shared, None), (start, written, head)
        start, written, size = int(head.offsets[0]), written[int(head.offsets[0]) - start :], _CHUNK


@dataclass(frozen=True)
class _Chunk:
    """Consecutive tokens of a text: their ids, the character where each begins in the text, and their bytes."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    nbytes: NDArray[np.int64]

    def part(self, start: int, stop: int | None) -> "_Chunk":
        return _Chunk(self.ids[start:stop], self.offsets[start:stop], self.nbytes[start:stop])


def _encode_chunk(tokenizer: Tokenizer, text: str, start: int) -> _Chunk:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray([begin for begin, _ in encoded["offset_mapping"]], dtype=np.int64)
    return _Chunk(ids, offsets + start, _bytes_per_token(text, offsets))


def _place_of(head: _Chunk, chunk: _Chunk) -> int | None:
    """Return where in a chunk the middle token of its head is; None if the tokens around it differ."""
    middle = _OVERLAP // 2
    around = head.part(middle - _AGREEING, middle + _AGREEING)
    for place in np.flatnonzero(chunk.offsets == head.offsets[middle]).tolist():
        other = chunk.part(max(0, place - _AGREEING), place + _AGREEING)
        if np.array_equal(around.ids, other.ids) and np.array_equal(around.offsets, other.offsets):
            return int(place)
    return None


def _bytes_per_token(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the UTF-8 bytes between the character where each token begins and the one where the next token begins."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (characters > 0x7F).astype(np.int64) + (characters > 0x7FF) + (characters > 0xFFFF)
    byte_offsets = np.append(0, np.cumsum(sizes))
    bounds = np.append(offsets, len(text))
    bounds[:1] = 0  # white space that a tokenizer drops before the first token belongs to that token
    nbytes: NDArray[np.int64] = np.diff(byte_offsets[bounds])
    return nbytes

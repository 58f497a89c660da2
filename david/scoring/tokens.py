"""Documents as tokens: the token ids of a joined text, where each document begins, and the bytes behind each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from david.errors import CorpusError

BETWEEN = "\n\n"  # between the documents of a dataset, as the transformers perplexity guide joins them


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


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Tokens:
    """Return the tokens of documents that are joined to one text; no special tokens are added.

    A fast tokenizer encodes the joined text. One without offsets encodes document by document, because nothing else
    tells where a document begins.
    """
    if tokenizer.is_fast:
        text = BETWEEN.join(documents)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
        first_characters = np.cumsum([0] + [len(document) + len(BETWEEN) for document in documents[:-1]])
        starts = np.searchsorted(offsets, first_characters, side="left")
        return Tokens(ids, starts, _bytes_per_token(text, offsets))
    parts = [
        tokenizer(document + (BETWEEN if i + 1 < len(documents) else ""), add_special_tokens=False)["input_ids"]
        for i, document in enumerate(documents)
    ]
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    return Tokens(np.asarray([token for part in parts for token in part], dtype=np.int64), starts, None)


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


def _bytes_per_token(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the UTF-8 bytes between the character where each token begins and the one where the next token begins."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (characters > 0x7F).astype(np.int64) + (characters > 0x7FF) + (characters > 0xFFFF)
    byte_offsets = np.append(0, np.cumsum(sizes))
    bounds = np.append(offsets, len(text))
    bounds[:1] = 0  # white space that a tokenizer drops before the first token belongs to that token
    nbytes: NDArray[np.int64] = np.diff(byte_offsets[bounds])
    return nbytes

"""Perplexity conventions: one table of how a text is cut into windows and which of their tokens are scored.

Perplexities of one model on one text differ by the convention, so every score names the one that made it. To add a
convention, add an entry to `CONVENTIONS`. If it cuts a text in a new way, add that function to `CUTTERS` in
`david.scoring.windows` and name it in the entry. This module needs no torch: the command reads its choices here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from david.errors import CorpusError, ScoreError
from david.support.text import brief

ConventionName = str  # a key of CONVENTIONS
DEFAULT_CONVENTION = "window"
CONSECUTIVE = "consecutive"

# What the corpora and scores of other data are called: these rows are not cut from one text.
COMPLETION = "completion"
MULTIPLE_CHOICE = "multiple choice"
TASKS = "lm-eval"


def _all_but_first(_window: int) -> int:
    return 1


def _second_half(window: int) -> int:
    return window // 2 + 1


@dataclass(frozen=True)
class Convention:
    """A published way to compute perplexity.

    Attributes:
        name: The name in scores, studies and recipe files, and of the option `--convention`.
        help: One line for whoever chooses a convention.
        source: Who computes perplexity this way.
        cut: The key in `windows.CUTTERS` of the function that cuts a text into windows.
        first_scored: Takes the length T of a window and returns the position (1 … T − 1) of its first scored token;
            all tokens from there on are scored. None if the cut itself marks which tokens are scored.
        shortest_window: The smallest T in which a token is scored.
        takes_stride: Whether the distance between the starts of two windows is an option (`stride`, `--stride`).
        starts_documents: Whether each document begins with BOS (or else EOS), whatever the option `bos` is.
    """

    name: str
    help: str
    source: str
    cut: str = CONSECUTIVE
    first_scored: Callable[[int], int] | None = None
    shortest_window: int = 2
    takes_stride: bool = False
    starts_documents: bool = False


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            name=DEFAULT_CONVENTION,
            help="consecutive windows, all but the first token of each",
            source="the disjoint chunks that the transformers perplexity guide begins with",
            first_scored=_all_but_first,
        ),
        Convention(
            name="llamacpp",
            help="as llama.cpp: the second half of each window",
            source="llama.cpp's perplexity tool: positions T/2 + 1 … T − 1, after a context of at least T/2",
            first_scored=_second_half,
            shortest_window=3,
        ),
        Convention(
            name="strided",
            help="as the transformers guide: a sliding window, each token once",
            source="the transformers perplexity guide: windows `stride` tokens apart",
            cut="strided",
            takes_stride=True,
        ),
        Convention(
            name="rolling",
            help="as lm-eval: each document by itself behind BOS, each token once",
            source="lm-eval's rolling log-likelihood; a window of T tokens is its max_length of T − 1",
            cut="rolling",
            starts_documents=True,
        ),
    )
}


def convention_of_cut(name: ConventionName | None, *, stride: int | None, rolling: bool) -> Convention:
    """Return the convention that the options of `Corpus.load` name.

    Args:
        name: The option `convention`; None to infer it from the other two.
        stride: The option `stride`, which alone stands for `strided`.
        rolling: The option `rolling`, which stands for `rolling`.

    Returns:
        The entry of `CONVENTIONS`.

    Raises:
        CorpusError: The name is unknown, or the options contradict one another.
    """
    inferred = "rolling" if rolling else "strided" if stride is not None else DEFAULT_CONVENTION
    convention = CONVENTIONS.get(inferred if name is None else name)
    if convention is None:
        raise CorpusError(f"unknown convention {brief(name)}: expected {', '.join(CONVENTIONS)}")
    if rolling and convention.name != "rolling":
        raise CorpusError(f"rolling=True is convention rolling; got convention {convention.name} too: leave one out")
    if convention.cut == CONSECUTIVE and convention.name != DEFAULT_CONVENTION:
        raise CorpusError(
            f"convention {convention.name} decides which tokens of consecutive windows are scored, not how a text is "
            f"cut: leave it out here, and give it to perplexity(…, convention={convention.name!r})"
        )
    if stride is not None and not convention.takes_stride:
        raise CorpusError(f"convention {convention.name} has no stride: leave stride out")
    return convention


def first_scored_position(name: ConventionName, window: int) -> int:
    """Return the position of the first scored token in consecutive windows.

    Args:
        name: The option `convention` of `perplexity`.
        window: Tokens in a window, T.

    Returns:
        A position of 1 … T − 1; all tokens from there on are scored.

    Raises:
        ScoreError: The convention is unknown, cuts a text in another way, or needs longer windows.
    """
    convention = CONVENTIONS.get(name)
    if convention is None:
        raise ScoreError(f"unknown convention {brief(name)}: expected {', '.join(CONVENTIONS)}")
    if convention.first_scored is None:
        raise ScoreError(
            f"convention {name} cuts a text in its own way, but the corpus has consecutive windows: "
            f"load it with convention={name!r}, and leave convention out here"
        )
    if window < convention.shortest_window:
        raise ScoreError(
            f"convention {name!r} needs windows of at least {convention.shortest_window} tokens; got {window}"
        )
    return convention.first_scored(window)

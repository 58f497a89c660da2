"""The score of a model on a corpus, and the attributes that a study stores of it. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from david.metrics import units

# Attributes of a trial; a held-out score is stored under the same keys.
WINDOW_NLL = "window_nll"  # NLL of each window that the trial has scored, summed over the window's tokens
WINDOW_TOKENS = "window_tokens"  # scored tokens of each of these windows
RIGHT = "right"  # which multiple-choice questions were answered right
UNIT = "unit"  # unit of the mean, where that is not nats a token
CONVENTION = "convention"
CUT = "cut"  # share of the answers of each document that were cut, where a model generates answers
DOCUMENTS = "documents"  # of held-out scores only: those of the search windows are stored once, in the study

CUT_ANSWERS = (  # a note beside shares of answers that were cut
    "an answer is cut if it reaches its task's token limit (max_gen_toks) or ends inside the model's thinking; "
    "most such answers count as wrong"
)


@dataclass(frozen=True)
class Score:
    """The negative log-likelihood (NLL) of each window of a corpus.

    Attributes:
        window_nll: NLL of each window in nats, summed over its scored tokens.
        window_tokens: Number of scored tokens of each window.
        documents: The document that each window begins in, or its group: `Corpus.clusters`.
        convention: Which tokens were scored.
        window_bytes: UTF-8 bytes of the scored tokens of each window; empty if unknown.
        right: Whether each multiple-choice question was answered right; empty for other data. Such a score has one
            window for each question, which counts as one token.
        unit: Unit of the mean: nats a token, or for an objective that is no NLL the quantity that is minimised, such
            as `1 − acc`.
        cut: For each document whose answers the model generates, the share of them that were cut: they reached the
            token limit, or ended inside the model's thinking. Empty for other data.

    Example:
        >>> score = Score(window_nll=(4.0, 8.0), window_tokens=(2, 2), documents=(0, 1), convention="window")
        >>> score.tokens, score.nll, round(score.perplexity, 3)
        (4, 3.0, 20.086)
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int | str, ...]
    convention: str
    window_bytes: tuple[int, ...] = ()
    right: tuple[bool, ...] = ()
    unit: str = units.TOKEN
    cut: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return sum(self.window_tokens)

    @property
    def nll(self) -> float:
        """Mean NLL in nats over the scored tokens; NaN if there are none."""
        return sum(self.window_nll) / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.inf if self.nll > 700 else math.exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        """NLL in bits over the UTF-8 bytes of the scored text, comparable across tokenizers; NaN if unknown."""
        return sum(self.window_nll) / math.log(2) / sum(self.window_bytes) if any(self.window_bytes) else math.nan

    @property
    def accuracy(self) -> float:
        """Share of questions answered right; NaN for data that is not multiple choice."""
        return mean_share(self.right)

    @property
    def cut_share(self) -> float:
        """Share of the generated answers that were cut, each document's alike; NaN where no answers are generated."""
        return mean_share(self.cut)

    def to_attributes(self, *, held_out: bool = False) -> dict[str, Any]:
        """Return the score as the JSON attributes that a study stores.

        Args:
            held_out: Return the form of a held-out score (with `documents`, without what the trial says already)
                instead of a trial's.

        Example:
            >>> score = Score((4.0, 8.0), (2, 2), (0, 1), "window")
            >>> score.to_attributes()
            {'window_tokens': [2, 2], 'window_nll': [4.0, 8.0], 'convention': 'window'}
            >>> Score.from_attributes(score.to_attributes(held_out=True), convention="window") == score
            True
        """
        cut = {CUT: list(self.cut)} if self.cut else {}
        if held_out:
            names = (WINDOW_NLL, WINDOW_TOKENS, DOCUMENTS, RIGHT)
            return {name: list(getattr(self, name)) for name in names} | cut
        return {
            WINDOW_TOKENS: list(self.window_tokens),
            WINDOW_NLL: list(self.window_nll),
            CONVENTION: self.convention,
            **({RIGHT: list(self.right)} if self.right else {}),
            **({} if self.unit == units.TOKEN else {UNIT: self.unit}),
            **cut,
        }

    @classmethod
    def from_attributes(
        cls, attributes: Mapping[str, Any], *, convention: str = "", unit: str = units.TOKEN
    ) -> "Score":
        """Return the score that `to_attributes` stored.

        Args:
            attributes: The attributes of a trial, or of a held-out score; other keys are ignored.
            convention: The convention of a held-out score, which its trial stores.
            unit: The unit of a held-out score, which its trial stores.

        Raises:
            KeyError: The attributes hold no score.
        """
        return cls(
            window_nll=tuple(attributes[WINDOW_NLL]),
            window_tokens=tuple(attributes[WINDOW_TOKENS]),
            documents=tuple(attributes.get(DOCUMENTS, ())),
            convention=attributes.get(CONVENTION, convention),
            right=tuple(attributes.get(RIGHT, ())),
            unit=attributes.get(UNIT, unit),
            cut=tuple(attributes.get(CUT, ())),
        )


def mean_share(shares: Sequence[float]) -> float:
    """Return the mean of shares, or the share of what is true; NaN of nothing."""
    return sum(shares) / len(shares) if shares else math.nan

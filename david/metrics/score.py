"""A score: the negative log-likelihood of each window of a corpus, in nats."""

import math
from dataclasses import dataclass

from david.metrics import units


@dataclass(frozen=True)
class Score:
    """The NLL of each window in nats, summed over its scored tokens, and how many those are.

    `documents` is the document each window begins in; `convention` names which tokens were scored. `window_bytes` is
    how many UTF-8 bytes these stand for, empty where that is not known. A score of multiple-choice questions has a
    question for a window and counts it as one token; `right` tells which were answered right. `unit` says what the mean
    is in: nats a token, or of an objective that is no NLL what is minimised instead, such as `1 − acc`.

    Example:
        >>> score = Score(window_nll=(4.0, 8.0), window_tokens=(2, 2), documents=(0, 1), convention="window")
        >>> score.tokens, score.nll, round(score.perplexity, 3)
        (4, 3.0, 20.086)
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int, ...]
    convention: str
    window_bytes: tuple[int, ...] = ()
    right: tuple[bool, ...] = ()
    unit: str = units.TOKEN

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(self.window_tokens)

    @property
    def nll(self) -> float:
        """Mean NLL in nats over the scored tokens; NaN where there are none."""
        return sum(self.window_nll) / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.inf if self.nll > 700 else math.exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        """NLL in bits over the UTF-8 bytes of the scored text, which any tokenizer has alike; NaN where not known."""
        return sum(self.window_nll) / math.log(2) / sum(self.window_bytes) if any(self.window_bytes) else math.nan

    @property
    def accuracy(self) -> float:
        """The share of questions that were answered right; NaN of what is no multiple choice."""
        return sum(self.right) / len(self.right) if self.right else math.nan

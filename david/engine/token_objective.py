"""Objectives that are made of the NLLs of tokens, so that the engine can compute them itself.

These are `perplexity` and `multiple_choice`, and a `functools.partial` of them with keyword arguments alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from david.engine.one_by_one import Outcome
from david.errors import ScoreError
from david.scoring.corpus import Corpus
from david.scoring.objectives import (
    Objective,
    by_question,
    check_fits,
    check_kind,
    first_scored,
    multiple_choice,
    perplexity,
    score_of,
)


@dataclass(frozen=True)
class TokenObjective:
    """An objective made of the NLL of each window.

    Attributes:
        by_question: Whether windows are answers of multiple-choice questions, scored by question.
        options: Keyword arguments of the objective.
    """

    by_question: bool
    options: Mapping[str, Any]

    @classmethod
    def of(cls, objective: Objective) -> "TokenObjective | None":
        """Return an objective as a `TokenObjective`, or None if it is another kind."""
        is_partial = isinstance(objective, partial) and not objective.args
        function = objective.func if is_partial else objective  # type: ignore[attr-defined]
        options = dict(objective.keywords) if is_partial else {}  # type: ignore[attr-defined]
        if function not in (perplexity, multiple_choice):
            return None
        return cls(function is multiple_choice, options)

    def check(self, model: nn.Module, corpus: Corpus) -> None:
        """Check that a model can score a corpus with this objective.

        Raises:
            ScoreError: The corpus is of another kind, the convention does not fit it, or the model cannot read it.
        """
        check_kind(corpus, questions=self.by_question)
        self.first_position(corpus)
        check_fits(model, corpus)

    def first_position(self, corpus: Corpus) -> int:
        """Return the first position of a window whose token is scored."""
        return first_scored(corpus, self._convention)

    def score(self, nll: Sequence[float], corpus: Corpus) -> Outcome:
        """Return the score of the first windows of a corpus, or of all.

        Args:
            nll: NLL in nats of each of these windows.
            corpus: The whole corpus.

        Returns:
            The score; a `ScoreError` if an NLL is not a number.
        """
        broken = next((window for window, value in enumerate(nll) if math.isnan(value)), None)
        if broken is not None:
            return ScoreError(f"the NLL of window {broken} is not a number: the model's logits hold NaN")
        score = score_of(nll, corpus, self._convention)
        return by_question(score, corpus) if self.by_question else score

    @property
    def _convention(self) -> Any:
        return self.options.get("convention", "window")


def is_token_objective(objective: Objective) -> bool:
    """Return whether an objective is a sum over windows, so that recipes can be dropped before all are scored."""
    token_objective = TokenObjective.of(objective)
    return token_objective is not None and not token_objective.by_question

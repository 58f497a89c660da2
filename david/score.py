"""Objectives: what a model makes of a corpus. Defined in `david.scoring.objectives`."""

from david.metrics.score import Score
from david.scoring.conventions import ConventionName
from david.scoring.objectives import (
    Objective,
    by_question,
    check_fits,
    check_kind,
    first_scored,
    multiple_choice,
    perplexity,
    score_of,
    scored_tokens,
    windows_score,
)

__all__ = [
    "ConventionName",
    "Objective",
    "Score",
    "by_question",
    "check_fits",
    "check_kind",
    "first_scored",
    "multiple_choice",
    "perplexity",
    "score_of",
    "scored_tokens",
    "windows_score",
]

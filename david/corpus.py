"""Corpora: a slice of a dataset as windows of tokens. Defined in `david.scoring.corpus`."""

from david.scoring.completions import Choice
from david.scoring.conventions import TASKS
from david.scoring.corpus import Corpus

__all__ = ["TASKS", "Choice", "Corpus"]

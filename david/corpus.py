"""Corpora: a slice of a dataset as windows of tokens. Defined in `david.scoring.corpus`."""

from david.scoring.corpus import TASKS, Choice, Corpus

__all__ = ["TASKS", "Choice", "Corpus"]

"""The search: a study is created, its loop asks, scores and tells, its finalists are judged."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.study.run_search import search

__all__ = ["search"]

__getattr__, __dir__ = attach(__name__, {"search": "run_search"})

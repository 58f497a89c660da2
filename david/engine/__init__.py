"""Score many recipes of one model, each distinct visit once."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.engine.engine import Engine, score_recipes

__all__ = ["Engine", "score_recipes"]

__getattr__, __dir__ = attach(__name__, {"Engine": "engine", "score_recipes": "engine"})

"""Recipes: which layers of a base run, in which order, how strongly; their file, blocks and picture."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.recipe.recipe import Recipe, Segment

__all__ = ["Recipe", "Segment"]

__getattr__, __dir__ = attach(__name__, {"Recipe": "recipe", "Segment": "recipe"})

"""The neighbours of a recipe: every recipe that is one step away. Defined in `david.candidates.neighbours`."""

from david.candidates.neighbours import SCALES, STEPS, Path, neighbours

__all__ = ["SCALES", "STEPS", "Path", "neighbours"]

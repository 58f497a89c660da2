"""Every recipe that is one step away from a recipe. Defined in `david.candidates.neighbours`."""

from david.candidates.neighbours import SCALES, STEPS, Path, neighbours

__all__ = ["SCALES", "STEPS", "Path", "neighbours"]

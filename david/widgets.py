"""Sliders for a notebook that change a recipe and score it. Defined in `david.chat.widgets`."""

from david.chat.widgets import MOST_STRENGTH, MOST_TIMES, Slider, slider

__all__ = ["MOST_STRENGTH", "MOST_TIMES", "Slider", "slider"]

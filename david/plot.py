"""Plots of a study: functions from a table to matplotlib axes. Defined in `david.report.plots`."""

from david.report.plots import blocks, depth, history, influence, paths, profile, tradeoff

__all__ = ["blocks", "depth", "history", "influence", "paths", "profile", "tradeoff"]

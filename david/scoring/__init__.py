"""Scores of a model on data: sources, windows, corpora, objectives, tasks of lm-eval."""

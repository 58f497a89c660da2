"""Scores and what may be concluded from them: units, paired tests, selection bias."""

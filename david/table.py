"""A study as pandas tables. Defined in `david.report.tables`."""

from david.report.tables import (
    BASE,
    blocks,
    difference_to_base,
    front,
    is_map,
    leaderboard,
    luck,
    objective_correlations,
    paths,
    rank_correlations,
    shrinkage,
    trials,
)

__all__ = [
    "BASE",
    "blocks",
    "difference_to_base",
    "front",
    "is_map",
    "leaderboard",
    "luck",
    "objective_correlations",
    "paths",
    "rank_correlations",
    "shrinkage",
    "trials",
]

"""A study as pandas tables. Defined in `david.report.tables`."""

from david.report.tables import (
    BASE,
    blocks,
    difference_to_base,
    front,
    is_map,
    leaderboard,
    luck,
    paths,
    rank_correlations,
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
    "paths",
    "rank_correlations",
    "trials",
]

"""Paired tests: whether a recipe differs from its base. Defined in `david.metrics.paired_test`."""

from david.metrics.paired_test import (
    BETTER,
    UNDECIDED,
    WORSE,
    Correlation,
    Difference,
    as_numbers,
    check_drawing,
    document_numbers,
    effective_number,
    paired_difference,
    rank_correlation,
    token_counts,
)

__all__ = [
    "BETTER",
    "UNDECIDED",
    "WORSE",
    "Correlation",
    "Difference",
    "as_numbers",
    "check_drawing",
    "document_numbers",
    "effective_number",
    "paired_difference",
    "rank_correlation",
    "token_counts",
]

"""Search spaces: functions from an Optuna trial to a recipe. Defined in `david.candidates.spaces`."""

from david.candidates.encoding import Params, Space
from david.candidates.spaces import (
    SPACES,
    Block,
    Blocks,
    InvertibleSpace,
    Ratios,
    Removal,
    Visits,
    Windows,
    is_built_in,
    params_of,
    space_named,
)
from david.recipe.blocks import all_blocks, blocks_of, longest_block

# the names of version 0.1.0
named = space_named
Sayable = InvertibleSpace

__all__ = [
    "SPACES",
    "Block",
    "Blocks",
    "InvertibleSpace",
    "Params",
    "Ratios",
    "Removal",
    "Sayable",
    "Space",
    "Visits",
    "Windows",
    "all_blocks",
    "blocks_of",
    "is_built_in",
    "longest_block",
    "named",
    "params_of",
    "space_named",
]

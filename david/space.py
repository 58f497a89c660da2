"""Search spaces: an Optuna trial → a Recipe. Defined in `david.candidates.spaces`."""

from david.candidates.encoding import Params, Space
from david.candidates.spaces import (
    Block,
    Blocks,
    Ratios,
    Removal,
    Sayable,
    Visits,
    Windows,
    is_built_in,
    named,
    params_of,
)
from david.recipe.blocks import all_blocks, blocks_of, longest_block

__all__ = [
    "Block",
    "Blocks",
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
]

"""Load models, and describe a base: fingerprint, cost per token, files on disk, offloaded weights.

Users import `read_costs`, `fingerprint`, `load_base` and its `LoadOptions` from here, and `load_model` from `david`.
"""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.models.fingerprints import fingerprint
    from david.models.load import load_base, load_model
    from david.models.load_options import LoadOptions
    from david.models.without_weights import read_costs

__all__ = ["LoadOptions", "fingerprint", "load_base", "load_model", "read_costs"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "LoadOptions": "load_options",
        "fingerprint": "fingerprints",
        "load_base": "load",
        "load_model": "load",
        "read_costs": "without_weights",
    },
)

"""Load models, and describe a base: fingerprint, cost per token, files on disk, offloaded weights.

Users import `read_costs`, `fingerprint` and `load_base` from here, and `load_model` from `david`.
"""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.models.describe import fingerprint
    from david.models.load import load_base, load_model, read_costs

__all__ = ["fingerprint", "load_base", "load_model", "read_costs"]

__getattr__, __dir__ = attach(
    __name__, {"fingerprint": "describe", "load_base": "load", "load_model": "load", "read_costs": "load"}
)

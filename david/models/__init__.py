"""Models: loading, what is known of a base, its files, offloaded weights."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.models.describe import fingerprint
    from david.models.load import load_base, load_model, read_costs

__all__ = ["fingerprint", "load_base", "load_model", "read_costs"]

__getattr__, __dir__ = attach(
    __name__, {"fingerprint": "describe", "load_base": "load", "load_model": "load", "read_costs": "load"}
)

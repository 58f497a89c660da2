"""Models: loading, what is known of a base, its files, offloaded weights."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.models.load import load_base, load_model

__all__ = ["load_base", "load_model"]

__getattr__, __dir__ = attach(__name__, {"load_base": "load", "load_model": "load"})

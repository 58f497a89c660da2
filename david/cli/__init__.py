"""The command `david`."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.cli.app import main

__all__ = ["main"]

__getattr__, __dir__ = attach(__name__, {"main": "app"})

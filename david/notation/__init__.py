"""Recipe languages of other tools, read and written: with exactly their meaning, or refused with the reason."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.notation.formats import FORMATS, read, write
    from david.notation.rescale import moved

__all__ = ["FORMATS", "moved", "read", "write"]

__getattr__, __dir__ = attach(
    __name__, {"FORMATS": "formats", "moved": "rescale", "read": "formats", "write": "formats"}
)

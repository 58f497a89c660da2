"""Recipe languages of other tools (mergekit, RYS, exllama, PEFT, …): read them, write them, move a recipe's depth.

`read` and `write` translate a recipe, `moved` makes one for a sibling model of another depth.
"""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.notation.formats import FORMATS, read, write
    from david.notation.rescale import moved

__all__ = ["FORMATS", "moved", "read", "write"]

__getattr__, __dir__ = attach(
    __name__, {"FORMATS": "formats", "moved": "rescale", "read": "formats", "write": "formats"}
)

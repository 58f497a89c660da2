"""Make a loaded model run a recipe by reference, undo it exactly, and prove it."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.sling.in_place import (
        David,
        base_depth,
        base_layers,
        can_run,
        check_recipe,
        is_slung,
        reset,
        running_base,
        sling,
        slung,
        view,
    )

__all__ = [
    "David",
    "base_depth",
    "base_layers",
    "can_run",
    "check_recipe",
    "is_slung",
    "reset",
    "running_base",
    "sling",
    "slung",
    "view",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "David": "in_place",
        "running_base": "in_place",
        "base_depth": "in_place",
        "base_layers": "in_place",
        "can_run": "in_place",
        "check_recipe": "in_place",
        "is_slung": "in_place",
        "reset": "in_place",
        "sling": "in_place",
        "slung": "in_place",
        "view": "in_place",
    },
)

"""Make a loaded model run a recipe by reference, undo it exactly, and prove it."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.sling.in_place import (
        base_depth,
        base_layers,
        can_run,
        check_recipe,
        reset,
        running_base,
        sling,
        slung,
        view,
    )
    from david.sling.install import is_slung
    from david.sling.namespace import David

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
        "David": "namespace",
        "base_depth": "in_place",
        "base_layers": "in_place",
        "can_run": "in_place",
        "check_recipe": "in_place",
        "is_slung": "install",
        "reset": "in_place",
        "running_base": "in_place",
        "sling": "in_place",
        "slung": "in_place",
        "view": "in_place",
    },
)

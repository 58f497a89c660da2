"""The base model that a recipe names, and whether that name can be followed."""

import os
import re

from pydantic import Field

from david.errors import RecipeError
from david.recipe.schema import LONGEST, Part

DEMO = "demo"  # the model that David fetches from the package index


def is_hub_id(name: str) -> bool:
    """Whether a name could be a model's on the Hub: one or two words, none that leads to a file."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII) is not None


class Base(Part):
    """The model a recipe was made on. Only the number of layers decides; the rest tells a receiver what to look for."""

    model: str | None = None
    revision: str | None = None
    architecture: str | None = None
    num_layers: int = Field(gt=0, le=LONGEST)
    fingerprint: str | None = None


def public_name(base: Base) -> str | None:
    """What others can find a base by: `demo`, or a Hub id; None for a path, or with a revision that is none."""
    name, revision = base.model or "", base.revision or "main"
    if name == DEMO:
        return name
    is_revision = re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) is not None and ".." not in revision
    return name if is_hub_id(name) and is_revision and not os.path.exists(name) else None


def named_base(base: Base | None, instead: str) -> str:
    """The base that a recipe names, on the Hub or demo: what a recipe says of this machine's files is not followed.

    `RecipeError` for anything else, which tells the way to name a base oneself: `instead`.
    """
    if base is None or base.model is None:
        raise RecipeError(f"the recipe does not name its base: say which with {instead}")
    name = public_name(base)
    if name is None and is_hub_id(base.model) and not os.path.exists(base.model):
        raise RecipeError(
            f"the recipe names {base.revision!r} as its base's revision, which cannot be one: name the base {instead}"
        )
    if name is None:
        raise RecipeError(f"the recipe names a path as its base, {base.model!r}: if it is meant, say so with {instead}")
    return name

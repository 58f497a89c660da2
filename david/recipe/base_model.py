"""The base model that a recipe names: `Base`, and whether its name is one that David may load from."""

import os
import re

from pydantic import Field

from david.errors import RecipeError
from david.recipe.schema import LONGEST, Part

DEMO = "demo"  # the model that David fetches from the package index


def is_hub_id(name: str) -> bool:
    """Return whether a name could be a Hub id: one or two words, which cannot lead to a file."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII) is not None


class Base(Part):
    """The model that a recipe was made on.

    Only the number of layers decides whether a recipe runs; the rest tells a receiver which model to look for.

    Attributes:
        model: A Hub id, `"demo"`, or what `load_model` was given.
        revision: The Hub revision.
        architecture: Class name, such as `"LlamaForCausalLM"`.
        num_layers: Layers; None if the recipe comes from a file that names a base without them, as a merge does.
        fingerprint: Hash of names, shapes and a sample of the weights.
    """

    model: str | None = None
    revision: str | None = None
    architecture: str | None = None
    num_layers: int | None = Field(gt=0, le=LONGEST)
    fingerprint: str | None = None


def public_name(base: Base) -> str | None:
    """Return the name by which others find a base, `demo` or a Hub id; None for a path or an impossible revision."""
    name, revision = base.model or "", base.revision or "main"
    if name == DEMO:
        return name
    is_revision = re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) is not None and ".." not in revision
    return name if is_hub_id(name) and is_revision and not os.path.exists(name) else None


def named_base(base: Base | None, instead: str) -> str:
    """Return the name of a recipe's base if it is `demo` or a Hub id: a path in a recipe is never followed.

    Args:
        base: The recipe's base.
        instead: How the user can name the base, for the error.

    Raises:
        RecipeError: The recipe names no base, a path, or an impossible revision.
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

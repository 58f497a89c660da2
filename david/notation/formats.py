"""The recipe languages of other tools, in and out: with exactly their meaning, or refused with the reason.

| format | what it is | a range's end | what it cannot say |
|---|---|---|---|
| `david` | a `david.recipe` JSON | | |
| `notation` | David's own: `0:12, 8:30` | not in it | |
| `mergekit` | passthrough YAML, mergekit 0.1.5 | not in it | most strengths, see below |
| `rys` | `blocks:8,12;20,24` or `layers:0,1,1,2`, dnhkng/RYS | not in it | strengths |
| `rys_relayer` | what RYS's export leaves in a `config.json` | | strengths |
| `exllamav3` | its `layer_map`: `0..11,8..29` | in it, also downwards | strengths |
| `exllamav2` | `--repeats` of its pull request 275: `[(0, 12), (8, 30)]` | not in it | strengths |
| `peft` | `layer_replication` of a LoRA configuration | not in it | strengths |
| `layer-scan` | a results file, layer-scan 0.2.2 | not in it | is read alone: it states scores |
| `drllm` | 0 skip, 1 execute, 2 repeat for each layer, Dr.LLM | | strengths, going back, three times |

mergekit multiplies weights. `o_proj` and `down_proj` times s is a visit of strength s, h + s·(layer(h) − h), only where
attention and MLP read the same hidden state (Cohere). Elsewhere the MLP would read attention's output already damped;
there 0 alone is the same. mergekit and PEFT leave the base's per-layer settings (`layer_types`) as they were, whatever
the map: what they make of a model that has some fails, or is another model (experiments/notation measures it).
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from david.errors import RecipeError
from david.notation.drllm import read_drllm, write_drllm
from david.notation.exllama import read_exllamav2, read_exllamav3, write_exllamav2, write_exllamav3
from david.notation.layer_scan import read_layer_scan
from david.notation.mergekit import read_mergekit, write_mergekit
from david.notation.parsing import BaseHints, ParsedRecipe, as_json
from david.notation.peft import read_peft, write_peft
from david.notation.rys import read_relayer, read_rys, write_relayer, write_rys
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.support.files import expand_home, reason
from david.support.text import brief

READERS: Mapping[str, Callable[[str, BaseHints], ParsedRecipe]] = {
    "mergekit": read_mergekit,
    "rys": read_rys,
    "rys_relayer": read_relayer,
    "exllamav3": read_exllamav3,
    "exllamav2": read_exllamav2,
    "peft": read_peft,
    "layer-scan": read_layer_scan,
    "drllm": read_drllm,
}


WRITERS: Mapping[str, Callable[[Recipe, str | None], str]] = {
    "mergekit": write_mergekit,
    "rys": write_rys,
    "rys_relayer": write_relayer,
    "exllamav3": write_exllamav3,
    "exllamav2": write_exllamav2,
    "peft": write_peft,
    "drllm": write_drllm,
}

OWN = ("david", "notation")
FORMATS = (*OWN, *READERS)
_MAX_BYTES = 1_000_000
_KEYS = {  # of a JSON object, by which its language is known
    "format": "david",
    "rys_relayer": "rys_relayer",
    "layer_replication": "peft",
    "top_configs": "layer-scan",
    "merge_method": "mergekit",
    "layers": "rys",
    "layer_indices": "rys",
    "blocks": "rys",
}


def read(
    source: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002  # the word for it
    *,
    n_layers: int | None = None,
    architecture: str | None = None,
    rank: int = 1,
) -> Recipe:
    """A recipe from a file or a text in any of the languages above; where none is given, its looks tell which.

    `n_layers` and `architecture` (`"LlamaForCausalLM"`) are the base's, for a text that does not tell them and whose
    meaning hangs on them. Of a `layer-scan` file, `rank` says which of its best. A bare list of numbers is taken for
    layers: a vector of Dr.LLM is one only when `format` says so.

    Raises `RecipeError` for what is not of the language, and for what a recipe cannot say.

    Example:
        >>> str(read("0..11,8..29"))
        '0:12, 8:30'
        >>> str(read("blocks:8,12;20,22", n_layers=30))
        '0:12, 8:22, 20:30'
        >>> str(read("[1, 1, 2, 0, 1]", "drllm"))
        '0:3, 2, 4'
    """
    text = _text_of(source)
    name = _looks_like(text) if format is None else format
    if name not in FORMATS:
        raise RecipeError(f"there is no format {brief(name)}: expected one of {', '.join(FORMATS)}")
    if rank != 1 and name != "layer-scan":
        raise RecipeError(f"a rank is of layer-scan's files, which hold several; this is {name}, and holds one")
    if name == "david":
        recipe = Recipe.from_json(text)
        if n_layers is not None:
            recipe.check(n_layers)
        return recipe
    if name == "notation":
        return _based(Recipe.parse(text), n_layers, None, architecture)
    said = READERS[name](text, BaseHints(n_layers, architecture, rank))
    if said.n_layers is not None and n_layers not in (None, said.n_layers):
        raise RecipeError(f"this is of a base of {said.n_layers} layers; the base given has {n_layers}")
    scales = None if said.scales is None else tuple(said.scales)
    recipe = Recipe(tuple(said.visits), scales)  # type: ignore[arg-type]
    model, _, revision = (said.model or "").partition("@" if name == "mergekit" else "\n")
    found = _based(recipe, said.n_layers or n_layers, model or None, architecture)
    if revision and found.base is not None:
        found = replace(found, base=found.base.model_copy(update={"revision": revision}))
    return found


def write(recipe: Recipe, format: str, *, model: str | None = None) -> str:  # noqa: A002
    """A recipe in one of the languages above, from which `read` makes the same recipe again.

    `model` is the name by which the tool finds the base (a folder or a Hub id); left out, the one the recipe states.
    What else of the base a language wants to know (its depth, its architecture) is taken from `recipe.base`.

    Raises `RecipeError`, naming the visit, where the language has no words for it.

    Example:
        >>> recipe = Recipe.from_blocks(30, [(8, 12, 2)])
        >>> write(recipe, "exllamav3"), write(recipe, "rys")
        ('0..11,8..29', 'blocks:8,12')
        >>> print(write(recipe, "mergekit", model="owner/name"), end="")
        merge_method: passthrough
        slices:
        - sources:
          - model: owner/name
            layer_range: [0, 12]
        - sources:
          - model: owner/name
            layer_range: [8, 30]
    """
    if format == "david":
        return recipe.to_json()
    if format == "notation":
        return str(recipe)
    if format == "layer-scan":
        raise RecipeError("layer-scan's files state scores that it measured: David reads them, and writes none")
    if format not in WRITERS:
        raise RecipeError(f"there is no format {brief(format)}: expected one of {', '.join((*OWN, *WRITERS))}")
    return WRITERS[format](recipe, model)


def _text_of(source: str | os.PathLike[str]) -> str:
    """The text itself, or that of a file, of a megabyte at most."""
    if isinstance(source, str) and not os.path.exists(expand_home(source)):
        if re.fullmatch(r"\S+\.(json|ya?ml)", source):
            raise RecipeError(f"cannot read {brief(source)}: there is no such file")
        text = source
    else:
        try:
            with open(expand_home(source), "rb") as file:
                text = file.read(_MAX_BYTES + 1).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read {brief(os.fspath(source))}: {reason(error)}") from None
    if len(text) > _MAX_BYTES:
        raise RecipeError(f"over {_MAX_BYTES} characters: not a recipe in any language")
    return text.strip()


def _looks_like(text: str) -> str:
    if text.startswith("{"):
        found = as_json(text, "a JSON object")
        name = next((name for key, name in _KEYS.items() if key in found), None)
        if name is None:
            raise RecipeError(f"cannot tell what this JSON is, with the keys {brief(list(found))}: say so (--from)")
        return name
    if re.match(r"\(?\s*+\d++\s*+,\s*+\d++\s*+\)?\s*+;|(layers|blocks)\s*+:\s*+[\d(]", text, re.IGNORECASE | re.ASCII):
        return "rys"
    if re.search(r"^[ \t]*+(merge_method|slices)[ \t]*+:", text, re.MULTILINE):
        return "mergekit"
    if re.match(r"[\[(]\s*\(", text):
        return "exllamav2"
    if re.match(r"\[\s*\[", text):
        return "peft"
    return "exllamav3" if ".." in text else "notation"


def _based(recipe: Recipe, n_layers: int | None, model: str | None, architecture: str | None) -> Recipe:
    """The recipe with what is known of its base."""
    if n_layers is None:
        return recipe
    recipe.check(n_layers)
    base = Base(num_layers=n_layers, model=model, architecture=architecture)
    return Recipe(recipe.repeat_map, recipe.scales, base=base)

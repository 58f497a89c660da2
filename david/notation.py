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
from dataclasses import replace

from david.errors import RecipeError, brief, reason
from david.origin import LONGEST, Base, expanded
from david.readers import READERS, Known, as_json
from david.recipe import Recipe, Segment
from david.writers import WRITERS

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
    said = READERS[name](text, Known(n_layers, architecture, rank))
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


def moved(recipe: Recipe, n_layers: int) -> Recipe:
    """A recipe for a sibling of another depth, each place at the same fraction of the depth.

    A place b between two of N layers (a segment's start or stop) goes to the nearest place to b·M/N among M layers,
    the deeper of two. Places that would fall together are kept apart: going up, each is at least one layer
    behind the one before; going back, the next segment starts at least one layer before the last one stops. So every
    segment keeps a layer, its scale and its place in the order, and every seam its direction; where a recipe leaves
    the first layers out, or the last, it leaves at least one out there; the base stays the base, N layers to N
    change nothing, and N to k·N and back is the recipe itself. Fingerprint, scores and search are of the base that
    was measured and are left out; `written_as` tells where the recipe is from.

    Raises `RecipeError` for a recipe that does not tell its base's depth, or has more places than M layers have.

    Example:
        >>> str(moved(Recipe.from_blocks(30, [(8, 12, 2, 0.5)]), 48))
        '0:19, 13:19*0.5, 19:48'
    """
    if recipe.base is None:
        raise RecipeError("the recipe does not tell its base's depth: say which base it is of (--model)")
    depth, to = recipe.n_layers, Recipe.identity(n_layers).n_layers  # the latter checked
    chains: list[list[Segment]] = []
    for segment in recipe.segments:
        if not chains or segment.start < chains[-1][-1].stop:
            chains.append([])
        chains[-1].append(segment)
    # where the first layers are left out, or the last, so is at least one there
    ends = int(min(recipe.repeat_map) > 0), to - (max(recipe.repeat_map) < depth - 1)
    placed: list[Segment] = []
    for chain in chains:
        before = placed[-1].stop if placed else to
        placed += _placed(chain, depth, to, before, ends)
        if sum(stop - start for start, stop, _ in placed) > LONGEST:
            raise RecipeError(f"with {to} layers this recipe would have more than the {LONGEST} visits it can have")
    visits = tuple(layer for start, stop, _ in placed for layer in range(start, stop))
    scales = tuple(scale for start, stop, scale in placed for _ in range(start, stop))
    told = f"{recipe.written_as or recipe} of {depth} layers"
    written = told if len(told) <= 200 else f"a recipe of {depth} layers"
    return Recipe(visits, scales, base=Base(num_layers=to), written_as=f"{written}, moved to {to}")


def _placed(chain: list[Segment], depth: int, to: int, before: int, ends: tuple[int, int]) -> list[Segment]:
    """Segments that go upwards, moved: the first place is below `before`, each above the last, all within the ends."""
    old = sorted({bound for segment in chain for bound in segment[:2]})
    new = [(2 * bound * to + depth) // (2 * depth) for bound in old]
    new[0] = max(min(new[0], before - 1), ends[0])
    for i in range(1, len(new)):
        new[i] = max(new[i], new[i - 1] + 1)
    new[-1] = min(new[-1], ends[1])
    for i in range(len(new) - 2, -1, -1):
        new[i] = min(new[i], new[i + 1] - 1)
    if not ends[0] <= new[0] < before:
        raise RecipeError(
            f"{to} layers are too few for this recipe: from layer {old[0]} to {old[-1] - 1} it has {len(old) - 1} "
            f"parts, which would each need a layer{'' if ends == (0, to) else ', and it leaves some out at an end'}"
        )
    at = dict(zip(old, new, strict=True))
    return [Segment(at[start], at[stop], scale) for start, stop, scale in chain]


def _text_of(source: str | os.PathLike[str]) -> str:
    """The text itself, or that of a file, of a megabyte at most."""
    if isinstance(source, str) and not os.path.exists(expanded(source)):
        if re.fullmatch(r"\S+\.(json|ya?ml)", source):
            raise RecipeError(f"cannot read {brief(source)}: there is no such file")
        text = source
    else:
        try:
            with open(expanded(source), "rb") as file:
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

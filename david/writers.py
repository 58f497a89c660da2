"""The recipe languages of other tools, written: each so that the tool reads the same visits, or refused."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise

import yaml

from david.errors import RecipeError, brief
from david.origin import DEMO
from david.readers import HALVES, MOST_YAML, repeated, why_not
from david.recipe import Recipe


def write_mergekit(recipe: Recipe, model: str | None) -> str:
    """A passthrough merge; a range that goes downwards, or a layer alone, is a slice of one layer."""
    base = recipe.base
    base_name = (base.model if base else None) or ""
    name = known_base_name(model or base_name, "mergekit")
    if not name:
        raise RecipeError("mergekit needs the base's name, and the recipe does not tell it: say which (--model)")
    if model is None and base is not None and base.revision is not None:
        name = f"{name}@{base.revision}"
    if "+" in name or "@" in (model or base_name) or name.count("@") > 1 or not name.isprintable():
        raise RecipeError(f"mergekit would not take {brief(name)} for the name of one model: '+' and '@' split it")
    lines = ["merge_method: passthrough", "slices:"]
    visit = 0
    for start, stop, scale in recipe.segments:
        if reason := why_not(scale, base.architecture if base else None):
            raise RecipeError(f"visit {visit}, of layer {start}: {reason}")
        lines += ["- sources:", f"  - model: {_scalar(name)}", f"    layer_range: [{start}, {stop}]"]
        if scale != 1:
            lines += ["    parameters:", "      scale:"]
            lines += [f"      - {{filter: {half}, value: {scale!r}}}" for half in HALVES]
        visit += stop - start
    if len(text := "\n".join(lines) + "\n") > MOST_YAML:
        raise RecipeError(
            f"a merge of {len(recipe.segments)} slices is longer than David reads back: export the recipe"
        )
    return text


def known_base_name(name: str, tool: str) -> str:
    if name == DEMO:
        raise RecipeError(
            f"{tool} does not know David's demo model: give its folder (on the command line --model demo)"
        )
    return name


def _scalar(text: str) -> str:
    """A text as YAML writes it on one line."""
    return yaml.safe_dump(text, width=10**9, allow_unicode=True).split("\n")[0]


def write_rys(recipe: Recipe, _model: str | None) -> str:
    """A block spec where RYS reads that as the same visits, else a layer spec."""
    plain_only(recipe, "RYS")
    if recipe.base is not None:
        runs = recipe.segments
        blocks = [(after.start, before.stop) for before, after in pairwise(runs) if after.start < before.stop]
        if blocks and len(blocks) == len(runs) - 1:
            try:
                same = tuple(repeated(blocks, recipe.n_layers)) == recipe.repeat_map
            except RecipeError:  # longer than any recipe
                same = False
            if same:
                return "blocks:" + ";".join(f"{start},{stop}" for start, stop in blocks)
    return "layers:" + ",".join(map(str, recipe.repeat_map))


def write_relayer(recipe: Recipe, model: str | None) -> str:
    """The entry that RYS's export puts into a config.json."""
    plain_only(recipe, "rys_relayer")
    base = base_needed(recipe, "rys_relayer")
    name = model or (recipe.base.model if recipe.base else None)
    again = {str(layer): count for layer, count in sorted(Counter(recipe.repeat_map).items()) if count > 1}
    entry = {
        "source_repo_id": name and known_base_name(name, "rys_relayer"),
        "source_num_layers": base,
        "target_num_layers": len(recipe),
        "spec": write_rys(recipe, None),
        "layer_indices": list(recipe.repeat_map),
        "duplication_counts": again,
    }
    return json.dumps({"rys_relayer": entry}) + "\n"


def write_exllamav3(recipe: Recipe, _model: str | None) -> str:
    """A layer_map: stretches of three layers and more, up or down, as ranges with both ends included."""
    plain_only(recipe, "exllamav3")
    return ",".join(
        f"{stretch[0]}..{stretch[-1]}" if len(stretch) > 2 else ",".join(map(str, stretch))
        for stretch in split_stretches(recipe.repeat_map)
    )


def write_exllamav2(recipe: Recipe, _model: str | None) -> str:
    """Tuples for `--repeats`, each one of Python's ranges; one that goes downwards has a step of −1."""
    plain_only(recipe, "exllamav2")
    tuples = [
        (layers.start, layers.stop) if layers.step == 1 else (layers.start, layers.stop, layers.step)
        for layers in split_stretches(recipe.repeat_map)
    ]
    return str(tuples)


def split_stretches(repeat_map: tuple[int, ...]) -> list[range]:
    """The map as the longest ranges upwards or downwards, from the left."""
    found: list[range] = []
    for layer in repeat_map:
        last = found[-1] if found else range(0)
        if len(last) == 1 and abs(layer - last.start) == 1:
            step = layer - last.start
            found[-1] = range(last.start, layer + step, step)
        elif len(last) > 1 and layer == last.stop:
            found[-1] = range(last.start, layer + last.step, last.step)
        else:
            found.append(range(layer, layer + 1))
    return found


def write_peft(recipe: Recipe, _model: str | None) -> str:
    """The `layer_replication` of a LoRA configuration."""
    plain_only(recipe, "PEFT")
    return json.dumps({"layer_replication": [[start, stop] for start, stop, _ in recipe.segments]}) + "\n"


def write_drllm(recipe: Recipe, _model: str | None) -> str:
    """A vector of Dr.LLM, which knows of a layer only how often it runs, one time behind the other."""
    plain_only(recipe, "Dr.LLM")
    depth = base_needed(recipe, "a vector of Dr.LLM")
    for visit, (before, layer) in enumerate(pairwise(recipe.repeat_map), start=1):
        if layer < before:
            raise RecipeError(f"Dr.LLM never goes back: visit {visit} goes from layer {before} to layer {layer}")
    counts = Counter(recipe.repeat_map)
    for visit, layer in enumerate(recipe.repeat_map):
        if counts[layer] > 2:
            raise RecipeError(
                f"Dr.LLM runs a layer at most twice: visit {visit + 2} would run layer {layer} a third time"
            )
    return json.dumps([counts[layer] for layer in range(depth)])


def plain_only(recipe: Recipe, name: str) -> None:
    """`RecipeError`, naming the first visit that is not plain, for a language without strengths."""
    for visit, (layer, scale) in enumerate(recipe):
        if scale != 1:
            raise RecipeError(f"{name} has no strengths: visit {visit}, of layer {layer}, has the scale {scale:g}")


def base_needed(recipe: Recipe, what: str) -> int:
    if recipe.base is None:
        raise RecipeError(f"{what} tells the base's depth, and the recipe does not: say which base it is of (--model)")
    return recipe.n_layers


WRITERS: Mapping[str, Callable[[Recipe, str | None], str]] = {
    "mergekit": write_mergekit,
    "rys": write_rys,
    "rys_relayer": write_relayer,
    "exllamav3": write_exllamav3,
    "exllamav2": write_exllamav2,
    "peft": write_peft,
    "drllm": write_drllm,
}

"""Passthrough merges as people publish them: does David read each as mergekit's own classes and planner do?

    python experiments/notation/public_merges.py FOLDER

FOLDER holds mergekit 0.1.5 and immutables (`pip install --no-deps --target FOLDER mergekit==0.1.5 immutables`). The
merges were collected from model cards, guides, issues and scripts in public repositories; models are renamed and the
wording is changed; many then differ in nothing but their source. Each is parsed by mergekit's `MergeConfiguration`, and its slices are put in order as `MergePlanner`
does. David must read the same layers, or refuse a merge that is no order of one model's layers, or that mergekit
refuses too. Prints the table, and ends with 1 for any other outcome.
"""

# ruff: noqa: E501  # texts of merges
import sys
from typing import Any

import yaml

from david.errors import RecipeError
from david.notation.formats import read

DEPTH = 80  # the base's layers, for merges of whole models


def stack(*parts: tuple[str, int, int], style: str = "model first", tail: str = "dtype: bfloat16") -> str:
    """Return a merge in one of the two orders of keys that people write."""
    lines = ["merge_method: passthrough", "slices:"] if style == "range first" else ["slices:"]
    for model, start, stop in parts:
        entry = [f"layer_range: [{start}, {stop}]", f"model: {model}"]
        first, second = entry if style == "range first" else entry[::-1]
        lines += ["- sources:", f"  - {first}", f"    {second}"]
    return "\n".join([*lines, *([] if style == "range first" else ["merge_method: passthrough"]), tail])


def steps(model: str, width: int, step: int, depth: int, **options: str) -> str:
    """Return a merge of overlapping windows of one model, as the large self-merges are."""
    return stack(*((model, start, start + width) for start in range(0, depth - width + 1, step)), **options)


ONE_MODEL = {
    "card, 8B to 48 layers": stack(("a/b-8b", 0, 24), ("a/b-8b", 8, 32), tail="dtype: float16"),
    "guide, depth up-scaling": stack(("a/b", 0, 24), ("a/b", 8, 32), style="range first"),
    "card, 7B to 12B in windows of 8": steps("a/b-7b-v0.2", 8, 4, 32, style="range first", tail="dtype: float16"),
    "card, 70B to 120B in windows of 20": steps("a/b-70b", 20, 10, 80, style="range first", tail="dtype: float16"),
    "card, another 70B, model first": steps("a/c-70b", 20, 10, 80, tail="dtype: float16"),
    "card, third 70B, method last": steps("a/d-70b-sf", 20, 10, 80),
    "issue, 16B of experts in windows of 3": steps("a/coder-lite", 3, 2, 27, style="range first"),
    "issue, one layer again": stack(("a/b", 0, 1), ("a/b", 0, 2), ("a/b", 1, 2), tail="dtype: float32"),
    "issue, how do slices stack": stack(("a/b", 0, 24), ("a/b", 8, 32), tail="dtype: float16"),
    "card, versions of one model by a key that mergekit ignores": "slices:\n  - sources:\n    - model: a/b\n      revision: v0\n"
    "      layer_range: [0, 24]\n  - sources:\n    - model: a/b\n      layer_range: [8, 32]\nmerge_method: passthrough",
    "script that prunes: blocks left": stack(("a/b", 0, 21), ("a/b", 25, 32)),
    "script that prunes: single layers out": stack(("a/b", 0, 5), ("a/b", 6, 9), ("a/b", 10, 32)),
    "script that sorts layers": stack(
        *(("outputs/x", n, n + 1) for n in (0, 1, 5, 3, 4, 2, 6, 7)), tail="dtype: float16"
    ),
    "script that writes JSON with models as mappings, empty slices too": '{"dtype": "bfloat16", "merge_method": '
    '"passthrough", "slices": [{"sources": [{"layer_range": [0, 4], "model": {"model": {"path": "a/b"}}}]}, {"sources": '
    '[{"layer_range": [5, 5], "model": {"model": {"path": "a/b"}}}]}, {"sources": [{"layer_range": [6, 32], "model": '
    '{"model": {"path": "a/b"}}}]}]}',
    "script that writes a whole model": "merge_method: passthrough\ndtype: bfloat16\nmodels:\n- model: a/b",
    "script that searches overlaps": steps("a/b", 12, 8, 36, style="range first", tail="dtype: float16"),
    "yaml.dump: lists in lines": "dtype: bfloat16\nmerge_method: passthrough\nslices:\n- sources:\n  - layer_range:\n    - 0\n"
    "    - 16\n    model: a/b\n- sources:\n  - layer_range:\n    - 12\n    - 24\n    model: a/b",
    "documentation, scale 1": "merge_method: passthrough\nslices:\n  - sources:\n      - {model: ./a, layer_range: [0, 12]}\n"
    "    parameters:\n      scale: 1.0",
    "modules of one name": "dtype: bfloat16\nmerge_method: passthrough\nmodules:\n  default:\n    slices:\n    - sources:\n"
    "      - {layer_range: [0, 20], model: a/b}\n    - sources:\n      - {layer_range: [10, 40], model: a/b}",
    "settings of other methods left in": stack(("a/b", 0, 16), ("a/b", 8, 24))
    + "\nparameters: {normalize: true, int8_mask: true, weight: 1.0}\ntokenizer_source: union",
    "base named as well": stack(("a/b", 0, 12), ("a/b", 6, 16)) + "\nbase_model: a/b\ntokenizer_source: base",
    "quoted path": stack(('"/content/drive/x-7B"', 0, 24), ('"/content/drive/x-7B"', 8, 32)),
}
SEVERAL = {  # the frankenmerges of cards and guides: several models
    f"two models, 0 to {end} and {start} to {depth} ({source})": stack(
        ("a/x", 0, end), ("b/y", start, depth), tail=tail
    )
    for end, start, depth, source, tail in [
        *(
            (24, 8, 32, source, "dtype: bfloat16")
            for source in ("card 1", "card 2", "card 3", "card 4", "card 5", "card 6", "card 7")
        ),
        *((24, 8, 32, source, "dtype: float16") for source in ("card 8", "tool that prints configurations")),
        *(
            (32, 24, 32, source, "dtype: bfloat16")
            for source in ("card 1", "card 2", "card 3", "guide 1", "guide 2", "guide 3", "survey")
        ),
        *(
            (16, 16, 32, source, "dtype: bfloat16")
            for source in ("guide 1", "guide 2", "guide 3", "guide 4", "guide 5", "notes", "reference")
        ),
        (16, 8, 32, "guide", "dtype: bfloat16"),
        (20, 12, 32, "card", ""),
        (24, 20, 40, "documentation of mergekit", "dtype: float16"),
        (24, 20, 40, "older documentation", "dtype: float16"),
    ]
} | {
    "four parts of two 13B models": stack(
        ("o", 0, 13), ("m/y", 3, 22), ("o", 14, 27), ("m/y", 23, 40), tail="dtype: float16"
    ),
    "four parts, a 20B of two": stack(("o", 0, 16), ("p", 8, 24), ("o", 17, 32), ("p", 25, 40), tail="dtype: float16"),
    "three models in a row": stack(("x", 0, 8), ("y", 8, 24), ("z", 24, 32)),
    "three models, overlapping": stack(("x", 0, 12), ("y", 10, 24), ("z", 20, 32), tail="dtype: float16"),
    "two models, three parts": stack(("x", 0, 16), ("y", 8, 24), ("x", 16, 32), style="range first"),
    "seven parts, a card of roles": stack(
        ("p", 0, 5), ("s", 5, 14), ("k", 14, 22), ("r", 22, 29), ("w", 29, 35), ("m", 35, 39), ("s", 39, 40)
    ),
    "single layers of five models (layershuffle)": stack(
        ("a", 0, 1), ("b", 1, 4), ("c", 4, 5), ("d", 5, 6), ("e", 6, 7), ("c", 7, 8)
    ),
    "two sources in one slice, 12 and 20 layers": "merge_method: passthrough\nslices:\n  - sources:\n      - model: x\n"
    "        layer_range: [0, 12]\n      - model: y\n        layer_range: [12, 32]",
    "two sources in one slice, 16 layers each": "slices:\n  - sources:\n      - model: x\n        layer_range: [0, 16]\n"
    "      - model: y\n        layer_range: [16, 32]\nmerge_method: passthrough",
    "three sources in one slice of one model": "slices:\n- sources:\n  - {model: x, layer_range: [0, 1]}\n"
    "  - {model: x, layer_range: [0, 2]}\n  - {model: x, layer_range: [1, 2]}\nmerge_method: passthrough",
    "ranges in words": "merge_method: passthrough\nslices:\n  - layer_range: [0, 20] from x\n  - layer_range: [10, 30] from x",
}


def planned(text: str, classes: Any) -> tuple[list[int], set[str]] | str:
    """Return the layers and models that mergekit plans, or why it refuses the merge."""
    try:
        config = classes.MergeConfiguration.model_validate(yaml.safe_load(text))
    except Exception as error:  # pydantic's, PyYAML's and mergekit's own
        return type(error).__name__
    module = next(iter(config.modules.values())) if config.modules else config
    slices = module.slices
    if not slices:
        if len(module.models) != 1:
            return "more than one input"
        return list(range(DEPTH)), {str(module.models[0].model)}
    if any(len(part.sources) != 1 for part in slices):  # the passthrough method's InputContract
        return "more than one input"
    layers = [layer for part in slices for layer in range(*part.sources[0].layer_range)]
    return layers, {str(part.sources[0].model) for part in slices}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.path.append(sys.argv[1])
    from mergekit import config as classes

    wrong = 0
    print("| merge | mergekit 0.1.5 | David | |\n|---|---|---|---|")
    for name, text in (ONE_MODEL | SEVERAL).items():
        plan = planned(text, classes)
        try:
            found = list(read(text, "mergekit", n_layers=DEPTH).repeat_map)
            said = f"{len(found)} visits"
        except RecipeError as error:
            found, said = [], f"refused: {str(error)[:90]}"
        theirs = (
            plan
            if isinstance(plan, str)
            else f"{len(plan[0])} layers of {len(plan[1])} model{'s' * (len(plan[1]) > 1)}"
        )
        right = found == plan[0] if not isinstance(plan, str) and len(plan[1]) == 1 else not found
        wrong += not right
        print(f"| {name} | {theirs} | {said.replace('|', '/')} | {'' if right else 'WRONG'} |")
    print(f"\n{len(ONE_MODEL | SEVERAL)} merges, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

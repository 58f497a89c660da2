"""A model that is offloaded to disk: how often are its layers loaded, and how long does a scan of blocks take?"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import disk_offload
from printed import table, write
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, Recipe, load_model, perplexity
from david.engine.engine import Engine
from david.engine.prefix_tree import PrefixTree
from david.models.offload import loaded_weights
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth, base_layers, slung

WINDOW = 128


def counting(model: Any) -> Counter[int]:
    """How often each layer's weights are read from disk, from now on."""
    loads: Counter[int] = Counter()

    def count(layer: int, hook: Any) -> None:
        load = hook.pre_forward

        def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
            loads[layer] += hook.offload
            return load(module, *args, **kwargs)

        hook.pre_forward = counted

    for layer, module in enumerate(base_layers(model)):
        count(layer, module.self_attn.q_proj._hf_hook)  # one of a layer's modules, all of which are read together
    return loads


def loading(modules: Iterable[nn.Module]) -> float:
    """Seconds that reading some modules' weights takes."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with loaded_weights(modules := list(modules)):
            times.append(time.perf_counter() - start)
    return median(times)


def scan(model: Any, corpus: Corpus, recipes: list[Recipe]) -> dict[str, str]:
    """A scan both ways, with all windows at once, beside what a load, a visit and an end would have it take."""
    engine, layers = Engine(model, corpus), base_layers(model)
    engine.outcomes([Recipe.identity(engine.n_layers)])
    meter, inside = engine.meter, {part for layer in layers for part in layer.modules()}
    visit, end = meter.visit_seconds / meter.visits, meter.end_seconds / meter.ends
    load = median(loading(layer.modules()) for layer in layers)
    load_end = loading(part for part in model.modules() if part not in inside)

    loads = counting(model)
    start = time.perf_counter()
    scores = engine.outcomes(recipes)
    ours = time.perf_counter() - start
    each = set(loads.values())
    loads.clear()
    start = time.perf_counter()
    for recipe, score in zip(tqdm(recipes, desc=f"{len(corpus)} windows", unit="recipe"), scores, strict=True):
        with slung(model, recipe):
            plain = perplexity(model, corpus, batch=len(corpus))
        assert abs(score.nll / plain.nll - 1) < 1e-5, f"{recipe}: the two ways do not tell the same"
    theirs = time.perf_counter() - start

    cost = PrefixTree.of(recipes, engine.n_layers).cost
    assert each == {cost.sweeps}, "a layer was loaded more often than the tree says"
    one_by_one = cost.visits_one_by_one * (load + visit) + cost.recipes * (load_end + end)
    streamed = cost.sweeps * (engine.n_layers * load + load_end) + cost.visits * visit + cost.ends * end
    return {
        "windows": f"{len(corpus)}",
        "recipes": f"{len(recipes)}",
        "loads of a layer": " or ".join(map(str, sorted(each))),
        "plain loop": f"{sum(loads.values()) / engine.n_layers:.0f}",
        "load, visit, ms": f"{1000 * load:.1f}, {1000 * visit:.1f}",
        "engine, s": f"{ours:.1f}",
        "plain loop, s": f"{theirs:.1f}",
        "ratio": f"{theirs / ours:.2f}",
        "predicted": f"{one_by_one / streamed:.2f}",
        "without offload": f"{cost.ratio(end / visit):.2f}",
    }


def main() -> None:
    """One scan of many blocks, and some of fewer on more windows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-length", type=int, default=8, help="of a block (default: %(default)s)")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[1, 1, 2, 4, 8, 16], help="of 128 tokens (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="a folder for streamed.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW)
    recipes = all_blocks(base_depth(model), given.max_length)
    with tempfile.TemporaryDirectory() as folder:
        disk_offload(model, folder, execution_device="cpu")
        rows = [scan(model, corpus.take(n), recipes[:: 4 if i else 1]) for i, n in enumerate(given.windows)]
    write(table(rows), given.out, "streamed.md")


if __name__ == "__main__":
    main()

"""Tokens per second of a slung model beside the same layers really stacked, decoding greedily with a cache."""

import argparse
import copy
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from david import David, Recipe, load_model
from david.sling.in_place import base_layers
from david.sling.stacked_copy import stacked

sys.path.insert(0, str(Path(__file__).parents[1] / "memory"))
from memory import cache_bytes, goliath, megabytes, weight_bytes

PROMPT = "The history of Paris begins"
RECIPES = {
    "Goliath's shape": goliath(30),
    "skips": Recipe.parse("0:5, 8:20, 21:30"),
    "twice the depth": Recipe.parse("0:30, 0:30"),
}
ORDERS = (("base", "slung", "stacked"), ("base", "stacked", "slung"))  # in turn: neither side always goes first
MARGIN = 1.25  # over the seconds asked for: the machine may be busy while the number of tokens is found


def decode(model: Any, prompt: torch.Tensor, n_new: int) -> tuple[torch.Tensor, float]:
    """The prompt and `n_new` greedy tokens, [1, T], and the seconds that they took."""
    options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    start = time.perf_counter()
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n_new, **options)
    return tokens, time.perf_counter() - start


def length(model: Any, prompt: torch.Tensor, seconds: float) -> int:
    """How many new tokens take a model that long when nothing else runs."""
    fastest = min(decode(model, prompt, 8)[1] for _ in range(4))
    return max(8, round(8 * MARGIN * seconds / fastest))


def one_round(models: dict[str, Any], recipe: Recipe, prompt: torch.Tensor, n_new: int, order: Any) -> dict[str, float]:
    """The seconds of each model, in this order; slung and stacked must generate the same."""
    tokens, took = {}, {}
    for kind in order:
        if kind == "slung":
            with David.slung(models["base"], recipe) as model:
                tokens[kind], took[kind] = decode(model, prompt, n_new)
        else:
            tokens[kind], took[kind] = decode(models[kind], prompt, n_new)
    assert tokens["slung"].shape[1] == prompt.shape[1] + n_new
    assert torch.equal(tokens["slung"], tokens["stacked"])
    return took


def measure(model: Any, recipe: Recipe, prompt: torch.Tensor, seconds: float, n_rounds: int) -> dict[str, str]:
    """What the table says of a recipe."""
    models = {"base": model, "stacked": stacked(model, recipe)}
    n_new = length(models["stacked"], prompt, seconds)
    context = prompt.shape[1] + n_new - 1  # the last token is not read
    caches, weights = {}, {"stacked": weight_bytes(models["stacked"])}
    with David.slung(model, recipe):
        weights["slung"] = weight_bytes(nn.ModuleList([model, base_layers(model)]))  # those left out are held too
        caches["slung"] = cache_bytes(model, context)
    caches["stacked"] = cache_bytes(models["stacked"], context)
    rounds = [one_round(models, recipe, prompt, n_new, ORDERS[number % 2]) for number in range(n_rounds)]
    fastest = {kind: min(took[kind] for took in rounds) for kind in ORDERS[0]}
    ratios = [took["stacked"] / took["slung"] for took in rounds]  # of speeds
    return {
        "recipe": f"`{recipe}`",
        "visits": f"{len(recipe)}",
        **{f"{kind}, tokens/s": f"{n_new / median(took[kind] for took in rounds):.2f}" for kind in ORDERS[0]},
        "slung / stacked, median": f"{median(ratios):.3f}",
        "slung / stacked, lowest to highest": f"{min(ratios):.3f} to {max(ratios):.3f}",
        "slung / stacked, each at its fastest": f"{fastest['stacked'] / fastest['slung']:.3f}",
        "new tokens a timing": f"{n_new}",
        "shortest timing of the two": f"{min(fastest['slung'], fastest['stacked']):.1f} s",
        **{f"weights held, {kind}": megabytes(weights[kind]) for kind in ORDERS[0][1:]},
        **{f"KV cache at the end, {kind}": megabytes(caches[kind]) for kind in ORDERS[0][1:]},
    }


def table(found: dict[str, dict[str, str]]) -> str:
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    heads = next(iter(found.values()))
    return "\n".join(lines + [f"| {head} | " + " | ".join(f[head] for f in found.values()) + " |" for head in heads])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="timings of each pair (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="length of a timing (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of 8 tokens, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what is printed there as well")
    arguments = parser.parse_args()
    seconds, n_rounds = (0, 2) if arguments.quick else (arguments.seconds, arguments.rounds)
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", device="cpu")
    model = copy.deepcopy(
        model
    )  # out of the mapped file: pages of memory are faster, and the stacked copy lies in such
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids  # [1, T]
    found = {name: measure(model, recipe, prompt, seconds, n_rounds) for name, recipe in RECIPES.items()}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    versions = f"torch {version('torch').partition('+')[0]}, transformers {version('transformers')}"
    text = f"Demo model, {model.dtype}; {n_rounds} rounds; {machine}; {versions}.\n\n{table(found)}\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

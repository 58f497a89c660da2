"""What a Goliath-shaped recipe costs in memory: the base, the base slung, and the same layers really stacked.

Each of the three is measured in a process of its own, after the same forward pass. Torch is imported there alone: a
process begins with the peak of the one that started it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from typing import Any

from david import Recipe

CONTEXT = 512  # tokens of the forward pass
SLINGS = 1000
KINDS = ("base", "slung", "stacked")


def goliath(n_layers: int) -> Recipe:
    """Three overlapping windows over the whole depth, 1.7 times as deep together: Goliath-120b's way."""
    width = round(1.7 * n_layers / 3)
    middle = -(-(n_layers - width) // 2)
    starts = (0, middle, n_layers - width)
    return Recipe([layer for start in starts for layer in range(start, start + width)])


def weight_bytes(module: Any) -> int:
    """Bytes of a module's parameters, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
    return sum(storages.values())


def cache_bytes(model: Any, n_tokens: int) -> int:
    """Bytes of the keys and values that a forward pass over a context of `n_tokens` leaves in its cache."""
    import torch

    from david.sling.forward import CACHE

    tokens = torch.arange(n_tokens).unsqueeze(0) % model.config.vocab_size  # [1, T]
    with torch.inference_mode():
        cache = model(tokens, use_cache=True, logits_to_keep=1)[CACHE]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def measure(kind: str, source: str) -> dict[str, Any]:
    """Load, sling if asked, run, and count; `source` of `stacked` is the folder that `save_stacked` wrote."""
    import psutil
    import torch
    from transformers.utils import logging

    from david import David, load_model

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    bare = peak()
    model, _ = load_model(source, dtype="float32", device="cpu")
    layers = model.get_decoder().layers
    recipe = goliath(len(layers))
    if kind == "slung":
        David.sling(model, recipe)
        layers = model.get_decoder().layers
    found = {
        "visits": len(layers),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "layer_bytes": weight_bytes(layers),
        "cache_bytes": cache_bytes(model, CONTEXT),
        "bare": bare,
        "peak": peak(),
    }
    if kind == "slung":
        rss = psutil.Process().memory_info
        before = rss().rss
        for _ in range(SLINGS):
            David.sling(model, recipe)
        found |= {"recipe": str(recipe), "rss_before": before, "rss_after": rss().rss}
    return found


def save_stacked(source: str, folder: str) -> None:
    from david import load_model
    from david.sling.stacked_copy import stacked

    model, tokenizer = load_model(source, dtype="float32", device="cpu")
    stacked(model, goliath(model.config.num_hidden_layers)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak() -> int:
    """The most memory this process has held so far, in bytes (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_its_own_process(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = {
        "visits": [f"{found[kind]['visits']}" for kind in KINDS],
        "parameters": [f"{found[kind]['parameters']:,}" for kind in KINDS],
    }
    names = {
        "weight_bytes": "weights",
        "layer_bytes": "of these, decoder layers",
        "cache_bytes": f"KV cache, {CONTEXT} tokens",
        "peak": "peak memory of the process",
        "bare": "of this, before the model was loaded",
    }
    for key, name in names.items():
        rows[name] = [megabytes(found[kind][key]) for kind in KINDS]
    for key in ("weight_bytes", "layer_bytes"):
        share = [f"{found[kind][key] / found['stacked'][key]:.1%}" for kind in KINDS]
        rows[f"{names[key].removeprefix('of these, ')}, beside stacked"] = share
    lines = ["| | " + " | ".join(KINDS) + " |", "|---|" + "---:|" * len(KINDS)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="what load_model takes (default: %(default)s)")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--save-stacked", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.model)))
        return
    if arguments.save_stacked:
        save_stacked(arguments.model, arguments.save_stacked)
        return
    with tempfile.TemporaryDirectory() as folder:
        in_its_own_process("--model", arguments.model, "--save-stacked", folder)
        sources = {"base": arguments.model, "slung": arguments.model, "stacked": folder}
        found = {kind: json.loads(in_its_own_process("--model", sources[kind], "--measure", kind)) for kind in KINDS}
    slung = found["slung"]
    print(f"Model {arguments.model}, float32; recipe `{slung['recipe']}`; ", end="")
    print(f"torch {version('torch').partition('+')[0]}, transformers {version('transformers')}.\n")
    print(table(found))
    print(f"\n{SLINGS:,} slings in a row: {megabytes(slung['rss_before'])} resident before, ", end="")
    print(f"{megabytes(slung['rss_after'])} after.")


if __name__ == "__main__":
    main()

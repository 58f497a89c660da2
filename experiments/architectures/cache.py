"""What `explain` says a cache takes, against the bytes of real caches, for every causal-LM type.

    python experiments/architectures/cache.py [--jobs 2] [--out FOLDER] [NAME ...]

A row for each type: bytes said and bytes measured after 1, 64 and 300 tokens, on the base and on a recipe that repeats
two layers. With --out the table as cache.csv.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sweep
import torch
import transformers
from torch import Tensor, nn

from david import David, Recipe
from david.errors import SlingError
from david.models.describe import token_costs
from david.sling import architectures, locate

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from tests import tiny_models
from tests.tiny_models import NOT_BUILT, TYPES, VARIANTS, tiny_named

LENGTHS = (1, 64, 300)
POSITIONS = 512  # some types have learned positions, which must reach further than the longest text
OTHER_OUTPUTS = ("loss", "logits", "logits_ngram", "hidden_states", "last_hidden_state", "attentions", "router_logits")


@dataclass
class Row:
    """A line of the table; `verdict` is equal, or in words what is not; sizes are in bytes, one for each length."""

    name: str
    verdict: str
    said: str = ""
    measured: str = ""
    said_slung: str = ""
    measured_slung: str = ""


def cache_bytes(model: Any, n_tokens: int) -> int:
    """Bytes of all tensors that a forward pass on real values leaves behind: in its output, or in its modules."""
    tokens = torch.arange(n_tokens)[None] % 60 + 3
    before = {id(tensor) for tensor in module_tensors(model)}
    with torch.no_grad():
        out = model(tokens, use_cache=True)
    left = [value for name, value in out.items() if name not in OTHER_OUTPUTS]
    left += [tensor for tensor in module_tensors(model) if id(tensor) not in before]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(left, set()))


def module_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold in plain attributes: states that are kept outside a cache."""
    for module in model.modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield from tensors(value, set())


def tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor inside a value, once; single numbers (lengths) are left out."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part, seen)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | transformers.PreTrainedConfig | type):
        yield from tensors(vars(value), seen)


def run(name: str) -> Row:
    """One row of the table."""
    if name in NOT_BUILT:
        return Row(name, "not built")
    with patch.dict(tiny_models.COMMON, {"max_position_embeddings": POSITIONS}):
        model = tiny_named(name)
    setattr(model, architectures.PROVED_HERE, True)
    try:
        depth = len(locate.find(model).layers)
    except SlingError:
        return Row(name, "refused by the sling")
    recipe = Recipe([*range(4), 2, 3, *range(4, depth)])
    costs = token_costs(model)
    said = [costs.cache_bytes(range(depth), length) for length in LENGTHS]
    said_slung = [costs.cache_bytes(recipe.repeat_map, length) for length in LENGTHS]
    measured = [cache_bytes(model, length) for length in LENGTHS]
    try:
        with David.slung(model, recipe):
            measured_slung = [cache_bytes(model, length) for length in LENGTHS]
    except SlingError:  # this map is refused
        said_slung = measured_slung = []
    wrong = [f"base, {n} tokens" for n, one, other in zip(LENGTHS, said, measured, strict=True) if one != other]
    slung = zip(LENGTHS, said_slung, measured_slung, strict=bool(said_slung)) if said_slung else ()
    wrong += [f"slung, {n} tokens" for n, one, other in slung if one != other]
    texts = [" ".join(map(str, sizes)) for sizes in (said, measured, said_slung, measured_slung)]
    return Row(name, f"NOT EQUAL: {'; '.join(wrong)}" if wrong else "equal", *texts)


def attempt(name: str) -> Row:
    """`run`, with what stops it in the row."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(name)
    except Exception as error:
        return Row(name, f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="types and variants; left out, all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for cache.csv")
    options = parser.parse_args()
    rows = []
    for row in sweep.swept(options.names or [*TYPES, *VARIANTS], options.jobs, attempt):
        rows.append(row)
        print(f"{row.name:<26} {row.verdict:<40} {row.said:<24} {row.measured}", flush=True)
    counts = Counter(row.verdict.split(":")[0] for row in rows)
    print(f"\n{len(rows)} rows: {', '.join(f'{verdict} {count}' for verdict, count in sorted(counts.items()))}")
    if options.out:
        sweep.write_rows(options.out / "cache.csv", rows)


if __name__ == "__main__":
    main()

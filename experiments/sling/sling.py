"""How long a sling takes on a model that is slung already, and a reset, and what tensors they make: none."""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from david import David, load_model
from david.sling.in_place import base_depth

VISITS = (30, 60, 120)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do: each new tensor, a view of another included, is such an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def milliseconds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    start = time.perf_counter()
    call(*args, **kwargs)
    return 1000 * (time.perf_counter() - start)


def storages(model: Any) -> Iterator[int]:
    """Where the bytes of a model's weights and buffers begin."""
    return (tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers()))


def spread(timings: list[float]) -> str:
    tenths = quantiles(timings, n=10)
    return f"{median(timings):.1f} ({tenths[0]:.1f} to {tenths[-1]:.1f})"


def measure(model: Any, visits: int, rounds: int) -> dict[str, str]:
    """What the table says of a map that walks the base's layers again and again."""
    repeat_map = [visit % base_depth(model) for visit in range(visits)]
    its_own = set(storages(David.reset(model)))
    David.sling(model, repeat_map_raw=repeat_map)
    slings = [milliseconds(David.sling, model, repeat_map_raw=repeat_map) for _ in range(rounds)]
    resets = []
    for _ in range(rounds):
        resets.append(milliseconds(David.reset, model))
        David.sling(model, repeat_map_raw=repeat_map)
    with Operations() as operations:
        David.sling(model, repeat_map_raw=repeat_map)
    return {
        "visits": f"{visits}",
        "sling, ms": spread(slings),
        "reset, ms": spread(resets),
        "operations of torch": f"{operations.count}",
        "storages that are not the base's": f"{len(set(storages(model)) - its_own)}",
    }


def table(rows: list[dict[str, str]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---:"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="timings of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write what is printed to results.md there as well")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    model, _ = load_model("demo", device="cpu")
    rows = [measure(model, visits, arguments.rounds) for visits in VISITS]
    versions = f"torch {version('torch').partition('+')[0]}, transformers {version('transformers')}"
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    text = f"Demo model, {model.dtype}; {arguments.rounds} rounds; {machine}; {versions}.\n\n{table(rows)}\n"
    print(text, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "results.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Every causal-LM type of the installed transformers, slung, against a deep copy with its layers really stacked.

    python experiments/architectures/sweep.py [--jobs 2] [--out FOLDER] [NAME ...]

Prints a line for each row as it is done, and at the end what the table comes to; with --out the table as results.csv.
"""

import argparse
import csv
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from david import David, Recipe
from david.errors import SlingError
from david.sling import architectures, locate
from david.sling.stacked_copy import stacked
from david.sling.verify import full_logits, layer_by_layer, stepwise_logits

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from tests.tiny_models import NOT_BUILT, TYPES, VARIANTS, VOCABULARY, tiny_named, tiny_options

PREFIX = 9  # tokens read at once before the steps of a cached run: one more than a tiny model's window
TEXT = torch.arange(16)[None] * 5 % (VOCABULARY - 6) + 3  # [1, T], none of them special
PAD = 4
PADDED = torch.cat([TEXT[:, :PAD] + 1, TEXT.roll(3, 1)], 1), torch.cat([torch.zeros(1, PAD, dtype=torch.long), TEXT], 1)
BATCH = torch.cat(PADDED)  # [2, PAD + T]: another text, and the text with padding on its left
ROUNDING = 1e-5  # of the logits' spread: what the order of a sum may change
TIDY = 3e-4  # how far apart a base's modes may be for its slings' to be held against each other
VISIBLE = 1e-2  # what a wrong layer, or a wrong place in the cache, changes at least

Mode = Callable[[Any], Tensor]


@dataclass
class Row:
    """A line of the table. `verdict`: exact, refused, base fails, not built, or WRONG, which must not be."""

    name: str
    verdict: str
    reason: str = ""
    text_type: str = ""  # what the text part of the configuration calls itself
    layers: int = 0
    compared: int = 0  # maps × modes that were compared with the stacked copy
    difference: float = 0.0  # the largest of them, in spreads of the logits; 0 is bit-equal
    replayed: str = ""  # whether calling the base's layers one by one gives the same, without a cache
    swap: float = 0.0  # what swapping two neighbouring layers changes at least
    base: str = ""  # what the base itself does not do


def maps(n_layers: int) -> dict[str, Recipe]:
    """What each row is tried on."""
    last, half = n_layers - 1, n_layers // 2
    return {
        "repeats": Recipe([*range(half + 1), *range(half - 1, n_layers)]),
        "skips": Recipe([0, 1, *range(3, n_layers - 2), last]),
        "starts late": Recipe(range(2, n_layers)),
        "reversal": Recipe(range(last, -1, -1)),
        "double depth": Recipe([layer for layer in range(n_layers) for _ in range(2)]),
        "twice over": Recipe([*range(n_layers), *range(n_layers)]),
        "scales": Recipe([*range(n_layers), last], [0.5, *[1] * (n_layers - 3), -0.3, 0, 1.5]),
    }


def modes_of(name: str) -> dict[str, Mode]:
    """The ways in which each row is run."""
    options = tiny_options(name)
    many = {key: value.expand(len(BATCH), *value.shape[1:]) for key, value in options.items()}
    modes: dict[str, Mode] = {
        "uncached": lambda model: full_logits(model, TEXT, **options),
        "cached": lambda model: stepwise_logits(model, TEXT, PREFIX, **options),
        "padded": lambda model: stepwise_logits(model, BATCH, PAD + PREFIX, (BATCH != 0).long(), **many),
    }
    if options:
        modes["text alone"] = lambda model: full_logits(model, TEXT)
    return modes


def run(name: str) -> Row:
    """One row of the table."""
    if name in NOT_BUILT:
        return Row(name, "not built", NOT_BUILT[name])
    model, modes = tiny_named(name), modes_of(name)
    setattr(model, architectures.PROVED_HERE, True)
    row = Row(name, "exact", text_type=model.config.get_text_config(decoder=True).model_type)
    base = {mode: reading(model, read) for mode, read in modes.items()}
    return judge(row, model, modes, base)


def judge(row: Row, model: Any, modes: dict[str, Mode], base: dict[str, Tensor | str]) -> Row:
    """The row filled in: each map slung, and held against the stacked copy, the base, and itself."""
    row.base = "; ".join(f"{mode}: {value}" for mode, value in base.items() if isinstance(value, str))
    if isinstance(base["uncached"], str):
        row.verdict, row.reason = "base fails", base["uncached"]
        return row
    try:
        home = locate.find(model).layers
    except SlingError as error:
        row.verdict, row.reason = "refused", str(error)
        return row
    row.layers = len(home)
    own = disagreement(base)
    untidy = [f"{what} differ ({difference:.0e})" for what, difference in own.items() if difference > TIDY]
    row.base = "; ".join(filter(None, [row.base, *untidy]))
    row.swap = smallest_swap(model, modes["uncached"], base["uncached"])
    wrong, refused, replays = [], [], []
    if row.swap < VISIBLE:
        wrong.append(f"two of its layers can be swapped unseen ({row.swap:.1e})")
    for title, recipe in maps(len(home)).items():
        try:
            with David.slung(model, recipe):
                slung = {mode: reading(model, modes[mode]) for mode, value in base.items() if isinstance(value, Tensor)}
        except SlingError as error:
            refused.append(f"refused {title}: {error}")
        else:
            wrong += compare(row, title, slung, model, recipe, modes, own)
            replay = reading(model, partial(layer_by_layer, recipe=recipe, tokens=TEXT, **tiny_options(row.name)))
            replays.append(same(replay, slung["uncached"]))
        if any(not same(reading(model, read), base[mode], 0) for mode, read in modes.items()):
            wrong.append(f"{title}: the base is not what it was")
    row.replayed = f"{sum(replays)} of {len(replays)}"
    if not all(replays) and not locate.is_coupled(model):
        wrong.append(f"calling the layers one by one is the same in {row.replayed} maps")
    row.reason += "; ".join(refused)
    if wrong or not replays:
        row.verdict, row.reason = ("WRONG", "; ".join(wrong)) if wrong else ("refused", row.reason)
    return row


def compare(
    row: Row,
    title: str,
    slung: dict[str, Any],
    model: Any,
    recipe: Recipe,
    modes: dict[str, Mode],
    own: dict[str, float],
) -> list[str]:
    """What is wrong with a sling: where it is not the stacked copy, or contradicts itself where the base does not."""
    copied = stacked(model, recipe)
    wrong = []
    for mode, value in slung.items():
        other = reading(copied, modes[mode])
        if isinstance(value, str) and isinstance(other, str):
            row.reason += f"{title} {mode} does not run stacked either ({other}); "  # nothing silent
            continue
        row.compared += 1
        if not same(value, other):
            wrong.append(f"{title} {mode}: {value if isinstance(value, str) else far(value, other)}")
        elif isinstance(value, Tensor):
            row.difference = max(row.difference, far(value, other))
    beside = reading(David.view(model, recipe), modes["uncached"])
    if not same(beside, slung["uncached"], 0):
        wrong.append(f"{title}: a view is not the sling")
    for what, difference in disagreement(slung).items():
        if own[what] < TIDY and difference > VISIBLE:
            wrong.append(f"{title}: {what} differ ({difference:.1e})")
    return wrong


def disagreement(of: dict[str, Any]) -> dict[str, float]:
    """How far a model's own modes are from each other: cached from uncached, padded from unpadded."""
    told = {}
    if isinstance(of["uncached"], Tensor) and isinstance(of.get("cached"), Tensor):
        told["cached and uncached"] = far(of["cached"], of["uncached"][:, PREFIX - 1 : -1])
    if isinstance(of.get("cached"), Tensor) and isinstance(of.get("padded"), Tensor):
        told["padded and unpadded"] = far(of["padded"][1:], of["cached"])
    return told


def smallest_swap(model: Any, mode: Mode, base: Tensor) -> float:
    """The least that swapping two neighbouring layers changes in the logits."""
    depth = len(locate.find(model).layers)
    changes = []
    for layer in range(depth - 1):
        order = [*range(layer), layer + 1, layer, *range(layer + 2, depth)]
        swapped = reading(stacked(model, Recipe(order)), mode)
        if isinstance(swapped, Tensor):  # a layer before the one it shares with does not run
            changes.append(far(swapped, base))
    return min(changes)


def reading(model: Any, mode: Mode) -> Tensor | str:
    """What a mode gives, or why it gives nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            out = mode(model)
    except Exception as error:  # any kind: the code of any model
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return out if bool(torch.isfinite(out).all()) else "logits that are not finite"


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, in standard deviations of the logits."""
    return float((one - other).abs().max() / other.std())


def same(one: Tensor | str, other: Tensor | str, allowed: float = ROUNDING) -> bool:
    """Whether two readings are one: equal tensors but for rounding, or the same failure."""
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and one == other
    return torch.equal(one, other) or far(one, other) <= allowed


def attempt(name: str) -> Row:
    """`run`, with what stops it told in the row."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        return run(name)
    except Exception as error:
        return Row(name, "WRONG", f"{type(error).__name__}: {error}")


def swept(names: Iterable[str], jobs: int, row_of: Callable[[str], Any] = attempt) -> Iterator[Any]:
    """The rows of these names, made in `jobs` processes."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(row_of, names)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses as CSV; differences with two digits."""
    digits = {"difference": ".1e", "swap": ".2g"}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")
        table.writeheader()
        for row in rows:
            values = asdict(row)
            table.writerow(values | {name: format(values[name], digits[name]) for name in digits & values.keys()})


def summary(rows: Iterable[Row]) -> str:
    """What the types (not the variants) come to."""
    rows = [row for row in rows if row.name in TYPES]
    verdicts = Counter(row.verdict for row in rows)
    running = verdicts["exact"] + verdicts["refused"] + verdicts["WRONG"]
    exact = [row for row in rows if row.verdict == "exact"]
    every = sum(row.compared >= len(maps(6)) * 3 - 3 * row.reason.count("refused") for row in exact)
    told = ", ".join(f"{verdict} {verdicts[verdict]}" for verdict in sorted(verdicts))
    return (
        f"{len(rows)} types: {told}\n"
        f"exact of those that run by themselves: {verdicts['exact'] / max(1, running):.1%}\n"
        f"exact in every mode, uncached, cached and padded: {every}; of the others transformers runs only some modes\n"
        f"exact and equal to the bit throughout: {sum(row.difference == 0 for row in exact)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="types and variants; left out, all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for results.csv")
    options = parser.parse_args()
    names = options.names or [*TYPES, *VARIANTS]
    start = time.monotonic()
    rows = []
    for row in swept(names, options.jobs):
        rows.append(row)
        print(f"{row.name:<26} {row.verdict:<10} {row.difference:.0e}  {row.reason[:160]}", flush=True)
    print(f"\n{summary(rows)}\n{time.monotonic() - start:.0f} s")
    if options.out:
        write_rows(options.out / "results.csv", rows)
    sys.exit(any(row.verdict == "WRONG" for row in rows))


if __name__ == "__main__":
    main()

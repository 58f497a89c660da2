"""Which maps of every causal-LM type an ordinary checkpoint can hold: each is written and read back, or refused.

    python experiments/architectures/exports.py [--maps 40] [--jobs 2] [--out FOLDER] [NAME ...]

Every type of `sweep.py` gets random maps. A checkpoint that is written is read by plain transformers, and its logits
must equal those of the stacked copy, bit for bit. A refusal says that no configuration of the type builds what the
recipe runs. The second check looks for one: it begins with the stacked copy's configuration and tries each number that
speaks of layers, and each pair of a period and its offset, at every value; what brings the modules nearest to those of
the stacked copy is kept, and the search goes on. If it ends at the same modules, and the logits with the stacked copy's
weights are the same too, the refusal was untrue. Prints a line for each type; with --out the table.
"""

import argparse
import copy
import csv
import multiprocessing
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM

from david import Recipe
from david.checkpoint import export_stacked
from david.errors import SlingError
from david.sling import locate
from david.sling.stacked_copy import stacked

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from tests.tiny_models import NOT_BUILT, TYPES, VARIANTS, VOCABULARY, tiny_named, tiny_options

TEXT = torch.arange(14)[None] * 5 % (VOCABULARY - 6) + 3  # [1, T]
LONGEST = 9  # visits of a random map
OF_LAYERS = re.compile(r"layer|period|offset|dense|interval|step|index|every|freq|pattern")  # settings that are tried
PAIRS = (("period", "offset"), ("start", "end"))  # parts of two names that are tried together
Shape = frozenset[tuple[str, str, tuple[Any, ...]]]


@dataclass
class Row:
    """A line of the table: of so many maps, how many were written and equal, refused, or neither, which must not be."""

    name: str
    maps: int = 0
    equal: int = 0
    refused: int = 0
    checked: int = 0  # refused maps that got the second check
    untrue: int = 0  # those for which it found a configuration
    wrong: str = ""
    reason: str = ""  # the most frequent one


def random_maps(name: str, n_layers: int, how_many: int) -> Iterator[Recipe]:
    """Maps of a type: repeated blocks, skips, runs from anywhere, and single layers in any order."""
    numbers = random.Random(name)
    for number in range(how_many):
        kind = number % 4
        start, stop = sorted(numbers.sample(range(n_layers + 1), 2))
        if kind == 0:
            order = [*range(stop), *range(start, n_layers)]
        elif kind == 1:
            order = sorted(numbers.sample(range(n_layers), numbers.randrange(1, n_layers)))
        elif kind == 2:
            order = []
            while len(order) < 4:
                start, stop = sorted(numbers.sample(range(n_layers + 1), 2))
                order += range(start, stop)
        else:
            order = [numbers.randrange(n_layers) for _ in range(numbers.randrange(1, LONGEST))]
        yield Recipe(order[:LONGEST])


def logits(model: Any, name: str) -> torch.Tensor:
    """Return the logits of the text, from weights that lie evenly in memory: kernels sum in an order of the place."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    torch.manual_seed(0)
    with torch.no_grad():
        output: torch.Tensor = model(TEXT, use_cache=False, **tiny_options(name)).logits
    return output


def run(name: str, how_many: int, most_checked: int) -> Row:
    """Try the maps of one type."""
    model, row, reasons = tiny_named(name), Row(name), Counter[str]()
    export_stacked.write_card_files, loader = WRITE_CARD, None
    try:
        n_layers = len(locate.find(model).layers)
    except SlingError as error:
        return Row(name, reason=str(error))
    for recipe in random_maps(name, n_layers, how_many):
        row.maps += 1
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "stacked"
            try:
                export_stacked.export(model, recipe, folder)
            except SlingError as error:
                row.refused += 1
                reasons[
                    re.sub(r"^visit \d+|layer \d+|(?<== )\[.*?\]", "…", str(error).split(". The recipe itself")[0])
                ] += 1
                if "cannot say" in str(error) and row.checked < most_checked:
                    row.checked += 1
                    if found := configuration_of(model, recipe, name):
                        row.untrue += 1
                        row.wrong += f"{recipe}: {found}; "
                continue
            export_stacked.write_card_files = no_card
            if loader is None:  # the card says which class loads the type; the others have none
                automatic = "AutoModelForCausalLM" in (folder / "README.md").read_text()
                loader = AutoModelForCausalLM if automatic else type(model)
            again = loader.from_pretrained(folder).eval()
        if torch.equal(logits(again, name), logits(stacked(model, recipe), name)):
            row.equal += 1
        else:
            row.wrong += f"{recipe}: read back as another model; "
    row.reason = reasons.most_common(1)[0][0] if reasons else ""
    return row


def no_card(*_: Any) -> None:
    """Stand in for the model card and its picture, which take longer than the rest and are written once for a type."""


WRITE_CARD = export_stacked.write_card_files


def configuration_of(model: Any, recipe: Recipe, name: str) -> str:
    """Return settings with which transformers builds the stacked copy of a recipe, or an empty text if none is found.

    The stacked copy's configuration is where it begins: its depth and lists follow the map.
    """
    copied = stacked(model, recipe)
    wanted, top = shape(copied), len(recipe) + 1
    chosen = with_values(copied.config, {})
    best = wrong_modules(model, chosen, wanted)
    changed: dict[str, int] = {}
    while best:
        nearest = min(
            (
                (wrong_modules(model, with_values(chosen, values), wanted), number, values)
                for number, values in enumerate(tries(chosen, top))
            ),
            default=(best, 0, {}),
        )
        if nearest[0] >= best:
            return ""
        best, chosen, changed = nearest[0], with_values(chosen, nearest[2]), changed | nearest[2]
    built = type(model)._from_config(chosen).eval()
    built.load_state_dict(copied.state_dict())
    if not torch.equal(logits(built, name), logits(copied, name)):
        return ""
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "its lists alone"


def tries(config: Any, top: int) -> Iterator[dict[str, int]]:
    """Yield the changes of a configuration that are tried."""
    text = config.get_text_config(decoder=True)
    depth = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    names = [key for key, value in vars(text).items() if type(value) is int and OF_LAYERS.search(key) and key != depth]
    for name in names:
        yield from ({name: value} for value in range(top + 1))
        for part, other in PAIRS:
            partner = name.replace(part, other)
            if partner != name and partner in names:
                yield from ({name: one, partner: two} for one in range(top + 1) for two in range(top + 1))


def with_values(config: Any, values: dict[str, int]) -> Any:
    """Return a copy of a configuration with other numbers in its text part."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        setattr(config.get_text_config(decoder=True), key, value)
    return type(config).from_dict(config.to_dict())  # as it would be read from a file


def wrong_modules(model: Any, config: Any, wanted: Shape) -> float:
    """Return how many modules of the model that transformers builds differ from those wanted; infinity for an error."""
    try:
        with init_empty_weights(include_buffers=False):
            built = shape(type(model)._from_config(config))
    except Exception:  # a value that the type does not accept
        return float("inf")
    return len(built ^ wanted)


def shape(model: nn.Module) -> Shape:
    """Return name, class and shapes of the weights of each module."""
    return frozenset(
        (
            path,
            type(module).__name__,
            tuple(None if weight is None else tuple(weight.shape) for weight in module._parameters.values()),
        )
        for path, module in model.named_modules()
    )


def attempt(name: str, how_many: int, most_checked: int) -> Row:
    """Try one type; an error is a row too."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if name in NOT_BUILT:
        return Row(name, reason=f"not built: {NOT_BUILT[name]}")
    try:
        return run(name, how_many, most_checked)
    except Exception as error:
        return Row(name, wrong=f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="types and variants; left out, all")
    parser.add_argument("--maps", type=int, default=40, help="random maps for each")
    parser.add_argument("--checked", type=int, default=2, help="refused maps of each that get the second check")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for exports.csv")
    options = parser.parse_args()
    start, rows = time.monotonic(), []
    names = options.names or [*TYPES, *VARIANTS]
    with ExitStack() as stack:
        table = None
        if options.out:
            file = stack.enter_context((options.out / "exports.csv").open("w", newline="", encoding="utf-8"))
            table = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
            table.writeheader()
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(options.jobs))
        for row in pool.imap(partial(attempt, how_many=options.maps, most_checked=options.checked), names):
            rows.append(row)
            print(
                f"{row.name:<28} {row.equal} equal, {row.refused} refused, {row.untrue} untrue  {row.wrong[:200]}",
                flush=True,
            )
            if table is not None:
                table.writerow(asdict(row))
                file.flush()
    total = Counter(
        {field: sum(getattr(row, field) for row in rows) for field in ("maps", "equal", "refused", "checked", "untrue")}
    )
    print(f"\n{dict(total)}, wrong in {sum(bool(row.wrong) for row in rows)} types; {time.monotonic() - start:.0f} s")
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()

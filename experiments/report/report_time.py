"""Time `david report` on a large study, in this checkout and in another one, in turn.

The study is built by hand: no model, no torch. Each run is a process of its own; the two checkouts take turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import create_trial

from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
LAYERS = 80
WINDOWS = 12
HELD_OUT = 24
COMMAND = "import sys; from david.cli import main; sys.argv = ['david', *sys.argv[1:]]; main()"


def build_study(folder: Path, n_trials: int) -> None:
    """Write a study of so many trials, five of them judged on held-out windows, into a folder."""
    study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", study_name="david", direction="minimize")
    data = {"source": "words", "slice": None, "sha256": "ab", "documents": 6}
    base = {"model": "eighty", "revision": None, "architecture": "LlamaForCausalLM", "fingerprint": "sha256:0f"}
    about = {
        "base": base | {"num_layers": LAYERS},
        "dtype": "float32",
        "space": "Block(max_length=None, max_times=2, scales=None)",
        "space_name": "block",
        "objective": "perplexity",
        "also": [],
        "window": 128,
        "bos": False,
        "search_data": data | {"windows": f"0:{WINDOWS}"},
        "search_documents": [i // 2 for i in range(WINDOWS)],
        "held_out_data": data | {"windows": f"{WINDOWS}:{WINDOWS + HELD_OUT}"},
        "sampler": "TPESampler",
        "pruner": None,
        "seed": 0,
        "made_with": {"david": "0.1.0", "torch": "2.13", "transformers": "5.23"},
    }
    study.set_user_attr("david", about)
    numbers = np.random.default_rng(0)
    recipes = [Recipe.identity(LAYERS), *all_blocks(LAYERS)][:n_trials]
    nll = 3 + np.abs(numbers.normal(size=len(recipes))) * (np.arange(len(recipes)) > 0) * 0.2
    trials = []
    for recipe, mean in zip(recipes, nll, strict=True):
        sums = (127 * (mean + 0.02 * numbers.normal(size=WINDOWS))).tolist()
        attrs = {"recipe": str(recipe), "window_nll": sums, "window_tokens": [127] * WINDOWS, "convention": "window"}
        trials.append(create_trial(value=sum(sums) / 127 / WINDOWS, user_attrs=attrs))
    study.add_trials(trials)
    best = sorted(range(len(nll)), key=lambda i: trials[i].value or 0)[:5]
    for number in {0, *best}:
        scores = (127 * (nll[number] + 0.02 * numbers.normal(size=HELD_OUT))).tolist()
        kept = {"window_nll": scores, "window_tokens": [127] * HELD_OUT, "documents": [i // 2 for i in range(HELD_OUT)]}
        study.set_user_attr(f"held_out:{number}", kept)
    study.set_user_attr("held_out_looks", [[0, *best]])


def seconds(checkout: Path, folder: Path) -> float:
    """Time one `david report` of a checkout."""
    start = time.perf_counter()
    command = [sys.executable, "-c", COMMAND, "report", str(folder)]
    subprocess.run(command, cwd=checkout, env=None, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout of David")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        build_study(folder, options.trials)
        pairs = []
        for run in range(options.runs + 1):
            pair = seconds(options.before, folder), seconds(ROOT, folder)
            if run:  # the first warms the disk
                pairs.append(pair)
    print(f"`david report` on a study of {options.trials:,} trials, {options.runs} runs of each in turn\n")
    print("| | median seconds | least | most |\n|---|---|---|---|")
    for name, values in zip(("before", "now"), zip(*pairs, strict=True), strict=True):
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    ratios = [before / now for before, now in pairs]
    print(f"| before / now | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    main()

"""Short random sequences of what people do to a model, beside a deep copy that goes through the same.

`steps` has what is done, `twins` what is compared.

    python experiments/sequences/sequences.py --sequences 2000 --out experiments/sequences
"""

import argparse
import collections
import copy
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from experiments.sequences.steps import STEPS
from experiments.sequences.twins import BaseFailsError, DifferenceError, NoSenseError, Run, check
from tests.tiny_models import tiny_named

TYPES = (
    "llama", "gemma3_text", "gemma4_text", "jamba", "qwen3_moe", "gemma3",
    "gpt2", "bloom", "falcon-40b", "qwen3_5_text", "opt", "mixtral",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A sequence: its steps, what was refused, and what was wrong.

    Attributes:
        name: The tiny type.
        seed: What the steps were drawn from, beside the type.
        steps: The steps that were done.
        largest: The largest difference from the reference, in spreads of its logits.
        refusals: The message of each refusal, numbers and names taken out.
        base_fails: The steps that the plain model cannot do.
        wrong: What was wrong, or "".
    """

    name: str
    seed: int
    steps: tuple[str, ...]
    largest: float
    refusals: tuple[str, ...]
    base_fails: tuple[str, ...]
    wrong: str = ""


def sequence(
    name: str, seed: int, steps: Sequence[str] | None = None, *, among: Collection[str] = tuple(STEPS)
) -> Outcome:
    """Run a sequence of three to eight random steps, or those that are given; then reset the model and compare."""
    weights = [weight if step in among else 0 for step, (_, weight) in STEPS.items()]
    draw = random.Random(f"{name} {seed}")
    model = tiny_named(name)
    run = Run(model, copy.deepcopy(model), draw)
    length = draw.randint(3, 8)
    base_fails: list[str] = []
    wrong = ""
    with warnings.catch_warnings(), run.folders:
        warnings.simplefilter("ignore")
        try:
            for step in steps or ():
                _step(run, step, base_fails)
            while steps is None and len(run.steps) < length:
                _step(run, draw.choices(list(STEPS), weights)[0], base_fails)
            _step(run, "reset", base_fails)
            _step(run, "bring back", base_fails)
        except Exception as error:  # anything that is let out is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if isinstance(error, DifferenceError) else f" ({Path(where.filename).name}:{where.lineno})"
            wrong = " ".join(f"{type(error).__name__}: {str(error)[:300]}{place}".split())
        if any(step.startswith("compile") for step in run.steps):
            torch._dynamo.reset()
    return Outcome(name, seed, tuple(run.steps), run.largest, tuple(run.refusals), tuple(base_fails), wrong)


def _step(run: Run, name: str, base_fails: list[str]) -> None:
    run.steps.append(name)
    try:
        STEPS[name][0](run)
    except NoSenseError:
        run.steps.pop()
        return
    except BaseFailsError:
        base_fails.append(run.steps.pop())
        return
    check(run)


def _name(step: str) -> str:
    """Return the name of a step without what it was done with."""
    return next(name for name in sorted(STEPS, key=len, reverse=True) if re.match(rf"{name}\b", step))


def report(outcomes: list[Outcome]) -> str:
    """Return the tables as Markdown."""
    done = collections.Counter(_name(step) for outcome in outcomes for step in outcome.steps)
    refused = collections.Counter(_name(step) for o in outcomes for step in o.steps if step.endswith("(refused)"))
    fails = collections.Counter(step for outcome in outcomes for step in outcome.base_fails)
    lines = collections.Counter(line for outcome in outcomes for line in outcome.refusals)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    text = [
        f"{len(outcomes)} sequences over {len({o.name for o in outcomes})} types, {sum(done.values())} steps, of which "
        f"{sum(refused.values())} are refused: {len(wrong)} sequences with a difference.",
        "",
        "| type | sequences | equal to the bit | up to 1e-5 | up to 1e-3 | up to 5e-2 | with a difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*dict.fromkeys(outcome.name for outcome in outcomes), "all"):
        own = [outcome for outcome in outcomes if name in (outcome.name, "all")]
        right = [outcome.largest for outcome in own if not outcome.wrong]
        limits = [(-1.0, 0.0), (0.0, 1e-5), (1e-5, 1e-3), (1e-3, 5e-2)]
        counts = [sum(low < largest <= high for largest in right) for low, high in limits]
        text.append("| " + " | ".join(map(str, [name, len(own), *counts, len(own) - len(right)])) + " |")
    text += ["", "| step | done | of these refused | base itself fails |", "|---|---|---|---|"]
    text += [f"| {step} | {count} | {refused[step]} | {fails[step]} |" for step, count in done.most_common()]
    text += ["", "| refused by the line | times |", "|---|---|"]
    text += [f"| {line} | {count} |" for line, count in lines.most_common()]
    text += ["", *(f"- {o.name} {o.seed}: {'; '.join(o.steps)}: {o.wrong}" for o in wrong)]
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=240, help="in all, dealt out to the types in turn")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no sequence after so many")
    parser.add_argument("--types", nargs="*", default=list(TYPES), help="names of tiny models")
    parser.add_argument("--out", type=Path, help="folder for results.md")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    outcomes, end = [], time.monotonic() + 60 * options.minutes
    for number in range(options.sequences):
        if time.monotonic() > end:
            break
        name = options.types[number % len(options.types)]
        outcomes.append(sequence(name, options.first + number // len(options.types)))
        if outcomes[-1].wrong:
            print(f"{name} {outcomes[-1].seed}: {'; '.join(outcomes[-1].steps)}: {outcomes[-1].wrong}", flush=True)
    text = report(outcomes)
    print(text)
    if options.out:
        (options.out / "results.md").write_text(f"# Sequences\n\n{text}", encoding="utf-8")
    sys.exit(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    main()

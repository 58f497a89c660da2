"""A search in earnest: does any rearrangement of the demo model's layers lower its NLL on text it has not seen?"""

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers
from transformers.utils import logging

from david import Corpus, Recipe, load_model, measure, score_recipes, search
from david.candidates.spaces import Blocks
from david.candidates.strategies import Beam, Refine
from david.metrics.paired_test import paired_difference
from david.recipe.blocks import all_blocks
from david.report import page, sentences, tables
from david.sling.in_place import base_depth
from david.storage import results, trial_attributes
from david.storage.results import StudyResults

HEADING = re.compile(r"^ = [^=\n]+ = \n", re.MULTILINE)  # of an article; sections have more of them
SIZES = {"wikitext": (64, 128), "gsm8k": (96, 192)}  # windows to search on, and to judge by
TOKENS = (8_000, 16_000)  # that these have at least
LONGEST = 192  # tokens of a question and its answer
SCALES = (-0.5, 1.5)
DEPTH = 45  # visits of the deepest recipe: half as many again as the base
SPACE = Blocks(count=3, scales=SCALES, max_visits=DEPTH)
TOP = 5
MEASURED, RANKED = 32, 40  # windows of the other text, on which so many recipes are measured too
EXACT = 64  # held-out windows on which the best are measured in float32


def articles(path: Path) -> list[str]:
    """The articles of a WikiText file: each begins with its heading."""
    text = path.read_text(encoding="utf-8")
    starts = [match.start() for match in HEADING.finditer(text)]
    return [text[start:stop].strip() for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]


def short_rows(path: Path, tokenizer: Any) -> list[str]:
    """The lines of a GSM8K file whose question and answer have at most `LONGEST` tokens: windows are as long as any."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [f"{row['question']} {row['answer']}" for row in rows]
    lengths = map(len, tokenizer(texts)["input_ids"])
    return [line for line, length in zip(lines, lengths, strict=True) if length <= LONGEST]


def corpora(wikitext: Path, gsm8k: Path, tokenizer: Any) -> dict[str, tuple[Corpus, Corpus]]:
    """Of each text the windows to search on and those to judge by, which share no document."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / f"{wikitext.stem}-articles.jsonl"
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in articles(wikitext)), encoding="utf-8")
        short = Path(folder) / f"{gsm8k.stem}-short.jsonl"
        short.write_text("\n".join(short_rows(gsm8k, tokenizer)) + "\n", encoding="utf-8")
        whole = {
            "wikitext": Corpus.load(rows, tokenizer, window=128),
            "gsm8k": Corpus.load(short, tokenizer, window=LONGEST, prompt="question", column="answer"),
        }
    return {name: corpus.hold_out(*SIZES[name]) for name, corpus in whole.items()}


def stages(n_layers: int, each: int, found: dict[str, Recipe]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a study, each with its options and the number of recipes by whose scoring it ends.

    `found` is the best recipe of each part that is done.
    """
    total = 1 + n_layers
    yield "each layer twice", {"queue": all_blocks(n_layers, 1), "n_trials": total}
    ways: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("TPE", lambda: {"sampler": "tpe"}),
        ("CMA-ES", lambda: {"sampler": "cmaes"}),
        ("beam", lambda: {"strategy": Beam(width=6, max_length=6, max_visits=DEPTH)}),
        ("refinement of the best", lambda: {"strategy": Refine(found["beam"], max_visits=DEPTH)}),
    ]
    for name, options in ways:
        total += each
        yield name, {**options(), "n_trials": total}


def run(name: str, model: Any, sides: tuple[Corpus, Corpus], out: Path, each: int, seed: int) -> list[dict[str, Any]]:
    """A study of one text, all its parts in turn; what is done already is not done again."""
    seen, unseen = sides
    about = out / "runs" / f"{name}.json"
    parts: list[dict[str, Any]] = json.loads(about.read_text(encoding="utf-8")) if about.exists() else []
    shared = {"space": SPACE, "storage": storage(out, name), "study_name": name, "seed": seed, "top": TOP}
    found = {part["part"]: Recipe.parse(part["best"]) for part in parts}
    for part_name, options in stages(base_depth(model), each, found):
        if part_name in found:
            continue
        start = time.perf_counter()
        study = search(model, seen, held_out=None, pruner="race", **shared, **options)
        base, [best] = StudyResults.read(study).base_trial, StudyResults.read(study).best_of_search(1)
        assert base is not None
        found[part_name] = Recipe.parse(best.user_attrs["recipe"])
        part = {"part": part_name, "recipes": len(results.scored_trials(study)), "seconds": time.perf_counter() - start}
        part |= {
            "best": best.user_attrs["recipe"],
            "gain": trial_attributes.value_of(best) - trial_attributes.value_of(base),
        }
        parts.append(part)
        about.write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    search(model, seen, held_out=unseen, n_trials=1, out=out / name, **shared)
    return parts


def compare(name: str, model: Any, texts: dict[str, tuple[Corpus, Corpus]], out: Path) -> None:
    """How alike a text and the other one rank the recipes of its study; the page is written anew with that."""
    study = optuna.load_study(study_name=name, storage=storage(out, name))
    for other, (_, unseen) in texts.items():
        if other != name:
            measure(study, model, unseen.take(MEASURED), name=other, most=RANKED)
    page.write(study, out / name, top=TOP)


def elsewhere(model: Any, texts: dict[str, tuple[Corpus, Corpus]], out: Path) -> str:
    """Each study's best finalist, in float32, on its own held-out windows and on those of the other text."""
    lines = ["## The best finalists in float32, on both texts", ""]
    lines += [
        "| found on | recipe | measured on | base NLL | difference, 95% interval |",
        "| :--- | :--- | :--- | ---: | ---: |",
    ]
    for name in texts:
        best = Recipe.load(out / name / "best.json")
        for other, (_, unseen) in texts.items():
            base, its = score_recipes(
                model, [Recipe.identity(base_depth(model)), best], unseen.take(EXACT), progress=True
            )
            found = paired_difference(its.window_nll, base.window_nll, base.window_tokens, documents=base.documents)
            told = f"{found.mean:+.4f}, {found.low:+.4f} … {found.high:+.4f}: {found.word}"
            lines.append(f"| {name} | `{best}` | {other} | {base.nll:.4f} | {told} |")
    return "\n".join([*lines, "", "The intervals of this table are not corrected for having picked the best of five."])


def storage(out: Path, name: str) -> str:
    """Where a text's study lives."""
    return f"sqlite:///{out / 'runs' / f'{name}.db'}"


def told(name: str, out: Path, parts: list[dict[str, Any]], sides: tuple[Corpus, Corpus]) -> str:
    """What a study found, as Markdown."""
    study = optuna.load_study(study_name=name, storage=storage(out, name))
    tokens = [sum(window_tokens(side)) for side in sides]
    lines = [
        f"## {name}",
        "",
        f"Search: {len(sides[0])} windows, {tokens[0]:,} scored tokens of {len(set(sides[0].documents))} documents. "
        f"Held out: {len(sides[1])} windows, {tokens[1]:,} tokens of {len(set(sides[1].documents))} others.",
        "",
        "| part | recipes so far | minutes | best on the search windows, nats a token | its recipe |",
        "| :--- | ---: | ---: | ---: | :--- |",
    ]
    lines += [
        f"| {p['part']} | {p['recipes']} | {p['seconds'] / 60:.1f} | {p['gain']:+.4f} | `{p['best']}` |" for p in parts
    ]
    board = tables.leaderboard(study, TOP)
    found = tables.luck(study)
    said = [sentences.verdict(board), sentences.looks(study), sentences.baseline(study)]
    said += [sentences.luck(found, len(results.scored_trials(study)) - 1), *sentences.rankings(study)]
    return "\n".join([*lines, "", "```", sentences.board_text(board), "", *said, "```"])


def window_tokens(corpus: Corpus) -> list[int]:
    """Scored tokens of each window."""
    if corpus.scored is None:
        return [corpus.window - 1] * len(corpus)
    return [int(n) for n in corpus.scored.sum(dim=1)]


def main() -> None:
    """Run what has not been run yet, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wikitext", type=Path, required=True, help="WikiText-2, raw, the test split, as a text file")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K, the test split, as JSON lines")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--each", type=int, default=100, help="recipes of each way to search")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model("demo", dtype=args.dtype)
    texts = corpora(args.wikitext, args.gsm8k, tokenizer)
    results = []
    for name, sides in texts.items():
        for side, least in zip(sides, TOKENS, strict=True):
            if sum(window_tokens(side)) < least:
                raise SystemExit(f"{name}: {sum(window_tokens(side))} tokens, fewer than {least}")
        parts = run(name, model, sides, args.out, args.each, args.seed)
        compare(name, model, texts, args.out)
        results.append(told(name, args.out, parts, sides))
    exact, _ = load_model("demo", dtype="float32")
    results.append(elsewhere(exact, texts, args.out))
    cpus = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    results.append(
        f"{args.dtype}, seed {args.seed}, {cpus} threads; Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}."
    )
    (args.out / "results.md").write_text("\n\n".join(results) + "\n", encoding="utf-8")
    print("\n\n".join(results))


if __name__ == "__main__":
    main()

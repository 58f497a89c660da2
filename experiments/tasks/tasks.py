"""Are David's figures of a task lm-eval's own, and what does it save to keep the harness from one sling to the next?"""

import argparse
import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers.utils import logging

from david import David, Recipe, load_model, tasks
from david.metrics import units

RECIPE = Recipe.parse("0:12, 8:12*0.3, 12:30")
LONGEST = 2048
_TIMED = 2  # documents of a timing: what is asked is the cost beside them
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
"""
FILES = {
    "questions": 'output_type: multiple_choice\ndoc_to_text: "{{query}}\\nAnswer:"\ndoc_to_target: gold\n'
    "doc_to_choice: choices\nmetric_list: [{metric: acc_norm}, {metric: acc}]\n",
    "text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
    "sums": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
    "generation_kwargs: {until: [\"\\n\", '.', ','], max_gen_toks: 4, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_punctuation: true}]\n"
    "filter_list: [{name: number, filter: [{function: regex, regex_pattern: '(\\d+)'}, {function: take_first}]}]\n",
}
METRICS = [
    ("questions", "acc_norm", "none"),
    ("questions", "acc", "none"),
    ("text", "word_perplexity", "none"),
    ("text", "bits_per_byte", "none"),
    ("sums", "exact_match", "number"),
]


def write(folder: Path, given: Any) -> None:
    """Task files beside their data: questions, a text in pieces, and sums to be written out."""
    questions = given.questions.read_text(encoding="utf-8").splitlines(keepends=True)[: given.documents]
    text = given.text.read_text(encoding="utf-8")
    pieces = [{"text": text[at : at + 1500]} for at in range(0, 1500 * given.documents, 1500)]
    sums = [{"q": f"2 + 3 = 5\n4 + 4 = 8\n{i} + {i % 4} =", "a": str(i + i % 4)} for i in range(given.documents)]
    (folder / "questions.jsonl").write_text("".join(questions), encoding="utf-8")
    for name, rows in (("text", pieces), ("sums", sums)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, told in FILES.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name, folder=folder) + told, encoding="utf-8")


def by_lm_eval(
    model: Any, tokenizer: Any, path: Path, manager: TaskManager, limit: int | None = None
) -> dict[str, Any]:
    """What lm-eval tells of a task file, all made anew."""
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=LONGEST, batch_size=1)
        found = simple_evaluate(harness, tasks=[str(path)], task_manager=manager, bootstrap_iters=0, limit=limit)
    results: dict[str, Any] = found["results"][path.stem]
    return results


def equality(model: Any, tokenizer: Any, folder: Path) -> list[str]:
    """A line for each metric, on the base and slung."""
    lines = ["| task | metric | runs | David | lm-eval | difference |", "| :--- | :--- | :--- | ---: | ---: | ---: |"]
    ready = {key: tasks.load(f"{folder}/{key[0]}.yaml:{key[1]}:{key[2]}", model, tokenizer) for key in METRICS}
    for recipe in (None, RECIPE):
        with contextlib.nullcontext() if recipe is None else David.slung(model, recipe):
            theirs = {
                name: by_lm_eval(model, tokenizer, folder / f"{name}.yaml", TaskManager(include_defaults=False))
                for name in FILES
            }
            for (name, metric, kept), asked in ready.items():
                score = asked(model, asked.corpus)
                mine, its = units.readable(score.unit, score.nll)[1], theirs[name][f"{metric},{kept}"]
                assert abs(mine - its) <= 1e-6 * abs(its), (name, metric, mine, its)
                runs = "base" if recipe is None else f"`{recipe}`"
                lines.append(f"| {name} | {metric} | {runs} | {mine:.6f} | {its:.6f} | {mine - its:+.1e} |")
    return lines


def cost(model: Any, tokenizer: Any, path: Path, rounds: int) -> list[str]:
    """What scoring a sling costs in each way, timed in turn."""
    kept = tasks.load(path, model, tokenizer, limit=_TIMED)

    def with_kept() -> None:
        kept(model, kept.corpus)

    def with_fresh() -> None:
        fresh = tasks.load(path, model, tokenizer, limit=_TIMED)
        fresh(model, fresh.corpus)

    def as_lm_eval_does() -> None:
        by_lm_eval(model, tokenizer, path, TaskManager(), _TIMED)

    ways: dict[str, Callable[[], None]] = {
        "harness and task kept": with_kept,
        "both made anew, local files alone": with_fresh,
        "`simple_evaluate` with its default TaskManager": as_lm_eval_does,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        for name in order:
            with David.slung(model, RECIPE):
                start = time.perf_counter()
                ways[name]()
                took[name].append(time.perf_counter() - start)
    first = took["harness and task kept"]
    lines = ["| way | seconds a sling, median | lowest to highest | beside kept, median of rounds |"]
    lines.append("| :--- | ---: | ---: | ---: |")
    for name, seconds in took.items():
        ratio = median(s / k for s, k in zip(seconds, first, strict=True))
        lines.append(f"| {name} | {median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {ratio:.2f} |")
    return lines


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="ARC-easy as JSON lines: query, choices, gold")
    parser.add_argument("--text", type=Path, required=True, help="any text, such as WikiText-2's")
    parser.add_argument("--documents", type=int, default=16, help="of each task (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for results.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    with TemporaryDirectory() as place:
        write(folder := Path(place), given)
        lines = equality(model, tokenizer, folder)
        lines += ["", *cost(model, tokenizer, folder / "questions.yaml", given.rounds)]
    versions = f"lm-eval {version('lm_eval')}, transformers {version('transformers')}, torch {torch.__version__}"
    machine = f"float32, {torch.get_num_threads()} thread(s)"
    note = f"{given.documents} documents of each task, {_TIMED} in a timing, {machine}; {versions.partition('+')[0]}."
    found = "\n".join([*lines, "", note]) + "\n"
    print(found, end="")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.md").write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()

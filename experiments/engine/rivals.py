"""Recipes per minute of David, of layer-scan, and of writing each merge with mergekit and scoring that."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from david import Corpus, David, Recipe, load_model, perplexity, score_recipes

# Each rival has an environment of its own, with David's versions of torch, transformers and all else that they share
# (constraints.txt); the rest is pinned here. layer-scan does not declare accelerate, but loads its model with
# `device_map="auto"`, which transformers refuses without it.
RIVALS = {
    "layer-scan": ["layer-scan==0.2.2", "accelerate", "plotly==7.1.0"],
    "mergekit": ["mergekit==0.1.5", "immutables==0.21", "protobuf==7.36.2", "sentencepiece==0.2.3"],
}
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SHARED = ["torch", "transformers"]
TOLERANCE = 1e-5  # relative: between the NLL of a merge and David's

# The same merges without a new Python for each, through the function that mergekit-yaml calls.
IN_PROCESS = """
import json, shutil, sys, time
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
job = json.load(open(sys.argv[1]))
seconds = []
for number, text in enumerate(job["configurations"]):
    out = f"{job['folder']}/in-process-{number}"
    start = time.perf_counter()
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, MergeOptions(quiet=True))
    seconds.append(time.perf_counter() - start)
    shutil.rmtree(out)
json.dump({"seconds": seconds}, open(sys.argv[2], "w"))
"""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], log: Path) -> float:
    """The seconds that a command takes; what it says goes into the log, whose end is shown when it fails."""
    with log.open("a", encoding="utf-8") as file:
        start = time.perf_counter()
        done = subprocess.run([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise SystemExit(f"{tail}\n{Path(command[0]).name} ended with {done.returncode}; its whole output is in {log}")
    return seconds


def environment(name: str, work: Path) -> Path:
    """The folder of programs of a rival's environment, made unless it is there already."""
    folder, wanted = work / f"env-{name}", RIVALS[name]
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    done = folder / "made.json"
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return programs
    say(f"making an environment for {wanted[0]}: a minute or two, 1 to 2 GB")
    log = work / f"pip-{name}.txt"
    run([sys.executable, "-m", "venv", "--clear", folder], log)
    pip = [programs / "python", "-m", "pip", "install", "--disable-pip-version-check", "--constraint", CONSTRAINTS]
    run([*pip, *SHARED], log)
    run([*pip, *wanted], log)
    done.write_text(json.dumps(wanted))
    return programs


def blocks(n_layers: int, step: int) -> list[tuple[int, int]]:
    """The blocks (i, j) that `layer-scan scan --min-block STEP --step STEP` repeats, in its order."""
    return [(i, j) for i in range(0, n_layers, step) for j in range(i + step, n_layers + 1, step)]


def passthrough(model: str, n_layers: int, block: tuple[int, int]) -> str:
    """The merge that repeats a block, as mergekit reads it and as layer-scan exports it."""
    slices = [{"sources": [{"model": model, "layer_range": part}]} for part in ([0, block[1]], [block[0], n_layers])]
    return json.dumps({"merge_method": "passthrough", "dtype": "float32", "slices": slices}, indent=2)  # JSON is YAML


def windows(tokenizer: Any, job: dict[str, Any]) -> Corpus:
    return Corpus.load("python-topics", tokenizer, window=job["window"]).take(job["windows"])


def recipes_of(job: dict[str, Any]) -> list[Recipe]:
    return [Recipe.from_blocks(job["n_layers"], [(i, j, 2)]) for i, j in job["blocks"]]


def work_david(job: dict[str, Any]) -> dict[str, Any]:
    """Load, score the base, then every recipe: the last is what is timed, as layer-scan times its own scan."""
    model, tokenizer = load_model(job["model"], dtype="float32", device="cpu")
    corpus = windows(tokenizer, job)
    base = perplexity(model, corpus).nll
    start = time.perf_counter()
    scores = score_recipes(model, recipes_of(job), corpus)
    seconds = time.perf_counter() - start
    nll = [score.nll for score in scores]
    return {"seconds": seconds, "base": base, "nll": nll, "threads": torch.get_num_threads()}


def work_mergekit(job: dict[str, Any]) -> dict[str, Any]:
    """Write each merge with the command, load it with plain transformers, score it, delete it."""
    _, tokenizer = load_model(job["model"], dtype="float32", device="cpu")
    corpus = windows(tokenizer, job)
    found: dict[str, Any] = {"write": [], "load": [], "score": [], "nll": [], "megabytes": []}
    for number, text in enumerate(job["configurations"]):
        config, out = Path(job["folder"]) / f"{number}.yml", Path(job["folder"]) / f"merge-{number}"
        config.write_text(text)
        times = [time.perf_counter()]
        run([job["mergekit-yaml"], config, out, "--copy-tokenizer"], Path(job["log"]))
        times.append(time.perf_counter())
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        times.append(time.perf_counter())
        found["nll"].append(perplexity(model, corpus).nll)
        times.append(time.perf_counter())
        found["megabytes"].append(sum(file.stat().st_size for file in out.iterdir()) / 1e6)
        del model
        shutil.rmtree(out)
        for part, before, after in zip(("write", "load", "score"), times, times[1:], strict=False):
            found[part].append(after - before)
    return found


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"david": work_david, "mergekit": work_mergekit}


def worker(name: str, job: dict[str, Any], work: Path) -> tuple[dict[str, Any], float]:
    """What a worker found in a process of its own, and the seconds of that process."""
    asked, answer = work / f"{name}-job.json", work / f"{name}-found.json"
    asked.write_text(json.dumps(job))
    seconds = run([sys.executable, Path(__file__).resolve(), "--worker", name, asked, answer], work / f"{name}.txt")
    return json.loads(answer.read_text()), seconds


def layer_scan(programs: Path, job: dict[str, Any], work: Path, step: int) -> tuple[dict[str, Any], float]:
    """Its one command, with a custom probe whose questions are the windows; and the seconds of the whole command."""
    command = [programs / "layer-scan", "scan", "--model", job["model"], "--probe", "custom"]
    command += ["--custom-probe", work / "probe.json", "--min-block", step, "--step", step]
    command += ["--batch-size", job["windows"], "--dtype", "float32", "--output", work / "layer-scan"]
    shutil.rmtree(work / "layer-scan", ignore_errors=True)
    seconds = run(command, work / "layer-scan.txt")
    found = json.loads((work / "layer-scan" / "results.json").read_text())
    scanned = [(result["i"], result["j"]) for result in found["all_results"]]
    assert scanned == [tuple(block) for block in job["blocks"]], "layer-scan scanned other blocks"
    return found, seconds


def mergekit_in_process(programs: Path, work: Path) -> list[float]:
    asked, answer = work / "mergekit-job.json", work / "in-process-found.json"
    run([programs / "python", "-c", IN_PROCESS, asked, answer], work / "mergekit.txt")
    return json.loads(answer.read_text())["seconds"]


def digit_score(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """What layer-scan gives a model: the mean over texts of the digit expected next, among the ten digits."""
    digits = [tokenizer(str(digit), add_special_tokens=False).input_ids[0] for digit in range(10)]
    expected = []
    for text in texts:
        with torch.inference_mode():
            last = model(**tokenizer(text, return_tensors="pt"), use_cache=False).logits[0, -1]
        expected.append((last[digits].float().softmax(-1) * torch.arange(10.0)).sum().item())
    return sum(expected) / len(expected)


def apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median (lowest to highest)."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def one_round(number: int, job: dict[str, Any], programs: dict[str, Path], work: Path, step: int) -> dict[str, Any]:
    """Everything timed once, in turn."""
    took: dict[str, Any] = {}
    took["david"], took["david whole"] = worker("david", job, work)
    say(f"round {number}: David, {len(job['blocks'])} recipes in {took['david']['seconds']:.1f} s")
    took["layer-scan"], took["layer-scan whole"] = layer_scan(programs["layer-scan"], job, work, step)
    say(f"round {number}: layer-scan, the same in {took['layer-scan']['scan_time_seconds']:.1f} s")
    took["mergekit"], _ = worker("mergekit", job, work)
    took["in process"] = mergekit_in_process(programs["mergekit"], work)
    seconds = sum(sum(took["mergekit"][part]) for part in ("write", "load", "score"))
    say(f"round {number}: mergekit, {len(job['configurations'])} recipes in {seconds:.1f} s")
    return took


def check(job: dict[str, Any], took: dict[str, Any], model: Any, tokenizer: Any) -> dict[str, float]:
    """How far the rivals' scores are from David's for the same recipes; the script stops at other merges."""
    recipes, few, slung = recipes_of(job), job["few"], []
    for place in few:
        with David.slung(model, recipes[place]):
            slung.append(digit_score(model, tokenizer, job["texts"]))
    found = {
        "mergekit": apart(took["mergekit"]["nll"], [took["david"]["nll"][place] for place in few]),
        "layer-scan": apart([took["layer-scan"]["all_results"][place]["score"] for place in few], slung),
    }
    if found["mergekit"] > TOLERANCE:
        raise SystemExit(f"the merges' NLL and David's are {found['mergekit']:.1e} apart: not the same recipes")
    return found


def rates(rounds: list[dict[str, Any]], n_all: int, n_few: int) -> dict[str, list[float]]:
    """Recipes a minute in each round, by every way of measuring."""
    found: dict[str, list[float]] = {}
    for took in rounds:
        parts = took["mergekit"]
        used = sum(parts["load"]) + sum(parts["score"])
        for name, n, seconds in (
            ("David", n_all, took["david"]["seconds"]),
            ("layer-scan", n_all, took["layer-scan"]["scan_time_seconds"]),
            ("mergekit", n_few, sum(parts["write"]) + used),
            ("David, whole", n_all, took["david whole"]),
            ("layer-scan, whole", n_all, took["layer-scan whole"]),
            ("mergekit, one process", n_few, sum(took["in process"]) + used),
        ):
            found.setdefault(name, []).append(60 * n / seconds)
    return found


def table(rounds: list[dict[str, Any]], job: dict[str, Any], apart_by: dict[str, float]) -> str:
    """The Markdown table of all rounds."""
    n_all, n_few, n_windows = len(job["blocks"]), len(job["few"]), job["windows"]
    tokens = job["tokens"]
    rate = rates(rounds, n_all, n_few)

    def ratio(mine: str, its: str) -> str:
        return f"{spread([a / b for a, b in zip(rate[mine], rate[its], strict=True)], 2)}"

    def merges(part: str, digits: int = 1) -> str:
        return spread([value for took in rounds for value in took["mergekit"][part]], digits)

    names, none = ("David", "layer-scan", "mergekit"), "–"
    in_process = spread([second for took in rounds for second in took["in process"]])
    compared = {"layer-scan": "expected digit", "mergekit": "NLL"}
    differences = (
        f"{apart_by[name]:.0e} ({what})" if apart_by[name] else f"0 ({what})" for name, what in compared.items()
    )
    rows = [
        ("recipes in a round", f"{n_all}", f"{n_all}", f"{n_few} of them"),
        ("tokens run through each recipe", *(f"{tokens[name]:,}" for name in names)),
        ("… of them scored", f"{tokens['David'] - n_windows:,}", f"{n_windows}", f"{tokens['mergekit'] - n_windows:,}"),
        ("**recipes a minute**", *(f"**{spread(rate[name])}**" for name in names)),
        ("**David's rate over it**", none, *(f"**{ratio('David', name)}**" for name in names[1:])),
        ("recipes × tokens a minute", *(spread([tokens[name] * n for n in rate[name]], 0) for name in names)),
        ("recipes a minute, with start, load and base", *(spread(rate[f"{name}, whole"]) for name in names[:2]), none),
        ("… David's rate over it", none, ratio("David, whole", "layer-scan, whole"), none),
        ("recipes a minute, merges written in one process", none, none, spread(rate["mergekit, one process"])),
        ("… David's rate over it", none, none, ratio("David", "mergekit, one process")),
        ("seconds a recipe: to write the merge", none, none, merges("write")),
        ("… in one process", none, none, in_process),
        ("… to load it", none, none, merges("load")),
        ("… to score it", none, none, merges("score")),
        ("MB written for a recipe", "0", "0", merges("megabytes", 0)),
        (f"furthest from David's, relative, of {n_few} recipes", none, *differences),
    ]  # fmt: skip
    rivals = [RIVALS[name][0].replace("==", " ") for name in names[1:]]
    head = ("", f"David {version('david')}", rivals[0], f"{rivals[1]}, then a score")
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---", *["---:"] * 3), *rows))


def measure(arguments: argparse.Namespace, work: Path) -> Iterator[str]:
    """What is known after each round."""
    logging.disable_progress_bar()
    programs = {name: environment(name, work) for name in RIVALS}
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    folder, n_layers = work / "model", model.config.num_hidden_layers
    if not (folder / "tokenizer_config.json").is_file():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    shutil.rmtree(work / "merges", ignore_errors=True)  # of a run that was stopped
    (work / "merges").mkdir()
    job: dict[str, Any] = {
        "model": str(folder),
        "n_layers": n_layers,
        "windows": arguments.windows,
        "window": arguments.window,
        "blocks": blocks(n_layers, arguments.step),
        "folder": str(work / "merges"),
        "mergekit-yaml": str(programs["mergekit"] / "mergekit-yaml"),
        "log": str(work / "mergekit.txt"),
    }
    corpus = windows(tokenizer, job)
    job["texts"] = [tokenizer.decode(window) for window in corpus]
    samples = [{"prompt": text} for text in job["texts"]]
    probe = {"name": "windows", "description": "David's windows", "scoring": "digits", "samples": samples}
    (work / "probe.json").write_text(json.dumps(probe))
    n_all = len(job["blocks"])
    n_few = min(arguments.merges, n_all)
    job["few"] = [(2 * number + 1) * n_all // (2 * n_few) for number in range(n_few)]  # evenly among all
    job["configurations"] = [passthrough(str(folder), n_layers, job["blocks"][place]) for place in job["few"]]
    probed = sum(len(ids) for ids in tokenizer(job["texts"]).input_ids)
    job["tokens"] = {"David": corpus.windows.numel(), "layer-scan": probed, "mergekit": corpus.windows.numel()}

    versions = f"torch {version('torch').partition('+')[0]}, transformers {version('transformers')} for all three"
    what = f"Demo model ({n_layers} layers), float32; {arguments.windows} windows of {arguments.window} tokens"
    some = "" if arguments.step == 1 else f" with i and j − i multiples of {arguments.step}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, threads: {arguments.threads}, no accelerator"
    rounds, apart_by = [], {}
    for number in range(1, arguments.rounds + 1):
        rounds.append(one_round(number, job, programs, work, arguments.step))
        apart_by = apart_by or check(job, rounds[0], model, tokenizer)
        assert rounds[-1]["david"]["threads"] == arguments.threads
        how = f"all blocks (i, j) run twice{some}; median (lowest to highest) of the rounds: {number}"
        yield f"{what}; {how}. {machine}; {versions}.\n\n{table(rounds, job, apart_by)}\n"


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, asked, answer = sys.argv[2:]
        Path(answer).write_text(json.dumps(WORKERS[name](json.loads(Path(asked).read_text()))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write rivals.md there as well")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep and reuse the environments (4 GB) there")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each (default: %(default)s)")
    parser.add_argument("--step", type=int, default=6, help="1 scans every block (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--window", type=int, default=128, help="tokens of each (default: %(default)s)")
    parser.add_argument("--merges", type=int, default=4, help="recipes that mergekit writes (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="for each of them (default: all cores)"
    )
    arguments = parser.parse_args()
    os.environ |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="david-rivals-", ignore_cleanup_errors=True) as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for text in measure(arguments, work):
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / "rivals.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()

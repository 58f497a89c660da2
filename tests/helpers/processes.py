"""Workers in processes of their own: a context to start them in, a corpus for them, and the command in a process."""

import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from david.candidates.spaces import Block
from david.metrics.score import Score
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.storage.backend import open_storage
from david.study.run_search import search
from tests.tiny_models import VOCABULARY, tiny_model


def context() -> Any:
    """Processes forked from a clean one that has imported everything once."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.helpers.forkserver_preload", "tests.system.test_study_kill", "david.page"])
    return found


def corpus() -> Corpus:
    windows = torch.randint(3, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(windows, tuple(range(6)), source="random", slice=None, sha256="ab", bos=False)


def command_in(folder: Path, n_trials: int) -> list[str]:
    """A search as the command line runs it, on a tiny model and a text made in the folder; its run is `run`."""
    model, text = folder / "model", folder / "data.txt"
    tiny_model("llama").save_pretrained(model)
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(model)
    numbers = random.Random(0)
    text.write_text(" ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(8000)))
    command = [
        sys.executable,
        "-c",
        "from david.cli.app import main; main()",
        "search",
        str(model),
        "--data",
        str(text),
    ]
    command += ["--window", "64", "--windows", "60", "--held-out", "20", "--scales", "0.1:0.9", "--top", "2"]
    return [*command, "--trials", str(n_trials), "--out", str(folder / "run")]


def slow_perplexity(model: Any, data: Corpus) -> Score:
    time.sleep(0.1)  # so that most kills land in the middle of a score
    return perplexity(model, data)


def worker(url: str, name: str, n_trials: int, seed: int, out: Path | None) -> None:
    """One of several; the same call each time, but for the seed, so that they do not draw the same."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen, unseen = corpus().split(3, 3)
    search(
        tiny_model("llama"),
        seen,
        space=Block(max_length=3, scales=(0.1, 0.9)),  # 256 recipes
        held_out=unseen,
        objective=slow_perplexity,
        n_trials=n_trials,
        storage=url,
        study_name=name,
        seed=seed,
        out=out,
        progress=False,
    )


def trials_of(url: str, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(url)).get_trials()


def finished(trials: list[FrozenTrial]) -> dict[int, tuple[str, float | None]]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return {trial.number: (trial.user_attrs["recipe"], trial.value) for trial in complete}

"""`kill -9` in the middle of a search, again and again, and the same call each time: nothing is lost, nothing twice."""

import multiprocessing
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from david.candidates.spaces import Block
from david.candidates.strategies import Refine, Scan, Strategy
from david.metrics.score import Score
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import slung
from david.storage.heartbeat import OWNER
from david.study.create import open_study
from david.study.run_search import search
from tests.helpers.processes import command_in, context, corpus
from tests.tiny_models import tiny_model

KILLS = 3  # in the short version; the ten are in the long one
BASE = "0:6"
Finished = dict[int, tuple[str, float]]


def slow_perplexity(model: Any, data: Corpus) -> Score:
    time.sleep(0.15)  # so that most kills land in the middle of a score
    return perplexity(model, data)


def worker(folder: Path, n_trials: int, with_queue: bool) -> None:
    """What is killed: one call of `search`, the same each time."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen, unseen = corpus().split(3, 3)
    search(
        tiny_model("llama"),
        seen,
        space=Block(max_length=2, scales=None if with_queue else (0.1, 0.9)),
        held_out=unseen,
        objective=slow_perplexity,
        n_trials=n_trials,
        queue=all_blocks(6, 2)[:8] if with_queue else (),
        out=folder,
        progress=False,
    )


def trials_of(folder: Path) -> list[FrozenTrial]:
    """The trials of a run whose worker is dead, read without David."""
    return optuna.load_study(study_name="david", storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def finished(folder: Path) -> Finished:
    complete = [trial for trial in trials_of(folder) if trial.state == TrialState.COMPLETE]
    return {trial.number: (trial.user_attrs["recipe"], trial.value) for trial in complete if trial.value is not None}


def how_many_finished(folder: Path) -> int:
    """Finished trials of a run that goes on, without a hand on its file (Optuna would make missing tables)."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet, or being written
        return 0


def kill_and_go_on(start: Callable[[], Any], kill: Callable[[Any], None], folder: Path, kills: int) -> Finished:
    """Start, wait for one more trial and a random moment, kill; all trials that were seen finished at any time."""
    moments, seen = random.Random(7), dict[int, tuple[str, float]]()
    for _ in range(kills):
        running, patience = start(), time.monotonic() + 120
        while how_many_finished(folder) <= len(seen) and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        kill(running)
        now = finished(folder)
        assert len(now) > len(seen)  # or the kills would say nothing
        assert seen.items() <= now.items()
        seen = now
    return seen


def check_whole(folder: Path, seen: Finished, n_trials: int) -> list[FrozenTrial]:
    """What must hold at the end; the trials that count."""
    trials = trials_of(folder)
    assert seen.items() <= finished(folder).items()
    counted = [t for t in trials if t.state == TrialState.COMPLETE and "duplicate_of" not in t.user_attrs]
    recipes = [trial.user_attrs["recipe"] for trial in counted]
    assert len(recipes) == len(set(recipes)) == n_trials
    assert BASE in recipes
    # A kill between Optuna's making of a trial and David's first word in it leaves one that nobody owns.
    stuck = [trial for trial in trials if trial.state == TrialState.RUNNING and OWNER in trial.user_attrs]
    assert stuck == []
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING}
    assert all((folder / name).is_file() for name in ("trials.csv", "leaderboard.csv", "best.json", "report.html"))
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("with_queue", [False, True], ids=["drawn", "queued"])
def test_a_search_that_is_killed_goes_on_with_every_finished_trial(with_queue: bool, tmp_path: Path) -> None:
    n_trials = 9
    processes = context()

    def start() -> Any:
        process = processes.Process(target=worker, args=(tmp_path, n_trials, with_queue))
        process.start()
        return process

    def kill(process: Any) -> None:
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    seen = kill_and_go_on(start, kill, tmp_path, KILLS)
    last = start()
    last.join()
    assert last.exitcode == 0
    model = tiny_model("llama")
    for trial in check_whole(tmp_path, seen, n_trials):
        with slung(model, Recipe.parse(trial.user_attrs["recipe"])):
            assert trial.value == pytest.approx(perplexity(model, corpus().take(3)).nll, abs=1e-5)


@pytest.mark.slow
def test_the_command_that_is_killed_five_times_goes_on_with_every_finished_trial(tmp_path: Path) -> None:
    n_trials, folder = 40, tmp_path / "run"
    command = command_in(tmp_path, n_trials)

    def start() -> Any:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(process: Any) -> None:
        process.kill()
        assert process.wait() == -signal.SIGKILL

    seen = kill_and_go_on(start, kill, folder, kills=5)
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    check_whole(folder, seen, n_trials)


STRATEGIES: dict[str, Strategy] = {
    "scan": Scan(2),
    "refine": Refine(steps=["drop", "swap"]),
}


def strategist(folder: Path, name: str) -> None:
    """One of two workers that a strategy is shared by."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen, _ = corpus().split(3, 3)
    storage = f"sqlite:///{folder / 'study.db'}"
    options: dict[str, Any] = {"objective": slow_perplexity, "held_out": None, "progress": False}
    search(tiny_model("llama"), seen, storage=storage, strategy=STRATEGIES[name], n_trials=16, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_workers_share_a_strategy(name: str, tmp_path: Path) -> None:
    open_study(f"sqlite:///{tmp_path / 'study.db'}")  # SQLite's tables are made by one
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=strategist, args=(tmp_path, name)) for _ in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
    assert [each.exitcode for each in workers] == [0, 0]
    trials = trials_of(tmp_path)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.WAITING, TrialState.FAIL}
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]  # what was left to the other worker
    assert all("duplicate_of" in trial.user_attrs or "recipe" not in trial.user_attrs for trial in failed)
    assert not [trial for trial in failed if "error" in trial.user_attrs]
    first = {trial.user_attrs["recipe"]: trial.value for trial in trials if trial.values}
    assert len({trial.user_attrs[OWNER] for trial in trials if OWNER in trial.user_attrs}) == 2
    seen, _ = corpus().split(3, 3)
    alone = search(tiny_model("llama"), seen, held_out=None, strategy=STRATEGIES[name], n_trials=16, progress=False)
    by_one = {trial.user_attrs["recipe"]: trial.value for trial in alone.trials if trial.values}
    assert len(by_one) <= len(first) <= 17  # overshot by one a worker at most
    for recipe in by_one.keys() & first.keys():
        assert first[recipe] == pytest.approx(by_one[recipe], abs=1e-6)

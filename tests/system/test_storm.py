"""Many workers on one study, in PostgreSQL and in SQLite: killed, replaced, the server gone; nothing lost or twice."""

import random
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from david.candidates.spaces import Block
from david.engine.engine import score_recipes
from david.errors import SearchError
from david.recipe.recipe import Recipe
from david.storage.backend import open_storage
from david.study.run_search import search
from tests.helpers.postgres import Postgres, free_port, why_not
from tests.helpers.processes import context, corpus, finished, trials_of, worker
from tests.tiny_models import tiny_model

NAME = "together"
needs_server = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to the server's user by each new session
        made = Postgres.new(Path(folder) / "data")
        yield made
        made.stop()


def finished_so_far(url: str, name: str) -> dict[int, tuple[str, float | None]]:
    try:
        return finished(trials_of(url, name))
    except (SearchError, KeyError):  # the server is gone just now, or nobody has made the study yet
        return {}


def storm(
    url: str, name: str, n_workers: int, n_trials: int, *, pause: Callable[[], float], out: Path | None = None
) -> list[FrozenTrial]:
    """Let workers search, kill one after each pause and replace it, until the study has its trials; these.

    After the first kills the next one waits for a trial, where the machine is slower than the pauses.
    """
    processes, seeds = context(), iter(range(10**6))
    draw = random.Random(name)

    def start() -> Any:
        process = processes.Process(target=worker, args=(url, name, n_trials, next(seeds), out))
        process.start()
        return process

    running = [start() for _ in range(n_workers)]
    seen: dict[int, tuple[str, float | None]] = {}
    kills, patience = 0, time.monotonic() + 240
    while time.monotonic() < patience:
        time.sleep(pause())
        slow = time.monotonic() + 15
        while len(now := finished_so_far(url, name)) <= len(seen) and kills >= 3 and time.monotonic() < slow:
            time.sleep(0.2)
        if now:
            assert seen.items() <= now.items()
            seen = now
        if len(seen) >= 0.9 * n_trials:  # or the judging would be killed, and go on with others that have come since
            break
        victim = draw.randrange(n_workers)
        running[victim].kill()
        running[victim].join()
        kills += running[victim].exitcode == -signal.SIGKILL
        running[victim] = start()
    for each in running:
        each.join(180)
    for i, each in enumerate(running):
        if each.exitcode == 1:  # it was to begin while the server was gone, and said so
            running[i] = start()
            running[i].join(180)
    assert [each.exitcode for each in running] == [0] * n_workers
    assert kills >= 3  # or they would say nothing
    trials = trials_of(url, name)
    assert seen.items() <= finished(trials).items()
    return trials


def check(trials: list[FrozenTrial], n_trials: int, n_workers: int) -> None:
    """What must hold at the end."""
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING}
    counted = [t for t in trials if t.state == TrialState.COMPLETE and "duplicate_of" not in t.user_attrs]
    times = Counter(trial.user_attrs["recipe"] for trial in counted)
    assert set(times.values()) == {1}
    assert n_trials <= len(counted) <= n_trials + n_workers
    recipes = [Recipe.parse(trial.user_attrs["recipe"]) for trial in counted]
    quiet = score_recipes(tiny_model("llama"), recipes, corpus().take(3))
    for trial, score in zip(counted, quiet, strict=True):
        assert trial.value == pytest.approx(score.nll, abs=1e-6)
        assert trial.user_attrs["window_nll"] == pytest.approx(score.window_nll, abs=1e-4)


def judged_once(url: str, name: str) -> None:
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    assert len(study.user_attrs["held_out_looks"]) == 1
    assert optuna.get_all_study_names(open_storage(url)).count(name) == 1
    assert not [other for other in optuna.get_all_study_names(open_storage(url)) if other.startswith(f"{name}:")]


@needs_server
@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_is_waited_for(server: Postgres) -> None:
    process = context().Process(target=worker, args=(server.url, "gone", 30, 0, None))
    process.start()
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        try:
            if len(finished(trials_of(server.url, "gone"))) > 5:
                break
        except KeyError:
            time.sleep(0.1)
    server.restart(gone=2)
    process.join(120)
    assert process.exitcode == 0
    check(trials_of(server.url, "gone"), 30, 1)


@needs_server
def test_a_worker_with_another_space_is_refused(server: Postgres) -> None:
    seen, unseen = corpus().split(3, 3)
    options: dict[str, Any] = {"held_out": unseen, "n_trials": 2, "storage": server.url, "study_name": "mine"}
    search(tiny_model("llama"), seen, space=Block(max_length=2), progress=False, **options)
    with pytest.raises(SearchError, match=r"another space: Block\(max_length=2.*, now Block\(max_length=3"):
        search(tiny_model("llama"), seen, space=Block(max_length=3), progress=False, **options)


def serve(folder: Path, port: int) -> None:
    """Optuna's proxy before an SQLite file."""
    inner = optuna.storages.get_storage(f"sqlite:///{folder / 'study.db'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        optuna.storages.run_grpc_proxy_server(inner, host="127.0.0.1", port=port)


@pytest.mark.slow
def test_a_search_through_optunas_proxy(tmp_path: Path) -> None:
    port = free_port()
    proxy = context().Process(target=serve, args=(tmp_path, port))
    proxy.start()
    url, seen = f"grpc://127.0.0.1:{port}", corpus().split(3, 3)
    options: dict[str, Any] = {"storage": url, "study_name": NAME, "space": Block(max_length=2), "progress": False}
    study = search(tiny_model("llama"), seen[0], held_out=seen[1], n_trials=8, **options)
    check(study.get_trials(), 8, 1)
    judged_once(url, NAME)
    proxy.kill()
    proxy.join()
    with pytest.raises(SearchError, match=f"the storage {url} cannot be used"):
        open_storage(url)


@needs_server
@pytest.mark.slow
def test_three_workers_and_a_server_that_dies_three_times(server: Postgres, tmp_path: Path) -> None:
    pauses = random.Random(2)
    restarts = threading.Thread(target=lambda: [(time.sleep(8), server.restart(gone=2)) for _ in range(3)])
    restarts.start()
    trials = storm(server.url, "storm", 3, 200, pause=lambda: pauses.uniform(1, 3), out=tmp_path / "run")
    restarts.join()
    check(trials, 200, 3)
    judged_once(server.url, "storm")


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("round_", range(4))
def test_short_storms(round_: int, server: Postgres, tmp_path: Path) -> None:
    pauses, name = random.Random(round_), f"short {round_}"
    check(storm(server.url, name, 3, 50, pause=lambda: pauses.uniform(0.2, 0.8), out=tmp_path / "run"), 50, 3)
    judged_once(server.url, name)
    assert (tmp_path / "run" / "best.json").is_file()


@pytest.mark.slow
def test_two_workers_on_sqlite_in_a_storm(tmp_path: Path) -> None:
    pauses, url = random.Random(3), f"sqlite:///{tmp_path / 'study.db'}"
    check(storm(url, NAME, 2, 100, pause=lambda: pauses.uniform(0.5, 2)), 100, 2)
    judged_once(url, NAME)

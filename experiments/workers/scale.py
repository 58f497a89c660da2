"""How many trials a second do so many workers make of one study, and where does its storage become the limit?"""

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import psutil
import torch
from matplotlib.ticker import ScalarFormatter
from tqdm.auto import tqdm

from david import Corpus, perplexity, search
from david.candidates.spaces import Blocks
from david.metrics.score import Score
from david.storage.backend import open_storage

sys.path.insert(0, str(Path(__file__).parents[2].resolve()))
from experiments.engine.printed import table, write
from tests.helpers.postgres import Postgres, free_port, why_not
from tests.tiny_models import VOCABULARY, tiny_model

MEMORY, SQLITE, POSTGRES, PROXY = "in memory", "SQLite", "PostgreSQL", "PostgreSQL, proxy"
WORKERS = {SQLITE: (1, 2, 4), POSTGRES: (1, 2, 4, 8), PROXY: (1, 2, 4, 8)}
COSTS = (0.0, 0.05, 0.5)  # seconds that a score takes
LIMITS = (0.05, 0.5, 5, 60)  # … for which it is worked out when the storage is the limit
SPACE = Blocks(scales=(0.1, 0.95))  # more recipes of six layers than are drawn here
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["david.study.run_search", "tests.helpers.postgres", "tests.tiny_models"]
)  # for a quick start
_UNCOUNTED = 2  # calls of a worker's objective before the clock starts
_SETTLE = 0.5  # seconds after that which do not count either
_PATIENCE = 120  # seconds


@dataclass(frozen=True)
class Storage:
    """A storage, and the processes that serve it."""

    name: str
    url: str | None
    database: int | None = None
    proxy: int | None = None

    def seconds(self) -> np.ndarray:
        """CPU seconds of the database's processes and of the proxy's so far."""
        return np.array([_cpu(self.database), _cpu(self.proxy)])


@dataclass(frozen=True)
class Found:
    """What so many workers did; CPU in seconds a trial."""

    storage: str
    workers: int
    cost: float
    sampler: str
    rate: float
    own: float
    database: float
    proxy: float

    @property
    def beside(self) -> float:
        """Seconds a trial takes a worker beside its score."""
        return self.workers / self.rate - self.cost

    def row(self, one: float) -> dict[str, str]:
        whole = self.own + self.database + self.proxy
        return {
            "storage": self.storage + (f" ({self.sampler})" if self.sampler != "random" else ""),
            "a score takes, s": f"{self.cost:g}",
            "workers": f"{self.workers}",
            "trials/s": f"{self.rate:.1f}",
            "× one worker": f"{self.rate / one:.1f}",
            "ms a trial beside the score": f"{1e3 * self.beside:.0f}",
            "CPU ms a trial: worker": f"{1e3 * self.own:.1f}",
            "database": f"{1e3 * self.database:.1f}" if self.database else "",
            "proxy": f"{1e3 * self.proxy:.1f}" if self.proxy else "",
            "cores in use": f"{whole * self.rate:.1f}",
        }


def _cpu(pid: int | None) -> float:
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    its = process.cpu_times()
    total = its.user + its.system + its.children_user + its.children_system
    for child in process.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class Fixed:
    """An objective that takes so long and costs nothing; at its second call all workers wait for each other."""

    def __init__(self, score: Score, cost: float, ready: Any) -> None:
        self._score, self._cost, self._ready = score, cost, ready
        self.ends: list[float] = []  # when each call came to its end
        self._before = 0.0

    def __call__(self, _model: Any, _corpus: Corpus) -> Score:
        if len(self.ends) == _UNCOUNTED - 1:
            self._ready.wait(_PATIENCE)
            self._before = time.process_time()
        time.sleep(self._cost)
        self.ends.append(time.monotonic())
        return self._score

    @property
    def told(self) -> tuple[list[float], float]:
        """When each call came to its end, and CPU seconds a call since all were at work."""
        return self.ends, (time.process_time() - self._before) / max(1, len(self.ends) - _UNCOUNTED)


def worker(url: str | None, cost: float, sampler: str, seed: int, ready: Any, told: Any) -> None:
    """One of several: searches until it is told to end."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    windows = torch.randint(3, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
    corpus = Corpus(windows, tuple(range(3)), source="random", slice=None, sha256="ab", bos=False)
    model = tiny_model("llama")
    objective = Fixed(perplexity(model, corpus), cost, ready)
    options: dict[str, Any] = {"storage": url, "sampler": sampler, "seed": seed, "progress": False}
    with redirect_stderr(io.StringIO()):
        search(model, corpus, space=SPACE, held_out=None, objective=objective, n_trials=10**6, **options)
    told.put(objective.told)


def measure(storage: Storage, workers: int, cost: float, seconds: float, sampler: str = "random") -> Found:
    """Let workers search for so many seconds, counted from when all are at work."""
    ready, told = PROCESSES.Barrier(workers + 1), PROCESSES.Queue()
    given = [(storage.url, cost, sampler, seed, ready, told) for seed in range(workers)]
    running = [PROCESSES.Process(target=worker, args=each) for each in given]
    for each in running:
        each.start()
    ready.wait(_PATIENCE)
    time.sleep(_SETTLE)
    before, start = storage.seconds(), time.monotonic()
    time.sleep(seconds + 10 * cost)
    after, stop = storage.seconds(), time.monotonic()
    for each in running:
        each.terminate()  # which a search ends on as on Ctrl-C
    found = [told.get(timeout=_PATIENCE) for _ in running]
    for each in running:
        each.join()
    counted = [[end for end in ends if start <= end <= stop] for ends, _ in found]
    rate = sum(_rate(ends, stop - start) for ends in counted)
    database, proxy = (after - before) / (stop - start) / rate
    own = sum(len(ends) * cpu for (_, cpu), ends in zip(found, counted, strict=True)) / sum(map(len, counted))
    return Found(storage.name, workers, cost, sampler, rate, own, database, proxy)


def _rate(ends: list[float], seconds: float) -> float:
    """Ends a second: between the first and the last, or where there are too few for that, in all."""
    return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 2 else len(ends) / seconds


def serve(url: str, port: int) -> None:
    """Optuna's proxy before a database: of `get_storage`, since an `RDBStorage` reads the whole study at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(url), host="127.0.0.1", port=port)


@contextmanager
def servers() -> Iterator[Callable[[str], Storage]]:
    """A PostgreSQL server, and a proxy before it; of a name, a storage of the kind without any study."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        server = Postgres.new(folder / "postgres")
        database = int((server.folder / "postmaster.pid").read_text().split()[0])
        port, numbers = free_port(), count()
        inner = server.url.replace("postgresql:", "postgresql+psycopg:")
        proxy = PROCESSES.Process(target=serve, args=(inner, port), daemon=True)
        open_storage(server.url)  # makes the tables
        proxy.start()

        def new(name: str) -> Storage:
            if name == MEMORY:
                return Storage(name, None)
            if name == SQLITE:
                return Storage(name, f"sqlite:///{folder / f'{next(numbers)}.db'}")
            for study in optuna.get_all_study_names(open_storage(server.url)):
                optuna.delete_study(study_name=study, storage=open_storage(server.url))
            if name == POSTGRES:
                return Storage(name, server.url, database)
            return Storage(name, f"grpc://127.0.0.1:{port}", database, proxy.pid)

        try:
            yield new
        finally:
            proxy.kill()
            proxy.join()
            server.stop()


def limits(found: list[Found], memory: Found) -> list[dict[str, str]]:
    """From how many workers on a storage can do no more: its most trials a second, or one core of a server's in use.

    What a trial costs a server grows with the workers, since each reads what the others have in hand and have scored: a
    line is laid through what was measured.
    """
    rows = []
    for name, which in ((SQLITE, ""), (POSTGRES, "database"), (PROXY, "proxy"), (PROXY, "database")):
        its = [each for each in found if each.storage == name]
        first = next(each for each in its if each.workers == 1 and not each.cost)
        most = max(each.rate for each in its)
        slope, least = 0.0, 1 / most
        told = f"at most {most:.0f} trials/s seen"
        if which:
            waiting = [each for each in its if each.cost]
            line = np.polyfit([each.workers for each in waiting], [getattr(each, which) for each in waiting], 1)
            slope, least = np.maximum(line, 0)
            told = f"{1e3 * least:.1f} + {1e3 * slope:.2f} × workers ms of CPU a trial"
        row = {
            "storage": name,
            "ms a trial in the storage": f"{1e3 * (first.beside - memory.beside):.0f}",
            "what is full": f"a core of the {which}'s" if which else "the file",
            "since": told,
        }
        many = np.arange(1, 10**5)
        for cost in LIMITS:
            busy = many * (least + slope * many) / (cost + first.beside)
            row[f"at {cost:g} s a score"] = f"{many[busy >= 1][0]:,} workers"
        rows.append(row)
    return rows


def draw(found: list[Found], path: Path) -> None:
    """Trials a second against workers, for each cost of a score."""
    costs = sorted({each.cost for each in found})
    figure, every = plt.subplots(1, len(costs), figsize=(4 * len(costs), 4), layout="constrained", squeeze=False)
    for axes, cost in zip(every[0], costs, strict=True):
        for name in WORKERS:
            its = [each for each in found if (each.storage, each.cost, each.sampler) == (name, cost, "random")]
            axes.plot([each.workers for each in its], [each.rate for each in its], "o-", label=name)
        most = np.array([1, max(max(WORKERS.values()))])
        if cost:
            axes.plot(most, most / cost, color="0.6", zorder=0, label="nothing but the score")
        axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="trials a second", xticks=[1, 2, 4, 8])
        axes.set_yticks([1, 2, 5, 10, 20, 50, 100])
        axes.set_ylim(0.8, 200)
        axes.set_title(f"a score takes {cost:g} s", fontsize="medium")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every storage with every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of each row (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a folder for scale.md and scale.png")
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    torch.set_num_threads(1)
    rows = [(name, workers, cost) for name, its in WORKERS.items() for cost in COSTS for workers in its]
    with servers() as new:
        alone = [measure(new(MEMORY), 1, 0.0, given.seconds, sampler) for sampler in ("random", "tpe")]
        found = [measure(new(name), workers, cost, given.seconds) for name, workers, cost in tqdm(rows)]
    first = {(each.storage, each.cost): each.rate for each in found if each.workers == 1}
    told = [each.row(each.rate) for each in alone] + [each.row(first[each.storage, each.cost]) for each in found]
    cores = len(os.sched_getaffinity(0))
    text = f"{cores} cores for workers and servers.\n\n{table(told)}\n\n{table(limits(found, alone[0]))}"
    write(text, given.out, "scale.md")
    if given.out is not None:
        draw(found, given.out / "scale.png")


if __name__ == "__main__":
    main()

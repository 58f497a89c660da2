"""What does a person see of every fault that a search may meet, and what is lost? Each is injected for real."""

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from david import Corpus, Recipe, load_model, perplexity, score_recipes, search
from david.candidates.spaces import Blocks
from david.cli.app import main as david
from david.metrics.score import Score
from david.storage import backend

sys.path.insert(0, str(Path(__file__).parents[2].resolve()))
from experiments.engine.printed import write
from tests.helpers.postgres import Postgres, why_not
from tests.tiny_models import VOCABULARY, tiny_model

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["__main__", "david.study.run_search", "david.report.page", "david.cli.inputs", "david.models.load", "datasets"]
)
TRIALS = 24  # of a study
WINDOW, WINDOWS, HELD_OUT = 64, 150, 16
PATIENCE = 4.0  # seconds that a storage may be gone, where it is gone for good; David waits 300
DEEP = 9  # visits from which on a recipe is too much for some scorers
SLEEP = "import select, time; time.sleep = lambda seconds: select.select([], [], [], seconds)"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
_FINISHED = """
    SELECT trials.number, trial_user_attributes.value_json, trial_values.value
    FROM trials JOIN trial_user_attributes USING (trial_id) JOIN trial_values USING (trial_id)
    WHERE trials.state = 'COMPLETE' AND trial_user_attributes.key = 'recipe'
"""

Finished = dict[int, tuple[str, float | None]]
Prepare = Callable[[], Any]
Scorer = Callable[[Any, Corpus], Score]


@dataclass(frozen=True)
class Given:
    """What a worker is started with."""

    model: Path
    text: Path
    out: Path
    storage: str | None = None
    study: str = "david"
    trials: int = TRIALS

    @property
    def url(self) -> str:
        """Where the study lives."""
        return self.storage or f"sqlite:///{self.out / 'study.db'}"

    @property
    def arguments(self) -> list[str]:
        """Of the command."""
        told = ["search", self.model, "--data", self.text, "--window", WINDOW, "--windows", WINDOWS]
        told += ["--held-out", HELD_OUT, "--scales", "0.1:0.9", "--top", 2, "--baseline", 1, "--study", self.study]
        told += ["--trials", self.trials, "--out", self.out] + (["--storage", self.storage] if self.storage else [])
        return list(map(str, told))

    def finished(self) -> Finished:
        """The finished trials: their recipes and values; read without a hand on the file."""
        url = self.storage.replace("postgresql:", "postgresql+psycopg:") if self.storage else ""
        engine = sqlalchemy.create_engine(url or f"sqlite:///file:{self.out / 'study.db'}?mode=ro&uri=true")
        try:
            with engine.connect() as connection:
                found = connection.execute(sqlalchemy.text(_FINISHED + f" AND study_id = ({_study(self.study)})"))
                return {number: (json.loads(recipe), value) for number, recipe, value in found}
        except sqlalchemy.exc.DBAPIError:  # gone, not made yet, or being written
            return {}
        finally:
            engine.dispose()


def _study(name: str) -> str:
    return f"SELECT study_id FROM studies WHERE study_name = '{name}'"


def _quiet() -> None:
    """Nothing is done to a worker."""


def run_command(given: Given, log: Path, prepare: Prepare = _quiet) -> None:
    """The command `david search`, in a process of its own; what it says on stderr goes into a log."""
    _say_into(log)
    prepare()
    sys.argv = ["david", *given.arguments]
    david()


def run_search(given: Given, log: Path, scorer: Scorer, queue: tuple[Recipe, ...] = ()) -> None:
    """The same with `david.search` and a scorer of one's own."""
    _say_into(log)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen, unseen = _random_windows().split(3, 3)
    options: dict[str, Any] = {"objective": scorer, "held_out": unseen, "queue": queue}
    options |= {"out": given.out, "study_name": given.study, "n_trials": given.trials}
    space = Blocks(scales=(0.1, 0.9))
    search(tiny_model("llama"), seen, space=space, top=2, baseline=1, **options)


def _say_into(log: Path) -> None:
    torch.set_num_threads(1)
    for stream, path in ((1, Path(os.devnull)), (2, log)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream)


def _random_windows() -> Corpus:
    windows = torch.randint(3, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(windows, tuple(range(6)), source="random", slice=None, sha256="ab", bos=False)


class Case:
    """One fault: a study in a folder of its own, and what is done to it."""

    def __init__(self, place: "Place", name: str) -> None:
        self.place = place
        self.folder = place.folder / name
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.given = Given(place.model, place.text, self.folder / "run", study=name)
        self.work: Callable[..., None] = run_command
        self.before: Finished = {}
        self.is_plain: Callable[[Recipe], bool] = lambda _: True  # whether a recipe's score can be measured again
        self.after: Callable[[], Any] = _quiet  # what is repaired before the command is run again

    def start(self, **options: Any) -> Any:
        """Start a worker."""
        process = PROCESSES.Process(target=self.work, args=(self.given, self.log), kwargs=options)
        process.start()
        return process

    def until(self, ready: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something is the case."""
        patience = time.monotonic() + seconds
        while not ready() and time.monotonic() < patience:
            time.sleep(0.02)
        assert ready(), f"{self.folder.name}: this does not happen: {self.lines()}"

    def until_finished(self, trials: int) -> None:
        """Wait until so many trials are finished, and remember them."""
        self.until(lambda: len(self.given.finished()) >= trials)
        self.before = self.given.finished()

    def said(self, text: str, times: int = 1) -> bool:
        """Whether the worker has said this."""
        return sum(text in line for line in self.lines()) >= times

    def lines(self) -> list[str]:
        """What a worker has said, without its bars and what torchao says where it is imported."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[\w+", "", text))
        lines = [line.strip() for line in lines if not re.match(r"Failed to load .*torchao|W\d{4} .*_pytree", line)]
        return [line for line in lines if line and not re.search(r"visit/s|it/s|recipe/s|\d+%\|", line)]


def end(process: Any, seconds: float = 90) -> int:
    """The exit code of a worker, which is waited for; below zero the signal that ended it."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return int(process.exitcode)


# The faults: each starts a worker, does something to it, and returns its exit code.


def server_away(case: Case) -> int:
    """**the database is gone for a while**: PostgreSQL is stopped as by a crash, and started 5 s later."""
    case.given = replace(case.given, storage=case.place.server.url)
    process = case.start()
    case.until_finished(5)
    case.place.server.restart(gone=5)
    return end(process)


def server_gone(case: Case) -> int:
    """**the database is gone for good**: PostgreSQL is stopped; patience 4 s, not 300."""
    case.given = replace(case.given, storage=case.place.server.url)
    process = case.start(prepare=impatient)
    case.until_finished(5)
    case.place.server.stop()
    case.after = case.place.server.start
    return end(process)


def database_full(case: Case) -> int:
    """**disk full, under `study.db`, for a while**: the run's folder is a tmpfs of 240 kB, and 3 s later of 64 MB."""
    process = full(case, prepare=_quiet)
    time.sleep(3)
    resize(case.given.out, "64m")
    return end(process)


def database_full_for_good(case: Case) -> int:
    """**disk full, under `study.db`, for good**: the same, left full; patience 4 s, not 300."""
    process = full(case, prepare=impatient)
    case.after = partial(resize, case.given.out, "64m")
    return end(process)


def folder_full(case: Case) -> int:
    """**disk full, under tables and plots**: the study in PostgreSQL, `--out` a tmpfs of 64 kB."""
    case.given = replace(case.given, storage=case.place.server.url)
    mount(case, "64k")
    process = case.start()
    case.until_finished(5)
    case.after = partial(resize, case.given.out, "64m")
    return end(process)


def log_full(case: Case) -> int:
    """**disk full, under the log**: `david search … 2> /dev/full`."""
    log, case.log = case.log, Path("/dev/full")
    process = case.start()
    code = end(process)
    case.before, case.log = case.given.finished(), log
    return code


def no_memory_in_a_layer(case: Case) -> int:
    """**out of memory in a trial**: each layer allocates 2⁵⁰ bytes, until three recipes have failed of it."""
    return while_broken(case, allocates)


def layer_raises(case: Case) -> int:
    """**a layer that raises**, until three recipes have failed of it."""
    return while_broken(case, raises)


def no_memory_in_a_scorer(case: Case) -> int:
    """**out of memory in a scorer**: it makes a tensor of 4 GB for deep recipes, where RLIMIT_AS leaves 1 GB."""
    return scored_by(case, limited)


def nan(case: Case) -> int:
    """**NaN**: a scorer's, for deep recipes."""
    return scored_by(case, partial(worth, value=math.nan))


def infinite(case: Case) -> int:
    """**infinite**: a scorer's, for deep recipes."""
    return scored_by(case, partial(worth, value=math.inf))


def overflow(case: Case) -> int:
    """**a recipe that overflows**: strengths of 1e4, 1e30 and 1e300 are queued."""
    maps = (0, 1, 1, 2, 3, 4, 5)
    queue = tuple(Recipe(maps, (1, 1, scale, 1, 1, 1, 1)) for scale in (1e4, 1e30, 1e300))
    return scored_by(case, perplexity, queue=queue)


def base_overflows(case: Case) -> int:
    """**a base that overflows**: its weights × 3000, in float16."""
    case.given = replace(case.given, model=case.folder / "model")
    shutil.copytree(case.place.model, case.given.model)
    model = LlamaForCausalLM.from_pretrained(case.given.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3000)
    model.half().save_pretrained(case.given.model)
    return end(case.start())


def folder_changes(case: Case) -> int:
    """**the model's folder changes**: another model is saved into it during the search."""
    case.given = replace(case.given, model=case.folder / "model")
    shutil.copytree(case.place.model, case.given.model)
    process = case.start()
    case.until_finished(5)
    torch.manual_seed(1)
    other = LlamaForCausalLM.from_pretrained(case.given.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(0, 0.3)
    other.save_pretrained(case.given.model)
    code = end(process)
    again = end(case.start())
    with case.log.open("a") as log:
        log.write(f"(the line above: the same command on the changed folder; exit code {again})\n")
    case.after = partial(copied, case.place.model, case.given.model)
    return code


def weights_overwritten(case: Case) -> int:
    """**the model's weights change in place**: other bytes are written into the very file during the search."""
    case.given = replace(case.given, model=case.folder / "model")
    shutil.copytree(case.place.model, case.given.model)
    process = case.start()
    case.until_finished(5)
    [weights] = case.given.model.glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(torch.randn(weights.stat().st_size // 8).numpy().tobytes())
    code = end(process)
    case.after = partial(copied, case.place.model, case.given.model)
    return code


def interrupted(case: Case) -> int:
    """**Ctrl-C**."""
    return signalled(case, signal.SIGINT)


def interrupted_twice(case: Case) -> int:
    """**Ctrl-C, twice**, half a second apart, in a trial that takes half a minute."""
    flag = case.folder / "slow"
    process = case.start(prepare=partial(breaking, flag, partial(time.sleep, 0.4)))
    case.until_finished(5)
    flag.touch()
    time.sleep(2)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.5)
    start = time.monotonic()
    code = end(process)
    assert time.monotonic() - start < 15, "it does not end at once"
    flag.unlink()
    return code


def interrupted_while_writing(case: Case) -> int:
    """**Ctrl-C, again** while tables and plots are written."""
    process = case.start()
    case.until_finished(5)
    os.kill(process.pid, signal.SIGINT)
    case.until(lambda: case.said("interrupted"))
    os.kill(process.pid, signal.SIGINT)
    return end(process)


def terminated(case: Case) -> int:
    """**SIGTERM**."""
    return signalled(case, signal.SIGTERM)


def killed(case: Case) -> int:
    """**SIGKILL** of one of two workers; the other goes on."""
    processes = [case.start() for _ in range(2)]
    case.until_finished(5)
    processes[0].kill()
    assert end(processes[0]) == -signal.SIGKILL
    return end(processes[1])


def clock_jumps(case: Case) -> int:
    """**the clock jumps**: of one of two workers, a day ahead and 30 days back (libfaketime)."""
    clock = case.folder / "clock"
    clock.write_text("+0")
    # libfaketime takes a sleep until a moment of the monotonic clock for one of the clock that jumps, and fails
    command = [sys.executable, "-c", f"{SLEEP}; from david.cli.app import main; main()", *case.given.arguments]
    told = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    told |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "OMP_NUM_THREADS": "1"}
    with case.log.open("ab") as log:
        jumping = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=log)
    case.until_finished(2)
    other = case.start()
    for jump, trials in (("+1d", 5), ("-30d", 9)):
        case.until_finished(trials)
        clock.with_suffix(".new").write_text(jump)
        clock.with_suffix(".new").replace(clock)  # or half of it might be read
    return max(jumping.wait(90), end(other))


FAULTS = (
    server_away, server_gone, database_full, database_full_for_good, folder_full, log_full, no_memory_in_a_layer,
    no_memory_in_a_scorer, layer_raises, nan, infinite, overflow, base_overflows, folder_changes, weights_overwritten,
    interrupted, interrupted_twice, interrupted_while_writing, terminated, killed, clock_jumps,
)  # fmt: skip


# What they are made of.


def impatient() -> None:
    """A storage that is gone is given up soon."""
    backend.RETRY_SECONDS = PATIENCE


def mount(case: Case, size: str) -> None:
    """Let a run's folder be a file system of so many bytes."""
    case.given.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", case.given.out], check=True)
    case.place.undo.callback(subprocess.run, ["umount", "-l", case.given.out], check=True)


def resize(folder: Path, size: str) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def full(case: Case, prepare: Prepare) -> Any:
    """A worker whose study no longer fits on its disk."""
    mount(case, "240k")
    process = case.start(prepare=prepare)
    case.until(lambda: case.said("full"))
    case.before = case.given.finished()
    return process


def while_broken(case: Case, breaks: Callable[[], Any]) -> int:
    """A worker whose layers break for a while."""
    flag = case.folder / "broken"
    process = case.start(prepare=partial(breaking, flag, breaks))
    case.until_finished(5)
    flag.touch()
    case.until(lambda: case.said(" failed: ", 3))
    flag.unlink()
    return end(process)


def breaking(flag: Path, breaks: Callable[[], Any]) -> None:
    """Let every layer break for as long as there is a file."""
    forward = LlamaDecoderLayer.forward

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        if flag.exists():
            breaks()
        return forward(self, *args, **options)

    LlamaDecoderLayer.forward = broken


def allocates() -> None:
    """Ask for more memory than there is."""
    torch.empty(1 << 50, dtype=torch.uint8)


def raises() -> None:
    """Fail as a kernel does."""
    raise RuntimeError("a kernel failed")


def scored_by(case: Case, scorer: Scorer, **options: Any) -> int:
    """A worker with a scorer of its own."""
    case.work = partial(run_search, scorer=scorer, **options)
    case.is_plain = lambda recipe: len(recipe) < DEEP and max(recipe.scales) <= 1
    code = end(case.start())
    case.before = case.given.finished()
    return code


def worth(model: Any, corpus: Corpus, *, value: float) -> Score:
    """Perplexity; of deep recipes, a value."""
    score = perplexity(model, corpus)
    return score if model.config.num_hidden_layers < DEEP else replace(score, window_nll=(value,) * len(corpus))


def limited(model: Any, corpus: Corpus) -> Score:
    """Perplexity; for deep recipes too much memory is taken, where the process may have a gigabyte more than it has."""
    if model.config.num_hidden_layers < DEEP:
        return perplexity(model, corpus)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + 2**30, before[1]))
    try:
        torch.zeros(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    raise AssertionError


def copied(model: Path, folder: Path) -> None:
    """The model that was there."""
    shutil.copytree(model, folder, dirs_exist_ok=True)


def signalled(case: Case, number: int) -> int:
    """A worker that is sent a signal."""
    process = case.start()
    case.until_finished(5)
    os.kill(process.pid, number)
    return end(process)


@dataclass(frozen=True)
class Place:
    """What all cases share."""

    folder: Path
    model: Path
    text: Path
    server: Postgres
    undo: ExitStack = field(default_factory=ExitStack)


@contextmanager
def place() -> Iterator[Place]:
    """A tiny model, a text and a database server in a folder."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as undo:
        folder = Path(made)
        model, text = folder / "model", folder / "text.jsonl"
        tiny_model("llama").save_pretrained(model)
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(model)
        numbers = random.Random(0)
        rows = [" ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(100)) for _ in range(200)]
        text.write_text("".join(f"{json.dumps({'text': row})}\n" for row in rows))
        server = Postgres.new(folder / "postgres")
        undo.callback(server.stop)
        yield Place(folder, model, text, server, undo)


def row(here: Place, fault: Callable[[Case], int]) -> dict[str, str]:
    """Let a fault happen, run the same again, and compare."""
    case = Case(here, fault.__name__)
    code = fault(case)
    case.after()
    at_end, lines = case.given.finished(), case.lines()
    again = end(case.start())
    finally_ = case.given.finished()
    kept = case.before.items() <= at_end.items() <= finally_.items()
    return {
        "fault": " ".join(str(fault.__doc__).split()),
        "what the user sees": "<br>".join(_shown([line.replace(f"{here.folder}/", "") for line in lines])),
        "exit code": f"{code}",
        "recipes scored at the fault, at the end": f"{_recipes(case.before)}, {_recipes(at_end)}",
        "the same again: exit code, recipes scored": f"{again}, {_recipes(finally_)} of {case.given.trials}",
        "lost": "nothing" if kept else "SOMETHING",
        "scores true": _true(case, finally_),
    }


def _true(case: Case, trials: Finished) -> str:
    """Whether the last scores are those of a model that nothing has happened to."""
    some = [its for its in trials.values() if its[1] is not None and case.is_plain(Recipe.parse(its[0]))][-6:]
    if case.work is run_command:
        model, tokenizer = load_model(case.given.model)
        seen, _ = Corpus.load(case.given.text, tokenizer, window=WINDOW).hold_out(WINDOWS, HELD_OUT)
    else:
        model, seen = tiny_model("llama"), _random_windows().take(3)
    scores = score_recipes(model, [Recipe.parse(recipe) for recipe, _ in some], seen)
    apart = [abs(score.nll - value) for score, (_, value) in zip(scores, some, strict=True)]
    return "" if not apart else "yes" if max(apart) < 1e-5 else f"NO, {max(apart):.1e} apart"


def _recipes(trials: Finished) -> int:
    return len({recipe for recipe, _ in trials.values()})


def _shown(lines: list[str]) -> list[str]:
    """Each kind of line once, the rest counted."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(re.sub(r"\d+", "0", line), []).append(line)
    some = [f"`{its[0][:300]}`" + f" (and {len(its) - 1} like it)" * (len(its) > 1) for its in kinds.values()]
    return [line.replace("|", "¦") for line in some]


def table(rows: list[dict[str, str]]) -> str:
    """Rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(each.values()) for each in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Let every fault happen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a folder for faults.md")
    parser.add_argument("--only", nargs="*", default=[], metavar="FAULT", help=", ".join(f.__name__ for f in FAULTS))
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell lets ignore what it starts in the background
    rows, left_out = [], []
    with place() as here:
        for fault in FAULTS:
            if given.only and fault.__name__ not in given.only:
                continue
            if fault is clock_jumps and FAKETIME is None:
                left_out.append("The clock's jumps are left out: there is no libfaketime here (Debian's faketime).")
                continue
            if fault in (database_full, database_full_for_good, folder_full) and os.geteuid() != 0:
                left_out.append(f"{fault.__name__} is left out: only root may mount a tmpfs.")
                continue
            rows.append(row(here, fault))
            print(*(f"{name}: {said}" for name, said in rows[-1].items()), "", sep="\n", flush=True)
    write("\n\n".join([table(rows), *left_out]), given.out, "faults.md")


if __name__ == "__main__":
    main()

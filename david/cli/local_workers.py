"""Several workers on one machine: the same command, run again beside this one, each with its share of the machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from david.errors import SearchError
from david.support import signals
from david.support.console import say

_MOST = 256  # workers on one machine
_COMMAND = [sys.executable, "-c", "from david.cli.app import main; main()"]


def number_of(workers: str, device: str | None) -> int:
    """What `--workers` asks for: a number, or `auto` for one on each accelerator; a machine without any has one."""
    try:
        wanted = None if workers == "auto" else int(workers)
    except ValueError:
        wanted = 0
    if wanted is not None and not 1 <= wanted <= _MOST:
        raise SearchError(f"--workers must be auto, or 1 to {_MOST}; got {workers}")
    if wanted != 1 and device not in (None, "cpu"):
        raise SearchError(f"--workers {workers} gives each worker a device of its own: leave --device {device} out")
    if wanted is not None:
        return wanted
    import torch

    return max(1, 0 if device == "cpu" else torch.cuda.device_count())


@contextmanager
def beside(n_workers: int, out: Path) -> Iterator[None]:
    """While this lasts, `n_workers` run the command that this process was started with, it being the first.

    Each has its share of the machine; what the others say goes into `worker-<number>.log` in the run's folder. They
    share nothing but the storage, and end when the study has its trials, or when this one is told to: each signal that
    comes to this one goes on to them.
    """
    if n_workers == 1:
        yield
        return
    import torch

    shares = [_share(i, n_workers, torch.cuda.device_count()) for i in range(n_workers)]
    os.environ.update(shares[0])
    torch.set_num_threads(int(shares[0]["OMP_NUM_THREADS"]))
    out.mkdir(parents=True, exist_ok=True)
    logs = [out / f"worker-{i}.log" for i in range(1, n_workers)]
    others: list[subprocess.Popen[bytes]] = []
    try:
        with signals.forwarded_to(partial(_send, others)), _ended_by("SIGTERM"), _ended_by("SIGHUP"):
            for log, share in zip(logs, shares[1:], strict=True):
                others.append(_start(log, share))
            yield
            codes = [other.wait() for other in others]
    except BaseException:
        _end(others)
        raise
    for code, log in zip(codes, logs, strict=True):
        if code not in (0, signals.exit_code()):
            say(f"a worker ended with {code}: {log} tells why")


@contextmanager
def _ended_by(name: str) -> Iterator[None]:
    """Within this, a signal that nobody listens to ends the process as an exception does, not without a word."""
    number = getattr(signal, name, None)
    if number is None or signal.getsignal(number) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(number, before)


def _share(worker: int, n_workers: int, n_devices: int) -> dict[str, str]:
    """What the environment of a worker says of what is its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"OMP_NUM_THREADS": str(max(1, cores // n_workers))}
    if n_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(i) for i in range(n_devices)]
        found["CUDA_VISIBLE_DEVICES"] = names[worker % len(names)]
    return found


def _start(log: Path, share: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as told:
        return subprocess.Popen(
            [*_COMMAND, *_alone(sys.argv[1:])],
            env={**os.environ, **share},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,  # or a terminal's Ctrl-C would reach them twice
        )


def _alone(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with one worker in the place of several."""
    places = [i for i, each in enumerate(arguments) if each == "--workers" or each.startswith("--workers=")]
    left_out = {j for i in places for j in (i, i + ("=" not in arguments[i]))}
    name, *rest = [each for i, each in enumerate(arguments) if i not in left_out]
    return [name, "--workers", "1", *rest]


def _send(others: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    if os.name == "posix":  # elsewhere the console tells all of its processes
        for other in others:
            other.send_signal(number)


def _end(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell them to end; at once where this process is told once more while it waits."""
    try:
        for other in others:
            other.terminate()
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.kill()

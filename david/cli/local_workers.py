"""Several workers on one machine: the command runs again in further processes, each with its share of the machine.

`count_workers` reads `--workers`; `start_workers` runs the other processes while the first one works.
"""

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

_MAX_WORKERS = 256  # on one machine
_COMMAND = [sys.executable, "-c", "from david.cli.app import main; main()"]


def count_workers(workers: str, device: str | None, device_map: str | None = None) -> int:
    """Return the number of workers that `--workers` asks for.

    Args:
        workers: A number, or `auto` for one on each accelerator; a machine without accelerators gets one.
        device: The value of `--device`. Several workers have a device each, so only None and `cpu` fit them.
        device_map: The value of `--device-map`. It gives one model all devices, so that one worker fits it.

    Raises:
        SearchError: `workers` is neither, or several workers are to share one accelerator.
    """
    try:
        number = None if workers == "auto" else int(workers)
    except ValueError:
        number = 0
    if number is not None and not 1 <= number <= _MAX_WORKERS:
        raise SearchError(f"--workers must be auto, or 1 to {_MAX_WORKERS}; got {workers}")
    if number != 1 and device not in (None, "cpu"):
        raise SearchError(f"--workers {workers} gives each worker a device of its own: leave --device {device} out")
    if device_map is not None and number not in (None, 1):
        raise SearchError(
            f"--device-map {device_map} gives one worker all devices: leave --workers {workers} out, or --device-map"
        )
    if number is not None or device_map is not None:
        return number or 1
    import torch

    return max(1, 0 if device == "cpu" else torch.cuda.device_count())


@contextmanager
def start_workers(n_workers: int, out: Path) -> Iterator[None]:
    """Run the command of this process in `n_workers` processes, this one included, within a `with` block.

    Each has its share of the machine; the stderr of the others goes into `worker-<number>.log` in the run's folder. The
    processes share nothing but the storage. The others end when the study has its trials, or when this one is asked to
    end: each signal that this process receives is sent on to them.

    Args:
        n_workers: How many processes work; with 1 nothing is started.
        out: The run's folder.
    """
    if n_workers == 1:
        yield
        return
    import torch

    shares = [_machine_share(i, n_workers, torch.cuda.device_count()) for i in range(n_workers)]
    os.environ.update(shares[0])
    torch.set_num_threads(int(shares[0]["OMP_NUM_THREADS"]))
    out.mkdir(parents=True, exist_ok=True)
    logs = [out / f"worker-{i}.log" for i in range(1, n_workers)]
    others: list[subprocess.Popen[bytes]] = []
    try:
        with signals.forwarded_to(partial(_send_signal, others)), _exit_on("SIGTERM"), _exit_on("SIGHUP"):
            for log, share in zip(logs, shares[1:], strict=True):
                others.append(_start_worker(log, share))
            yield
            codes = [other.wait() for other in others]
    except BaseException:
        _terminate(others)
        raise
    for code, log in zip(codes, logs, strict=True):
        if code not in (0, signals.exit_code()):
            say(f"a worker ended with exit code {code}: see {log}")


@contextmanager
def _exit_on(name: str) -> Iterator[None]:
    """Within this, a signal that has no handler ends the process by `SystemExit`, so that cleanup code runs."""
    number = getattr(signal, name, None)
    if number is None or signal.getsignal(number) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(number, before)


def _machine_share(worker: int, n_workers: int, n_devices: int) -> dict[str, str]:
    """Return the environment variables that give a worker its cores and its accelerator."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // n_workers))}
    if n_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(i) for i in range(n_devices)]
        environment["CUDA_VISIBLE_DEVICES"] = names[worker % len(names)]
    return environment


def _start_worker(log: Path, share: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [*_COMMAND, *_as_one_worker(sys.argv[1:])],
            env={**os.environ, **share},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # or a terminal's Ctrl-C would reach them twice
        )


def _as_one_worker(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with `--workers 1` in place of its number of workers."""
    places = [i for i, each in enumerate(arguments) if each == "--workers" or each.startswith("--workers=")]
    left_out = {j for i in places for j in (i, i + ("=" not in arguments[i]))}
    name, *rest = [each for i, each in enumerate(arguments) if i not in left_out]
    return [name, "--workers", "1", *rest]


def _send_signal(others: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    if os.name == "posix":  # elsewhere the console sends a signal to all of its processes
        for other in others:
            other.send_signal(number)


def _terminate(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask workers to end and wait for them; kill them if this process is asked to end again meanwhile."""
    try:
        for other in others:
            other.terminate()
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.kill()

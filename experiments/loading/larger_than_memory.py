"""A model three times larger than the memory it may use: checked, scanned and searched from disk.

    python experiments/loading/larger_than_memory.py [COMMAND ...]

A random Llama is written to a folder. Each command then runs in a process of its own, with its layers on disk, in a
control group of Linux that may use less memory than a third of the weights, cached pages of files included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ON_DISK = ("--device-map", "auto", "--max-memory", "cpu=200MB")
COMMANDS = {
    "check": "check {model}",
    "scan": "scan {model} --max-length 1 --window 32 --windows 4 --held-out 2 --top 2 --out {out}",
    "search": "search {model} --trials 12 --max-length 2 --window 32 --windows 4 --held-out 2 --top 2 --out {out}",
}


def write_model(folder: Path, layers: int) -> int:
    """Write a random Llama in float32, in shards; return the bytes of its weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from david.models.demo import demo_folder

    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="500MB")
    tokenizer.save_pretrained(folder)
    return sum(weight.nbytes for weight in model.parameters())


def limited_group(limit: int) -> Path | None:
    """Make a control group that may use so much memory, cached pages of files included; None if Linux forbids it."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        if (root / name).exists() or (root / "cgroup.controllers").exists():
            group = root / f"david-{os.getpid()}"
            try:
                group.mkdir()
                (group / name).write_text(str(limit))
            except OSError:
                continue
            return group
    return None


def join(group: Path | None) -> None:
    """Put this process into a control group."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def watch(process: subprocess.Popen[Any], peaks: dict[str, int]) -> None:
    """Keep the peaks of a process's own memory, and of all that it holds with the files it has mapped."""
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                peaks[name] = max(peaks.get(name, 0), int(value.split()[0]) * 1024)
        time.sleep(0.05)


def run(command: str, group: Path | None) -> dict[str, str]:
    """Run a command of David's within a control group; return a line of the table, or end the script if it fails."""
    words = [sys.executable, "-c", "from david.cli.app import main; main()", *command.split(), *ON_DISK]
    peaks: dict[str, int] = {}
    start = time.perf_counter()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: join(group)
    )
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    _, said = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {said[-500:]}")
    return {
        "command": command.split()[0],
        "seconds": f"{time.perf_counter() - start:.0f}",
        "own memory, MB": f"{peaks['RssAnon'] / 1e6:.0f}",
        "with mapped files, MB": f"{peaks['VmRSS'] / 1e6:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14, help="of 205 MB each (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=1000, help="MB of memory (default: %(default)s)")
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(COMMANDS)}; left out, all")
    given = parser.parse_args()
    group = limited_group(given.limit * 10**6)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        size = write_model(model, given.layers)
        limit = "no limit: control groups cannot be made here" if group is None else f"limit {given.limit} MB"
        print(f"weights {size / 1e6:.0f} MB, {limit}", flush=True)
        for name in given.commands or COMMANDS:
            row = run(COMMANDS[name].format(model=model, out=Path(scratch) / name), group)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if group is not None:
        group.rmdir()


if __name__ == "__main__":
    main()

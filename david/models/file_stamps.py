"""The files of a model on disk: whether they are what they were when it was loaded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

_SUFFIXES = (".safetensors", ".json")  # weights, which of them lies where, and the configuration


class Stamp(NamedTuple):
    """What a file system tells of a file."""

    size: int
    modified: int  # nanoseconds
    number: int  # its inode: another one, where it was replaced


Stamps = Mapping[Path, Stamp]
_LOADED: WeakKeyDictionary[nn.Module, Stamps] = WeakKeyDictionary()


def read_stamps(folder: Path, gguf: str | None = None) -> Stamps:
    """The stamps of what a model is read from: a GGUF file, or a folder's configuration and weights; else nothing."""
    if gguf is not None:
        paths = [folder / gguf]
    elif os.path.isdir(folder):  # which, unlike Path's, is False for a name too long
        paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and "token" not in path.name]
    else:
        paths = []  # on the Hub, whose cache names files by what is in them
    return {path.absolute(): stamp for path in paths if (stamp := _read_stamp(path)) is not None}


def store_stamps(model: nn.Module, before: Stamps) -> None:
    """Keep what the files of a model were when it was loaded."""
    _LOADED[model] = before


def changed_files(model: nn.Module) -> str | None:
    """What is different of a model's files since it was loaded, in a line; None where nothing is, or none are known."""
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
    """Which file of weights was written to in place, which weights in memory may be a view of; None where none was."""
    for path, before in sorted(_LOADED.get(model, {}).items()):
        now = _read_stamp(path)
        if path.suffix != ".json" and now is not None and now.number == before.number and now != before:
            return path.name
    return None


def _read_stamp(path: Path) -> Stamp | None:
    try:
        told = path.stat()
    except OSError:
        return None
    return Stamp(told.st_size, told.st_mtime_ns, told.st_ino)

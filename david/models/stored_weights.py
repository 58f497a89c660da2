"""What the safetensors files of a folder hold, read without loading a model.

`tensor_files` lists the tensors, and `describe_unused` says which of them a model does not use.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import nn

_EXAMPLES = 3  # tensors that a note names


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor that `from_pretrained` reads from a folder; empty without safetensors.

    Args:
        folder: The folder of a model.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            return {name: folder / file for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / "model.safetensors")
    except Exception:  # what cannot be read here, loading reports
        return {}


def describe_unused(model: nn.Module, names: Iterable[str], *, beyond_depth: bool = False) -> str | None:
    """Describe stored tensors that a model does not use.

    Args:
        model: The model, with or without weights.
        names: Tensors that are stored and not used; with `beyond_depth`, all that are stored.
        beyond_depth: Whether to describe only the tensors of layers beyond the model's depth.

    Returns:
        One line: how many tensors, of which layers; None if there are none.
    """
    lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    beyond: dict[str, tuple[int, int]] = {}  # tensor → its layer, and how many layers the model has
    other = []
    for name in sorted(names):
        place = _place_beyond(name, lists)
        if place is not None:
            beyond[name] = place
        elif not beyond_depth:
            other.append(name)
    if any(depth == 0 for _, depth in beyond.values()):
        return None  # a model without layers is refused: its weights are not what is wrong
    parts = []
    if beyond:
        layers = sorted({layer for layer, _ in beyond.values()})
        depth = max(depth for _, depth in beyond.values())
        parts.append(
            f"{_tensors(len(beyond))} of {_layers(layers)} (the depth is the configuration's: {depth} layers, 0 to "
            f"{depth - 1})"
        )
    if other:
        more = "" if len(other) <= _EXAMPLES else ", …"
        parts.append(f"{_tensors(len(other))} that the model has no place for: {', '.join(other[:_EXAMPLES])}{more}")
    return "; ".join(parts) or None


def _place_beyond(name: str, lists: dict[str, int]) -> tuple[int, int] | None:
    """Return the layer that a stored tensor belongs to and the model's number of layers, if the layer is beyond it."""
    for match in re.finditer(r"\.(\d+)\.", f".{name}"):
        stored_list, layer = f".{name}"[: match.start()], int(match[1])
        for path, depth in lists.items():
            same = f".{path}".endswith(stored_list) or stored_list.endswith(f".{path}")
            if same and layer >= depth:
                return layer, depth
    return None


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count:,} tensors"


def _layers(layers: list[int]) -> str:
    """Return layer numbers as text: runs as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)
    return f"layer {text}" if len(layers) == 1 else f"layers {text}"

"""A hash of a base's weights, by which a recipe tells the weights that it was made on.

`fingerprint` hashes the weights of a model. Quantised weights are packed, and some are packed anew when they first run,
so that there the files count, with the values that are stored in them.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from david.gguf.blocks import BlockWeight, keeps_blocks, named_weights
from david.models.sources import build_without_weights, local_folder, read_config
from david.models.stored_weights import tensor_files
from david.sling import locate
from david.sling.in_place import base_layers

_SAMPLES = 16  # values of each tensor that enter a fingerprint
_SAMPLED_BYTES = 64  # of each tensor of quantised files
_OF_FILES = "_david_fingerprint"  # attribute of a quantised model: the fingerprint of its files


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the base's weights: names, shapes, and 16 values of each tensor, rounded to bfloat16.

    It is cheap for a model of any size, and equal for float32 and bfloat16 loads of one checkpoint, for a GGUF file
    that is dequantised or kept in blocks, and for a checkpoint that is quantised while it is loaded. Of a checkpoint
    that is stored quantised, all that is in its files is sampled.

    Args:
        model: The base, slung or not: the fingerprint is the same. Tensors on the `meta` device count by name and
            shape; quantised ones too, if the files of the model are not on this machine.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    inner = locate.unwrapped(model)
    if keeps_blocks(inner) or not has_packed_weights(inner):
        return _hash(_base_weights(model))
    kept: str | None = vars(inner).get(_OF_FILES)
    if kept is None:
        config = inner.config
        folder = local_folder(config._name_or_path, getattr(config, "_commit_hash", None))
        kept = (None if folder is None else folder_fingerprint(folder)) or _hash(_unpacked_shapes(model))
        setattr(inner, _OF_FILES, kept)
    return kept


def has_packed_weights(model: nn.Module) -> bool:
    """Return whether weights of a model are quantised: held in other types than plain floating-point tensors.

    Args:
        model: The model, with or without weights.
    """
    config = getattr(model, "config", None)
    return getattr(config, "quantization_config", None) is not None or any(
        type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() for weight in model.parameters()
    )


def folder_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of a model whose weights are in a folder; only sampled values are read.

    Args:
        folder: The folder of its configuration and its safetensors files.

    Returns:
        As `fingerprint`; None if the configuration cannot be read or there are no safetensors.
    """
    try:
        model = build_without_weights(read_config(str(folder), {}))
        return stored_fingerprint(model, folder) or _packed_fingerprint(folder)
    except Exception:  # what cannot be read here, loading reports
        return None


def stored_fingerprint(model: PreTrainedModel, folder: Path) -> str | None:
    """Return the fingerprint of a model whose weights are in a folder as plain tensors; only sampled values are read.

    Args:
        model: The model without weights, on the `meta` device.
        folder: The folder of its safetensors files.

    Returns:
        As `fingerprint`; None if a weight of the model is not stored under its own name.
    """
    files = tensor_files(folder)
    prefix = f"{model.base_model_prefix}."
    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(files.values())}

        def read(name: str, weight: Tensor) -> Tensor:
            stored_name = name if name in files else name.removeprefix(prefix)
            stored: Tensor = opened[files[stored_name]].get_tensor(stored_name)  # a view of the file: nothing is copied
            if stored.shape != weight.shape or not stored.is_floating_point():
                raise ValueError(f"{name} is stored in another form")
            return stored

        try:
            return _hash(_base_weights(model), read)
        except Exception:  # renamed, packed or missing
            return None


def _packed_fingerprint(folder: Path) -> str | None:
    """Return a hash of the names, types, shapes and sampled bytes of all tensors in a folder; None without any."""
    digest = hashlib.sha256()
    files = tensor_files(folder)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(files.values())}
        for name, path in sorted(files.items()):
            stored: Tensor = opened[path].get_tensor(name)
            digest.update(f"{name} {stored.dtype} {tuple(stored.shape)}\n".encode())
            content = stored.reshape(-1).view(torch.uint8)
            if len(content):
                sampled = torch.arange(_SAMPLED_BYTES) * (len(content) - 1) // (_SAMPLED_BYTES - 1)
                digest.update(content[sampled].numpy().tobytes())
    return f"sha256:{digest.hexdigest()}" if files else None


def _hash(
    weights: Iterator[tuple[str, Tensor | BlockWeight]], read: Callable[[str, Tensor], Tensor] | None = None
) -> str:
    """Return the hash of named weights; `read` returns the values of a weight where the weight itself has none."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        values = weight if read is None or isinstance(weight, BlockWeight) else read(name, weight)
        if values.device.type == "meta" or values.numel() == 0:
            continue
        places = torch.arange(_SAMPLES, device=values.device) * (values.numel() - 1) // (_SAMPLES - 1)
        taken = values.values_at(places) if isinstance(values, BlockWeight) else values.detach().flatten()[places]
        digest.update(taken.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _layer_prefix(model: nn.Module) -> str:
    """Return the name of the list of layers within a model."""
    layers = locate.find(model).layers
    prefix: str = next(name for name, module in model.named_modules() if module is layers)
    return prefix


def _base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor | BlockWeight]]:
    """Yield the names and tensors of all weights, with the layers of the base even while the model is slung."""
    prefix = _layer_prefix(model)
    for name, weight in named_weights(model):
        if not name.startswith(f"{prefix}."):
            yield name, weight
    for name, weight in named_weights(base_layers(model)):
        yield f"{prefix}.{name}", weight


def _unpacked_shapes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names of all weights; those that may be packed as tensors without values, in their unpacked shape."""
    prefix = _layer_prefix(model)
    outside = ((name, part) for name, part in model.named_modules() if not f"{name}.".startswith(f"{prefix}."))
    inside = ((f"{prefix}.{name}", part) for name, part in base_layers(model).named_modules() if name)
    for name, part in (*outside, *inside):
        if hasattr(part, "in_features") and hasattr(part, "out_features"):
            yield f"{name}.weight", torch.empty(part.out_features, part.in_features, device="meta")
            continue
        for own_name, weight in part.named_parameters(recurse=False):
            packed = type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point()
            yield f"{name}.{own_name}", torch.empty(0, device="meta") if packed else weight

"""Memory: how much is free, sizes as text, and which errors mean that none is left."""

import re
from typing import TYPE_CHECKING

import psutil

from david.errors import DavidError
from david.support.text import brief

if TYPE_CHECKING:
    import torch

_NONE_LEFT = ("out of memory", "not enough memory", "allocate memory", "_status_alloc_failed")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def free(device: "torch.device") -> int:
    """Return the free memory of a device, in bytes."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def as_bytes(size: int | str, what: str) -> int:
    """Read a size as a number of bytes.

    Args:
        size: A number of bytes, or text such as `"5GB"`.
        what: What it is the size of, for the error.

    Raises:
        DavidError: It is no size.
    """
    text = size.strip().upper() if isinstance(size, str) else brief(size)
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGT]?I?)B?", text)
    size_bytes = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if size_bytes < 1:
        raise DavidError(f"cannot read {what} {brief(size)}: expected a number of bytes, or text such as '5GB'")
    return size_bytes


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error means that no memory is left."""
    return isinstance(error, MemoryError) or any(part in str(error).lower() for part in _NONE_LEFT)

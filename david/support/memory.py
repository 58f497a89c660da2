"""Memory: how much is free, sizes as text, and whether an error says that none is left."""

import re
from typing import TYPE_CHECKING

import psutil

from david.errors import DavidError
from david.support.text import brief

if TYPE_CHECKING:
    import torch

_NONE_LEFT = ("out of memory", "not enough memory", "can't allocate memory", "_status_alloc_failed")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def free(device: "torch.device") -> int:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def as_bytes(size: int | str, what: str) -> int:
    """A size as a number of bytes: one already, or text such as `"5GB"`; `DavidError` where it is no size."""
    text = size.strip().upper() if isinstance(size, str) else brief(size)
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGT]?I?)B?", text)
    read = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if read < 1:
        raise DavidError(f"cannot read {what} {brief(size)}: expected a number of bytes, or text such as '5GB'")
    return read


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    return isinstance(error, MemoryError) or any(part in str(error).lower() for part in _NONE_LEFT)

"""Read the keys of a GGUF file and where its tensors are; tensors are read when they are used.

The reader of the package gguf takes seconds for each vocabulary, because it makes an array of each token.
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from david.errors import ModelError
from david.support.text import one_line

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file: its type, its shape in the order of torch, and where its bytes begin."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    path: str
    start: int

    def content(self) -> np.ndarray:
        """Read the bytes, `[..., bytes of a row]`."""
        block, width = gguf.GGML_QUANT_SIZES[self.kind]
        shape = (*self.shape[:-1], self.shape[-1] // block * width)
        return np.fromfile(self.path, np.uint8, math.prod(shape), offset=self.start).reshape(shape)

    def values(self) -> np.ndarray:
        """Read the values, in float32."""
        return gguf.dequantize(self.content(), self.kind).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """The keys and tensors of a GGUF file; tensors are read when they are used.

    Of a list of texts, such as the vocabulary, only the length is here.
    """

    keys: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture, as llama.cpp writes it."""
        return str(self.keys.get("general.architecture"))

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are stored alike."""
        one, two = self.tensors[name], self.tensors[other]
        return (one.kind, one.shape) == (two.kind, two.shape) and np.array_equal(one.content(), two.content())


class _Reader:
    """A place in the bytes of a file, which moves on as values are read."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def many(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def one(self, form: str) -> Any:
        return self.many(form)[0]

    def skip_text(self) -> None:
        self.at += 8 + int(struct.unpack_from("<Q", self.content, self.at)[0])

    def text(self) -> str:
        start = self.at + 8
        self.skip_text()
        if self.at > len(self.content):
            raise ValueError("a text goes past its end")
        return self.content[start : self.at].decode("utf-8", "replace")

    def value(self) -> Any:
        kind = self.one("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.one(_SCALARS[kind])
        kind, length = self.many("IQ")
        if kind != _STRING:
            return list(self.many(f"{length}{_SCALARS[kind]}"))
        for _ in range(length):
            self.skip_text()
        return length


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read the keys of a GGUF file, and where its tensors are.

    Raises:
        ModelError: It is no whole GGUF file, or one part of several.
    """
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(content, os.path.abspath(path))
    except ModelError:
        raise
    except Exception as error:  # any error of struct, mmap or a table: the bytes are not what they should be
        raise ModelError(f"it is not a whole GGUF file ({one_line(error)}): fetch or copy it again") from None


def _read(content: mmap.mmap, path: str) -> GgufFile:
    reader = _Reader(content)
    magic, version, n_tensors, n_keys = reader.many("4sIQQ")
    if magic != b"GGUF" or version not in _VERSIONS:
        raise ValueError(f"expected GGUF of version 2 or 3, little-endian; got {magic!r}, version {version}")
    keys = {reader.text(): reader.value() for _ in range(n_keys)}
    table = []
    for _ in range(n_tensors):
        name = reader.text()
        sizes = reader.many(f"{reader.one('I')}Q")
        table.append((name, sizes[::-1], *reader.many("IQ")))
    if keys.get("split.count", 1) > 1:
        raise ModelError("it is one part of several (its key split.count): join them with llama-gguf-split --merge")
    alignment = keys.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, shape, number, offset in table:
        if number not in set(gguf.GGMLQuantizationType):
            raise ModelError(
                f"its tensor {name} is of type {number}, which the package gguf does not know: update gguf"
            )
        kind = gguf.GGMLQuantizationType(number)
        block, width = gguf.GGML_QUANT_SIZES[kind]
        size = math.prod(shape) // block * width
        if start + offset + size > len(content):
            raise ValueError(f"its tensor {name} ends at byte {start + offset + size}, and it has {len(content)}")
        tensors[name] = StoredTensor(kind, shape, path, start + offset)
    return GgufFile(keys, tensors)

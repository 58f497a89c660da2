"""Layers that keep their weights in the blocks of a GGUF file, and unpack them while they run.

`unpack` gives bit for bit what the package gguf dequantises. A large matrix is unpacked and multiplied part by part, so
that little more than the blocks is ever in memory.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from torch.nn import functional

try:  # transformers unpacks with torch, on any device, and faster than gguf does with numpy
    from transformers.integrations.gguf.dequant import GGML_BLOCK as _IN_TORCH
    from transformers.integrations.gguf.dequant import dequantize as _in_torch
except ImportError:
    _IN_TORCH = {}

_PLAIN = {gguf.GGMLQuantizationType.F16: torch.float16, gguf.GGMLQuantizationType.BF16: torch.bfloat16}
_PART = 1 << 22  # weights of a matrix that are unpacked at once
_STEP = 1 << 18  # weights whose intermediate results are in memory at once


def unpack(content: Tensor, kind: gguf.GGMLQuantizationType, dtype: torch.dtype) -> Tensor:
    """Return the values of blocks.

    Args:
        content: The bytes of the blocks, [rows, bytes of a row].
        kind: Their type.
        dtype: The data type of the values.

    Returns:
        The values, [rows, columns].
    """
    block, width = gguf.GGML_QUANT_SIZES[kind]
    columns = content.shape[1] // width * block
    values = torch.empty(len(content), columns, dtype=dtype, device=content.device)
    if content.device.type == "meta":
        return values
    step = max(1, _STEP // columns)
    for start in range(0, len(content), step):
        values[start : start + step] = _values(content[start : start + step], kind).reshape(-1, columns)
    return values


def _values(content: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    """Return the values of a few rows of blocks, in float32 or the type that they are stored in."""
    if kind in _PLAIN:
        return content.contiguous().view(_PLAIN[kind])
    if kind in _IN_TORCH:
        values: Tensor = _in_torch(content.contiguous(), int(kind), torch.float32)
        return values
    return torch.from_numpy(gguf.dequantize(content.cpu().numpy(), kind)).to(content.device)


class BlockLinear(nn.Linear):
    """A linear map whose weight is kept in blocks, [outputs, bytes of a row]."""

    kind: gguf.GGMLQuantizationType

    def __init__(self, inputs: int, outputs: int, kind: gguf.GGMLQuantizationType, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = inputs, outputs, kind
        self.weight = _blocks(outputs, inputs, kind)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the products, [..., outputs]."""
        rows = max(1, _PART // self.in_features)
        if rows >= self.out_features:
            return functional.linear(input, unpack(self.weight, self.kind, input.dtype), self.bias)
        products = input.new_empty(*input.shape[:-1], self.out_features)
        for start in range(0, self.out_features, rows):
            part = slice(start, start + rows)
            weight = unpack(self.weight[part], self.kind, input.dtype)
            products[..., part] = functional.linear(input, weight, None if self.bias is None else self.bias[part])
        return products


class BlockEmbedding(nn.Embedding):
    """A table of embeddings that is kept in blocks, [tokens, bytes of a row]."""

    def __init__(self, tokens: int, width: int, kind: gguf.GGMLQuantizationType, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.kind, self.dtype = tokens, width, kind, dtype
        self.padding_idx = self.max_norm = None
        self.weight = _blocks(tokens, width, kind)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the embeddings of tokens, [..., width]."""
        rows = unpack(self.weight[input.reshape(-1)], self.kind, self.dtype)
        return rows.reshape(*input.shape, self.embedding_dim)


def _blocks(rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> nn.Parameter:
    block, width = gguf.GGML_QUANT_SIZES[kind]
    return nn.Parameter(torch.empty(rows, columns // block * width, dtype=torch.uint8), requires_grad=False)


def can_keep_blocks(model: nn.Module, name: str) -> bool:
    """Whether a weight of a model can be kept in blocks: that of a linear map or an embedding."""
    place, _, end = name.rpartition(".")
    return end == "weight" and type(model.get_submodule(place)) in (nn.Linear, nn.Embedding)


def keep_blocks(model: nn.Module, kinds: Mapping[str, gguf.GGMLQuantizationType]) -> None:
    """Put layers that keep blocks in the place of linear maps and embeddings of a model.

    Args:
        model: The model, before its weights are loaded.
        kinds: The types of the weights to keep in blocks, by their names in the model.
    """
    for name, kind in kinds.items():
        place = name.rpartition(".")[0]
        module: Any = model.get_submodule(place)
        if isinstance(module, nn.Linear):
            model.set_submodule(place, BlockLinear(module.in_features, module.out_features, kind, module.bias))
        else:
            dtype = module.weight.dtype
            model.set_submodule(place, BlockEmbedding(module.num_embeddings, module.embedding_dim, kind, dtype))


@dataclass(frozen=True)
class BlockWeight:
    """The weight of a layer that keeps blocks, as if it were unpacked."""

    layer: BlockLinear | BlockEmbedding

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.layer.weight.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        block, width = gguf.GGML_QUANT_SIZES[self.layer.kind]
        rows, size = self.layer.weight.shape
        return rows, size // width * block

    def numel(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    def values_at(self, places: Tensor) -> Tensor:
        """Return the values at places of the flattened weight, in float32; only their rows are unpacked."""
        columns = self.shape[1]
        rows = unpack(self.layer.weight[places // columns], self.layer.kind, torch.float32)
        return rows[torch.arange(len(places), device=rows.device), places % columns]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor | BlockWeight]]:
    """Yield the names and weights of a model, as `named_parameters`; those that are kept in blocks as `BlockWeight`."""
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, BlockLinear | BlockEmbedding) and parameter is layer.weight:
            yield name, BlockWeight(layer)
        else:
            yield name, parameter


def keeps_blocks(model: nn.Module) -> bool:
    """Whether layers of a model keep blocks."""
    return any(isinstance(module, BlockLinear | BlockEmbedding) for module in model.modules())

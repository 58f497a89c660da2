"""The weights of a GGUF file under the names of transformers, dequantised one at a time as they are asked for.

Every tensor of the file has a place in the model, or the file is refused with the name of the tensor.
"""

import copy
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    TOKENIZER_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from david.errors import ModelError
from david.gguf.architectures import ARCHITECTURES, Architecture
from david.gguf.blocks import can_keep_blocks, keep_blocks
from david.gguf.configuration import ROTATION_TENSORS
from david.gguf.file import GgufFile, StoredTensor, read_gguf
from david.support.console import say

# Ends of parameters that are experts or unknown to the package gguf, and of the tensors that they are made of.
_OWN_NAMES = {
    "experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "experts.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    "experts.down_proj": ("ffn_down_exps.weight",),
    "experts.down_proj_bias": ("ffn_down_exps.bias",),
    "mlp.e_score_correction_bias": ("exp_probs_b.bias",),
    "linear_attn.dt_bias": ("ssm_dt.bias",),
}


@dataclass(frozen=True)
class Weight:
    """A parameter of the model and the tensors of the file that it is made of; indexing it reads and dequantises them.

    `from_pretrained` takes it in place of a tensor, as it takes a slice of a safetensors file.
    """

    names: tuple[str, ...]
    parts: tuple[StoredTensor, ...]  # none: a bias that the file leaves out, which is zero
    shape: tuple[int, ...]
    config: PreTrainedConfig
    of: Architecture
    keeps_blocks: bool = False

    def __getitem__(self, _index: Any) -> Tensor:
        if not self.parts:
            return torch.zeros(self.shape)
        undo = self.of.undo
        if self.keeps_blocks:  # whole rows, which change their places at most
            return torch.from_numpy(np.ascontiguousarray(undo(self.names[0], self.parts[0].content(), self.config)))
        values = [undo(name, part.values(), self.config) for name, part in zip(self.names, self.parts, strict=True)]
        joined = values[0] if len(values) == 1 else _joined(values, self.of)
        if self.of.model_type == "gpt_oss" and ".ffn_" in self.names[0] and joined.ndim == 3:
            joined = joined.swapaxes(1, 2)
        return torch.from_numpy(np.array(joined, copy=True).reshape(self.shape))


def _joined(values: list[np.ndarray], architecture: Architecture) -> np.ndarray:
    """Return the gates and the inputs of experts as one: one after the other, or row by row in turn (gpt-oss)."""
    if architecture.model_type == "gpt_oss":
        return np.stack(values, axis=2).reshape(len(values[0]), -1, *values[0].shape[2:])
    return np.concatenate(values, axis=1)


def gguf_weights(file: GgufFile, model: PreTrainedModel) -> dict[str, Weight]:
    """Return the weights of a file under the names of a model.

    Args:
        file: The file, from `read_gguf`.
        model: The model of its configuration, on the `meta` device.

    Raises:
        ModelError: A tensor has no place in the model, is missing, or has another shape, or a type that cannot be
            dequantised; it is named.
    """
    weights = {name: _weight(file, model, name, tensor) for name, tensor in _parameters(model).items()}
    used = {stored for weight in weights.values() for stored in weight.names} | set(ROTATION_TENSORS)
    if model.config.tie_word_embeddings:
        used.add("output.weight")  # of Bloom and Falcon; it has the same values
    if ahead := file.keys.get(f"{file.architecture}.nextn_predict_layers"):  # layers that no token passes through
        last = tuple(f"blk.{model.config.num_hidden_layers + layer}." for layer in range(ahead))
        used |= {name for name in file.tensors if name.startswith(last)}
    if unused := [name for name in file.tensors if name not in used]:
        depth, layer = model.config.num_hidden_layers, re.match(r"blk\.(\d+)\.", unused[0])
        if layer and int(layer[1]) >= depth:
            raise ModelError(
                f"it holds tensors of more layers than {file.architecture}.block_count says ({depth}), such as "
                f"{unused[0]}: fetch it again, or convert the model anew"
            )
        raise ModelError(
            f"its tensor {unused[0]} has no place in transformers' model of this architecture: give the folder or Hub "
            "id of the model instead"
        )
    for kind in {part.kind for weight in weights.values() for part in weight.parts}:
        _check_kind(kind)
    return weights


def _parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters and stored buffers of a model by name; those that are tied once."""
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _weight(file: GgufFile, model: PreTrainedModel, name: str, parameter: Tensor) -> Weight:
    """Return the weight of a parameter."""
    names = _stored_names(file.architecture, model.config.num_hidden_layers, name)
    lacks_bias = name.endswith(".bias") and not any(stored in file.tensors for stored in names)
    if lacks_bias and ARCHITECTURES[file.architecture].biases:  # one setting for several biases, of which some are zero
        names = ()
    for stored in names:
        if stored not in file.tensors:
            raise ModelError(f"it lacks the tensor {stored}: fetch it again, or convert the model anew")
    parts = tuple(file.tensors[stored] for stored in names)
    shape = list(parts[0].shape if parts else parameter.shape)
    if len(parts) > 1:
        shape[1] *= len(parts)
    if sorted(size for size in shape if size != 1) != sorted(size for size in parameter.shape if size != 1):
        raise ModelError(
            f"its tensor {names[0]} has the shape {list(parts[0].shape)}, and transformers' model of this architecture "
            f"takes {list(parameter.shape)}: give the folder or Hub id of the model instead"
        )
    return Weight(names, parts, tuple(parameter.shape), model.config, ARCHITECTURES[file.architecture])


def _stored_names(architecture: str, depth: int, name: str) -> tuple[str, ...]:
    """Return the names in the file of the tensors that a parameter is made of."""
    for end, parts in _OWN_NAMES.items():
        if name.endswith(f".{end}"):
            layer = re.search(r"\.(\d+)\.", name)
            return tuple(f"blk.{layer[1] if layer else 0}.{part}" for part in parts)
    table = _name_table(architecture, depth)
    base, dot, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    stored = table.get_name(base) or table.get_name(base.partition(".")[2])  # Bloom is known without its prefix
    if stored is None:
        raise ModelError(f"the package gguf knows no tensor for {name} of this architecture: update gguf")
    if not dot and stored.endswith("attn_sinks"):
        dot, end = ".", "weight"
    return (f"{stored}{dot}{end}",)


@lru_cache
def _name_table(architecture: str, depth: int) -> gguf.TensorNameMap:
    """Return the table from names of transformers to names of GGUF: it takes a fraction of a second to build."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, depth)


def _check_kind(kind: gguf.GGMLQuantizationType) -> None:
    """Raise `ModelError` if a type of tensors cannot be dequantised."""
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise ModelError(f"it holds tensors of type {kind.name}, which the package gguf cannot dequantise") from None


def gguf_tokenizer(path: Path, config: PreTrainedConfig) -> Any:
    """Return the tokenizer that a GGUF file holds."""
    kind = TOKENIZER_MAPPING.get(type(config), PreTrainedTokenizerFast)
    return kind.from_pretrained(path.parent, gguf_file=path.name)


def load_gguf(
    path: Path, config: PreTrainedConfig, *, in_blocks: bool = False, **arguments: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model from a GGUF file.

    Args:
        path: The file.
        config: Its configuration, from `gguf_config`.
        in_blocks: Keep the weights of linear maps and embeddings in the blocks in which they are stored.
        arguments: Further arguments of `from_pretrained`.

    Returns:
        The model, and what `from_pretrained` says about its weights.

    Raises:
        ModelError: The file is not whole, or holds what transformers' model does not compute.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config = copy.deepcopy(config)
    for name in arguments.keys() & config.to_dict().keys() - {"dtype"}:  # a setting, as from_pretrained takes them
        setattr(config, name, arguments.pop(name))
    with torch.device("meta"):
        skeleton = kind(config)
    weights = gguf_weights(read_gguf(path), skeleton)
    loading_kind = _keeping_blocks(kind, skeleton, weights) if in_blocks else kind
    try:
        model, loading_info = loading_kind.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, **arguments
        )
    except RuntimeError as error:
        if in_blocks and "floating-point" in str(error):  # accelerate makes parameters on disk of plain numbers
            raise ModelError("blocks cannot lie on disk: allow more memory, or leave --quantize stored out") from None
        raise
    model.__class__ = kind
    return model, loading_info


def _keeping_blocks(kind: Any, skeleton: PreTrainedModel, weights: dict[str, Weight]) -> Any:
    """Return a class of models that keep blocks where they can, and prepare the weights for it."""
    if not next(iter(weights.values())).of.keeps_blocks:
        raise ModelError("weights of its architecture cannot stay in blocks: leave --quantize stored out")
    places: dict[int, list[str]] = {}  # of tied weights several
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    kinds: dict[str, gguf.GGMLQuantizationType] = {}
    for names in places.values():
        parts = weights[names[0]].parts
        whole = len(parts) == 1 and parts[0].kind != gguf.GGMLQuantizationType.F32
        if whole and all(can_keep_blocks(skeleton, name) for name in names):
            kinds |= dict.fromkeys(names, parts[0].kind)
    for name in weights.keys() & kinds.keys():
        weights[name] = replace(weights[name], keeps_blocks=True)
    _note_dequantised(weights)

    class KeepsBlocks(kind):  # type: ignore[misc]
        def __init__(self, config: PreTrainedConfig, *further: Any, **options: Any) -> None:
            super().__init__(config, *further, **options)
            keep_blocks(self, kinds)

    KeepsBlocks.__name__ = kind.__name__
    return KeepsBlocks


def _note_dequantised(weights: dict[str, Weight]) -> None:
    """Print a note if many weights that are stored in blocks are not kept in them."""
    sizes = {name: math.prod(weight.shape) for name, weight in weights.items()}
    dequantised = [
        name
        for name, weight in weights.items()
        if not weight.keeps_blocks and any(gguf.GGML_QUANT_SIZES[part.kind][0] > 1 for part in weight.parts)
    ]
    if dequantised:
        share = sum(sizes[name] for name in dequantised) / sum(sizes.values())
        say(
            f"note: {share:.0%} of the weights are dequantised, such as {dequantised[0]}: only linear maps "
            "and embeddings stay in blocks"
        )

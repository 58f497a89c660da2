"""Write a checkpoint as compressed-tensors stores it: weights packed by a scheme such as W4A16, rounded to nearest."""

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams

_GROUP = 16  # values that share a scale where a scheme has groups


def save_compressed(model: Any, scheme: str, folder: Path) -> Path:
    """Save a model with its linear layers compressed, but for the head, and return the folder."""
    parts = preset_name_to_scheme(scheme, ["Linear"])
    if parts.weights.group_size:
        parts.weights.group_size = _GROUP
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": parts}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _set_scales(module, parts.weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def _set_scales(module: Any, how: Any) -> None:
    weight = module.weight.data
    if how.strategy == "group":
        weight = weight.unflatten(1, (-1, how.group_size))
    axis = (0, 1) if how.strategy == "tensor" else -1
    low, high = weight.amin(axis), weight.amax(axis)
    shape = module.weight_scale.shape
    scale, zero = calculate_qparams(low.reshape(shape), high.reshape(shape), how)
    with torch.no_grad():
        module.weight_scale.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.copy_(zero)

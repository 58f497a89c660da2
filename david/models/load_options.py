"""How a model is held: its data type, its device, its quantisation, and where its parts lie.

`LoadOptions` is what a user asks for. It is checked before anything is read, and then gives the arguments of
`from_pretrained`. A new way to quantise at loading is a row of `QUANTIZATIONS`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from david.errors import DavidError, ModelError
from david.support.extras import install_hint
from david.support.memory import as_bytes
from david.support.text import brief, one_line

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's ways to spread layers over devices
# What David gives `from_pretrained` itself, and how a user says it.
_OWN_ARGUMENTS = {
    "config": "another configuration is another model: save it to a folder with the weights",
    "gguf_file": "give the path of the .gguf file as the source",
    "output_loading_info": "load_model tells which tensors are missing or not used",
    "pretrained_model_name_or_path": "give it as the source",
    "state_dict": "save the weights to a folder",
    "torch_dtype": "give dtype=",
    "trust_remote_code": "code that comes with a model is never run",
    "use_safetensors": "pickles are not opened",
}


@dataclass(frozen=True)
class Quantization:
    """A way to quantise weights while they are loaded: the package it needs, and the configuration that asks for it."""

    package: str
    config: Callable[[torch.dtype], Any]  # from the data type in which products are computed


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _llm_int8(_dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _int8_weights(_dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-untyped]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTIZATIONS = {
    "4bit": Quantization("bitsandbytes", _nf4),
    "8bit": Quantization("bitsandbytes", _llm_int8),
    "int8": Quantization("torchao", _int8_weights),
}
STORED = "stored"  # for GGUF files: the blocks are kept as they are stored, and unpacked while they run


@dataclass(frozen=True)
class LoadOptions:
    """How to hold a model that is loaded; see `load_model` for each field.

    Attributes:
        dtype: The type of the weights, by name or as torch's; None for the stored one.
        device: The device of all weights; None for the accelerator if there is one.
        quantize: A name in `QUANTIZATIONS`, or `STORED`. None for the weights as they are stored; a GGUF file is
            dequantised then.
        device_map: A name in `DEVICE_MAPS`, or a dictionary from modules to devices, `"cpu"` or `"disk"`.
        max_memory: With a device map, the memory of each device: a dictionary, or text such as `"0=20GB,cpu=60GB"`.
        offload_folder: With a device map, the folder for weights on disk that must be written anew.
        further: Other arguments of `from_pretrained`.
    """

    dtype: str | torch.dtype | None = None
    device: str | None = None
    quantize: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    max_memory: str | Mapping[Any, Any] | None = None
    offload_folder: str | os.PathLike[str] | None = None
    further: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ModelError: A value is unknown, options exclude one another, or a package is missing.
        """
        self.target()
        if self.dtype is not None:
            parse_dtype(self.dtype)
        self._check_quantize()
        self._check_device_map()
        for name, instead in _OWN_ARGUMENTS.items():
            if name in self.further:
                raise ModelError(f"{name}= is no argument of load_model: {instead}")
        if "quantization_config" in self.further and self.quantize is not None:
            raise ModelError("give quantize= or quantization_config=, not both")

    def target(self) -> torch.device:
        """Return the device of a model without a device map.

        Raises:
            ModelError: There is no such device.
        """
        if self.device is None:
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            return accelerator or torch.device("cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"unknown device {brief(self.device)}: {one_line(error)}") from None
        try:
            if device.type != "meta":
                torch.empty(0, device=device)
        except Exception as error:  # each backend has its own
            raise ModelError(f"there is no device {brief(self.device)} here: {one_line(error)}") from None
        return device

    def arguments(self, config: PreTrainedConfig, *, is_gguf: bool) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` that hold a model as it is asked for.

        Args:
            config: The configuration of the model.
            is_gguf: Whether the weights are in a GGUF file.

        Raises:
            ModelError: The options do not fit the model.
        """
        stored = getattr(config, "quantization_config", None)
        quantized = stored is not None or self.quantize not in (None, STORED) or "quantization_config" in self.further
        arguments = dict(self.further)
        stored_type = torch.float32 if is_gguf else "auto"
        arguments["dtype"] = stored_type if self.dtype is None else parse_dtype(self.dtype)
        if self.quantize == STORED:
            if not is_gguf:
                raise ModelError(
                    f"--quantize {STORED} is for GGUF files: any other model is loaded as it is stored anyway"
                )
        elif self.quantize is not None:
            if is_gguf:
                raise ModelError(f"a GGUF file is quantised already: leave --quantize out, or give --quantize {STORED}")
            if stored is not None:
                method = quantization_method(config)
                raise ModelError(f"its weights are quantised already ({method}): leave --quantize (quantize=) out")
            compute = arguments["dtype"] if self.dtype is not None else getattr(config, "dtype", None) or torch.float32
            arguments["quantization_config"] = QUANTIZATIONS[self.quantize].config(compute)
        target = self.target()
        if self.device_map is not None:
            arguments["device_map"] = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
            if self.max_memory is not None:
                arguments["max_memory"] = parse_max_memory(self.max_memory)
            if self.offload_folder is not None:
                arguments["offload_folder"] = os.path.expanduser(os.fspath(self.offload_folder))
        elif quantized or target.type != "cpu":  # each tensor straight to its device: never all of them twice
            arguments["device_map"] = {"": target}
        return arguments

    def _check_quantize(self) -> None:
        if self.quantize in (None, STORED):
            return
        if self.quantize not in QUANTIZATIONS:
            known = ", ".join((*QUANTIZATIONS, STORED))
            raise ModelError(f"unknown quantisation {brief(self.quantize)}: expected one of {known}")
        package = QUANTIZATIONS[self.quantize].package
        if find_spec(package) is None:
            raise ModelError(f"--quantize {self.quantize} needs the package {package}: {install_hint('quantized')}")

    def _check_device_map(self) -> None:
        if self.device_map is None:
            for name, value in (("max_memory", self.max_memory), ("offload_folder", self.offload_folder)):
                if value is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise ModelError(f"{option} ({name}=) goes with a device map: add --device-map auto")
            return
        if self.device is not None:
            raise ModelError("give --device or --device-map, not both: a device map places the weights itself")
        if not isinstance(self.device_map, Mapping) and self.device_map not in DEVICE_MAPS:
            raise ModelError(
                f"unknown device map {brief(self.device_map)}: expected one of {', '.join(DEVICE_MAPS)}, or in "
                "Python a dictionary from modules to devices"
            )
        if self.max_memory is not None:
            parse_max_memory(self.max_memory)
        if self.offload_folder is not None:
            folder = Path(os.path.expanduser(os.fspath(self.offload_folder)))
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ModelError(f"the offload folder {folder} cannot be made: {one_line(error)}") from None


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the floating-point dtype of this name.

    Raises:
        ModelError: There is none.
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"unknown dtype {brief(dtype)}: expected float32, bfloat16 or float16")
    return kind


def parse_max_memory(max_memory: str | Mapping[Any, Any]) -> dict[int | str, int]:
    """Return the memory of each device in bytes.

    Args:
        max_memory: A dictionary, or text: `"0=20GB,cpu=60GB"`. Devices are numbers, `cpu` or `mps`.

    Raises:
        ModelError: It cannot be read.

    Example:
        >>> parse_max_memory("0=20GB, cpu=1.5GiB")
        {0: 20000000000, 'cpu': 1610612736}
    """
    if isinstance(max_memory, str):
        parts = [part.partition("=") for part in max_memory.split(",")]
        if not all(separator for _, separator, _ in parts):
            raise ModelError(f"cannot read max memory {brief(max_memory)}: expected text such as '0=20GB,cpu=60GB'")
        pairs: dict[Any, Any] = {device.strip(): size for device, _, size in parts}
    else:
        pairs = dict(max_memory)
    read: dict[int | str, int] = {}
    for device, size in pairs.items():
        key = int(device) if str(device).isdecimal() else device
        if not isinstance(key, int) and key not in ("cpu", "mps"):
            raise ModelError(f"max memory is of devices 0, 1, …, cpu or mps; got {brief(device)}")
        try:
            read[key] = as_bytes(size, f"the max memory of device {key}")
        except DavidError as error:
            raise ModelError(str(error)) from None
    return read


def quantization_method(config: PreTrainedConfig) -> str | None:
    """Return how the weights of a model are quantised, such as `bitsandbytes 4bit`; None if they are not.

    Args:
        config: The configuration of the model.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    settings = dict(stored) if isinstance(stored, Mapping) else stored.to_dict()
    method = settings.get("quant_method") or "an unknown method"
    bits = next((f"{settings[name]}bit" for name in ("bits", "nbits", "w_bit") if settings.get(name)), None)
    bits = "4bit" if settings.get("load_in_4bit") else "8bit" if settings.get("load_in_8bit") else bits
    return f"{getattr(method, 'value', method)}{'' if bits is None else f' {bits}'}"

"""Find the decoder layers of a transformers model, or refuse the model.

The rule is generic: the one list of as many modules as the text configuration has layers. `architectures` has the
exceptions. What is not known to be right is refused before anything is touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from david.errors import SlingError
from david.sling.architectures import COUPLED, DEPTHS, PROVED, PROVED_HERE, REFUSED, REQUIRED
from david.sling.views import is_rotary

_UNPACKING = "ct_decompress_hook"  # attribute of a model that compressed-tensors has yet to unpack
KEPT = "_david_base"  # attribute of the owner of a slung model's layers: the `BaseRecord`


@dataclass(frozen=True)
class Stack:
    """Where a model keeps its decoder layers: `getattr(owner, name)` is the ModuleList that its forward loops over.

    `configs` are the configuration objects that describe these layers (usually one, shared by every module).
    """

    owner: nn.Module
    name: str
    configs: tuple[PreTrainedConfig, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The layers in use: those of the base, or the visits of a recipe."""
        return self.owner._modules[self.name]  # type: ignore[return-value]


def find(model: nn.Module) -> Stack:
    """Find the decoder layers of a model.

    Args:
        model: A transformers model, or a module that wraps one (PEFT, `torch.compile`).

    Returns:
        Where the layers are; for a slung model, where its visits are.

    Raises:
        SlingError: The model is not known to run recipes exactly.
    """
    inner = unwrapped(model)
    unpack_weights(inner)
    config = inner.config.get_text_config(decoder=True)
    owner, name = _recorded_owner(inner) or _find_owner(inner, config)
    return Stack(owner, name, tuple(_configs(owner, name, config)))


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside its wrappers (PEFT classes, the result of `torch.compile`).

    Raises:
        SlingError: There is no transformers model inside.
    """
    inner = model
    while not isinstance(inner, PreTrainedModel):
        inside = list(inner.children()) if isinstance(inner, nn.Module) else []
        if len(inside) != 1:
            raise SlingError(f"expected a transformers model (PreTrainedModel); got {type(model).__name__}")
        inner = inside[0]
    return inner


def unpack_weights(model: PreTrainedModel) -> None:
    """Unpack weights that the first forward pass would unpack, so that all visits share those that it runs on.

    compressed-tensors does so in a hook of the model that was loaded.

    Args:
        model: The model; any other is left alone.
    """
    handle = vars(model).get(_UNPACKING)
    if handle is not None:
        model._forward_pre_hooks[handle.id](model, ())  # it takes itself away


def _refuse(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Raise `SlingError` if the model's type is not known to run recipes exactly."""
    kind = config.model_type
    for type_ in (model.config.model_type, kind):
        if type_ in REFUSED:
            raise SlingError(
                f"model type {type_!r} is refused: {REFUSED[type_]}. A decoder-only model with one list of layers works"
            )
    reads_encoder = config.is_encoder_decoder or getattr(config, "add_cross_attention", False)
    if reads_encoder or model.config.is_encoder_decoder:
        raise SlingError(
            f"{type(model).__name__} is refused: it is an encoder-decoder ({kind!r}), whose layers read the encoder "
            "as well. A decoder-only model works"
        )
    if not is_proved(model):
        raise SlingError(
            f"model type {kind!r} is refused: no proof has been made that slinging it is exact. "
            "`David.check(model)` makes the proof on the model in hand"
        )
    if kind in REQUIRED:
        setting, required, reason = REQUIRED[kind]
        if (value := getattr(config, setting)) != required:
            raise SlingError(
                f"model type {kind!r} is refused with {setting}={value!r}: {reason}. "
                f"Load it with {setting}={required!r}"
            )


def _recorded_owner(model: PreTrainedModel) -> tuple[nn.Module, str] | None:
    """Return the owner of a slung model's layers and the name of the list in it."""
    return next(((module, vars(module)[KEPT].name) for module in model.modules() if KEPT in vars(module)), None)


def is_proved(model: nn.Module) -> bool:
    """Return whether recipes are proved exact for this type, or by `check_model` for this very model."""
    inner = unwrapped(model)
    kind = inner.config.get_text_config(decoder=True).model_type
    return kind in PROVED or bool(inner.__dict__.get(PROVED_HERE))


def is_known(model: nn.Module) -> bool:
    """Return whether `find` accepts the model."""
    try:
        find(model)
    except SlingError:
        return False
    return True


def is_coupled(model: nn.Module) -> bool:
    """Return whether its layers pass on more than a hidden state, so that none can be called alone."""
    return find(model).configs[0].model_type in COUPLED


def _find_owner(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[nn.Module, str]:
    """Return the one module that owns the list of a base's decoder layers, and the name of the list in it."""
    _refuse(model, config)
    depth = next(getattr(config, name) for name in DEPTHS if name in vars(config) or name == DEPTHS[-1])
    candidates = list(_lists(model, config, model.config, depth))
    if len(candidates) != 1:
        places = ", ".join(f"{type(owner).__name__}.{name}" for owner, name in candidates) or "none"
        raise SlingError(
            f"{type(model).__name__} ({config.model_type!r}) is refused: expected one list of its {depth} decoder "
            f"layers, found {places}"
        )
    owner, name = candidates[0]
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    if is_quantized and any(getattr(part, "quantization_status", None) == "compressed" for part in owner.modules()):
        raise SlingError(
            "its weights are packed until the model that was loaded first runs, and this is a part of that model: "
            "sling the model itself, or run it once before"
        )
    if not type(owner).__module__.startswith("transformers."):
        raise SlingError(f"{type(owner).__name__} is refused: it is not transformers' own code, so its loop is unknown")
    return owner, name


def _lists(
    module: nn.Module, text: PreTrainedConfig, config: PreTrainedConfig, depth: int
) -> Iterator[tuple[nn.Module, str]]:
    """Yield the outermost lists of `depth` modules with weights, within the text model."""
    config = module.__dict__.get("config", config)
    for name, child in module._modules.items():
        if child is None:
            continue
        is_list = isinstance(child, nn.ModuleList) and config.model_type == text.model_type and len(child) == depth
        if is_list and all(any(True for _ in layer.parameters()) for layer in child.children()):
            yield module, name
            continue
        yield from _lists(child, text, config, depth)


def _configs(owner: nn.Module, name: str, config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield each configuration object that the text model keeps outside its layers, once."""
    seen = {id(config)}
    yield config
    # Not inside layers: a layer may hold a copy with settings of its own.
    for _, module in owner.named_modules({owner.get_submodule(name)}):
        other = module.__dict__.get("config")
        if (
            isinstance(other, PreTrainedConfig)
            and other.model_type == config.model_type
            and id(other) not in seen
            and not is_rotary(module)  # views share rotary modules with the base, whose configuration must stay
        ):
            seen.add(id(other))
            yield other

"""Find the decoder layers of a transformers model, or refuse the model."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from david.errors import SlingError
from david.sling.architectures import COUPLED, DEPTHS, NEEDED, PROVED, PROVED_HERE, REFUSED
from david.sling.views import is_rotary

KEPT = "_david_base"  # an attribute of a slung model's owner of layers: what is kept of the base, with the list's name


@dataclass(frozen=True)
class Stack:
    """Where a model keeps its decoder layers: `getattr(owner, name)` is the ModuleList that its forward walks.

    `configs` are the configuration objects that speak of these layers (usually one, shared by every module).
    """

    owner: nn.Module
    name: str
    configs: tuple[PreTrainedConfig, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The layers in use now: the base's, or a sling's."""
        return self.owner._modules[self.name]  # type: ignore[return-value]


def find(model: nn.Module) -> Stack:
    """The decoder layers of a model; `SlingError` when they are not known to be slung exactly."""
    inner = unwrapped(model)
    config = inner.config.get_text_config(decoder=True)
    owner, name = _kept_home(inner) or _home(inner, config)
    return Stack(owner, name, tuple(_configs(owner, name, config)))


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what holds it alone, such as PEFT's classes and what `torch.compile` returns."""
    inner = model
    while not isinstance(inner, PreTrainedModel):
        inside = list(inner.children()) if isinstance(inner, nn.Module) else []
        if len(inside) != 1:
            raise SlingError(f"expected a transformers model (PreTrainedModel); got {type(model).__name__}")
        inner = inside[0]
    return inner


def _refuse(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """`SlingError` for a model of a kind that is not known to be slung exactly."""
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
    for type_, setting, needed, reason in NEEDED:
        if kind == type_ and (value := getattr(config, setting)) != needed:
            raise SlingError(
                f"model type {kind!r} is refused with {setting}={value!r}: {reason}. Load it with {setting}={needed!r}"
            )


def _kept_home(model: PreTrainedModel) -> tuple[nn.Module, str] | None:
    """The owner of a slung model's layers, and the list's name in it."""
    return next(((module, vars(module)[KEPT].name) for module in model.modules() if KEPT in vars(module)), None)


def is_proved(model: nn.Module) -> bool:
    """Whether slinging was proved exact for its type, or by `check` for the model in hand."""
    inner = unwrapped(model)
    kind = inner.config.get_text_config(decoder=True).model_type
    return kind in PROVED or bool(inner.__dict__.get(PROVED_HERE))


def is_known(model: nn.Module) -> bool:
    """Whether `find` finds its layers."""
    try:
        find(model)
    except SlingError:
        return False
    return True


def is_coupled(model: nn.Module) -> bool:
    """Whether its layers hand on more than a hidden state, so that none can be called without its forerunner."""
    return find(model).configs[0].model_type in COUPLED


def _home(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[nn.Module, str]:
    """The one module that holds the list of a base's decoder layers, and the list's name in it."""
    _refuse(model, config)
    depth = next(getattr(config, name) for name in DEPTHS if name in vars(config) or name == DEPTHS[-1])
    found = list(_lists(model, config, model.config, depth))
    if len(found) != 1:
        places = ", ".join(f"{type(owner).__name__}.{name}" for owner, name in found) or "none"
        raise SlingError(
            f"{type(model).__name__} ({config.model_type!r}) is refused: expected one list of its {depth} decoder "
            f"layers, found {places}"
        )
    owner, name = found[0]
    if not type(owner).__module__.startswith("transformers."):
        raise SlingError(f"{type(owner).__name__} is refused: it is not transformers' own code, so its loop is unknown")
    return owner, name


def _lists(
    module: nn.Module, text: PreTrainedConfig, config: PreTrainedConfig, depth: int
) -> Iterator[tuple[nn.Module, str]]:
    """The outermost lists of `depth` modules with weights, among the modules that the text configuration speaks of."""
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
    """Each configuration object that the text model keeps beside its layers, once."""
    told = {id(config)}
    yield config
    for _, module in owner.named_modules({owner.get_submodule(name)}):  # a layer may have a copy, with what is its own
        other = module.__dict__.get("config")
        if (
            isinstance(other, PreTrainedConfig)
            and other.model_type == config.model_type
            and id(other) not in told
            and not is_rotary(module)  # a view shares these with its base, whose configuration must not follow
        ):
            told.add(id(other))
            yield other

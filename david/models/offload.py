"""Weights that accelerate keeps elsewhere until a module is called: in CPU memory, on disk."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module, or any in it, loads its weights for each call."""
    return any(True for part in module.modules() for _ in _offload_hooks(part))


@contextmanager
def loaded_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Load the weights of these modules once, and keep them until the end of the `with`."""
    with ExitStack() as stack:
        for module in modules:
            for hook in _offload_hooks(module):
                hook.pre_forward(module)
                stack.callback(_unload, hook, module)
                hook.offload = False
        yield


def _unload(hook: Any, module: nn.Module) -> None:
    hook.offload = True
    hook.post_forward(module, None)


def _offload_hooks(module: nn.Module) -> Iterator[Any]:
    hook = vars(module).get("_hf_hook")
    for part in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(part, AlignDevicesHook) and part.offload:
            yield part

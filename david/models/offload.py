"""Weights that accelerate keeps on CPU or disk and loads for each call of a module.

`is_offloaded` tells whether a module has such weights; `loaded_weights` holds them in memory over several calls, so
that they are read once.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Return whether a module, or any module inside it, loads its weights for each call.

    Args:
        module: The module; its submodules are included.
    """
    return any(True for part in module.modules() for _ in _offload_hooks(part))


@contextmanager
def loaded_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Load the weights of these modules once, and keep them in memory until the end of the `with` block.

    Args:
        modules: The modules that carry the hooks of accelerate; submodules are not included.
    """
    with ExitStack() as stack:
        for module in modules:
            for hook in _offload_hooks(module):
                hook.pre_forward(module)
                stack.callback(_unload, hook, module)
                hook.offload = False
        yield


def _unload(hook: Any, module: nn.Module) -> None:
    """Let the hook offload again, and free the weights now."""
    hook.offload = True
    hook.post_forward(module, None)


def _offload_hooks(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks of one module that load its weights for each call."""
    hook = vars(module).get("_hf_hook")
    for part in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(part, AlignDevicesHook) and part.offload:
            yield part

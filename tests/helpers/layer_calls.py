"""How often a model's layers are called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from david.sling.locate import find


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """How often each of a base's layers is called."""
    layers = find(model).layers
    calls = [0] * len(layers)

    def count(place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[place] += 1

        return hook

    handles = [layer.register_forward_hook(count(place)) for place, layer in enumerate(layers)]
    yield calls
    for handle in handles:
        handle.remove()

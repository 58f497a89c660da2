"""A model in the middle of a sequence, its twin, and what is compared.

The twin is a deep copy of the base that is never slung; each step is done to both. While the model runs a recipe, its
logits must be those of `stacked_copy.stacked(twin, recipe)`. While it runs none, its weights, its modules and its
configuration must be the twin's.
"""

import contextlib
import copy
import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from david import Recipe
from david.errors import DavidError
from david.sling import locate
from david.sling.in_place import can_run
from david.sling.stacked_copy import stacked

TEXT = torch.arange(14)[None] * 5 + 3  # [1, T]
ROUNDING = 1e-5  # of the logits' spread: packed embeddings are cut in the copy, a product of another shape
HALF = 5e-2  # the same in half precision
LOOSE = 1e-3  # after a training step, and where offloaded weights lie elsewhere in memory


class DifferenceError(Exception):
    """The model is not what it must be."""


class NoSenseError(Exception):
    """The step makes no sense in this state of the model."""


class BaseFailsError(Exception):
    """The twin, a plain model, cannot do the step."""


@dataclass
class Run:
    """A model in the middle of a sequence.

    Attributes:
        model: The model.
        twin: The deep copy that is never slung.
        draw: What chooses.
        recipe: What the model runs, or None.
        copied: A stacked copy with adapters of its own on each visit, if the model's visits have such.
        adapted: PEFT's wrappers of the model and of its twin (or of the stacked copy).
        allowed: How far logits may lie apart, in spreads.
        largest: The largest difference of all checks, in spreads.
        trained: Whether training or merging changed weights while the model was slung: sums in another order.
        quantised, offloaded, compiled: What was done to the base.
        steps: The steps that were done, in words.
        refusals: The message of each refusal.
        folders: Where weights are offloaded to.
    """

    model: Any
    twin: Any
    draw: random.Random
    recipe: Recipe | None = None
    copied: Any = None
    adapted: tuple[Any, Any] | None = None
    allowed: float = ROUNDING
    largest: float = 0.0
    trained: bool = False
    quantised: bool = False
    offloaded: bool = False
    compiled: bool = False
    steps: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    folders: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def reference(self) -> Any:
        """Return the model whose logits are right."""
        if self.copied is not None:
            return self.copied
        return self.twin if self.recipe is None else stacked(self.twin, self.recipe)

    def handle(self) -> Any:
        """Draw one of the handles that people sling a model by."""
        handles = [self.model, self.model.base_model, locate.find(self.model).owner]
        if self.adapted is not None:
            handles.append(self.adapted[0])
        return self.draw.choice(handles)

    def new_recipe(self) -> Recipe:
        """Draw a block that is repeated or skipped, with strengths in half of all cases."""
        layers = list(range(len(locate.find(self.twin).layers)))
        for _ in range(20):
            start, end = sorted(self.draw.sample(range(len(layers) + 1), 2))
            repeat = self.draw.random() < 0.7
            order = layers[:end] + layers[start:] if repeat else layers[:start] + layers[end:] or layers
            scales = [self.draw.choice((1, 1, 1, 0.5, -0.3)) for _ in order]
            recipe = Recipe(order, scales if self.draw.random() < 0.5 else None)
            if can_run(self.model, recipe):  # no layer comes before the one that it shares with
                return recipe
        raise NoSenseError

    def compare(self, left: Tensor, right: Tensor, what: str) -> None:
        """Raise `DifferenceError` if logits lie too far apart."""
        distance = float((left - right).abs().max() / right.std())
        if not distance <= self.allowed:
            raise DifferenceError(f"{what}: logits {distance:.1e} of their spread from the reference")
        self.largest = max(self.largest, distance)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TEXT, use_cache=False).logits.float()


def _plain(value: Tensor) -> Tensor:
    return value if type(value) is Tensor else value.dequantize()  # type: ignore[no-any-return]


def _digest(model: Any) -> str:
    """Hash each name, type and value of a model's state."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_plain(value).detach().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _modules(model: Any) -> list[tuple[str, type, bool]]:
    return [(name, type(module), module.training) for name, module in model.named_modules()]


def check(run: Run) -> None:
    """Compare the model with what it must be.

    Raises:
        DifferenceError: It is something else.
    """
    run.compare(logits(run.model), logits(run.reference()), "check")
    if run.recipe is not None and not (run.offloaded or run.adapted):
        slung, base = (sum(weight.numel() for weight in model.parameters()) for model in (run.model, run.twin))
        if slung > base:
            raise DifferenceError(f"{slung} weights, where the base has {base}: visits do not share theirs")
    if run.recipe is None and not run.offloaded:
        _check_base(run)


def _check_base(run: Run) -> None:
    if not run.trained and _digest(run.model) != _digest(run.twin):
        raise DifferenceError("the hash of the weights is not the twin's")
    if run.trained:
        for (name, left), (other, right) in zip(
            run.model.state_dict().items(), run.twin.state_dict().items(), strict=True
        ):
            close = torch.allclose(_plain(left).float(), _plain(right).float(), rtol=1e-2, atol=1e-3)
            if name != other or not close:
                raise DifferenceError(f"{name} is not the twin's")
    if run.model.config.to_dict() != run.twin.config.to_dict():
        raise DifferenceError("the configuration is not the twin's")
    differ = set(_modules(run.model)) ^ set(_modules(run.twin))
    if differ:
        raise DifferenceError(f"modules that are not the twin's, or in another mode: {sorted(differ, key=str)[:2]}")


def both(run: Run, change: Callable[[Any], Any]) -> None:
    """Do the same to the model and to what it is compared with.

    Raises:
        BaseFailsError: The plain model cannot do it; nothing was changed.
    """
    references = [run.twin] + ([] if run.copied is None else [run.copied])
    for reference in references:
        try_on_copy(run, reference, change)
    for target in (run.model, *references):
        torch.manual_seed(len(run.steps))
        change(target)


def try_on_copy(run: Run, reference: Any, change: Callable[[Any], Any]) -> None:
    """Raise `BaseFailsError` if a plain model cannot do a step, or does not run after it: some lack a kernel."""
    alone = copy.deepcopy(reference)
    try:
        torch.manual_seed(len(run.steps))
        change(alone)
        logits(alone)
    except Exception as error:
        raise BaseFailsError(str(error)) from None


def must_refuse(run: Run, change: Callable[[], Any]) -> None:
    """Do what must be refused.

    Raises:
        DifferenceError: It was not refused, or the refusal changed what the model computes.
    """
    before = logits(run.model)
    try:
        change()
    except DavidError as error:
        message = str(error)
    else:
        raise DifferenceError("it was not refused")
    run.refusals.append(re.sub(r"\b\w+\.\w+(?= cannot be replaced)", "MODULE.NAME", re.sub(r"\d+", "N", message)))
    if not run.steps[-1].endswith(" (refused)"):
        run.steps[-1] += " (refused)"
    if "\n" in message or len(message) > 300:
        raise DifferenceError(f"a refusal of more than a line: {message}")
    if not torch.equal(logits(run.model), before):
        raise DifferenceError("the refusal changed the model")


def unless(*reasons: Any) -> None:
    if any(reasons):
        raise NoSenseError

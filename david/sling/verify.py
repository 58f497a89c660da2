"""Prove on the model in hand that it runs recipes exactly.

`check_model` compares slings with two references that share no code with what they prove, on purpose: a deep copy with
really stacked layers (`stacked_copy`), and layers that are called here one by one (`layer_by_layer`, with a formula of
a visit's strength of its own).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling import architectures, locate
from david.sling.certificate import Certificate, Finding, result_text
from david.sling.in_place import AnyRecipe, base_depth, base_layers, check_recipe, slung, view
from david.sling.install import is_slung
from david.sling.stacked_copy import stacked
from david.sling.views import hidden, with_hidden
from david.support import memory
from david.support.text import one_line

PREFIX, STEPS = 24, 8  # tokens read at once, and tokens read one by one after them
_STEPS_OFFLOADED = 2  # where each of them reads the weights from disk
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the logits' spread: the order of a sum may change this
_TOLERANCE_HALF = 2e-2
_NO_MAPS = ("the base", "the identity", "after reset")
_MAX_CACHE_DIFFERENCE = 5e-2  # of the logits: a base whose own cache changes them more is compared without a cache only


def check_model(model: PreTrainedModel, *, recipe: AnyRecipe | None = None) -> Certificate:
    """Prove on the model in hand that it runs recipes exactly, on a few maps that stress it.

    Compared are: the identity with the base, to the bit; cached with uncached logits; a sling with really stacked
    layers (or, if memory does not hold a copy, with the base's layers called one by one); a view beside the base with
    the sling; the model after reset with the base, to the bit. A model of a type that has not been proved may run
    recipes once this passes.

    Args:
        model: A transformers causal language model that runs its base, in eval mode. It is unchanged afterwards.
        recipe: A recipe whose map is checked besides.

    Returns:
        The comparisons.

    Raises:
        SlingError: The model is refused, runs a recipe now, or refuses the recipe.
        RecipeError: The recipe does not fit the model.
    """
    locate.unwrapped(model)  # refuses what is no model
    if is_slung(model):
        raise SlingError("check() proves it on a base: this model is slung, so reset it first")
    if model.training:
        raise SlingError("the model is in training mode, where dropout makes logits random: call model.eval() first")
    was_proved = locate.is_proved(model)
    if not was_proved:
        setattr(model, architectures.PROVED_HERE, True)
    proved = False
    try:
        recipes = maps(base_depth(model))
        if recipe is not None:
            recipes["the recipe"] = Recipe.of(recipe)
            check_recipe(model, recipes["the recipe"])
        certificate = Certificate(
            architecture=type(model).__name__,
            model_type=model.config.get_text_config(decoder=True).model_type,
            num_layers=base_depth(model),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            versions={name: version(name) for name in ("david", "torch", "transformers")},
            maps={name: str(written) for name, written in recipes.items()},
            findings=tuple(_run_checks(model, recipes)),
        )
        proved = certificate.passed and _covers_both_ways(certificate.findings)
    finally:
        if not was_proved and not proved:
            delattr(model, architectures.PROVED_HERE)
    return certificate


def prove(model: PreTrainedModel) -> None:
    """Check a model of a type that has not been proved yet.

    Raises:
        SlingError: The check failed.
    """
    if locate.is_proved(model):
        return
    certificate = check_model(model)
    if not certificate.passed:
        wrong = next(finding for finding in certificate.findings if finding.passed is False)
        raise SlingError(
            f"{certificate.architecture} ({certificate.model_type}) is refused: it does not sling exactly "
            f"({wrong.recipe}, {wrong.claim}: {result_text(wrong)}). The whole certificate: david check"
        )


def maps(n_layers: int) -> dict[str, Recipe]:
    """Return, by name, the recipes that stress a base of `n_layers` layers."""
    last, half = n_layers - 1, n_layers // 2
    named: dict[str, list[int]] = {
        "a block again": [*range(half + 1), *range(max(half - 1, 0), n_layers)],
        "layers skipped": [0, *range(2, n_layers - 2), last] if n_layers > 4 else [last],
        "a stretch reversed": [0, *range(n_layers - 2, 0, -1), last] if n_layers > 3 else [*range(last, -1, -1)],
        "every layer twice": [layer for layer in range(n_layers) for _ in range(2)],
    }
    damped = Recipe((*range(n_layers), last), (0.5, *[1.0] * (n_layers - 1), -0.5))
    return {name: Recipe(tuple(visits)) for name, visits in named.items()} | {"layers damped": damped}


def full_logits(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    """Return the logits `[B, T, V]` of tokens `[B, T]` in one pass without a cache; `options` go to the model."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False, **options).logits
    return logits


def stepwise_logits(model: Any, tokens: Tensor, start: int, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Return the logits before each token from `start` on, `[B, T − start, V]`, read one by one with a cache."""
    user_config, model.generation_config = model.generation_config, GenerationConfig()  # not the user's settings
    try:
        out = model.generate(
            input_ids=tokens[:, :start],
            attention_mask=torch.ones_like(tokens)[:, :start] if mask is None else mask[:, :start],
            max_new_tokens=tokens.shape[1] - start,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=[_ForcedText(tokens)],
            **options,
        )
    finally:
        model.generation_config = user_config
    return torch.stack(out.logits, 1)


class _ForcedText(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` read a text one token a step, whatever the model would choose."""

    def __init__(self, text: Tensor) -> None:
        self.text = text  # [B, T]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_of_text = torch.full_like(scores, -torch.inf)
        return scores_of_text.scatter(1, self.text[:, input_ids.shape[1], None], 0.0)


@dataclass(frozen=True)
class _Base:
    """The reference of every comparison: the base's logits of a text, and the difference that rounding may make."""

    tokens: Tensor  # [1, T]
    uncached: Tensor  # [1, T, V]
    cached: Tensor | str
    allowed: float
    rounding: float | None  # what its own cache changes in its logits; None if that is more than rounding

    def compare_cached(self, name: str, claim: str, one: Tensor | str, other: Tensor | str) -> Finding:
        """Compare logits with a cache; a base that does not run with one asks nothing of its slings."""
        if isinstance(self.cached, str) and isinstance(one, str) and isinstance(other, str):
            return Finding(name, claim, None, reason=f"the base does not run with a cache either: {other}")
        return _compare(name, claim, one, other, 0 if other is self.cached else self.allowed)


def _run_checks(model: PreTrainedModel, recipes: Mapping[str, Recipe]) -> list[Finding]:
    before = _state(model)
    base, finding_of_base = _base_reference(model)
    findings = [finding_of_base]

    def is_base(recipe: str) -> list[Finding]:
        return [
            _compare(recipe, "uncached = the base", _uncached(model, base.tokens), base.uncached),
            base.compare_cached(recipe, "cached = the base", _cached(model, base.tokens), base.cached),
        ]

    with slung(model, Recipe.identity(base_depth(model))):
        findings += is_base("the identity")
    for name, recipe in recipes.items():
        findings += _check_map(model, name, recipe, base)
    findings += is_base("after reset")
    findings.append(Finding("after reset", "the modules and the configuration are the base's", _state(model) == before))
    return findings


def _base_reference(model: PreTrainedModel) -> tuple[_Base, Finding]:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    numbers = torch.Generator().manual_seed(0)
    steps = _STEPS_OFFLOADED if any(weight.is_meta for weight in model.parameters()) else STEPS
    tokens = torch.randint(3, vocabulary, (1, PREFIX + steps), generator=numbers).to(_input_device(model))
    uncached, again = _uncached(model, tokens), _uncached(model, tokens)
    if isinstance(uncached, str) or isinstance(again, str):
        raise SlingError(f"{type(model).__name__} itself does not run on token ids alone: {uncached}")
    if not torch.equal(uncached, again):
        raise SlingError(
            f"{type(model).__name__} itself gives other logits each time: there is nothing to compare with"
        )
    cached, claim = _cached(model, tokens), "cached = uncached"
    allowed = _TOLERANCE.get(model.dtype, _TOLERANCE_HALF)
    if isinstance(cached, str):
        return _Base(tokens, uncached, cached, allowed, None), Finding("the base", claim, None, reason=cached)
    own = difference(cached, uncached[:, PREFIX - 1 : -1])
    if own > _MAX_CACHE_DIFFERENCE:
        reason = f"not of the base itself ({own:.1e}): not asked of its slings"
        return _Base(tokens, uncached, cached, allowed, None), Finding("the base", claim, None, own, reason)
    return _Base(tokens, uncached, cached, allowed, own), Finding("the base", claim, True, own)


def _check_map(model: PreTrainedModel, name: str, recipe: Recipe, base: _Base) -> list[Finding]:
    tokens = base.tokens
    try:
        with slung(model, recipe):
            uncached, cached = _uncached(model, tokens), _cached(model, tokens)
    except SlingError as error:
        return [Finding(name, "refused", None, reason=str(error))]
    findings, stack_rounding = [], 0.0
    if _room_for(model, recipe):
        copied = stacked(model, recipe)
        stacked_uncached, stacked_cached = _uncached(copied, tokens), _cached(copied, tokens)
        del copied
        findings.append(_compare(name, "uncached = stacked", uncached, stacked_uncached, base.allowed))
        findings.append(base.compare_cached(name, "cached = stacked", cached, stacked_cached))
        if isinstance(stacked_uncached, Tensor) and isinstance(stacked_cached, Tensor):
            stack_rounding = difference(stacked_cached, stacked_uncached[:, PREFIX - 1 : -1])
    elif locate.is_coupled(model):
        reason = "no room for a copy, and its layers hand on more than a hidden state"
        findings.append(Finding(name, "uncached = stacked", False, reason=reason))
    else:
        called = _attempt(lambda: layer_by_layer(model, recipe, tokens))
        findings.append(_compare(name, "uncached = layer by layer", uncached, called, base.allowed))
    if base.rounding is not None:
        allowed = max(base.allowed, 10 * base.rounding, 2 * stack_rounding)  # a deeper stack rounds more
        same_steps = uncached if isinstance(uncached, str) else uncached[:, PREFIX - 1 : -1]
        findings.append(_compare(name, "cached = uncached", cached, same_steps, allowed))
    second = view(model, recipe)
    findings.append(_compare(name, "a view = the sling", _uncached(second, tokens), uncached))
    findings.append(_compare(name, "the base beside the view", _uncached(model, tokens), base.uncached))
    return findings


def _covers_both_ways(findings: tuple[Finding, ...]) -> bool:
    """Return whether some sling was compared in each of the ways in which the base itself runs."""
    asked = {finding.claim for finding in findings if finding.passed and finding.recipe not in _NO_MAPS}
    cached = any(finding.claim == "cached = the base" and finding.passed for finding in findings)
    return any(claim.startswith("uncached") for claim in asked) and (
        not cached or any(claim.startswith("cached") for claim in asked)
    )


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return where to put tokens: offloaded weights are on meta, and accelerate moves the inputs of their modules."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def layer_by_layer(model: PreTrainedModel, recipe: Recipe, tokens: Tensor, **options: Any) -> Tensor:
    """Return the logits `[1, T, V]` of a recipe by calling the base's layers here one by one, in the map's order.

    Each layer gets what the base's own forward gives it besides the hidden state; the base's end finishes the last.
    """
    home = base_layers(model)
    layer_inputs: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(index: int) -> Callable[..., None]:
        return lambda _layer, args, kwargs: layer_inputs.update({index: (args, kwargs)})

    handles = [layer.register_forward_pre_hook(keep(i), with_kwargs=True) for i, layer in enumerate(home)]
    try:
        full_logits(model, tokens, **options)
    finally:
        for handle in handles:
            handle.remove()
    output: Any = None
    args, kwargs = layer_inputs[0]
    state: Tensor = args[0] if args else kwargs["hidden_states"]
    with torch.no_grad():
        for index, scale in recipe:
            args, kwargs = layer_inputs[index]
            entry = {"hidden_states": state} if not args else {}
            output = home[index](*((state, *args[1:]) if args else ()), **(kwargs | entry))
            after = hidden(output)
            state = after if scale == 1 else state + scale * (after - state)
    finished = with_hidden(output, state)
    handle = home[-1].register_forward_hook(lambda *_: finished)
    try:
        return full_logits(model, tokens, **options)
    finally:
        handle.remove()


def _uncached(model: PreTrainedModel, tokens: Tensor) -> Tensor | str:
    return _attempt(lambda: full_logits(model, tokens))


def _cached(model: PreTrainedModel, tokens: Tensor) -> Tensor | str:
    return _attempt(lambda: stepwise_logits(model, tokens, PREFIX))


def _attempt(read: Callable[[], Tensor]) -> Tensor | str:
    """Return logits, or the reason why the model's own code gives none."""
    try:
        return read()
    except Exception as error:  # any kind: the code of any model
        return f"{type(error).__name__}: {one_line(error)}"


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits, in standard deviations of the logits."""
    if torch.equal(one, other):
        return 0.0
    return float((one.double() - other.double()).abs().max() / other.double().std())


def _compare(name: str, claim: str, one: Tensor | str, other: Tensor | str, allowed: float = 0) -> Finding:
    if isinstance(one, str) or isinstance(other, str):
        both = isinstance(one, str) and isinstance(other, str)
        reason = (
            f"neither runs: {other}" if both else f"one runs, one does not: {one if isinstance(one, str) else other}"
        )
        return Finding(name, claim, False, reason=reason)  # what could not be compared is not proved
    distance = difference(one, other)
    return Finding(name, claim, distance <= allowed, distance)


def _state(model: PreTrainedModel) -> Any:
    """Return the modules and the configuration, which a reset must restore."""
    return [(name, id(module)) for name, module in model.named_modules()], model.config.to_dict()


def _room_for(model: PreTrainedModel, recipe: Recipe) -> bool:
    """Return whether a really stacked copy fits into half of the free memory."""
    weights = list(model.parameters())
    if any(weight.device != model.device or weight.is_meta for weight in weights):
        return False  # spread over devices or offloaded
    layer = sum(weight.nbytes for weight in base_layers(model).parameters()) / base_depth(model)
    needed = sum(weight.nbytes for weight in weights) + layer * len(recipe)
    return bool(needed < memory.free(model.device) / 2)

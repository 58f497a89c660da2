"""Strengths of mergekit 0.1.5: what its `scale` parameter does to whole layers.

mergekit multiplies weights. `o_proj` and `down_proj` times s is a visit of strength s, h + s·(layer(h) − h), only where
attention and MLP read the same hidden state (Cohere). Elsewhere the MLP would read attention's output already damped;
there only 0 gives the same result.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from david.errors import RecipeError
from david.notation.parsing import BaseHints
from david.support.text import brief

HALVES = ("o_proj", "down_proj")  # the last weights of a layer's attention and of its MLP
# Strengths that mergekit can give a whole layer by multiplying these two: any if attention and MLP read the same hidden
# state, 0 alone if the MLP reads what attention has added. Measured in experiments/notation.
ANY_STRENGTH = ("CohereForCausalLM", "Cohere2ForCausalLM")
STRENGTH_ZERO = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
)
# Tensors of these architectures, in whose names mergekit looks for a filter.
_OTHER_PARTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_norm", "self_attn.k_norm"),
    *("mlp.gate_proj", "mlp.up_proj", "input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_OUTSIDE_LAYERS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_MOST_COMPARISONS = 1_000_000  # of filters with tensor names, which take about a second


class _Condition(NamedTuple):
    """Factors for the tensors whose names contain a text, all tensors if it is None: one, or a gradient."""

    filter: str | None
    values: tuple[float, ...]


def layer_strengths(scopes: Iterable[Any], layers: range, hints: BaseHints) -> list[float]:
    """Return the strength of each layer of a slice, as mergekit's `resolve_parameter` and `evaluate_setting` do.

    Args:
        scopes: `parameters` of the source, slice, module and merge; the nearest with a condition that holds counts.
            Parameters other than `scale` have no effect on a passthrough merge.
        layers: The layers of the slice.
        hints: The base's architecture decides which strengths are exact.

    Raises:
        RecipeError: No strengths of whole layers have the effect of these factors.
    """
    conditions = _conditions(scopes)
    factors = {value for condition in conditions for value in condition.values}
    if factors <= {1.0}:
        return [1.0] * len(layers)
    if hints.architecture not in (*ANY_STRENGTH, *STRENGTH_ZERO):
        raise RecipeError(why_not(min(factors - {1.0}), hints.architecture) or "")
    names = 2 * (len(_OTHER_PARTS) + len(HALVES)) + len(_OUTSIDE_LAYERS)
    if len(conditions) * len(layers) * names > _MOST_COMPARISONS:
        raise RecipeError(f"{len(conditions)} filters for {len(layers)} layers are too many: write a slice for each")
    steps = max(len(layers) - 1, 1)
    return [
        _strength(conditions, layer, step / steps if len(layers) > 1 else 1.0, hints)
        for step, layer in enumerate(layers)
    ]


def why_not(strength: float, architecture: str | None) -> str | None:
    """Return the reason why mergekit cannot give a whole layer a strength, or None if it can.

    Args:
        strength: The strength of a visit.
        architecture: Class name of the base, None if unknown.
    """
    if strength == 1 or architecture in ANY_STRENGTH or (strength == 0 and architecture in STRENGTH_ZERO):
        return None
    if architecture is None:
        return (
            f"whether mergekit can express the strength {strength:g} depends on the base's architecture: name the base "
            "(--model)"
        )
    if architecture in STRENGTH_ZERO:
        return (
            f"mergekit cannot express the strength {strength:g}: it multiplies o_proj and down_proj, and the MLP of "
            f"{architecture} would read attention's output already damped; only 0 and 1 are the same"
        )
    return f"what mergekit's scale does to a {architecture} has not been measured: only plain visits are translated"


def _strength(conditions: Sequence[_Condition], layer: int, t: float, hints: BaseHints) -> float:
    """Return the strength of one layer, at depth `t` of its slice."""

    def factors(*parts: str) -> set[float]:
        names = (f"model.layers.{layer}.{part}.{kind}" for part in parts for kind in ("weight", "bias"))
        return {_factor(conditions, name, t) for name in names}

    others = factors(*_OTHER_PARTS) | {_factor(conditions, name, 0.0) for name in _OUTSIDE_LAYERS}
    if others != {1.0}:
        raise RecipeError(
            f"this merge multiplies weights other than o_proj and down_proj by {min(others - {1.0}):g}: no strength "
            "does that"
        )
    attention, mlp = factors("self_attn.o_proj"), factors("mlp.down_proj")
    if attention != mlp or len(mlp) > 1:
        raise RecipeError(
            f"o_proj times {min(attention):g} and down_proj times {max(mlp):g}: a strength multiplies both alike"
        )
    [strength] = mlp
    if reason := why_not(strength, hints.architecture):
        raise RecipeError(reason)
    return strength


def _conditions(scopes: Iterable[Any]) -> list[_Condition]:
    """Return the conditions of all scopes in the order of their precedence, up to the first that always holds."""
    conditions: list[_Condition] = []
    for scope in scopes:
        if not scope:
            continue
        if not isinstance(scope, Mapping):
            raise RecipeError(f"parameters must be a mapping of names to values; got {brief(scope)}")
        setting = scope.get("scale", [])
        if setting == []:
            continue
        has_conditions = isinstance(setting, list) and all(isinstance(entry, Mapping) for entry in setting)
        for entry in setting if has_conditions else [setting]:
            condition = _condition(entry)
            conditions.append(condition)
            if condition.filter in (None, "*"):
                return conditions
    return conditions


def _condition(entry: Any) -> _Condition:
    """Check one condition: a mapping with `value` and perhaps `filter`, or a value for every tensor."""
    filtered, value = (entry.get("filter"), entry.get("value")) if isinstance(entry, Mapping) else (None, entry)
    if filtered is not None and not isinstance(filtered, str):
        raise RecipeError(f"a filter must be a text; got {brief(filtered)}")
    values = value if isinstance(value, list) and value else [value]
    return _Condition(filtered, tuple(map(_number, values)))


def _factor(conditions: Iterable[_Condition], name: str, t: float) -> float:
    """Return the factor of a tensor: of the first condition that holds for its name, at depth `t` of the slice."""
    for filtered, values in conditions:
        if filtered in (None, "*") or str(filtered) in name:
            if len(set(values)) == 1:
                return values[0]
            place = t * (len(values) - 1)
            before = int(place)
            after, part = min(len(values) - 1, before + 1), place - before
            return (1 - part) * values[before] + part * values[after]
    return 1.0


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"a scale must be one finite number; got {brief(value)}")
    return number

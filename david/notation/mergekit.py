"""Passthrough merges of mergekit 0.1.5.

mergekit multiplies weights. `o_proj` and `down_proj` times s is a visit of strength s, h + s·(layer(h) − h), only where
attention and MLP read the same hidden state (Cohere). Elsewhere the MLP would read attention's output already damped;
there only 0 gives the same result.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_json,
    extend_map,
    half_open_ranges,
    json_field,
    require_tool_name,
)
from david.recipe.recipe import Recipe
from david.support.text import brief

HALVES = ("o_proj", "down_proj")  # the last weights of a layer's attention and of its MLP
# Strengths that mergekit can give a whole layer by multiplying these two: any if attention and MLP read the same hidden
# state, 0 alone if the MLP reads what attention has added. Measured in experiments/notation.
ANY_STRENGTH = ("CohereForCausalLM", "Cohere2ForCausalLM")
STRENGTH_ZERO = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
)
MOST_YAML = 100_000  # characters: PyYAML reads some 50,000 in a second
_MOST_NODES = 100_000  # of a YAML document with its aliases written out


def read_mergekit(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read a merge by mergekit's `MergeConfiguration` (config.py) and `plan_slice` (plan.py)."""
    config = as_json(text, "a merge") if text.startswith("{") else _as_yaml(text)
    method = json_field(config, "merge_method", "a merge")
    if method != "passthrough":
        raise RecipeError(f"only a passthrough merge is an order of layers; got the merge_method {brief(method)}")
    slices = config.get("slices")
    if not isinstance(slices, list) or not slices:
        raise RecipeError("a passthrough merge must have slices; this one has none")
    visits: list[int] = []
    scales: list[float] = []
    models: list[str] = []
    for number, part in enumerate(slices):
        sources = json_field(part, "sources", f"slice {number}")
        if not isinstance(sources, list) or len(sources) != 1:
            raise RecipeError(f"slice {number} of a passthrough merge must have one source; got {brief(sources)}")
        models.append(_model_name(json_field(sources[0], "model", f"slice {number}")))
        [layers] = half_open_ranges([json_field(sources[0], "layer_range", f"slice {number}")], "layer_range")
        extend_map(visits, layers)
        strength = _strength([sources[0].get("parameters"), part.get("parameters"), config.get("parameters")], hints)
        scales += [strength] * len(layers)
    model = models[0]
    base = _model_name(config["base_model"]) if config.get("base_model") else model
    if set(models) != {model} or base != model:
        names = sorted({*models, base})
        raise RecipeError(f"a recipe has one base; this merge takes layers or a configuration from {brief(names)}")
    name, _, revision = model.partition("@")
    return ParsedRecipe(visits, scales, model=name or None, revision=revision or None)


def _as_yaml(text: str) -> Any:
    """Parse YAML as `yaml.safe_load` does, after a check that its aliases do not make it too large."""
    if len(text) > MOST_YAML:
        raise RecipeError(f"a merge has at most {MOST_YAML} characters; got {len(text)}")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        size = 0 if root is None else _expanded_size(root, {})
        document = loader.construct_document(root) if 0 < size <= _MOST_NODES else None
    except RecursionError:
        raise RecipeError("the YAML is nested too deeply, or holds itself: write its slices out") from None
    except Exception as error:  # PyYAML lets its constructors' own kinds out: KeyError for "!!bool x", and more
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}"
        raise RecipeError(f"cannot read the YAML{place}: {brief(getattr(error, 'problem', None) or error)}") from None
    if document is None:
        raise RecipeError("the YAML is empty, or its aliases make it too large: write its slices out")
    return document


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the nodes of a node with each alias written out; a node that contains itself recurses for ever."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        values = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(value, sizes) for value in values)
    return sizes[id(node)]


def _model_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"a slice's model must be a name; got {brief(value)}")
    if "+" in value:
        raise RecipeError(f"{brief(value)} is a model with an adapter, which is another base: merge the adapter first")
    return value


def _strength(scopes: Sequence[Any], hints: BaseHints) -> float:
    """Return the strength of a slice by its `scale`, from the nearest scope as in mergekit's parameter_resolver.py."""
    parameters = [scope for scope in scopes if scope]
    if not parameters:
        return 1.0
    for scope in parameters:
        if not isinstance(scope, Mapping) or set(scope) != {"scale"}:
            raise RecipeError(f"the only parameter of a passthrough merge is scale; got {brief(scope)}")
    names = (*HALVES, "any other weight")
    attention, mlp, other = (_factor([scope["scale"] for scope in parameters], name) for name in names)
    if other != 1:
        raise RecipeError(
            f"this merge multiplies every weight of a layer by {other:g}, norms too: no strength does that"
        )
    if attention != mlp:
        raise RecipeError(f"o_proj times {attention:g} and down_proj times {mlp:g}: a strength multiplies both alike")
    if reason := why_not(attention, hints.architecture):
        raise RecipeError(reason)
    return attention


def _factor(settings: Iterable[Any], name: str) -> float:
    """Return the factor of the weights with a name: the first condition that holds, in the first scope with one."""
    for setting in settings:
        if isinstance(setting, list) and not all(isinstance(condition, Mapping) for condition in setting):
            raise RecipeError(f"the scale {brief(setting)} is a gradient over a slice: write a slice for each strength")
        for condition in setting if isinstance(setting, list) else [setting]:
            filtered, value = None, condition
            if isinstance(condition, Mapping):
                filtered, value = condition.get("filter"), condition.get("value")
            if filtered not in (None, "*", *HALVES):
                raise RecipeError(f"cannot read the filter {brief(filtered)}: expected o_proj, down_proj or '*'")
            if filtered in (None, "*", name):
                return _number(value)
    return 1.0


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"a scale must be one finite number; got {brief(value)}")
    return number


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


def write_mergekit(recipe: Recipe, model: str | None) -> str:
    """Write a passthrough merge with a slice for each segment of the recipe.

    Args:
        recipe: The recipe.
        model: The base's name for mergekit, a folder or a Hub id; None for the one that the recipe states, with its
            revision.

    Raises:
        RecipeError: The base has no name that mergekit takes, a strength cannot be expressed, or the text would be
            longer than David reads back.
    """
    base = recipe.base
    base_name = (base.model if base else None) or ""
    name = require_tool_name(model or base_name, "mergekit")
    if not name:
        raise RecipeError("mergekit needs the base's name, which the recipe does not state: name the base (--model)")
    if model is None and base is not None and base.revision is not None:
        name = f"{name}@{base.revision}"
    if "+" in name or "@" in (model or base_name) or name.count("@") > 1 or not name.isprintable():
        raise RecipeError(f"mergekit does not take {brief(name)} as the name of one model: '+' and '@' split it")
    lines = ["merge_method: passthrough", "slices:"]
    visit = 0
    for start, stop, scale in recipe.segments:
        if reason := why_not(scale, base.architecture if base else None):
            raise RecipeError(f"visit {visit}, of layer {start}: {reason}")
        lines += ["- sources:", f"  - model: {_scalar(name)}", f"    layer_range: [{start}, {stop}]"]
        if scale != 1:
            lines += ["    parameters:", "      scale:"]
            lines += [f"      - {{filter: {half}, value: {scale!r}}}" for half in HALVES]
        visit += stop - start
    if len(text := "\n".join(lines) + "\n") > MOST_YAML:
        raise RecipeError(f"a merge of {len(recipe.segments)} slices is longer than David reads back: use david export")
    return text


def _scalar(text: str) -> str:
    """Return a text as YAML writes it on one line."""
    return yaml.safe_dump(text, width=10**9, allow_unicode=True).split("\n")[0]


MERGEKIT = Format(
    name="mergekit",
    describes="passthrough YAML, mergekit 0.1.5",
    read=read_mergekit,
    write=write_mergekit,
    range_end="excluded",
    limits="most strengths, see `david.notation.mergekit`",
    json_keys=("merge_method",),
    json_priority=1,
    looks_like=lambda text: re.search(r"^[ \t]*+(merge_method|slices)[ \t]*+:", text, re.MULTILINE) is not None,
    text_priority=2,
    names_base=True,
    keeps_layer_settings=True,
)

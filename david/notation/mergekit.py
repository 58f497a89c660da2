"""Passthrough merges of mergekit 0.1.5: the order of their layers, and the name of their base.

`mergekit_scales` has the strengths. What mergekit ignores in a passthrough merge is ignored here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from david.errors import RecipeError
from david.notation.mergekit_scales import HALVES, layer_strengths, why_not
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_json,
    as_layer,
    extend_map,
    json_field,
    require_tool_name,
)
from david.recipe.recipe import Recipe
from david.support.text import brief

MOST_YAML = 100_000  # characters: PyYAML reads some 50,000 in a second
_MOST_NODES = 100_000  # of a YAML document with its aliases written out


class _Model(NamedTuple):
    """A model that a merge names: a folder or a Hub id, and its revision."""

    name: str
    revision: str | None


def read_mergekit(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read a merge by mergekit's `MergeConfiguration` (config.py) and `MergePlanner` (plan.py)."""
    config = as_json(text, "a merge") if text.startswith("{") else _as_yaml(text)
    method = json_field(config, "merge_method", "a merge")
    if method != "passthrough":
        raise RecipeError(f"only a passthrough merge is an order of layers; got the merge_method {brief(method)}")
    models: list[_Model] = []
    slices, module = _slices(config, models, hints)
    visits: list[int] = []
    scales: list[float] = []
    for number, part in enumerate(slices):
        sources = json_field(part, "sources", f"slice {number}")
        if not isinstance(sources, list) or len(sources) != 1:
            raise RecipeError(f"slice {number} of a passthrough merge must have one source; got {brief(sources)}")
        models.append(_model(json_field(sources[0], "model", f"slice {number}")))
        layers = _layers(json_field(sources[0], "layer_range", f"slice {number}"))
        extend_map(visits, layers)
        scopes = (sources[0].get("parameters"), part.get("parameters"), module, config.get("parameters"))
        scales += layer_strengths(scopes, layers, hints)
    if not visits:
        raise RecipeError("this merge has no layer: expected a layer_range [start, end] with start < end, end excluded")
    _check_one_base(models, config)
    return ParsedRecipe(visits, scales, model=models[0].name, revision=models[0].revision)


def _slices(config: Mapping[str, Any], models: list[_Model], hints: BaseHints) -> tuple[list[Any], Any]:
    """Return the slices of a merge and the parameters of its module; add the models of other modules to `models`."""
    given = [key for key in ("slices", "models", "modules") if config.get(key)]
    if len(given) != 1:
        raise RecipeError(f"a merge must have one of slices, models and modules; this one has {brief(given)}")
    if given != ["modules"]:
        return _slices_of(config, hints), None
    modules = config["modules"]
    if not isinstance(modules, Mapping) or not all(isinstance(module, Mapping) for module in modules.values()):
        raise RecipeError(f"modules must be a mapping of names to slices or models; got {brief(modules)}")
    name = next(iter(modules)) if len(modules) == 1 else "text_decoder"
    if name not in modules or "vision" in str(name):
        raise RecipeError(f"a merge of several modules must have a text_decoder; got {brief(list(modules))}")
    models += [_unchanged_module(other, modules[other], config) for other in modules if other != name]
    return _slices_of(modules[name], hints), modules[name].get("parameters")


def _unchanged_module(name: Any, module: Mapping[str, Any], config: Mapping[str, Any]) -> _Model:
    """Return the model from which a module is taken whole and unscaled; `RecipeError` for any other module."""
    parts = module.get("models")
    if not isinstance(parts, list) or len(parts) != 1 or module.get("slices"):
        raise RecipeError(f"a recipe leaves other modules as they are; this merge changes {brief(name)}")
    model = _model(json_field(parts[0], "model", f"module {brief(name)}"))
    layer_strengths(
        (parts[0].get("parameters"), module.get("parameters"), config.get("parameters")), range(1), BaseHints()
    )
    return model


def _slices_of(part: Mapping[str, Any], hints: BaseHints) -> list[Any]:
    """Return the slices of a merge or module; a single model is one slice of all the base's layers."""
    slices, inputs = part.get("slices"), part.get("models")
    if isinstance(slices, list) and slices and not inputs:
        return slices
    if not isinstance(inputs, list) or len(inputs) != 1 or slices:
        raise RecipeError(f"a passthrough merge must have slices, or one model; got {brief(slices or inputs)}")
    if hints.n_layers is None:
        raise RecipeError("a merge of whole models does not state the base's depth: name the base (--model)")
    source = {"model": json_field(inputs[0], "model", "models"), "parameters": inputs[0].get("parameters")}
    return [{"sources": [source | {"layer_range": [0, hints.n_layers]}]}]


def _layers(pair: Any) -> range:
    """Read a layer_range, whose numbers may also be written as text or with a decimal point, as pydantic reads them."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise RecipeError(f"layer_range must be [start, end], end excluded; got {brief(pair)}")
    start, stop = map(_layer, pair)
    if start > stop:
        raise RecipeError(f"layer_range [{start}, {stop}] has no layer: expected start < end, end excluded")
    return range(start, stop)


def _layer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return as_layer(int(value))
    if isinstance(value, str) and (match := re.fullmatch(r"\s*\+?(\d{1,9})(\.0*)?\s*", value, re.ASCII)):
        return as_layer(int(match[1]))
    return as_layer(value)


def _check_one_base(models: list[_Model], config: Mapping[str, Any]) -> None:
    """Raise `RecipeError` unless layers, configuration and vocabulary come from one model."""
    model = models[0]
    base = _model(config["base_model"]) if config.get("base_model") else model
    if {*models, base} != {model}:
        names = sorted({str(named.name) + f"@{named.revision}" * bool(named.revision) for named in (*models, base)})
        raise RecipeError(f"a recipe has one base; this merge takes layers or a configuration from {brief(names)}")
    tokenizer = config.get("tokenizer") or {}
    if not isinstance(tokenizer, Mapping):
        raise RecipeError(f"a merge's tokenizer must be a mapping; got {brief(tokenizer)}")
    source = config.get("tokenizer_source") or tokenizer.get("source") or "union"
    if tokenizer.get("tokens") or (source not in ("union", "base") and _model(source) != model):
        raise RecipeError("a recipe has the base's vocabulary; this merge makes another one (tokenizer)")


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


def _model(value: Any) -> _Model:
    """Read the name of a model: `name`, `name@revision`, or the mappings by which mergekit writes them."""
    if isinstance(value, Mapping) and "model" in value:
        if value.get("lora"):
            raise RecipeError(f"{brief(value)} is a model with an adapter, which is another base: merge it first")
        value = value["model"]
    if isinstance(value, Mapping):
        name, revision = value.get("path"), value.get("revision")
    else:
        name, revision = value, None
        if isinstance(value, str):
            name, _, revision = value.partition("@")
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise RecipeError(f"a slice's model must be a name; got {brief(value)}")
    if isinstance(value, str) and "+" in value:
        raise RecipeError(f"{brief(value)} is a model with an adapter, which is another base: merge the adapter first")
    if "@" in (revision or ""):
        raise RecipeError(f"a model's name has at most one '@', before its revision; got {brief(value)}")
    return _Model(name, revision or None)


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
    limits="most strengths, see `david.notation.mergekit_scales`",
    json_keys=("merge_method",),
    json_priority=1,
    looks_like=lambda text: re.search(r"^[ \t]*+(merge_method|slices)[ \t]*+:", text, re.MULTILINE) is not None,
    text_priority=2,
    names_base=True,
    keeps_layer_settings=True,
)

"""The recipe languages of other tools, read as each tool itself reads them. `notation` says which there are.

Every reader takes text that a stranger may have written: it gives what the text says, or a `RecipeError`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from david.errors import RecipeError, brief
from david.origin import LONGEST

HALVES = ("o_proj", "down_proj")  # the last weights of a layer's attention and of its MLP
# By how much mergekit can damp a layer as a whole when it multiplies the two: by anything where attention and MLP read
# the same hidden state, by 0 where the MLP reads what attention has added. Measured in experiments/notation.
ANY_STRENGTH = ("CohereForCausalLM", "Cohere2ForCausalLM")
STRENGTH_ZERO = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
)
_SPEC_KEYS = ("layers", "layer_indices", "blocks", "key", "spec")  # of a RYS entry, in the order RYS looks for them
MOST_YAML = 100_000  # characters: PyYAML reads some 50,000 in a second
_MOST_NODES = 100_000  # of a YAML document with its aliases written out


class Known(NamedTuple):
    """What is known beside a text: the base's depth and architecture, and which of several results is meant."""

    n_layers: int | None = None
    architecture: str | None = None
    rank: int = 1


class Said(NamedTuple):
    """What a text says: the visits, and where it tells them too, their strengths, the base's depth and its name."""

    visits: Sequence[int]
    scales: Sequence[float] | None = None
    n_layers: int | None = None
    model: str | None = None


def as_json(text: str, what: str) -> Any:
    """What a JSON text holds; `RecipeError` where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise RecipeError(f"cannot read {what}: it is nested too deeply") from None
    except ValueError as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RecipeError(f"cannot read {what}: it is not valid JSON{place}") from None


def read_mergekit(text: str, known: Known) -> Said:
    """A passthrough merge: mergekit 0.1.5, `MergeConfiguration` in config.py and `plan_slice` in plan.py."""
    found = as_json(text, "a merge") if text.startswith("{") else _as_yaml(text)
    method = json_field(found, "merge_method", "a merge")
    if method != "passthrough":
        raise RecipeError(f"only a passthrough merge is an order of layers; its merge_method is {brief(method)}")
    slices = found.get("slices")
    if not isinstance(slices, list) or not slices:
        raise RecipeError("a passthrough merge is read from its slices, and this one has none")
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
        strength = _strength([sources[0].get("parameters"), part.get("parameters"), found.get("parameters")], known)
        scales += [strength] * len(layers)
    model = models[0]
    base = _model_name(found["base_model"]) if found.get("base_model") else model
    if set(models) != {model} or base != model:
        names = sorted({*models, base})
        raise RecipeError(f"a recipe is of one base; this merge takes layers or a configuration from {brief(names)}")
    return Said(visits, scales, model=model)


def _as_yaml(text: str) -> Any:
    """What a YAML text holds, as `yaml.safe_load` reads it; refused first where its aliases would make it grow."""
    if len(text) > MOST_YAML:
        raise RecipeError(f"a merge of {len(text)} characters is too long: it can have {MOST_YAML}")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        grown = 0 if root is None else _grown(root, {})
        found = loader.construct_document(root) if 0 < grown <= _MOST_NODES else None
    except RecursionError:
        raise RecipeError("the YAML is nested too deeply, or holds itself: write its slices out") from None
    except Exception as error:  # PyYAML lets its constructors' own kinds out: KeyError for "!!bool x", and more
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}"
        raise RecipeError(f"cannot read the YAML{place}: {brief(getattr(error, 'problem', None) or error)}") from None
    if found is None:
        raise RecipeError("the YAML is empty, or its aliases make it too large: write its slices out")
    return found


def _grown(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes a node is when each alias in it is written out; one that holds itself recurses for ever."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        values = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_grown(value, sizes) for value in values)
    return sizes[id(node)]


def _model_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"a slice's model must be a name; got {brief(value)}")
    if "+" in value:
        raise RecipeError(f"{brief(value)} is a model with an adapter merged in, which is another base: merge it first")
    return value


def _strength(scopes: Sequence[Any], known: Known) -> float:
    """The strength that mergekit's `scale` comes to; the nearest scope counts, as in its parameter_resolver.py."""
    given = [scope for scope in scopes if scope]
    if not given:
        return 1.0
    for scope in given:
        if not isinstance(scope, Mapping) or set(scope) != {"scale"}:
            raise RecipeError(f"of a passthrough merge's parameters only scale has a meaning; got {brief(scope)}")
    names = (*HALVES, "any other weight")
    attention, mlp, other = (_factor([scope["scale"] for scope in given], name) for name in names)
    if other != 1:
        raise RecipeError(
            f"this merge multiplies every weight of a layer by {other:g}, norms too: no strength does that"
        )
    if attention != mlp:
        raise RecipeError(f"o_proj times {attention:g} and down_proj times {mlp:g}: a strength is one for both")
    if reason := why_not(attention, known.architecture):
        raise RecipeError(reason)
    return attention


def _factor(settings: Iterable[Any], name: str) -> float:
    """By what weights of a name are multiplied: the first condition that holds, in the first scope with one."""
    for setting in settings:
        if isinstance(setting, list) and not all(isinstance(condition, Mapping) for condition in setting):
            raise RecipeError(f"the scale {brief(setting)} is a gradient over a slice: write a slice for each strength")
        for condition in setting if isinstance(setting, list) else [setting]:
            filtered, value = None, condition
            if isinstance(condition, Mapping):
                filtered, value = condition.get("filter"), condition.get("value")
            if filtered not in (None, "*", *HALVES):
                raise RecipeError(
                    f"cannot tell what the filter {brief(filtered)} leaves of a layer: use o_proj, down_proj"
                )
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
    """Why mergekit cannot damp a layer as a whole by a strength; None where it can."""
    if strength == 1 or architecture in ANY_STRENGTH or (strength == 0 and architecture in STRENGTH_ZERO):
        return None
    if architecture is None:
        return (
            f"whether mergekit can say the strength {strength:g} depends on the base's architecture: name it (--model)"
        )
    if architecture in STRENGTH_ZERO:
        return (
            f"mergekit cannot say the strength {strength:g}: it multiplies o_proj and down_proj, and the MLP of "
            f"{architecture} would read attention's output already damped; only 0 and 1 are the same"
        )
    return f"what mergekit's scale does to a {architecture} has not been measured: only plain visits are translated"


def read_rys(text: str, known: Known) -> Said:
    """Block and layer specs of dnhkng/RYS, by its `normalize_to_layers` in src/core/layer_config.py (3e75aca)."""
    spec = _rys_spec(as_json(text, "a RYS entry") if text.startswith(("{", "[")) else text)
    if isinstance(spec, list):
        return Said([as_layer(value) for value in bounded_list(spec)])
    kind, _, rest = spec.strip().rpartition(":")
    if kind.strip().lower() == "layers":
        parts = [part for part in rest.split(",") if part.strip()]
        return Said([layer_from_text(part) for part in bounded_list(parts)])
    if kind.strip().lower() not in ("", "blocks"):
        raise RecipeError(f"a RYS spec begins with 'blocks:' or 'layers:'; got {brief(spec)}")
    if known.n_layers is None:
        raise RecipeError("a RYS block spec does not tell the base's depth: say which base it is of (--model)")
    pairs = [part.strip() for part in rest.split(";") if part.strip()]
    return Said(repeated([_block(pair) for pair in bounded_list(pairs)], known.n_layers), n_layers=known.n_layers)


def _rys_spec(found: Any) -> str | list[Any]:
    """A spec as text, or as a list of layers: what RYS takes out of an entry of its queues and results."""
    for _ in range(2):  # an entry may hold its spec, which is read in turn
        if isinstance(found, Mapping):
            key = next((key for key in _SPEC_KEYS if key in found), None)
            if key is None:
                raise RecipeError(f"a RYS entry has one of {', '.join(_SPEC_KEYS)}; got {brief(found)}")
            if key in ("layers", "layer_indices"):
                return bounded_list(found[key])
            found = f"blocks:{found[key]}" if key == "blocks" else found[key]
    if isinstance(found, list) and len(found) == 2:  # outside an entry's layers, two numbers are a block
        return f"{as_layer(found[0])},{as_layer(found[1])}"
    if not isinstance(found, str | list):
        raise RecipeError(f"expected a RYS spec such as 'blocks:8,12;20,24' or 'layers:0,1,1,2'; got {brief(found)}")
    return found


def _block(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\(?\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)?", text, re.ASCII)
    if found is None or text.startswith("(") != text.endswith(")"):
        raise RecipeError(f"a RYS block must be 'start,end'; got {brief(text)}")
    return int(found[1]), int(found[2])


def repeated(blocks: Iterable[tuple[int, int]], n_layers: int) -> list[int]:
    """The base with blocks inserted one after the other, each behind the last visit of its last layer, as RYS does."""
    visits = list(range(n_layers))
    for start, stop in blocks:
        if (start, stop) == (0, 0):  # RYS writes the base so
            continue
        if not start < stop <= n_layers:
            raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ start < end ≤ {n_layers}, the base's layers")
        check_layers(len(visits) + stop - start)
        behind = len(visits) - visits[::-1].index(stop - 1)
        visits[behind:behind] = range(start, stop)
    return visits


def read_relayer(text: str, _known: Known) -> Said:
    """`rys_relayer`, which RYS's export leaves in a config.json (hf_export/common.py); nothing there reads it back."""
    found = as_json(text, "a config.json")
    found = json_field(found, "rys_relayer", "a configuration that RYS exported")
    depth = depth_from_text(json_field(found, "source_num_layers", "rys_relayer"))
    layers = json_field(found, "layer_indices", "rys_relayer")
    if not isinstance(layers, list):
        raise RecipeError(f"layer_indices must be a list of layers; got {brief(layers)}")
    visits = [as_layer(value) for value in bounded_list(layers)]
    if found.get("target_num_layers", len(visits)) != len(visits):
        raise RecipeError(
            f"rys_relayer contradicts itself: {len(visits)} layer_indices, but target_num_layers "
            f"{brief(found['target_num_layers'])}"
        )
    return Said(visits, n_layers=depth, model=text_or_none(found.get("source_repo_id")))


def read_exllamav3(text: str, known: Known) -> Said:
    """`layer_map`, by exllamav3's `parse_int_list` in util/misc.py (4f8ad01): both ends included, also downwards."""
    visits: list[int] = []
    if text.startswith("["):
        listed = as_json(text, "a layer_map")
        return Said([as_layer(value) for value in bounded_list(listed)])
    for part in text.split(","):
        match = re.fullmatch(r"\+?(\d{1,9})|(?:\+?(\d{1,9}))?\s*\.\.\s*(?:\+?(\d{1,9}))?", part.strip(), re.ASCII)
        if match is None:
            raise RecipeError(
                f"cannot read {brief(part.strip())} in the layer_map {brief(text)}: expected layers, and ranges of "
                "them with both ends included, such as '0..11,8..29'"
            )
        single, first, last = match.groups()
        if single is None and last is None and known.n_layers is None:
            raise RecipeError(f"{brief(part.strip())} runs to the base's last layer: say which base it is (--model)")
        start = int(single or first or 0)
        stop = int(single or last or (known.n_layers or 1) - 1)
        extend_map(visits, range(start, stop + 1) if start <= stop else range(start, stop - 1, -1))
    return Said(visits)


def read_exllamav2(text: str, _known: Known) -> Said:
    """`--repeats` of exllamav2's pull request 275, as its head (63e5c34) reads it: each tuple is `range(*tuple)`.

    The pull request's first commits (3afecf7) took the end in and ran on to the last layer: that meaning is gone.
    """
    body = text.strip()
    shape = r"[\[(]\s*+(\([^()]*+\)\s*+,\s*+)*+(\([^()]*+\)\s*+)?[\])]"
    tuples = re.findall(r"\(([^()]*)\)", body[1:-1])
    if re.fullmatch(shape, body) is None or not tuples:
        raise RecipeError(f"cannot read repeats {brief(text)}: expected a list of tuples, such as '[(0, 12), (8, 30)]'")
    visits: list[int] = []
    for found in tuples:
        numbers = [part.strip() for part in found.removesuffix(",").split(",")]
        if len(numbers) > 3 or not all(re.fullmatch(r"-?\d{1,9}", part, re.ASCII) for part in numbers):
            raise RecipeError(f"a tuple of repeats is (start, end) or (start, end, step); got {brief(f'({found})')}")
        if len(numbers) == 3 and int(numbers[2]) == 0:
            raise RecipeError(f"the step of {brief(f'({found})')} must not be 0")
        layers = range(*map(int, numbers))
        if not layers or min(layers[0], layers[-1]) < 0:
            raise RecipeError(f"{brief(f'({found})')} holds no layer, or one below 0: its end is not in it")
        extend_map(visits, layers)
    return Said(visits)


def read_peft(text: str, _known: Known) -> Said:
    """`layer_replication` of a LoRA configuration, by PEFT 0.21's `replicate_layers`: half-open ranges."""
    found = as_json(text, "a layer_replication")
    name = None
    if isinstance(found, Mapping):
        name = text_or_none(found.get("base_model_name_or_path"))
        found = json_field(found, "layer_replication", "a PEFT configuration")
        if found is None:
            raise RecipeError("this adapter has no layer_replication: it is for the base as it is")
    visits: list[int] = []
    for layers in half_open_ranges(found, "layer_replication"):
        extend_map(visits, layers)
    return Said(visits, model=name)


def read_layer_scan(text: str, known: Known) -> Said:
    """A results file of layer-scan 0.2.2 (heatmap.py): block (i, j) is `[0 … j−1, i … N−1]`, by its config.py."""
    what = "a layer-scan results file"
    found = as_json(text, what)
    depth = depth_from_text(json_field(found, "total_layers", what))
    best = json_field(found, "top_configs", what)
    if not isinstance(best, list) or not 1 <= known.rank <= len(best):
        many = len(best) if isinstance(best, list) else 0
        raise RecipeError(f"rank {known.rank} is not among the {many} top_configs of this file")
    start, stop = (as_layer(json_field(best[known.rank - 1], key, "one of top_configs")) for key in ("i", "j"))
    if not start <= stop <= depth:
        raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ i ≤ j ≤ {depth}, the base's layers")
    check_layers(depth + stop - start)
    visits = [*range(stop), *range(start, depth)]
    return Said(visits, n_layers=depth, model=text_or_none(found.get("model")))


def read_drllm(text: str, _known: Known) -> Said:
    """A vector of Dr.LLM: how often each layer runs, one time behind the other, 0, 1 or 2.

    parameterlab/dr-llm (14e8837): `layer_decisions` in train.py, and `for _ in range(decision)` in its models.
    """
    counts = as_json(text if text.startswith("[") else f"[{text}]", "a vector of Dr.LLM")
    for layer, count in enumerate(bounded_list(counts)):
        if isinstance(count, bool) or count not in (0, 1, 2):
            raise RecipeError(f"Dr.LLM has 0 (skip), 1 (execute) or 2 (repeat) for layer {layer}; got {brief(count)}")
    visits = [layer for layer, count in enumerate(counts) for _ in range(int(count))]
    return Said(visits, n_layers=len(counts))


def json_field(found: Any, key: str, what: str) -> Any:
    if not isinstance(found, Mapping) or key not in found:
        raise RecipeError(f"{what} must have {key!r}; got {brief(found)}")
    return found[key]


def text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value.isprintable() else None


def as_layer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST:
        raise RecipeError(f"a layer must be a whole number from 0 to {LONGEST}; got {brief(value)}")
    return value


def layer_from_text(text: str) -> int:
    if re.fullmatch(r"\s*\+?\d{1,9}\s*", text, re.ASCII) is None:
        raise RecipeError(f"a layer must be a whole number from 0 to {LONGEST}; got {brief(text)}")
    return as_layer(int(text))


def depth_from_text(value: Any) -> int:
    if as_layer(value) == 0:
        raise RecipeError("a base has at least one layer; got 0")
    return int(value)


def half_open_ranges(value: Any, what: str) -> list[range]:
    """Ranges `[start, end)` with start < end, of pairs of whole numbers."""
    ranges = []
    for pair in bounded_list(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecipeError(f"{what} must be [start, end], the end not in it; got {brief(pair)}")
        start, stop = map(as_layer, pair)
        if start >= stop:
            raise RecipeError(f"{what} [{start}, {stop}] holds no layer: it must go upwards, and its end is not in it")
        ranges.append(range(start, stop))
    return ranges


def bounded_list(values: Any) -> list[Any]:
    """A list with something in it, and not more than a recipe can have visits."""
    if not isinstance(values, list) or not values:
        raise RecipeError(f"expected a list with something in it; got {brief(values)}")
    check_layers(len(values))
    return values


def extend_map(visits: list[int], layers: range) -> None:
    check_layers(len(visits) + len(layers))
    visits += layers


def check_layers(visits: int) -> None:
    if visits > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} visits; this one has more")


READERS: Mapping[str, Callable[[str, Known], Said]] = {
    "mergekit": read_mergekit,
    "rys": read_rys,
    "rys_relayer": read_relayer,
    "exllamav3": read_exllamav3,
    "exllamav2": read_exllamav2,
    "peft": read_peft,
    "layer-scan": read_layer_scan,
    "drllm": read_drllm,
}

"""The languages of other tools: exactly what each means, there and back, or a refusal that says why."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from david.errors import RecipeError
from david.notation.formats import FORMAT_TABLE, FORMATS, WRITABLE, read, write
from david.notation.mergekit import MOST_YAML
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from tests.fuzz.targets import TARGETS
from tests.helpers.generated import ANY_TEXT, BASE, DEPTH, recipes, unhurried


def can_say(name: str, recipe: Recipe) -> bool:
    """Whether a language has words for a recipe, told apart from the code that writes it."""
    assert recipe.base is not None
    if name in ("david", "notation"):
        return True
    if name == "mergekit":
        allowed = {"LlamaForCausalLM": {0.0, 1.0}, "GPT2LMHeadModel": {1.0}}.get(str(recipe.base.architecture))
        return allowed is None or set(recipe.scales) <= allowed
    if set(recipe.scales) != {1.0}:
        return False
    rises = all(before <= after for before, after in pairwise(recipe.repeat_map))
    return name != "drllm" or (rises and max(map(recipe.repeat_map.count, recipe.repeat_map)) <= 2)


# ---- there and back


@pytest.mark.parametrize("name", WRITABLE)
@unhurried
@given(recipe=recipes() | recipes(scaled=False))
def test_what_is_written_is_read_back_and_what_cannot_be_said_is_refused(name: str, recipe: Recipe) -> None:
    assert recipe.base is not None
    if not can_say(name, recipe):
        with pytest.raises(RecipeError, match=r"visit \d+|strength"):
            write(recipe, name)
        return
    text = write(recipe, name)
    again = read(text, name, n_layers=DEPTH, architecture=recipe.base.architecture)
    assert again == recipe
    assert again.n_layers == DEPTH
    ambiguous = name in ("drllm", "rys_relayer", "exllamav3")  # a bare list; a config.json in any order; layers alone
    assert ambiguous or read(text, n_layers=DEPTH, architecture=recipe.base.architecture) == recipe


@unhurried
@given(recipes(scaled=False))
def test_a_name_is_kept_where_the_language_has_one(recipe: Recipe) -> None:
    for name in ("mergekit", "rys_relayer"):
        found = read(write(recipe, name), name, n_layers=DEPTH).base
        assert found is not None
        assert found.model == "owner/name"
        renamed = read(write(recipe, name, model="other/name: x"), name, n_layers=DEPTH).base
        assert renamed is not None
        assert renamed.model == "other/name: x"


def test_a_revision_goes_into_a_merge() -> None:
    recipe = Recipe([0, 1], base=Base(num_layers=2, model="owner/name", revision="abc"))
    assert "model: owner/name@abc" in write(recipe, "mergekit")


# ---- what each means


MEANINGS = [
    ("0:12, 8:30", None, "0:12, 8:30"),
    ("0..11,8..29", None, "0:12, 8:30"),
    ("..11,8..", None, "0:12, 8:30"),
    ("..,..", None, "0:30, 0:30"),
    ("0..3, 5..4, +7", None, "0:4, 5, 4, 7"),
    ("[0, 1, 5]", "exllamav3", "0:2, 5"),
    ("blocks:8,12", None, "0:12, 8:30"),
    ("blocks:(8,12);(20, 22)", None, "0:12, 8:22, 20:30"),
    ("blocks:8,12;8,12", None, "0:12, 8:12, 8:30"),
    ("blocks:8,12;10,11", None, "0:12, 8:11, 10:30"),  # behind the last visit of its last layer
    ("blocks:0,0", None, "0:30"),
    ("layers:3,6", None, "3, 6"),
    ("3,6", "rys", "0:6, 3:30"),
    ("[3, 6]", "rys", "0:6, 3:30"),
    ("[3, 6, 7]", "rys", "3, 6:8"),
    ('{"layers": [3, 6]}', None, "3, 6"),
    ('{"spec": "blocks:3,6", "idx": 1}', "rys", "0:6, 3:30"),
    ('{"key": [3, 6]}', "rys", "0:6, 3:30"),
    ('{"blocks": "3,6;8,9"}', None, "0:6, 3:9, 8:30"),
    ('{"a": 1, "rys_relayer": {"source_num_layers": 30, "layer_indices": [0, 2]}}', None, "0, 2"),
    ("[(0, 12), (8, 30)]", None, "0:12, 8:30"),
    ("[(3,), (5, 2, -1), (0, 6, 2),]", None, "0:3, 5, 4, 3, 0, 2, 4"),
    ("((0, 2), (1, 3))", None, "0:2, 1:3"),
    ("[[0, 12], [8, 30]]", None, "0:12, 8:30"),
    ('{"peft_type": "LORA", "layer_replication": [[0, 2]]}', None, "0:2"),
    ("[1, 0, 2]", "drllm", "0, 2, 2"),
    ("1, 0, 2", "drllm", "0, 2, 2"),
    ('{"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [1, 3]}]}]}', None, "1:3"),
]


@pytest.mark.parametrize(("text", "name", "meant"), MEANINGS)
def test_a_text_means_what_the_tool_makes_of_it(text: str, name: str | None, meant: str) -> None:
    assert str(read(text, name, n_layers=3 if name == "drllm" else 30)) == meant


MERGE = """
merge_method: passthrough
dtype: bfloat16
slices:
- sources: [{{model: a, layer_range: [0, 4]{source}}}]
- sources: [{{model: a, layer_range: [2, 6]}}]
{below}
"""
HALF = "{{filter: o_proj, value: {0}}}, {{filter: down_proj, value: {0}}}"
DAMPED = "scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0.0}, {value: 1}]"


def merge(source: str = "", below: str = "", architecture: str | None = "LlamaForCausalLM") -> Recipe:
    text = MERGE.format(source=f", parameters: {{{source}}}" if source else "", below=below)
    return read(text, architecture=architecture, n_layers=6)


@pytest.mark.parametrize(
    ("source", "below", "meant"),
    [
        ("", "", "0:4, 2:6"),
        (DAMPED, "", "0:4*0.0, 2:6"),
        ("", f"parameters: {{{DAMPED}}}", "0:4*0.0, 2:6*0.0"),
        ("scale: 1", f"parameters: {{{DAMPED}}}", "0:4, 2:6*0.0"),  # the nearest counts
        ("scale: {filter: q_proj, value: 1}", "", "0:4, 2:6"),
        ("scale: {filter: q_proj, value: 0}", "", None),
        ("scale: {filter: embed_tokens, value: 2}", "", None),
        ("scale: [{filter: o_proj, value: 1}, {filter: o_proj, value: 0}]", "", "0:4, 2:6"),  # and there the first
        ("scale: [{filter: '*', value: 1.0}, {value: 3}]", "", "0:4, 2:6"),
        ("scale: 0.5", "", None),
        ("scale: [0, 1]", "", None),
        ("scale: {filter: o_proj, value: 0}", "", None),
        ("scale: [1, '1.0', 1e0, 1]", "", "0:4, 2:6"),  # a gradient of equal values
        ("scale: '1'", "", "0:4, 2:6"),
        ("scale: []", f"parameters: {{{DAMPED}}}", "0:4*0.0, 2:6*0.0"),  # an empty list says nothing
        (f"scale: [{HALF.format('[0, 0.0, 0, 0, 0]')}]", "", "0:4*0.0, 2:6"),
        (f"scale: [{HALF.format('[0, 0, 1, 1]')}]", "", "0:2*0.0, 2:4, 2:6"),  # a factor for each of four layers
        (f"scale: [{HALF.format('[0, 1]')}]", "", None),  # one and two thirds lie between
        (
            "scale: [{filter: layers.2.self_attn.o, value: 0}, {filter: layers.2.mlp.d, value: 0}]",
            "",
            "0:2, 2*0.0, 3, 2:6",
        ),
        ("weight: 1", "", "0:4, 2:6"),  # mergekit ignores what passthrough has no use for
        ("density: [0.1, 0.9]", "parameters: {normalize: true, int8_mask: true}", "0:4, 2:6"),
    ],
)
def test_scales_of_a_merge_are_read_as_mergekit_finds_them(source: str, below: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(RecipeError):
            merge(source, below)
    else:
        assert str(merge(source, below)) == meant


def test_a_strength_of_a_merge_hangs_on_the_architecture() -> None:
    half = DAMPED.replace("0.0", "5e-1").replace("0}", "0.5}")
    assert str(merge(half, architecture="CohereForCausalLM")) == "0:4*0.5, 2:6"
    for architecture, told in ((None, "--model"), ("LlamaForCausalLM", "only 0 and 1"), ("Other", "not been measured")):
        with pytest.raises(RecipeError, match=told):
            merge(half, architecture=architecture)


def test_aliases_of_a_merge_are_read_where_they_stay_small() -> None:
    text = "merge_method: passthrough\nslices:\n- sources: [&a {model: m, layer_range: [0, 2]}]\n- sources: [*a]\n"
    assert str(read(text + "- sources: [{<<: *a, layer_range: [1, 3]}]")) == "0:2, 0:2, 1:3"


def test_a_results_file_that_layer_scan_wrote_is_read() -> None:
    path = Path(__file__).parents[2] / "experiments/notation/layer-scan.json"
    for rank, told in enumerate(json.loads(path.read_text())["top_configs"], start=1):
        found = read(path, rank=rank)
        assert found.repeat_map == (*range(told["j"]), *range(told["i"], 6))
        assert found.n_layers == 6
    with pytest.raises(RecipeError, match="no rank 11: expected 1 to 10"):
        read(path, rank=11)
    with pytest.raises(RecipeError, match="layer-scan can only be read"):
        write(Recipe.identity(6), "layer-scan")


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("blocks:8,12", None, "--model"),
        ("8..", None, "--model"),
        ("0..-3", None, "cannot read '0..-3'"),
        ("0..3,,4", None, "cannot read ''"),
        ("0..999999999", None, f"at most {LONGEST} visits"),
        ("[(0, 3, 0)]", None, "step"),
        ("[(3, 0)]", None, "has no layer"),
        ("[(2, -3, -1)]", None, "below 0"),
        ("[(0, 1, 2, 3)]", None, "start, end, step"),
        ("[(0, 'a')]", None, "start, end, step"),
        ("[(0, 99999)]", None, f"at most {LONGEST} visits"),
        ("[(0, 2), 5]", None, "list of tuples"),
        ("[[3, 3]]", None, "has no layer"),
        ("[[0, 3, 4]]", None, r"\[start, end\]"),
        ("[[-1, 3]]", None, "from 0"),
        ("[[0, 1.0]]", None, "whole number"),
        ("[[true, 2]]", None, "whole number"),
        ('{"layer_replication": null}', None, "base unchanged"),
        ("[0, 3]", "drllm", "layer 1; got 3"),
        ("[true]", "drllm", "layer 0"),
        ("[]", "drllm", "at least one entry"),
        ('{"top_configs": []}', None, "total_layers"),
        ('{"total_layers": 6, "top_configs": [{"i": 4, "j": 3}]}', None, "i ≤ j"),
        ('{"total_layers": 0, "top_configs": []}', None, "at least one layer"),
        ('{"rys_relayer": {"source_num_layers": 3, "layer_indices": [3]}}', None, "out of range"),
        (
            '{"rys_relayer": {"source_num_layers": 3, "layer_indices": [0], "target_num_layers": 2}}',
            None,
            "contradicts",
        ),
        ('{"x": 1}', None, "--from"),
        ('{"idx": 1}', "rys", "one of layers"),
        ("[" * 60_000, "peft", "too deeply"),
        ("0:3", "yaml", "unknown format 'yaml'"),
        ("gone.yaml", None, "no such file"),
        ("merge_method: linear", None, "passthrough"),
        ("merge_method: passthrough\nmodels: [{model: a}]", None, "--model"),
        ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]", None, "one model"),
        ("merge_method: passthrough", None, "one of slices, models and modules"),
        ("x" * (MOST_YAML + 1), "mergekit", f"at most {MOST_YAML} characters"),
        ("x" * 1_000_001, None, "at most 1000000 characters"),
    ],
)
def test_what_is_not_of_a_language_is_refused_in_a_line(text: str, name: str | None, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        read(text, name)
    assert len(str(error.value)) < 400


SLICE = "{model: a, layer_range: [0, 2]}"


@pytest.mark.parametrize(
    "text",
    [
        "slices: [{sources: [{model: a@r, layer_range: ['0', 4.0]}]},"
        " {sources: [{model: a@r, layer_range: [2, ' 6 ']}]}]",
        "slices: [{sources: [{model: {model: {path: a, revision: r}, lora: null}, layer_range: [0, 4]}]},"
        " {sources: [{model: {model: a@r}, layer_range: [3, 3]}]}, {sources: [{model: a@r, layer_range: [2, 6]}]}]",
        "modules: {default: {slices: [{sources: [{model: a@r, layer_range: [0, 4]}]},"
        " {sources: [{model: a@r, layer_range: [2, 6], parameters: {weight: 1}}]}]}}\ntokenizer_source: base",
        "modules: {vision_tower: {models: [{model: a@r}]}, text_decoder: {slices: [{sources:"
        " [{model: a@r, layer_range: [0, 4]}]}, {sources: [{model: a@r, layer_range: [2, 6]}]}]}}\nbase_model: a@r",
    ],
)
def test_what_mergekit_reads_is_read_and_the_name_of_the_base_is_kept(text: str) -> None:
    found = read(f"merge_method: passthrough\n{text}\ntokenizer: {{source: union}}\nparameters: {{normalize: true}}")
    assert str(found) == "0:4, 2:6"
    assert found.base == Base(model="a", revision="r", num_layers=None)
    again = Recipe.from_json(found.to_json())
    assert (again, again.base, again.depth, again.n_layers) == (found, found.base, None, 6)
    again.check(8)  # the merge does not say how deep its base is
    assert read(write(again, "mergekit")) == again
    with pytest.raises(RecipeError, match="states the base's depth"):
        write(Recipe([0, 1], base=found.base), "drllm")
    assert write(again, "rys").startswith("layers:")


def test_a_single_model_is_the_base_itself() -> None:
    text = "merge_method: passthrough\nmodels: [{model: owner/name, parameters: {weight: 1}}]"
    found = read(text, n_layers=6)
    assert found.is_base
    assert found.base == Base(model="owner/name", num_layers=6)


def test_the_path_that_answers_the_most_questions_is_read(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"question": "a", "final_valid_transitions": [[0, 1, 2, 3], [0, 1, 1, 2, 3], [0, 1, 1, 2, 3]]},
        {"question": "b", "final_valid_transitions": [[0, 1, 1, 2, 3], {"path": [0, 2, 3], "score": 1.0}]},
        {"question": "c", "final_valid_transitions": [], "final_invalid_transitions": [[0], [0], [0]]},
    ]
    for document in ({"samples": samples, "BASE_MODEL": "owner/name"}, samples, {"q1": samples[0], "q2": samples[1]}):
        text = json.dumps(document)
        assert [str(read(text, rank=rank)) for rank in (1, 2, 3)] == ["0:2, 1:4", "0, 2:4", "0:4"]
        with pytest.raises(RecipeError, match="no rank 4: it has 3 paths"):
            read(text, rank=4)
    assert read(json.dumps({"samples": samples, "BASE_MODEL": "owner/name"}), n_layers=4).base == Base(
        model="owner/name", num_layers=4
    )
    assert str(read(json.dumps(samples[0]))) == "0:4"  # of two equals the shorter one
    assert str(read("[[0, 1, 1], [0, 2], [0, 2]]", "polar")) == "0, 2"
    large = tmp_path / "merged_mcts_samples.json"
    large.write_text(json.dumps({"samples": [*samples, {"question": 2_000_000 * "x"}]}))
    assert str(read(large)) == "0:2, 1:4"
    for wrong in ('{"samples": 3}', '{"samples": [3]}', '{"samples": [{"final_valid_transitions": [["0"]]}]}'):
        with pytest.raises(RecipeError):
            read(wrong)
    with pytest.raises(RecipeError, match="polar can only be read"):
        write(Recipe.identity(4), "polar")


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        (f"[{{sources: [{SLICE}, {SLICE}]}}]", "one source"),
        (f"[{{sources: [{SLICE}]}}, {{sources: [{{model: b, layer_range: [0, 2]}}]}}]", "one base"),
        ("[{sources: [{model: a+b, layer_range: [0, 2]}]}]", "adapter"),
        ("[{sources: [{model: a}]}]", "layer_range"),
        ("[{sources: [{model: a, layer_range: [2, 2]}]}]", "has no layer"),
        ("[{sources: [{model: a, layer_range: [0, 9999]}]}, {sources: [{model: a, layer_range: [0, 2]}]}]", "at most"),
        ("[{sources: [{model: !!python/name:os.system x, layer_range: [0, 2]}]}]", "constructor"),
        (f"[{{sources: [{SLICE}]}}]\nbase_model: b", "one base"),
        (f"[{{sources: [{SLICE}]}}]\nbase_model: a@other", "one base"),
        ("[{sources: [{model: {model: a, lora: b}, layer_range: [0, 2]}]}]", "adapter"),
        ("[{sources: [{model: {}, layer_range: [0, 2]}]}]", "must be a name"),
        ("[{sources: [{model: a@b@c, layer_range: [0, 2]}]}]", "at most one '@'"),
        ("[{sources: [{model: a, layer_range: [0, 2.5]}]}]", "whole number"),
        ("[{sources: [{model: a, layer_range: [0, -2]}]}]", "from 0"),
        ("[{sources: [{model: a, layer_range: [4, 2]}]}]", "has no layer"),
        ("[{sources: [{model: a, layer_range: [0, 2], parameters: 3}]}]", "mapping"),
        ("[{sources: [{model: a, layer_range: [0, 2], parameters: {scale: {filter: 3, value: 1}}}]}]", "a text"),
        (f"[{{sources: [{SLICE}]}}]\nmodels: [{{model: a}}]", "one of slices"),
        (f"[{{sources: [{SLICE}]}}]\ntokenizer_source: b", "vocabulary"),
        (f"[{{sources: [{SLICE}]}}]\ntokenizer: {{tokens: {{x: {{source: a}}}}}}", "vocabulary"),
        ("\nmodules: {vision_tower: {slices: []}}", "text_decoder"),
        ("\nmodules: {text_decoder: {models: [{model: a}]}, v: {slices: [1]}}", "leaves other modules"),
        ("&a [*a]", "holds itself"),
    ],
)
def test_a_merge_that_is_no_recipe_is_refused(slices: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(f"merge_method: passthrough\nslices: {slices}")


def bomb(link: str) -> str:
    levels = [f"{chr(98 + i)}: &{chr(98 + i)} {link.format(','.join([f'*{chr(97 + i)}'] * 9))}" for i in range(12)]
    return "\n".join(["merge_method: passthrough", "a: &a {x: 1}", *levels])


@pytest.mark.parametrize("link", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_grow_beyond_bounds_are_refused_at_once(link: str) -> None:
    with pytest.raises(RecipeError, match="aliases make it too large"):
        read(bomb(link))


def test_a_refusal_to_write_names_the_visit() -> None:
    for name, recipe, told in (
        ("peft", "0:4, 2:4*0.5", "visit 4, of layer 2, has the scale 0.5"),
        ("mergekit", "0:4, 2:4*0.5", "visit 4, of layer 2: mergekit cannot express the strength 0.5"),
        ("drllm", "0:4, 2", "visit 4 goes from layer 3 to layer 2"),
        ("drllm", "0, 1, 1, 1", "visit 3 would run layer 1 a third time"),
    ):
        with pytest.raises(RecipeError, match=told):
            write(Recipe(Recipe.parse(recipe).repeat_map, Recipe.parse(recipe).scales, base=BASE), name)
    with pytest.raises(RecipeError, match="--model"):
        write(Recipe([0]), "mergekit")
    with pytest.raises(RecipeError, match="one model"):
        write(Recipe([0]), "mergekit", model="a+b")
    with pytest.raises(RecipeError, match="states the base's depth"):
        write(Recipe([0]), "drllm")


def test_a_depth_that_contradicts_the_text_is_refused() -> None:
    for text, name in (("[1, 1]", "drllm"), ("0..40", None), (Recipe.identity(3).to_json(), None)):
        with pytest.raises(RecipeError):
            read(text, name, n_layers=30)


# ---- whatever text


@pytest.mark.parametrize("name", FORMATS[2:])
@unhurried
@given(text=ANY_TEXT | st.text("0123456789[](){},.:;-*\"' \nablocksyersmgtu_&<", max_size=40))
def test_whatever_text_is_read_or_refused(name: str, text: str) -> None:
    TARGETS["languages"](f"{name}\n{text}".encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | st.sampled_from(["a", "0,3", "layers:1", "passthrough"]),
    lambda part: (
        st.lists(part, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [key for entry in FORMAT_TABLE for key in entry.json_keys]
                + ["slices", "sources", "model", "layer_range", "parameters", "scale", "filter"]
            )
            | st.sampled_from(["value", "i", "j", "total_layers", "source_num_layers", "spec", "key", "base_model"]),
            part,
            max_size=5,
        )
    ),
    max_leaves=14,
)


@settings(unhurried, max_examples=300)
@given(name=st.sampled_from(FORMATS[2:]), value=JSON)
def test_whatever_json_is_read_or_refused(name: str, value: Any) -> None:
    TARGETS["languages"](f"{name}\n{json.dumps(value)}".encode())


@pytest.mark.parametrize(
    ("before", "after"), [("x", "x"), ("1,2", "x"), ("[(1,2)", "x"), ("[", "x"), ("layers", ":x"), ("0:3 ", "x")]
)
@pytest.mark.parametrize("blank", [" ", "\n"])
def test_most_of_a_megabyte_of_blanks_is_refused_at_once(before: str, blank: str, after: str, tmp_path: Path) -> None:
    (tmp_path / "long").write_text(before + 900_000 * blank + after)
    code = f"from david.notation.formats import read; read({str(tmp_path / 'long')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "david.errors.RecipeError" in done.stderr  # and not hours later


def test_a_revision_goes_to_mergekit_and_comes_back() -> None:
    recipe = Recipe([0, 1, 1], base=Base(num_layers=2, model="owner/name", revision="abc"))
    found = read(write(recipe, "mergekit"), n_layers=2)
    assert found.base is not None
    assert (found.base.model, found.base.revision) == ("owner/name", "abc")
    with pytest.raises(RecipeError, match="'@' split it"):
        write(recipe, "mergekit", model="/a@b/model")


def test_a_base_model_that_is_no_name_is_refused() -> None:
    text = "merge_method: passthrough\nbase_model: 0x" + "f" * 6000 + "\nslices:\n- sources:\n"
    with pytest.raises(RecipeError, match="must be a name"):
        read(text + "  - model: base\n    layer_range: [0, 2]\n")

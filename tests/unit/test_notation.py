"""The languages of other tools: exactly what each means, there and back, or a refusal that says why."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import check
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rivals import environment

from david.errors import RecipeError
from david.notation.formats import FORMAT_TABLE, FORMATS, WRITABLE, read, write
from david.notation.mergekit import ANY_STRENGTH, MOST_YAML, STRENGTH_ZERO, why_not
from david.notation.rescale import moved
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from tests.fuzz.targets import TARGETS
from tests.fuzz.test_any_input import ANY_TEXT
from tests.helpers.command import Run

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)

DEPTH = 12
ARCHITECTURES = ("LlamaForCausalLM", "CohereForCausalLM", "GPT2LMHeadModel")
BASE = Base(num_layers=DEPTH, model="owner/name", architecture="LlamaForCausalLM")
LAYER = st.integers(0, DEPTH - 1)
RUN = st.tuples(LAYER, LAYER).map(lambda ends: list(range(min(ends), max(ends) + 1)))
MAPS = st.lists(RUN | RUN.map(lambda run: run[::-1]), min_size=1, max_size=4).map(
    lambda runs: [*chain.from_iterable(runs)]
)
SCALE = st.sampled_from([1.0, 1.0, 0.0, 0.5, -1.0, 1e-7, 1e16]) | st.floats(-2, 2)


@st.composite
def recipes(draw: Callable[[Any], Any], scaled: bool = True) -> Recipe:
    visits = draw(MAPS)
    scales = draw(st.lists(SCALE, min_size=len(visits), max_size=len(visits)) | st.none()) if scaled else None
    return Recipe(visits, scales, base=BASE.model_copy(update={"architecture": draw(st.sampled_from(ARCHITECTURES))}))


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
        ("scale: {filter: q_proj, value: 1}", "", None),
        ("scale: [{filter: o_proj, value: 1}, {filter: o_proj, value: 0}]", "", "0:4, 2:6"),  # and there the first
        ("scale: [{filter: '*', value: 1.0}, {value: 3}]", "", "0:4, 2:6"),
        ("scale: 0.5", "", None),
        ("scale: [0, 1]", "", None),
        ("scale: {filter: o_proj, value: 0}", "", None),
        ("weight: 1", "", None),
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
    path = Path(check.__file__).parent / "layer-scan.json"
    for rank, told in enumerate(json.loads(path.read_text())["top_configs"], start=1):
        found = read(path, rank=rank)
        assert found.repeat_map == (*range(told["j"]), *range(told["i"], 6))
        assert found.n_layers == 6
    with pytest.raises(RecipeError, match="no rank 11: expected 1 to 10"):
        read(path, rank=11)
    with pytest.raises(RecipeError, match="cannot write layer-scan"):
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
        ("merge_method: passthrough\nmodels: [{model: a}]", None, "slices"),
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


def test_every_strength_that_a_merge_may_have_is_one_that_was_measured() -> None:
    measured = {type(check.tiny_model(kind)).__name__ for kind in check.MERGED}
    assert measured == {*ANY_STRENGTH, *STRENGTH_ZERO}
    assert why_not(0.5, "CohereForCausalLM") is None


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


# ---- to a sibling of another depth


def shape(recipe: Recipe) -> list[tuple[float, int]]:
    """The strength of each segment, and whether the next one goes back (−1), on (0) or over layers (1)."""
    bounds = list(pairwise(recipe.segments))
    turns = [(after.start > before.stop) - (after.start < before.stop) for before, after in bounds]
    return [(segment.scale, turn) for segment, turn in zip(recipe.segments, [*turns, 0], strict=True)]


@unhurried
@given(recipes(), st.integers(1, 40))
def test_a_moved_recipe_has_every_segment_seam_and_strength(recipe: Recipe, n_layers: int) -> None:
    try:
        found = moved(recipe, n_layers)
    except RecipeError:
        with pytest.raises(RecipeError, match=f"{n_layers} layers are too few"):
            moved(recipe, n_layers)
        assert n_layers < DEPTH
        return
    assert shape(found) == shape(recipe)
    assert found.n_layers == n_layers
    assert (min(found.repeat_map) > 0) >= (min(recipe.repeat_map) > 0)  # what is left out at an end stays so
    assert (max(found.repeat_map) < n_layers - 1) >= (max(recipe.repeat_map) < DEPTH - 1)
    for before, after in zip(recipe.segments, found.segments, strict=True):
        if n_layers >= 2 * DEPTH:  # with room, every place is the nearest
            assert abs(after.start - before.start * n_layers / DEPTH) <= 0.5
            assert abs(after.stop - before.stop * n_layers / DEPTH) <= 0.5


@unhurried
@given(st.integers(1, 60), st.integers(1, 60))
def test_the_base_moves_to_the_base(depth: int, n_layers: int) -> None:
    assert moved(Recipe.identity(depth), n_layers).is_base


@unhurried
@given(recipes(), st.integers(1, 9))
def test_as_many_layers_change_nothing_and_there_and_back_is_the_same(recipe: Recipe, times: int) -> None:
    assert moved(recipe, DEPTH) == recipe
    assert moved(moved(recipe, times * DEPTH), DEPTH) == recipe


def test_what_is_told_of_a_moved_recipe() -> None:
    recipe = Recipe.from_blocks(30, [(8, 12, 2, 0.5)])
    found = moved(recipe, 48)
    assert str(found) == "0:19, 13:19*0.5, 19:48"
    assert found.written_as == "blocks (8, 12) ×2 at 0.5 of 30 layers, moved to 48"
    assert found.base == Base(num_layers=48)
    assert (found.scores, found.search) == ((), None)
    assert str(moved(Recipe.from_blocks(30, [(10, 11, 2)]), 5)) == "0:2, 1:5"  # the seam stays
    assert str(moved(Recipe(range(1, 30), base=Base(num_layers=30)), 8)) == "1:8"  # and what is left out
    assert str(moved(Recipe(range(29), base=Base(num_layers=30)), 8)) == "0:7"
    for wrong, told in (
        (lambda: moved(Recipe.parse("0:12, 8:30"), 48), "--model"),
        (lambda: moved(Recipe([0, 2, 4], base=Base(num_layers=5)), 4), "4 layers are too few"),
        (lambda: moved(recipe, 0), "at least one layer"),
        (lambda: moved(Recipe([0, 1] * 20, base=Base(num_layers=2)), 1000), f"more than the {LONGEST} visits"),
    ):
        with pytest.raises(RecipeError, match=told):
            wrong()


# ---- the tools themselves


def test_peft_runs_what_is_written_for_it_and_fails_where_the_table_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of a name that PEFT still uses
        rows = check.adapters(("llama", "mistral", "gemma3_text"))
    found = {(row.model, row.recipe): row.found for row in rows}
    for model in ("llama", "mistral"):
        assert all(found[model, name] <= check.TOLERANCE for name in check.PLAIN)  # type: ignore[operator]
    assert found["gemma3_text", "a block again"] == "IndexError: list index out of range"
    wrong = found["gemma3_text", "as deep as the base"]
    assert isinstance(wrong, float)
    assert wrong > 0.1  # its layer_types stay where they are


def test_the_committed_table_says_what_the_code_does() -> None:
    table = (Path(check.__file__).parent / "results.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    told = {row[0]: (row[1], row[2], row[4]) for row in rows if len(row) == 5 and row[0] in FORMATS}
    assert told == {name: check.able(name) for name in FORMATS}


@pytest.mark.slow
def test_mergekit_merges_what_is_written_for_it(tmp_path: Path) -> None:
    kept = os.environ.get("DAVID_RIVALS")  # a folder with the environment, where there is one
    try:
        programs = environment("mergekit", Path(kept) if kept else tmp_path)
    except SystemExit as error:
        pytest.skip(f"mergekit cannot be installed here: {str(error)[-200:]}")
    rows = check.merges(programs / "python", tmp_path, ("llama", "qwen3", "gemma3_text", "cohere"))
    compared = [row for row in rows if row.completed is not None]
    for row in compared:
        assert ("by hand" in row.recipe) == (row.completed > check.TOLERANCE), row  # type: ignore[operator]
    assert {row.model for row in compared} == {"llama", "qwen3", "gemma3_text", "cohere"}
    left = {(row.model, row.recipe): row.found for row in rows}
    assert left["llama", "strength 0"] == left["cohere", "a block again"] == 0
    assert "layer_types" in str(left["gemma3_text", "a block again"])
    wrong = left["gemma3_text", "as deep as the base"]
    assert isinstance(wrong, float)
    assert wrong > 0.1


# ---- the command


def test_convert_prints_and_writes(run: Run, place: Path) -> None:
    assert run("convert six.json --to notation")[:2] == (0, "0:4, 1:4*0.5, 4:6\n")
    assert run("convert seven.json --to exllamav3")[:2] == (0, "0..3,1..6\n")
    code, out, err = run("convert seven.json --to mergekit --out merge.yml")
    assert (code, out) == (1, "")
    assert "--model" in err
    code, out, _ = run("convert 0:4,2:6 --to mergekit --model model --out merge.yml")
    assert (code, out) == (0, "merge.yml: 8 visits, as mergekit\n")
    assert "model: model\n" in (place / "merge.yml").read_text()
    assert run("convert merge.yml --to rys --model model")[:2] == (0, "blocks:2,4\n")
    code, out, _ = run("convert merge.yml --model model")
    found = Recipe.from_json(out)
    assert found.base == Base(model="model", architecture="LlamaForCausalLM", num_layers=6)
    Recipe([0, 1, 1, 2, 3, 4, 5], base=Base(model="demo", num_layers=6)).save(place / "of_demo.json")
    for tool in ("mergekit", "rys_relayer"):
        assert "--model demo" in run(f"convert of_demo.json --to {tool}")[2]
    code, out, err = run("convert of_demo.json --model model")
    assert Recipe.from_json(out).base == Base(model="demo", architecture="LlamaForCausalLM", num_layers=6)
    assert err == ""
    another = Base(model="someone/base", architecture="GPT2LMHeadModel", num_layers=6, fingerprint="sha256:0")
    Recipe([0, 1, 1, 2, 3, 4, 5], base=another).save(place / "another.json")
    code, out, err = run("convert another.json --model model")
    assert Recipe.from_json(out).base == Base(model="model", architecture="LlamaForCausalLM", num_layers=6)
    assert "note: the recipe was made for GPT2LMHeadModel: it is written for model, without fingerprint" in err
    assert run("convert six.json --to notation --to-layers 12")[:2] == (0, "0:8, 2:8*0.5, 8:12\n")
    assert run("convert 1,1,2,0,1,1 --from drllm --to peft")[:2] == (
        0,
        '{"layer_replication": [[0, 3], [2, 3], [4, 6]]}\n',
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("convert 0:12,8:30 --to klingon", "unknown format 'klingon'"),
        ("convert 0:12,8:30 --from klingon", "unknown format 'klingon'"),
        ("convert six.json --to peft", "visit 4, of layer 1, has the scale 0.5"),
        ("convert seven.json --model model", "layer 6 is out of range: the base has 6 layers"),
        ("convert 0:4 --to-layers 9", "depth"),
        ("convert six.json --rank 2", "rank requires a format whose files hold several"),
        ("convert six.json --to-layers 10001", "at most 10000 layers"),
        ("convert broken.json", "repeat_map"),
        ("convert empty", "Is a directory"),
        ("convert gone.json", "no such file"),
        ("convert six.json --out gone/x.json", "cannot write"),
        ("convert six.json --out .", "the name of a file"),
        ("convert six.json --out empty", "cannot write empty: Is a directory"),
        ("convert six.json --model nothing/here/at/all", "no such model"),
    ],
)
def test_convert_says_in_a_line_what_is_wrong(run: Run, arguments: str, told: str) -> None:
    code, _, err = run(arguments)
    assert code == 1
    assert told in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_convert_says_where_a_tool_leaves_the_configuration_behind(run: Run, place: Path) -> None:
    check.tiny_model("gemma3_text").save_pretrained(place / "gemma")
    code, out, err = run("convert 0:4,2:6 --to mergekit --model gemma")
    assert code == 0
    assert out.startswith("merge_method")
    assert "mergekit leaves layer_types as in the base" in err
    assert run("convert 0:4,2:6 --to mergekit --model model")[2] == ""


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

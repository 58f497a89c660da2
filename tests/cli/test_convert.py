"""`david convert`: what it prints and writes, and what it refuses."""

from pathlib import Path

import pytest

from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from tests.helpers.command import Run
from tests.tiny_models import tiny_model


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
    tiny_model("gemma3_text").save_pretrained(place / "gemma")
    code, out, err = run("convert 0:4,2:6 --to mergekit --model gemma")
    assert code == 0
    assert out.startswith("merge_method")
    assert "mergekit leaves layer_types as in the base" in err
    assert run("convert 0:4,2:6 --to mergekit --model model")[2] == ""

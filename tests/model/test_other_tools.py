"""PEFT and mergekit themselves run what is written for them, as the table in experiments/notation says."""

import os
import warnings
from pathlib import Path

import pytest

from david.notation.formats import FORMATS
from david.notation.mergekit_scales import ANY_STRENGTH, STRENGTH_ZERO, why_not
from experiments.engine.rivals import environment
from experiments.notation import check


def test_every_strength_that_a_merge_may_have_is_one_that_was_measured() -> None:
    measured = {type(check.tiny_model(kind)).__name__ for kind in check.MERGED}
    assert measured == {*ANY_STRENGTH, *STRENGTH_ZERO}
    assert why_not(0.5, "CohereForCausalLM") is None


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

"""The table of ways to hold a model's weights holds: experiments/loading."""

import csv
from pathlib import Path

import pytest
import transformers

from experiments.loading import ways_of_loading
from experiments.loading.ways_of_loading import COLUMNS, WAYS, Way, run

RESULTS = Path(ways_of_loading.__file__).parent / "results.csv"
TINY = ("llama", "gemma3_text", "mixtral", "qwen3")


def committed() -> dict[tuple[str, str], dict[str, str]]:
    with RESULTS.open(encoding="utf-8") as file:
        return {(row["way"], row["model"]): row for row in csv.DictReader(file)}


def outcome(cell: str) -> str:
    """A number stands for exact; of the rest the first word counts, since reasons may name paths."""
    return cell.partition(":")[0] if ":" in cell else "exact"


def test_the_committed_table_has_every_way_and_model_and_nothing_wrong() -> None:
    rows = committed()
    assert list(rows) == [(way.name, name) for name in TINY for way in WAYS]
    assert {outcome(row[column]) for row in rows.values() for column in COLUMNS} <= {"exact", "refused", "base fails"}
    assert {row["export"] for row in rows.values() if row["way"] in ("float32", "bfloat16")} == {"0e+00"}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_way_is_what_the_committed_table_says(way: Way) -> None:
    level = transformers.logging.get_verbosity()
    ways_of_loading.quiet()
    try:
        row = run(way, "llama")
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    told = committed()[way.name, "llama"]
    assert {name: outcome(row[name]) for name in COLUMNS} == {name: outcome(told[name]) for name in COLUMNS}, row

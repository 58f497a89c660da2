"""The table of ways to run a model holds, and its tests can fail: experiments/ways."""

import csv
from pathlib import Path
from typing import Any

import pytest
import transformers

from david.sling import install, remap, views
from experiments.ways import ways
from experiments.ways.ways import MODELS, WAYS, Way, maker, run

BY_NAME = {way.name: way for way in WAYS}
RESULTS = Path(ways.__file__).parent / "results.csv"
QUICK = "gemma3_text"


def committed() -> dict[tuple[str, str], dict[str, str]]:
    with RESULTS.open(encoding="utf-8") as file:
        return {(row["way"], row["model"]): row for row in csv.DictReader(file)}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def cases() -> list[Any]:
    """Every way on the tiny models; the real model's rows take ten minutes, and are the script's."""
    return [
        pytest.param(way, name, id=f"{way.name}-{name}", marks=[pytest.mark.slow] if way.slow or name != QUICK else [])
        for name in MODELS
        if name != "demo"
        for way in WAYS
    ]


def test_the_committed_table_has_every_way_and_model_and_nothing_wrong() -> None:
    rows = committed()
    assert list(rows) == [(way.name, name) for name in MODELS for way in WAYS]
    assert {row["outcome"] for row in rows.values()} <= {"exact", "refused", "base fails"}
    assert all(row["reason"] for row in rows.values() if row["outcome"] != "exact")


@pytest.mark.parametrize(("way", "name"), cases())
def test_a_way_is_what_the_committed_table_says(way: Way, name: str) -> None:
    row = run(way, name, maker(name))
    if row.outcome == "skipped":
        pytest.skip(row.reason)
    if row.outcome == "base fails" and way.needs == "g++" and "CppCompileError" in row.reason:
        pytest.skip(f"torch's compiler fails on the plain model, as it does with some processors: {row.reason}")
    assert row.outcome == committed()[way.name, name]["outcome"], row.reason


def unbound_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_bind", lambda *_: None)


def shared_cache_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remap, "INDICES", ())


def configuration_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remap, "_mapped", lambda _config, base, *_: dict(base))


def saving_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "is_slung", lambda _model: False)


MUTATIONS = [
    (unbound_hooks, "offloaded to CPU memory"),
    (unbound_hooks, "split by a device map"),
    (shared_cache_places, "dynamic cache"),
    (shared_cache_places, "static cache"),
    (shared_cache_places, "beam search"),
    (configuration_that_stays, "SDPA"),
    (configuration_that_stays, "hidden states of each visit"),
    (saving_allowed, "save_pretrained"),
]


CHEAP = ("dynamic cache", "SDPA", "save_pretrained")


@pytest.mark.parametrize(
    ("mutate", "way"),
    [pytest.param(m, w, id=f"{m.__name__}-{w}", marks=[] if w in CHEAP else [pytest.mark.slow]) for m, w in MUTATIONS],
)
def test_a_mechanism_taken_away_is_seen(mutate: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(BY_NAME[way], QUICK, maker(QUICK)).outcome != "WRONG"
    mutate(monkeypatch)
    assert run(BY_NAME[way], QUICK, maker(QUICK)).outcome == "WRONG"

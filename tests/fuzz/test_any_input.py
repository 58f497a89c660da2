"""Whatever a person types or a stranger writes: it works, or one of David's own errors says in a line what is wrong.

Where a value is of a type that its annotation excludes, a TypeError will do too; where it is typed or read, never.
"""

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from david import (
    Corpus,
    David,
    RacingPruner,
    Recipe,
    Score,
    export,
    load_model,
    multiple_choice,
    perplexity,
    score_recipes,
    search,
)
from david.candidates import spaces, strategies
from david.candidates.neighbours import STEPS, neighbours
from david.cli.app import main
from david.cli.inputs import parse_range
from david.errors import CorpusError, DavidError, RecipeError, ScoreError, SearchError
from david.metrics.paired_test import paired_difference, rank_correlation
from david.metrics.selection_bias import luck
from david.recipe.blocks import blocks_of, repeat_flags, slices_of, upward_runs
from david.recipe.explain import Costs, explain
from david.recipe.schema import LONGEST
from david.scoring import sources
from david.scoring.completions import questions_of
from david.scoring.sources import Rows
from david.study.create import sampler_named
from david.support.memory import as_bytes
from tests.fuzz.targets import TARGETS, ours, used
from tests.helpers.corpora import byte_tokenizer
from tests.helpers.generated import ANY_TEXT
from tests.helpers.recipes import DESIGN_FILE, RECIPES

some = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
WHOLE = st.integers(-3, 40) | st.sampled_from([10**9, -(10**9), 10**30, -(10**30), 2**63])
NUMBER = WHOLE | st.floats() | st.sampled_from([1e300, -1e300, 1e-320, 10**400])
ONE = st.none() | st.booleans() | NUMBER | ANY_TEXT | st.binary(max_size=8)
ANY = st.recursive(
    ONE, lambda part: st.lists(part, max_size=5) | st.dictionaries(ANY_TEXT, part, max_size=3), max_leaves=9
)
SEQUENCE = st.lists(WHOLE | ONE, max_size=6)
TYPED = (  # near to what is meant, so that more than the first letter is read
    st.lists(st.sampled_from([*"0123456789:,*.-+e[]%() ", "nan", "inf", "0:3", "test", "GB", "\t", "٣"]), max_size=12)
    .map("".join)
    .flatmap(lambda text: st.just(text) | ANY_TEXT)
)


# Recipes


@some(max_examples=300)
@given(SEQUENCE | ANY, SEQUENCE | ANY)
def test_any_map_and_scales(repeat_map: Any, scales: Any) -> None:
    with ours():
        used(Recipe(repeat_map, scales))
    with ours():
        Recipe(repeat_map)


@some(max_examples=200)
@given(NUMBER, st.lists(st.lists(NUMBER | ONE, max_size=3), max_size=4) | ANY)
def test_any_ratios_and_blocks(n_layers: Any, parts: Any) -> None:
    for make in (Recipe.from_ratios, Recipe.from_blocks):
        with ours():
            used(make(n_layers, parts))
    with ours():
        used(Recipe.identity(n_layers))


@some(max_examples=200)
@given(TYPED)
def test_any_notation(text: str) -> None:
    with ours():
        used(Recipe.parse(text))
    with ours():
        Recipe.of(text)


@some(max_examples=100)
@given(ANY)
def test_any_thing_in_the_place_of_a_recipe(value: Any) -> None:
    with ours():
        Recipe.of(value)


def places(part: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each part of a JSON document."""
    yield so_far
    keys = part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
    for key in keys:
        yield from places(part[key], (*so_far, key))


WHOLE_FILE = json.loads(DESIGN_FILE)


@some(max_examples=300)
@given(
    st.sampled_from(list(places(WHOLE_FILE))[1:]), ANY.filter(lambda value: not isinstance(value, bytes)), st.booleans()
)
def test_any_value_anywhere_in_a_recipe_file(place: tuple[Any, ...], value: Any, ascii_only: bool) -> None:
    document = json.loads(DESIGN_FILE)
    *way, last = place
    functools.reduce(lambda part, key: part[key], way, document)[last] = value
    with contextlib.suppress(ValueError, TypeError):  # bytes, or digits that Python itself does not write
        TARGETS["recipe"](json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@some(max_examples=100)
@given(ANY_TEXT)
def test_any_path_of_a_recipe(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(DavidError):
        Recipe.load(name)
    with contextlib.suppress(DavidError):
        place = tmp_path / name.replace("/", "_").replace("..", "_")
        Recipe.identity(3).save(place)
        assert Recipe.load(place) == Recipe.identity(3)


@some(max_examples=100)
@given(RECIPES, WHOLE, st.lists(WHOLE.filter(lambda n: n >= 0), min_size=9, max_size=9))
def test_any_costs_are_explained(recipe: Recipe, n_layers: int, costs: list[int]) -> None:
    with ours():
        recipe.check(n_layers)
    few = [cost % 10**12 for cost in costs]
    with ours():
        str(explain(recipe, Costs(tuple(few[:4]), tuple(few[4:8]), few[8])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe([LONGEST + 1]),
        lambda: Recipe([-(10**5000)]),
        lambda: Recipe(count()),  # type: ignore[arg-type]
        lambda: Recipe([0], count()),  # type: ignore[arg-type]
        lambda: Recipe([0] * (LONGEST + 1)),
        lambda: Recipe([0], [torch.ones(2)]),  # type: ignore[list-item]
        lambda: Recipe.identity(LONGEST + 1),
        lambda: Recipe.from_ratios(LONGEST, [(0, 1)] * LONGEST),
        lambda: Recipe.from_ratios(9, [(0, torch.ones(2))]),  # type: ignore[list-item]
        lambda: Recipe.from_blocks(9, [(0, 9, LONGEST)]),
        lambda: Recipe.from_blocks(LONGEST, [(0, LONGEST, LONGEST)] * 99),
        lambda: Recipe.parse("0:999999999"),
        lambda: Recipe.parse("999999999"),
        lambda: Recipe.parse("0:9999," * 9 + "0"),
        lambda: Recipe.parse("0" + " " * 200_000 + "!"),
        lambda: Recipe.parse("0," * 10**6),
        lambda: Recipe.parse("0-9*100000000"),
    ],
)
def test_what_would_fill_the_memory_is_refused_at_once(make: Callable[[], Recipe]) -> None:
    with pytest.raises(RecipeError) as told:
        make()
    assert len(str(told.value)) < 400


def test_numbers_of_numpy_make_a_base() -> None:
    assert Recipe.identity(np.int64(4)) == Recipe.identity(4)  # type: ignore[arg-type]


def test_the_deepest_recipe_is_drawn_in_a_moment() -> None:
    deepest = Recipe([*range(5000)] * 2)
    drawn = deepest._repr_html_()
    assert "visits 5000 … 9999: layers 0 … 4999 again" in drawn
    assert len(drawn) < 10_000
    assert len(Recipe([0] * LONGEST)._repr_html_()) < 100_000
    assert sum(repeat_flags(deepest.repeat_map)) == 5000


# What else is typed


@some(max_examples=300)
@given(TYPED, st.integers(0, 10**6))
def test_any_option_that_is_read_from_a_text(text: str, rows: int) -> None:
    with ours():
        start, stop = sources._slice_bounds(text, rows, "data")
        assert 0 <= start < stop <= rows
    with ours():
        assert as_bytes(text, "a size") >= 1
    with ours():
        low, high = parse_range(text, "--scales")
        spaces.space_named("block", scales=(low, high))
    TARGETS["options"](text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "read",
    [
        lambda: sources._parse_slice("a" + " " * 200_000 + "!"),
        lambda: sources._parse_slice("[:" + "9" * 5000 + "]"),
        lambda: sources._parse_slice("a" * 200_000),
        lambda: as_bytes("1" + " " * 200_000 + "!", "a size"),
        lambda: as_bytes("9" * 400, "a size"),
        lambda: as_bytes(10**5000, "a size"),
        lambda: parse_range("0:" * 200_000, "--scales"),
        lambda: spaces.space_named("block", scales=(-1e308, 1e308)),
        lambda: spaces.space_named("block", scales=(0, 10**400)),
        lambda: sampler_named("tpe", -1, 0),
    ],
)
def test_long_texts_and_wide_numbers_are_refused_at_once(read: Callable[[], Any]) -> None:
    with pytest.raises(DavidError) as told:
        read()
    assert len(str(told.value)) < 400


@some(max_examples=100)
@given(
    st.sampled_from([*spaces.SPACES, "nothing"]) | ANY_TEXT,
    st.none() | st.tuples(st.floats(), st.floats()) | st.sampled_from([(0.1, 1.0), (-0.5, 1.5)]),
    st.none() | WHOLE,
    st.none() | WHOLE,
    st.integers(1, 40),
    RECIPES,
)
def test_any_space(name: str, scales: Any, max_length: Any, max_visits: Any, n_layers: int, recipe: Recipe) -> None:
    with ours():
        made = spaces.space_named(name, scales=scales, max_length=max_length, max_visits=max_visits)
        params = spaces.params_of(made, recipe, n_layers)
        assert params is None or made(FixedTrial(params), n_layers) == recipe
    with ours():
        strategies.strategy_named(name, max_length=max_length, max_visits=max_visits, start=recipe)


@some(max_examples=60)
@given(
    RECIPES, st.integers(1, 210), st.lists(st.sampled_from(STEPS) | ANY_TEXT, max_size=2), st.none() | WHOLE, SEQUENCE
)
def test_any_neighbours(recipe: Recipe, n_layers: int, steps: list[str], most: Any, scales: list[Any]) -> None:
    with ours():
        neighbours(
            recipe, n_layers, steps=steps, max_length=2 if most is None else most, max_visits=most, scales=scales
        )
    blocks_of(recipe, n_layers), upward_runs(recipe.repeat_map)
    slices_of(recipe.repeat_map, n_layers, 20, 5)


# Data


@some(max_examples=200)
@given(st.lists(st.tuples(ANY_TEXT, ANY, ANY | st.just("A") | WHOLE.filter(lambda n: abs(n) < 10**40)), max_size=3))
def test_any_question(rows: list[tuple[str, Any, Any]]) -> None:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("asked", "answers", "gold"))}
    with ours():
        for question in questions_of(Rows("data", 0, columns), "asked", "answers", "gold"):
            assert 0 <= question.right < len(question.answers)


def test_a_right_answer_of_thousands_of_digits_is_refused() -> None:
    columns: dict[str, list[Any]] = {"asked": ["?"], "answers": [["a", "b"]], "gold": ["9" * 5000]}
    with pytest.raises(CorpusError, match="gold must be 0 … 1"):
        list(questions_of(Rows("data", 0, columns), "asked", "answers", "gold"))


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/data.txt", "a\0b.txt", "\ud800.csv", "x/" * 3000])
def test_any_name_of_data_or_a_model(name: str) -> None:
    with pytest.raises(DavidError):
        Corpus.load(name, byte_tokenizer())
    with pytest.raises(DavidError):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000),
        ("key.json", b'{"' + b"k" * 10**6 + b'": 1}'),
        ("digits.jsonl", b'{"text": ' + b"9" * 5000 + b"}"),
        ("nan.jsonl", b'{"text": NaN}'),
        ("surrogate.jsonl", b'{"text": "' + b"\\ud800" * 50 + b'"}'),
        ("nul.csv", b"text\n\0\0\0\n"),
        ("quote.csv", b'text\n"' + b"a" * 1000),
        ("empty.csv", b""),
        ("half.parquet", b"PAR1" + bytes(100)),
        ("latin.txt", b"\xe9" * 100),
        ("latin.csv", b"text\n" + b"\xe9" * 100),
    ],
)
def test_any_file_of_data(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(CorpusError):
        Corpus.load(tmp_path / name, byte_tokenizer(), window=8)


@functools.cache
def text() -> Corpus:
    """Windows of bytes."""
    return Corpus.load("python-topics", byte_tokenizer(), slice="[:2]", window=16).take(8)


@some(max_examples=100)
@given(st.integers(-1, 5) | WHOLE, st.integers(-1, 5) | WHOLE, WHOLE)
def test_any_share_of_a_corpus(first: int, second: int, seed: int) -> None:
    for share in (
        lambda: text().take(first),
        lambda: text().split(first, second),
        lambda: text().hold_out(first, second, seed=seed),
    ):
        with contextlib.suppress(CorpusError):
            share()


@some(max_examples=60)
@given(
    window=st.none() | WHOLE,
    convention=st.none() | st.sampled_from(["window", "llamacpp", "strided", "rolling"]) | ANY_TEXT,
    stride=st.none() | WHOLE,
    rolling=st.booleans(),
    bos=st.none() | st.booleans(),
    rows=st.none() | TYPED,
    column=ANY_TEXT,
    prompt=st.none() | ANY_TEXT,
    gold=st.none() | ANY_TEXT,
)
def test_any_cut_of_a_corpus(tmp_path: Path, window: Any, rows: Any, **options: Any) -> None:
    (tmp_path / "data.txt").write_text("a text of some letters. " * 9)
    with contextlib.suppress(CorpusError):
        Corpus.load(
            tmp_path / "data.txt", byte_tokenizer(), window=16 if window is None else window, slice=rows, **options
        )


# Models


@functools.cache
def model() -> Any:
    """A random Llama of six layers, for windows of bytes."""
    from tests.tiny_models import tiny_model

    return tiny_model("llama")


@some(max_examples=60)
@given(ANY | TYPED, st.lists(st.lists(NUMBER, max_size=2), max_size=3) | ANY, SEQUENCE, st.none() | SEQUENCE)
def test_any_sling_works_or_leaves_the_model_as_it_was(recipe: Any, ratios: Any, path: Any, scales: Any) -> None:
    tokens = torch.arange(8)[None]
    before = model()(tokens).logits
    for given_ in (
        {"recipe": recipe},
        {"ratio_repeat": ratios},
        {"repeat_map_raw": path, "scales": scales},
        {"recipe": recipe, "scales": scales},
    ):
        for make in (David.sling, David.view):
            with contextlib.suppress(DavidError):
                make(model(), **given_)
            David.reset(model())
        with contextlib.suppress(DavidError), David.slung(model(), **given_):
            pass
    assert torch.equal(model()(tokens).logits, before)


@some(max_examples=25)
@given(ANY_TEXT | st.sampled_from(["window", "llamacpp"]), WHOLE, WHOLE)
def test_any_way_to_score(convention: Any, batch: int, budget: int) -> None:
    few = text().take(2)
    few = Corpus(few.windows % 8, few.documents, "data", None, "", bos=False)
    with contextlib.suppress(ScoreError):
        perplexity(model(), few, convention=convention, batch=min(batch, 10**9))
    with contextlib.suppress(DavidError):
        score_recipes(model(), [Recipe.identity(6)], few, memory_budget=budget)
    with pytest.raises(ScoreError):
        multiple_choice(model(), few, batch=batch)


@pytest.mark.parametrize(
    "options",
    [
        *[{"n_trials": -1}, {"top": -1}, {"top": 10**9}, {"baseline": -1}, {"batch": 0}, {"batch": 10**9}],
        *[{"seed": -1}, {"seed": 2**70}, {"memory_budget": -5}, {"memory_budget": 10**30}],
        *[{"sampler": ""}, {"pruner": "\ud800"}, {"space": "\0"}, {"strategy": "x" * 10**5}],
        *[{"study_name": ""}, {"study_name": "\ud800"}, {"study_name": "x" * 10**5}],
        *[{"out": "a\0"}, {"out": "x" * 300}, {"out": "\ud800"}, {"storage": ""}, {"storage": "://"}],
        *[{"also": {"": len}}, {"also": {"x": lambda _recipe: "a"}}, {"queue": [Recipe([9])]}],
    ],
)
def test_any_way_to_search(options: dict[str, Any]) -> None:
    windows = replace(text(), windows=text().windows % 8)
    asked = {"space": "block", "n_trials": 2, "top": 1, "baseline": 1, "progress": False} | options
    with contextlib.suppress(DavidError):
        search(model(), windows.part(0, 2), held_out=windows.part(2, 4), **asked)


@some(max_examples=60)
@given(NUMBER, NUMBER)
def test_any_pruner_is_made_or_refused_as_optunas_own_are(finalists: Any, level: Any) -> None:
    with contextlib.suppress(ValueError):
        RacingPruner(finalists, level=level)


def test_a_score_of_nothing_is_not_a_number() -> None:
    nothing = Score((), (), (), "window")
    assert math.isnan(nothing.nll)
    assert math.isnan(nothing.perplexity)


@some(max_examples=60)
@given(TYPED, WHOLE | TYPED)
def test_any_place_and_size_of_an_export(tmp_path: Path, name: str, size: Any) -> None:
    (tmp_path / "full").mkdir(exist_ok=True)
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(DavidError):
        export(model(), Recipe.identity(6), tmp_path / "full" / name.replace(".", "_"), max_shard_size=f"{size!r:.99}x")
    with pytest.raises(DavidError):
        export(model(), Recipe.identity(6), tmp_path / "full", max_shard_size=size)


@pytest.mark.parametrize(
    "options", [{"dtype": 3}, {"dtype": "Tensor"}, {"dtype": "\ud800"}, {"device": "cpu:x"}, {"device": "\0"}]
)
def test_any_dtype_and_device(options: dict[str, Any]) -> None:
    with pytest.raises(DavidError):
        load_model("no-such-folder/model", **options)


# Statistics

VALUES = st.lists(st.floats(-1e90, 1e90) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=5)


@some(max_examples=200)
@given(
    VALUES | SEQUENCE,
    VALUES,
    st.lists(st.integers(-1, 99) | st.sampled_from([math.nan, math.inf]), max_size=5),
    st.none() | st.lists(st.integers(0, 3) | ANY_TEXT, max_size=5),
    st.integers(-1, 50),
    st.sampled_from(["t", "bootstrap"]) | ANY_TEXT,
    st.integers(-1, 20),
    st.integers(-1, 5),
)
def test_any_values_are_compared(
    mine: Any, its: Any, tokens: Any, documents: Any, finalists: int, method: Any, resamples: int, seed: int
) -> None:
    n = min(len(mine), len(its), len(tokens))  # most often, let them pair
    mine, its = (mine[:n], its[:n]) if seed else (mine, its)
    tokens, documents = tokens[:n], None if documents is None or len(documents) < n else documents[:n]
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed}
    with ours():
        paired_difference(mine, its, tokens, documents=documents, finalists=finalists, method=method, **drawn)
    with ours():
        rank_correlation(mine, its)
    with ours():
        luck([mine, its], tokens, documents, **drawn)


def test_documents_may_be_an_array() -> None:
    nll = [1.0, 2.0, 3.0]
    apart = paired_difference(nll, [1.5, 2.0, 3.0], [1, 1, 1], documents=np.arange(3))  # type: ignore[arg-type]
    assert apart == paired_difference(nll, [1.5, 2.0, 3.0], [1, 1, 1])


# The command


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """How a command ends, and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["david", *args])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    return code, capsys.readouterr().err


WORD = TYPED.map(lambda text: text.encode("utf-8", "ignore").decode())  # as a shell can hand it on


@some(max_examples=60)
@given(st.lists(WORD | st.sampled_from(["--ratios", "--json", "-h", "--", "--ratios=0:1"]), max_size=3))
def test_any_words_behind_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, err = said(monkeypatch, capsys, "explain", *words)
    assert code in (0, 1, 2)
    if code == 1:
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "x" * 100_000],
        ["explain", "\x1b[31m\n.json"],
        ["explain", "x" * 100_000 + ".json"],
        ["score", "no model", "--recipe", "9:0"],
        ["generate", "no model", "--recipe", "9:0"],
        ["generate", "--temperature", "inf"],
        ["search", "no model", "--start", "9:0"],
        ["search", "no model", "--out", "x" * 300],
        ["report", "x" * 300],
        ["report", "--storage", "postgresql://u:p@host:port/db", "--out", "x"],
        ["score", "x" * 300],
    ],
)
def test_what_is_wrong_is_one_short_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = said(monkeypatch, capsys, *words)
    assert code == 1
    *_, line = err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 1100
    assert line.isprintable()
    assert not os.listdir(tmp_path)


def test_a_bad_recipe_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["score", "--recipe", "9:0"], ["generate", "--recipe", "9:0"], ["search", "--start", "9:0"]):
        monkeypatch.setattr("david.models.load.load_model", lambda *_args, **_options: pytest.fail("loaded"))
        assert "must go upwards" in said(monkeypatch, capsys, *words)[1]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SearchError, match="seed must be 0 or more"):
        sampler_named("tpe", -1, 0)

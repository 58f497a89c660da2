"""Many recipes on one model: each score is the one that slinging by hand gives, and the model stays what it was."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna import Study
from optuna.trial import BaseTrial, TrialState

from david.candidates.spaces import Block
from david.engine.engine import Engine, score_recipes
from david.engine.prefix_tree import PrefixTree
from david.errors import DavidError, RecipeError, ScoreError, SearchError
from david.metrics.score import Score
from david.recipe.base_model import Base
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.report.best_json import best_recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import multiple_choice, perplexity
from david.sling.in_place import reset, sling, slung
from david.sling.locate import find
from david.study.run_search import search
from tests.helpers.corpora import (
    QUESTIONS,
    STATE,
    byte_tokenizer,
    choice_corpus,
    of_completions,
    standing,
    windows,
    write_rows,
)
from tests.helpers.layer_calls import counted
from tests.tiny_models import VOCABULARY, tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)

RECIPES = [
    Recipe.identity(6),
    Recipe.from_blocks(6, [(1, 4, 2)]),
    Recipe((0, 1, 2, 3, 4, 5, 5), (1, 1, 1, 1, 1, 1, 0.25)),
    Recipe((5, 0, 0, 3)),
    Recipe((2,)),
]
BUSHY = [Recipe(visits) for visits in product([4, 5], repeat=5)]


@pytest.fixture
def corpus() -> Corpus:
    windows = torch.randint(3, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(windows, (0, 0, 1), source="random", slice=None, sha256="", bos=False)


def scan(n_layers: int) -> list[Recipe]:
    return [Recipe.identity(n_layers), *all_blocks(n_layers)]


def kept_bytes(engine: Engine) -> int:
    """Bytes of the states that are kept, added up by hand."""
    return sum(state.nbytes for pool in engine._cache.pools.values() for state in pool.values())


def test_each_recipe_has_the_score_that_slinging_by_hand_gives(tiny: Any, corpus: Corpus) -> None:
    expected = []
    for recipe in RECIPES:
        sling(tiny, recipe)
        expected.append(perplexity(tiny, corpus).window_nll)
        reset(tiny)
    scores = score_recipes(tiny, RECIPES, corpus)
    assert [score.window_nll for score in scores] == [pytest.approx(nll, rel=1e-6) for nll in expected]
    assert {(score.window_tokens, score.documents, score.convention) for score in scores} == {
        ((15, 15, 15), (0, 0, 1), "window")
    }
    assert scores[0] == perplexity(tiny, corpus)
    assert len({round(score.nll, 4) for score in scores}) == len(RECIPES)


def test_the_order_of_the_recipes_makes_no_difference(tiny: Any, corpus: Corpus) -> None:
    forwards = score_recipes(tiny, RECIPES, corpus)
    assert score_recipes(tiny, RECIPES[::-1], corpus) == forwards[::-1]


@pytest.mark.parametrize("before", [None, Recipe((3, 1, 1))], ids=["base", "slung"])
def test_the_model_is_afterwards_what_it_was(before: Recipe | None, tiny: Any, corpus: Corpus) -> None:
    base_score = perplexity(tiny, corpus)
    if before is not None:
        sling(tiny, before)
    was = standing(tiny)
    assert score_recipes(tiny, RECIPES[:2], corpus)[0] == base_score  # a map speaks of the base, slung or not
    assert standing(tiny) == was


def test_the_model_is_what_it_was_when_an_objective_raises(tiny: Any, corpus: Corpus) -> None:
    was, done = standing(tiny), []

    def fails_on_the_second(model: Any, corpus: Corpus) -> Score:
        if done:
            raise RuntimeError("no memory left")
        done.append(0)
        return perplexity(model, corpus)

    with pytest.raises(RuntimeError, match="no memory left"):
        score_recipes(tiny, RECIPES[1:4], corpus, objective=fails_on_the_second)
    assert done == [0]
    assert standing(tiny) == was


def test_the_model_is_what_it_was_when_a_recipe_does_not_fit(tiny: Any, corpus: Corpus) -> None:
    was = standing(tiny)
    with pytest.raises(DavidError, match="layer 6 is out of range"):
        score_recipes(tiny, [RECIPES[1], Recipe((0, 6))], corpus)
    assert standing(tiny) == was


def test_an_objective_sees_the_slung_model_and_the_corpus(tiny: Any, corpus: Corpus) -> None:
    def depth(model: Any, data: Corpus) -> Score:
        assert data is corpus
        return Score((float(model.config.num_hidden_layers),), (1,), (0,), "depth")

    assert [score.nll for score in score_recipes(tiny, RECIPES, corpus, objective=depth)] == [6, 9, 7, 4, 1]


def test_an_objective_of_another_convention_is_its_own(tiny: Any, corpus: Corpus) -> None:
    def second_half(model: Any, data: Corpus) -> Score:
        return perplexity(model, data, convention="llamacpp")

    (score,) = score_recipes(tiny, [RECIPES[1]], corpus, objective=second_half)
    with slung(tiny, RECIPES[1]):
        assert score == perplexity(tiny, corpus, convention="llamacpp")


def test_no_recipes_are_no_scores(tiny: Any, corpus: Corpus) -> None:
    assert score_recipes(tiny, [], corpus) == []


@pytest.mark.parametrize("rung", [None, 1])
def test_completions_are_scored_as_slinging_by_hand_scores_them(rung: int | None, tiny: Any) -> None:
    corpus = of_completions()
    engine = Engine(tiny, corpus, rung=rung)
    for score, recipe in zip(engine.outcomes(RECIPES), RECIPES, strict=True):
        with slung(tiny, recipe):
            expected = perplexity(tiny, corpus)
        assert score.window_nll == pytest.approx(expected.window_nll, rel=1e-6)
        assert score.window_tokens == expected.window_tokens == engine.window_tokens == (2, 3, 4, 5)
        assert score.convention == expected.convention
    assert engine.estimate(RECIPES).reason is None


@pytest.mark.parametrize("options", [{"stride": 5}, {"rolling": True}], ids=["strided", "rolling"])
def test_strided_and_rolling_windows_are_scored_as_slinging_by_hand_scores_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab_size=300)
    file = write_rows(tmp_path / "a.jsonl", ["a text of some length, cut in many windows", "and another one"])
    corpus = Corpus.load(file, byte_tokenizer(), window=16, **options)
    recipes = [Recipe.identity(6), *all_blocks(6, 2)]
    for recipe, score in zip(recipes, score_recipes(model, recipes, corpus), strict=True):
        with slung(model, recipe):
            by_hand = perplexity(model, corpus)
        assert score.window_nll == pytest.approx(by_hand.window_nll, abs=1e-4)
        assert dataclasses.replace(score, window_nll=()) == dataclasses.replace(by_hand, window_nll=())


def test_multiple_choice_goes_through_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [row | {"q": f"{n} {row['q']}"} for n in range(3) for row in QUESTIONS]
    model, corpus = tiny_model("llama", vocab_size=300), choice_corpus(tmp_path, questions)
    recipes = [Recipe.identity(6), *all_blocks(6, 2)]
    engine = Engine(model, corpus, objective=multiple_choice, keeps=True)
    assert engine.shares
    for again in range(2):  # the second time from states that were kept
        for recipe, score in zip(recipes, engine.outcomes(recipes), strict=True):
            with slung(model, recipe):
                by_hand = multiple_choice(model, corpus)
            assert isinstance(score, Score)
            assert score.window_nll == pytest.approx(by_hand.window_nll, abs=1e-5)
            assert dataclasses.replace(score, window_nll=()) == dataclasses.replace(by_hand, window_nll=()), again
    assert engine.meter.visits < 2 * PrefixTree.of(recipes, 6).cost.visits * len(engine.batches)
    one_by_one = Engine(model, corpus, objective=partial(multiple_choice, batch=2), shared=False)
    assert [o.right for o in one_by_one.outcomes(recipes)] == [o.right for o in engine.outcomes(recipes)]
    assert capsys.readouterr().err == ""


def test_one_question_is_enough_for_the_self_check(tmp_path: Path) -> None:
    corpus = choice_corpus(tmp_path, QUESTIONS[1:2])
    engine = Engine(tiny_model("llama", vocab_size=300), corpus, objective=multiple_choice)
    assert engine.shares


def test_the_engine_wants_the_objective_that_fits_the_corpus(tiny: Any, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="score it by multiple_choice"):
        Engine(tiny, choice_corpus(tmp_path))
    with pytest.raises(ScoreError, match="load it with gold"):
        Engine(tiny, corpus, objective=multiple_choice)


def test_a_search_of_completions_races_as_one_of_text(tiny: Any) -> None:
    seen, unseen = of_completions(6).hold_out(4, 2)
    study = search(tiny, seen, held_out=unseen, n_trials=8, pruner="race", batch=3, progress=False)
    assert {trial.user_attrs["convention"] for trial in study.trials} == {"completion"}
    for trial in study.trials:
        nll, tokens = (trial.user_attrs[name] for name in ("window_nll", "window_tokens"))
        if "partial" not in trial.user_attrs:
            assert trial.value == pytest.approx(sum(nll) / sum(tokens))
    assert best_recipe(study).scores[1].convention.name == "completion"


# ---- a budget of bytes costs visits, never exactness


@pytest.mark.parametrize("states", [0, 1, 2, 8, 64])
def test_a_budget_bounds_the_states_that_are_held(states: int, tiny: Any) -> None:
    corpus, every = windows(5), [*RECIPES, *scan(6)]
    budget = states * STATE or 1
    free = Engine(tiny, corpus)
    engine = Engine(tiny, corpus, memory_budget=budget)
    found = engine.outcomes(every)
    for score, expected in zip(found, free.outcomes(every), strict=True):
        assert score.window_nll == pytest.approx(expected.window_nll, rel=1e-6)
    batch = max(map(len, engine.batches)) * STATE
    assert batch == STATE * {0: 1, 1: 1, 2: 1, 8: 4, 64: 5}[states]
    assert batch < engine.meter.peak <= max(budget, STATE) + batch  # a layer's output stands beside its input
    assert engine.meter.held == 0


def test_a_budget_in_the_smallest_parts_gives_the_same_bits(tiny: Any) -> None:
    corpus, every = windows(3), [*RECIPES, *scan(6)]
    by_one = Engine(tiny, corpus, rung=1)
    by_one.batches = [range(i, i + 1) for i in range(3)]
    assert score_recipes(tiny, every, corpus, memory_budget=1) == by_one.outcomes(every)


def test_a_budget_is_a_byte_at_least(tiny: Any, corpus: Corpus) -> None:
    with pytest.raises(ScoreError, match="at least 1 byte"):
        score_recipes(tiny, RECIPES, corpus, memory_budget=0)


# ---- recipes are checked and scheduled once


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Recipes of each prefix tree that is built from recipes."""
    built: list[int] = []
    build = PrefixTree.of.__func__  # type: ignore[attr-defined]

    def counting(cls: type[PrefixTree], recipes: Sequence[Recipe], n_layers: int) -> PrefixTree:
        built.append(len(recipes))
        tree: PrefixTree = build(cls, recipes, n_layers)
        return tree

    monkeypatch.setattr(PrefixTree, "of", classmethod(counting))
    return built


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that are checked, as often as they are."""
    checked: list[Recipe] = []
    check = Recipe.check

    def counting(recipe: Recipe, n_layers: int) -> None:
        checked.append(recipe)
        check(recipe, n_layers)

    monkeypatch.setattr(Recipe, "check", counting)
    return checked


@pytest.mark.parametrize("rung", [None, 1])
def test_a_call_with_several_batches_builds_one_tree_and_checks_each_recipe_once(
    rung: int | None, tiny: Any, trees: list[int], checks: list[Recipe]
) -> None:
    engine, every = Engine(tiny, windows(9), rung=rung, memory_budget=6 * STATE), scan(6)
    trees.clear(), checks.clear()
    engine.work(every)
    engine.outcomes(every)
    assert len({len(batch) for batch in engine.batches}) == (1 if rung is None else 3)
    assert len(engine.batches) > 2
    assert trees == [len(every)]
    assert checks == every


def test_equal_maps_made_for_different_bases_are_checked_each(tiny: Any, corpus: Corpus) -> None:
    plain, elsewhere = Recipe([0, 1, 2]), Recipe([0, 1, 2], base=Base(num_layers=40))
    assert plain == elsewhere  # what a recipe runs does not include its base
    engine = Engine(tiny, corpus)
    [refusal] = engine.outcomes([elsewhere])
    assert isinstance(refusal, RecipeError)
    assert isinstance(engine.outcomes([plain])[0], Score)


def test_groups_are_made_once_for_all_batches_of_a_size(tiny: Any, trees: list[int], checks: list[Recipe]) -> None:
    engine = Engine(tiny, windows(5), memory_budget=2 * STATE)
    trees.clear(), checks.clear()
    engine.outcomes(BUSHY)
    assert list(map(len, engine.batches)) == [1] * 5
    assert trees == [len(BUSHY)] * 2  # as given; and sorted, from which the trees of nine groups are cut
    assert checks == BUSHY


def test_score_recipes_checks_each_recipe_once(tiny: Any, trees: list[int], checks: list[Recipe]) -> None:
    every = scan(6)
    checks.clear()
    score_recipes(tiny, every, windows(3))
    assert trees == [len(every), 2]  # the other of the self-check
    assert [checks.count(recipe) for recipe in every[1:]] == [1] * (len(every) - 1)


# ---- states that are kept from call to call


@pytest.mark.parametrize("recipe", ["0:4, 2:6", "0:6, 5", "0:3, 1:3*0.5, 1:6", "0, 2:6", "0:3", "3:6"])
@pytest.mark.parametrize("rung", [None, 1])
def test_a_recipe_costs_only_what_follows_its_first_difference_from_the_base(
    recipe: str, rung: int | None, tiny: Any
) -> None:
    wanted, corpus = Recipe.parse(recipe), windows(3)
    shared = 0
    while shared < min(6, len(wanted)) and list(wanted)[shared] == (shared, 1.0):
        shared += 1
    engine = Engine(tiny, corpus, rung=rung, keeps=True)
    engine.outcomes([Recipe.identity(6)])
    with counted(tiny) as calls:
        found = engine.outcomes([wanted])
    assert sum(calls) == (len(wanted) - shared) * len(engine.batches)
    assert found == Engine(tiny, corpus, rung=rung).outcomes([wanted])


def test_a_recipe_that_is_kept_is_not_run_again(tiny: Any) -> None:
    engine = Engine(tiny, windows(3), keeps=True)
    first = engine.outcomes([*RECIPES])
    with counted(tiny) as calls:
        assert engine.outcomes([*RECIPES]) == first
    assert calls == [0] * 6


def test_what_is_held_after_a_run_is_what_is_kept(tiny: Any) -> None:
    engine = Engine(tiny, windows(3), keeps=True)
    engine.outcomes([Recipe.identity(6)])
    assert engine.meter.held == 6 * 3 * STATE
    engine.outcomes([Recipe.parse("0:4, 2:6")])
    assert engine.meter.held == (6 + 4) * 3 * STATE
    without = Engine(tiny, windows(3))
    without.outcomes(RECIPES)
    assert without.meter.held == 0


def test_where_states_become_many_only_those_of_the_base_and_the_eight_best_are_kept(tiny: Any) -> None:
    every = scan(6)
    all_states = PrefixTree.of(every, 6).cost.visits * 3
    engine = Engine(tiny, windows(3), keeps=True, memory_budget=4 * all_states * STATE)
    engine.outcomes(every)
    assert engine.meter.held == all_states * STATE  # a quarter of the budget
    engine = Engine(tiny, windows(3), keeps=True, memory_budget=3 * all_states * STATE)
    found = engine.outcomes(every)
    best = sorted(range(1, len(every)), key=lambda i: found[i].nll)[:8]
    tree = PrefixTree.of([every[0], *(every[i] for i in best)], 6)
    assert engine.meter.held == tree.cost.visits * 3 * STATE
    with counted(tiny) as calls:
        engine.outcomes([every[i] for i in best])
    assert calls == [0] * 6


@pytest.mark.parametrize("budget", [40, 12, 2])
def test_what_is_kept_takes_no_more_than_half_of_the_budget(budget: int, tiny: Any) -> None:
    every, corpus = [*RECIPES, *scan(6)], windows(1)
    engine = Engine(tiny, corpus, memory_budget=budget * STATE, keeps=True)
    for start in range(0, len(every), 4):
        part = every[start : start + 4]
        assert engine.outcomes(part) == Engine(tiny, corpus).outcomes(part)
        assert kept_bytes(engine) == engine.meter.held <= budget * STATE // 2
    assert engine.meter.peak <= (budget + 1) * STATE


@pytest.mark.parametrize("states", [40, 100])
def test_what_is_kept_and_a_run_share_the_budget(states: int, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixTree, "depth_first_order", PrefixTree.layer_sweep_order)  # which holds many
    engine = Engine(tiny, windows(1), memory_budget=states * STATE, keeps=True)
    pairs = [Recipe((*range(i + 1), *range(j + 1), *range(j, 6))) for i in range(6) for j in range(6)]
    for start in range(0, len(pairs), 12):
        engine.outcomes(pairs[start : start + 12])
    assert states * STATE // 2 <= engine.meter.peak <= (states + 1) * STATE


def test_what_is_kept_leaves_a_run_less_of_the_budget(tiny: Any) -> None:
    engine = Engine(tiny, windows(1), memory_budget=4 * STATE, keeps=True)
    engine.outcomes([Recipe.identity(6)])
    assert engine.meter.held == STATE
    assert PrefixTree.of(BUSHY, 6).cost.states > 4
    assert engine.outcomes(BUSHY) == Engine(tiny, windows(1)).outcomes(BUSHY)
    assert engine.meter.peak <= 5 * STATE


def test_a_call_behind_one_that_raised_is_right(tiny: Any) -> None:
    was, engine = standing(tiny), Engine(tiny, windows(3), keeps=True)
    expected = Engine(tiny, windows(3)).outcomes(RECIPES)
    engine.outcomes([Recipe.identity(6)])

    def fail(*_: Any) -> None:
        raise ArithmeticError("a layer that fails")

    handle = find(tiny).layers[1].register_forward_pre_hook(fail)
    outcomes = engine.outcomes(RECIPES)
    failed = [recipe for recipe, its in zip(RECIPES, outcomes, strict=True) if isinstance(its, ScoreError)]
    assert failed
    assert all(1 in recipe.repeat_map for recipe in failed)  # though not the base, whose states were kept
    assert all("ArithmeticError: a layer that fails" in str(its) for its in outcomes if isinstance(its, ScoreError))
    handle.remove()
    assert engine.meter.held == kept_bytes(engine)
    assert standing(tiny) == was
    assert engine.outcomes(RECIPES) == expected


# ---- windows in rungs


def test_a_rung_doubles_the_windows(tiny: Any) -> None:
    assert list(map(len, Engine(tiny, windows(16), rung=2).batches)) == [2, 2, 4, 8]
    assert list(map(len, Engine(tiny, windows(11), rung=3).batches)) == [3, 3, 5]
    assert list(map(len, Engine(tiny, windows(4), rung=9).batches)) == [4]
    by_four = Engine(tiny, windows(16), rung=2, memory_budget=8 * STATE).batches
    assert list(map(len, by_four)) == [2, 2, 4, 4, 4]
    assert [place for batch in by_four for place in batch] == list(range(16))


def test_a_recipe_that_is_dropped_has_the_windows_it_was_scored_on(tiny: Any) -> None:
    corpus, asked = windows(16), []

    def drop(batch: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        assert {len(its) for its in nll.values()} == {len(batch)}
        asked.extend((number, batch.start) for number in nll)
        return [1] if batch.start == 2 else []

    engine = Engine(tiny, corpus, rung=2)
    whole = Engine(tiny, corpus, rung=2).outcomes(RECIPES)
    with counted(tiny) as calls:
        found = engine.outcomes(RECIPES, drop=drop)
    assert found[:1] + found[2:] == whole[:1] + whole[2:]
    assert found[1].window_nll == whole[1].window_nll[:4]
    assert (len(found[1].window_tokens), len(found[1].documents)) == (4, 4)
    assert [start for number, start in asked if number == 1] == [0, 2]
    every, others = PrefixTree.of(RECIPES, 6).cost.visits, PrefixTree.of(RECIPES[:1] + RECIPES[2:], 6).cost.visits
    assert sum(calls) == 2 * every + 2 * others


def test_the_work_that_was_told_beforehand_is_what_is_done(tiny: Any) -> None:
    engine, done = Engine(tiny, windows(5), rung=1), []
    engine.outcomes(RECIPES, done=done.append)
    assert sum(done) == pytest.approx(engine.work(RECIPES))


def distinct_visits(n_layers: int) -> int:
    """Of a full scan of blocks and the base, in closed form."""
    return sum((n_layers - i) ** 2 for i in range(n_layers)) + n_layers


@pytest.mark.parametrize("n_layers", [8, 20])
def test_a_full_scan_calls_each_layer_for_the_distinct_visits_alone(n_layers: int) -> None:
    model = tiny_model("llama", num_hidden_layers=n_layers)
    engine, every = Engine(model, windows(1)), scan(n_layers)
    with counted(model) as calls:
        found = engine.outcomes(every)
    assert len(found) == 1 + n_layers * (n_layers + 1) // 2
    assert sum(calls) == distinct_visits(n_layers)
    assert engine.meter.ends == len(found)
    assert engine.meter.peak <= 3 * STATE


# ---- what it is going to cost


@pytest.mark.parametrize(("recipes", "budget", "groups"), [(scan(6), None, 1), (BUSHY, None, 1), (BUSHY, 2, 9)])
def test_the_estimate_counts_what_is_done(recipes: list[Recipe], budget: int | None, groups: int, tiny: Any) -> None:
    engine = Engine(tiny, windows(3), memory_budget=budget and budget * STATE)
    found = engine.estimate(recipes)
    done: list[float] = []
    with counted(tiny) as calls:
        engine.outcomes(recipes, done=done.append)
    assert sum(calls) == found.cost.visits * found.batches
    assert sum(done) == pytest.approx(engine.work(recipes))
    assert found.groups == groups
    assert (found.windows, found.batches) == (3, len(engine.batches))
    assert found.state_bytes == STATE * len(engine.batches[0])
    assert found.cost.states <= (budget or 6)
    assert found.cost.visits_one_by_one == sum(map(len, recipes))
    assert found.ratio == pytest.approx(found.cost.ratio(found.end_visits))
    assert 0 < found.seconds < 600
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines][-1] == "time"
    assert [line for line in lines if line.startswith("groups")] == (
        [f"groups    {groups}, since the memory budget holds no more states at once"] if groups > 1 else []
    )


def test_the_estimate_says_why_no_visit_is_shared(tiny: Any) -> None:
    found = Engine(tiny, windows(3), objective=lambda model, corpus: perplexity(model, corpus)).estimate(scan(6))
    assert found.reason == "the objective may do anything with the model and the corpus"
    assert found.ratio == 1
    assert found.reason in str(found)
    assert "states" not in str(found)


# ---- a device without memory for so many windows


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def at_most(windows_at_once: int, error: Exception = NO_MEMORY) -> Callable[..., None]:
    """A hook of a layer that has memory for so many windows."""

    def check(_layer: Any, args: Any, kwargs: Any) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        if len(state) > windows_at_once:
            raise error

    return check


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("at_once", "halves"),
    [
        (5, []),
        (2, ["5 windows at once: continuing with 2"]),
        (1, ["5 windows at once: continuing with 2", "2 windows at once: continuing with 1"]),
    ],
)
def test_batches_are_halved_where_there_is_no_memory_for_them(
    at_once: int, halves: list[str], keeps: bool, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = windows(5)
    expected = Engine(tiny, corpus).outcomes(RECIPES)
    engine = Engine(tiny, corpus, keeps=keeps)
    find(tiny).layers[3].register_forward_pre_hook(at_most(at_once), with_kwargs=True)
    for _ in range(2):
        for score, wanted in zip(engine.outcomes(RECIPES), expected, strict=True):
            assert score.window_nll == pytest.approx(wanted.window_nll, rel=1e-6)
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("out of memory with ") for line in lines] == halves
    assert max(map(len, engine.batches)) == at_once
    assert [place for batch in engine.batches for place in batch] == list(range(5))
    assert (
        engine.meter.held == kept_bytes(engine) == (PrefixTree.of(RECIPES, 6).cost.visits * 5 * STATE if keeps else 0)
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cublas", "host", "python"],
)
def test_a_want_of_memory_is_known_by_its_other_names(error: Exception, tiny: Any) -> None:
    engine = Engine(tiny, windows(4))
    find(tiny).layers[3].register_forward_pre_hook(at_most(2, error), with_kwargs=True)
    assert len(engine.outcomes(RECIPES)) == len(RECIPES)
    assert list(map(len, engine.batches)) == [2, 2]


def test_where_states_are_what_has_no_room_as_few_are_held_as_can_be(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = windows(1)
    expected, engine = Engine(tiny, corpus).outcomes(BUSHY), Engine(tiny, corpus, keeps=True)

    def check(*_: Any) -> None:
        if engine.meter.held > 3 * STATE:
            raise NO_MEMORY

    handle = find(tiny).layers[5].register_forward_pre_hook(check)
    assert engine.outcomes(BUSHY) == expected
    assert engine.outcomes(BUSHY[::-1]) == expected[::-1]
    handle.remove()
    assert capsys.readouterr().err == (
        "out of memory for the states of one window: continuing with as few states as possible\n"
    )


def test_where_two_windows_have_no_room_the_engine_is_held_against_the_plain_way_on_one(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = Engine(tiny, windows(3)).outcomes(RECIPES)
    find(tiny).layers[3].register_forward_pre_hook(at_most(1), with_kwargs=True)
    engine = Engine(tiny, windows(3))
    assert engine.estimate(RECIPES).reason is None
    for score, wanted in zip(engine.outcomes(RECIPES), expected, strict=True):
        assert score.window_nll == pytest.approx(wanted.window_nll, rel=1e-6)
    assert list(map(len, engine.batches)) == [1, 1, 1]
    assert "one by one" not in capsys.readouterr().err


@pytest.mark.parametrize("states", [4, 9, 40])
def test_an_engine_that_keeps_states_shares_as_much_as_one_that_does_not(states: int, tiny: Any) -> None:
    engine = Engine(tiny, windows(4), memory_budget=states * STATE, keeps=True)
    engine.outcomes(scan(6))
    assert engine.meter.visits == PrefixTree.of(scan(6), 6).cost.visits * len(engine.batches)


def test_no_memory_for_one_window_is_an_error(tiny: Any) -> None:
    was, engine = standing(tiny), Engine(tiny, windows(2))
    handle = find(tiny).layers[3].register_forward_pre_hook(at_most(0), with_kwargs=True)
    outcomes = engine.outcomes(RECIPES)
    assert [isinstance(its, ScoreError) for its in outcomes] == [3 in recipe.repeat_map for recipe in RECIPES]
    assert all(isinstance(its.__cause__, torch.OutOfMemoryError) for its in outcomes if isinstance(its, ScoreError))
    handle.remove()
    assert engine.meter.held == 0
    assert standing(tiny) == was


def test_another_error_of_a_layer_is_not_taken_for_a_want_of_memory(tiny: Any) -> None:
    engine = Engine(tiny, windows(4))

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    find(tiny).layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        score_recipes(tiny, RECIPES, windows(4))
    outcomes = engine.outcomes(RECIPES)
    assert [isinstance(its, ScoreError) for its in outcomes] == [3 in recipe.repeat_map for recipe in RECIPES]
    assert engine.batches == [range(4)]


# ---- recipes that cannot be scored, among others


def test_a_recipe_that_does_not_fit_fails_alone(tiny: Any, corpus: Corpus) -> None:
    found = Engine(tiny, corpus).outcomes([RECIPES[1], Recipe((0, 6)), RECIPES[2]])
    assert isinstance(found[1], DavidError)
    assert [found[0], found[2]] == score_recipes(tiny, RECIPES[1:3], corpus)


# ---- a search that asks for several recipes at once


def told(study: Study) -> dict[str, float | None]:
    """What each recipe of a study was told, duplicates left out."""
    trials = [trial for trial in study.trials if "duplicate_of" not in trial.user_attrs]
    return {trial.user_attrs["recipe"]: trial.value for trial in trials}


def test_a_batch_makes_no_difference_to_a_scan(tiny: Any, corpus: Corpus) -> None:
    def scanned(batch: int | None) -> Study:
        options: dict[str, Any] = {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22}
        return search(tiny, corpus, held_out=None, batch=batch, progress=False, **options)

    one, four, free = (scanned(batch) for batch in (1, 4, None))
    assert told(one) == told(four) == told(free)
    assert list(told(one)) == list(map(str, scan(6)))
    assert one.best_value == four.best_value == free.best_value
    for study in (one, four, free):
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 22
    plain = dict(zip(map(str, scan(6)), score_recipes(tiny, scan(6), corpus), strict=True))
    assert told(one) == pytest.approx({recipe: score.nll for recipe, score in plain.items()}, rel=1e-6)


def test_a_batch_makes_each_distinct_visit_once(tiny: Any, corpus: Corpus) -> None:
    with counted(tiny) as calls:
        Engine(tiny, corpus)
        attached = sum(calls)
        options: dict[str, Any] = {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22}
        search(tiny, corpus, held_out=None, batch=21, progress=False, **options)
    distinct = sum((6 - i) ** 2 for i in range(6)) + 6
    assert sum(calls) == 2 * attached + distinct


def space_that_says(*recipes: Recipe | str) -> Callable[..., Recipe]:
    """A space that gives trial 1 and those behind it these; it raises where one is a text. Then repeats of a block."""

    def space(trial: BaseTrial, n_layers: int) -> Recipe:
        if not 1 <= trial.number <= len(recipes):
            return Recipe.from_blocks(n_layers, [(trial.number % n_layers, n_layers, 2)])
        recipe = recipes[trial.number - 1]
        if isinstance(recipe, str):
            raise SearchError(recipe)
        return recipe

    return space


def test_the_same_recipe_twice_in_one_batch_is_scored_once(tiny: Any, corpus: Corpus) -> None:
    first, second = RECIPES[1:3]
    space = space_that_says(first, first, second, first)
    with counted(tiny) as calls:
        Engine(tiny, corpus)
        attached = sum(calls)
        study = search(tiny, corpus, held_out=None, space=space, n_trials=5, batch=4, progress=False)
    base, *four = study.trials[:5]
    assert [trial.state for trial in study.trials[:5]] == [TrialState.COMPLETE] * 5
    number = four[0].number
    assert [trial.user_attrs.get("duplicate_of") for trial in four] == [None, number, None, number]
    assert four[0].value == four[1].value == four[3].value != four[2].value
    assert [four[0].value, four[2].value] == [score.nll for score in score_recipes(tiny, [first, second], corpus)]
    assert base.user_attrs["recipe"] == "0:6"
    distinct = {Recipe.parse(recipe) for recipe in told(study)}
    assert len(distinct) == 5
    assert sum(calls) - 2 * attached == PrefixTree.of(list(distinct), 6).cost.visits


def test_a_recipe_that_fails_in_a_batch_fails_alone(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    space = space_that_says(RECIPES[1], "no such block", Recipe((0, 6)), RECIPES[2])
    study = search(tiny, corpus, held_out=None, space=space, n_trials=5, batch=4, progress=False)
    complete, fail = TrialState.COMPLETE, TrialState.FAIL
    assert [trial.state for trial in study.trials] == [complete, complete, fail, fail, complete, complete, complete]
    assert study.trials[2].user_attrs["error"] == "no such block"
    assert "layer 6 is out of range" in study.trials[3].user_attrs["error"]
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "trial 2 failed",
        "trial 3 failed",
    ]
    one, two = score_recipes(tiny, RECIPES[1:3], corpus)
    assert (study.trials[1].value, study.trials[4].value) == (one.nll, two.nll)


def test_an_objective_that_fails_in_a_batch_fails_alone(tiny: Any, corpus: Corpus) -> None:
    def dislikes_seven(model: Any, data: Corpus) -> Score:
        if model.config.num_hidden_layers == 7:
            raise ScoreError("seven layers")
        return perplexity(model, data)

    space = space_that_says(RECIPES[1], RECIPES[2], RECIPES[3])
    options: dict[str, Any] = {"space": space, "objective": dislikes_seven, "n_trials": 4, "batch": 3}
    study = search(tiny, corpus, held_out=None, progress=False, **options)
    assert [trial.state for trial in study.trials[1:4]] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[2].user_attrs["error"] == "seven layers"


def test_after_an_error_what_is_kept_is_counted(tiny: Any, corpus: Corpus) -> None:
    engine = Engine(tiny, corpus, keeps=True)

    def fail(*_: Any) -> None:
        raise ArithmeticError

    handle = find(tiny).layers[5].register_forward_pre_hook(fail)
    [outcome] = engine.outcomes([Recipe((4, 3, 2, 1, 0, 5))])
    assert isinstance(outcome, ScoreError)
    handle.remove()
    engine.outcomes([Recipe((0,))])
    assert engine.meter.held == kept_bytes(engine) > 0

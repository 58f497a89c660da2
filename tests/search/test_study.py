"""The study loop: what is asked, scored, told, kept, taken up again and judged. Every score is compared by hand."""

import copy
import dataclasses
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna import Study
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from scipy import stats
from tqdm import tqdm

from david.candidates.pruner import RacingPruner
from david.candidates.spaces import Block, Blocks
from david.candidates.strategies import Refine, Scan, singles
from david.engine.engine import Engine, score_recipes
from david.errors import RecipeError, ScoreError, SearchError, SlingError
from david.metrics.score import Score
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.report import best_json, page, sentences, tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import sling, slung
from david.sling.locate import find
from david.sling.stacked_copy import stacked
from david.storage import results, trial_claims
from david.storage.heartbeat import MACHINE, OWNER, WorkerHeartbeat
from david.storage.results import StudyResults
from david.storage.trial_claims import TICKET
from david.study import loop
from david.study.create import open_study, sampler_named
from david.study.rounds import run_step
from david.study.run import Run
from david.study.search import search
from david.study.tell import estimate_nll
from david.support import signals
from tests.helpers.searches import WINDOW, recipes_of, run, scored, visits, whole_corpus
from tests.tiny_models import tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)
PLOTS = {"path.png", "history.png", "depth.png"}
RUN_FILES = {"study.db", "trials.csv", "leaderboard.csv", "front.csv", "best.json", "report.html"} | PLOTS
BASE = "0:6"


@pytest.fixture
def shallow() -> Any:
    """A model of three layers: seven recipes of one block."""
    return tiny_model("llama", num_hidden_layers=3)


class Counting:
    """Perplexity that remembers which windows it was asked for, and can do something else at one call."""

    def __init__(self, at: int = 0, instead: Callable[[], Any] | None = None) -> None:
        self.spans: list[tuple[int, int]] = []
        self.at, self.instead = at, instead
        self.__name__ = "perplexity"

    def __call__(self, model: Any, corpus: Corpus) -> Score:
        self.spans.append((corpus.numbers[0], corpus.numbers[-1] + 1))
        if self.instead is not None and len(self.spans) == self.at:
            self.instead()
        return perplexity(model, corpus)


def depths_that_give(value: float, *depths: int) -> Callable[[Any, Corpus], Score]:
    """`visits`, but another value for models of some depths."""

    def objective(model: Any, corpus: Corpus) -> Score:
        depth = len(find(model).layers)
        return Score((value,), (1,), (0,), "visits") if depth in depths else visits(model, corpus)

    return objective


def lines_of(study: Study) -> list[tuple[Any, ...]]:
    """What two equal studies have in common."""
    return [
        (t.number, t.state, t.params, t.value, t.user_attrs.get("recipe"), t.user_attrs.get("duplicate_of"))
        for t in study.trials
    ]


def every_block(n_layers: int) -> set[tuple[int, ...]]:
    """All maps that repeat one block once, and the base, put together from plain lists."""
    base = list(range(n_layers))
    return {tuple(base[:j] + base[i:]) for i in range(n_layers) for j in range(i + 1, n_layers + 1)} | {tuple(base)}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 20)[None], use_cache=False).logits


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'own.db'}"


# ---- what is asked, scored and told


@pytest.mark.parametrize(
    "space",
    [
        Block(max_length=3, max_times=4),
        Blocks(count=2, max_length=3),
        Block(max_length=3, scales=(0.2, 0.8)),
        Blocks(max_length=2, scales=(-0.5, 1.5)),
    ],
    ids=str,
)
def test_each_trial_is_told_what_slinging_its_recipe_by_hand_gives(space: Any, tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space=space, n_trials=8)
    assert len(scored(study)) == 8
    for trial in study.trials:
        recipe = Recipe.parse(trial.user_attrs["recipe"])
        assert recipe == space(FixedTrial(trial.params), 6)
        with slung(tiny, recipe):
            by_hand = perplexity(tiny, corpus)
        assert trial.value == by_hand.nll
        if "duplicate_of" not in trial.user_attrs:
            assert tuple(trial.user_attrs["window_nll"]) == by_hand.window_nll
            assert tuple(trial.user_attrs["window_tokens"]) == (WINDOW - 1,) * len(corpus)
            assert trial.user_attrs["convention"] == "window"
    strengths = {scale for trial in scored(study) for scale in Recipe.parse(trial.user_attrs["recipe"]).scales}
    low, high = getattr(space, "scales", None) or (1, 1)
    assert all(scale == 1 or low <= scale <= high for scale in strengths)
    assert (strengths != {1.0}) == (space.scales is not None)


@pytest.mark.parametrize("space", ["block", "blocks", Blocks(scales=(0.1, 0.5))], ids=str)
def test_the_base_is_trial_0(space: Any, tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space=space, n_trials=3)
    assert study.trials[0].user_attrs["recipe"] == BASE
    assert study.trials[0].value == perplexity(tiny, corpus).nll
    assert recipes_of(scored(study)).count(BASE) == 1


def test_a_recipe_that_comes_again_is_told_its_score_and_does_not_count(shallow: Any, corpus: Corpus) -> None:
    objective = Counting()
    study = run(shallow, corpus, space=Block(max_length=3), objective=objective, n_trials=7)
    again = [trial for trial in study.trials if "duplicate_of" in trial.user_attrs]
    assert again
    for trial in again:
        first = study.trials[trial.user_attrs["duplicate_of"]]
        assert first.number < trial.number
        assert "duplicate_of" not in first.user_attrs
        assert (first.user_attrs["recipe"], first.value) == (trial.user_attrs["recipe"], trial.value)
        assert trial.state == TrialState.COMPLETE
    assert len(set(recipes_of(study.trials))) == len(scored(study)) == len(objective.spans) == 7


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_space_that_is_used_up_ends_with_a_word_and_holds_every_recipe(
    sampler: str, shallow: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(shallow, corpus, space=Block(max_length=3), sampler=sampler, n_trials=50)
    assert "search space exhausted: 200 duplicate proposals in a row; " in capsys.readouterr().err
    found = [Recipe.parse(recipe).repeat_map for recipe in recipes_of(scored(study))]
    assert sorted(found) == sorted(every_block(3))


def test_the_same_seed_is_the_same_study_and_another_is_not(tiny: Any, corpus: Corpus) -> None:
    def listed(seed: int) -> list[tuple[Any, ...]]:
        return lines_of(run(tiny, corpus, space=Block(max_length=3, scales=(0.1, 1)), n_trials=14, seed=seed))

    once = listed(0)
    assert listed(0) == once
    assert [line[2] for line in listed(1)] != [line[2] for line in once]


def test_the_same_seed_is_the_same_study_also_where_recipes_come_again(shallow: Any, corpus: Corpus) -> None:
    once, twice = (lines_of(run(shallow, corpus, space=Block(max_length=3), n_trials=50)) for _ in range(2))
    assert once == twice
    assert any(line[-1] is not None for line in once)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_study_keeps_its_trials_and_draws_new_ones(
    sampler: str, tiny: Any, corpus: Corpus, tmp_path: Path
) -> None:
    space, objective = Blocks(scales=(0.1, 1)), Counting()

    def go(n_trials: int) -> Study:
        study = open_study(sqlite(tmp_path), sampler=sampler, seed=0)
        return run(tiny, corpus, space=space, study=study, objective=objective, n_trials=n_trials)

    first = lines_of(go(6))
    assert len(objective.spans) == 6
    study = go(12)
    kept, new = lines_of(study)[: len(first)], lines_of(study)[len(first) :]
    assert kept == first
    assert len(scored(study)) == len(objective.spans) == 12
    drawn = [line[2] for line in first]
    assert not [params for _, _, params, *_ in new if params in drawn]
    assert len(go(12).trials) == len(study.trials)  # nothing is left to do
    assert len(objective.spans) == 12


# ---- anything of Optuna's, anything of the user's


experimental = pytest.mark.filterwarnings("ignore:QMCSampler is experimental")


@experimental
@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "gp", "qmc"])
def test_a_sampler_may_be_named(name: str, tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space="block", objective=visits, sampler=name, n_trials=4)
    assert type(study.sampler).__name__.lower() == f"{name}sampler"
    assert len(scored(study)) == 4


@experimental
@pytest.mark.parametrize("kind", [RandomSampler, TPESampler, CmaEsSampler, QMCSampler])
@pytest.mark.parametrize("where", ["memory", "sqlite"])
def test_a_study_made_by_hand_keeps_its_own_sampler_storage_and_name(
    kind: type[BaseSampler], where: str, tiny: Any, corpus: Corpus, tmp_path: Path
) -> None:
    sampler = kind(seed=3)  # type: ignore[call-arg]
    storage = None if where == "memory" else sqlite(tmp_path)
    mine = optuna.create_study(storage=storage, study_name="mine", sampler=sampler)
    study = run(tiny, corpus, space=Block(max_length=3), study=mine, n_trials=5)
    assert study is mine
    assert study.sampler is sampler
    assert recipes_of(study.trials)[0] == BASE
    assert len(scored(study)) == 5
    if storage is not None:
        assert lines_of(optuna.load_study(study_name="mine", storage=storage)) == lines_of(study)


def test_a_sampler_instance_is_used_as_it_is(tiny: Any, corpus: Corpus) -> None:
    sampler = RandomSampler(seed=5)
    assert run(tiny, corpus, space="block", objective=visits, sampler=sampler, n_trials=3).sampler is sampler


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]], ids=["maximising", "two values"])
def test_a_study_that_does_not_minimise_one_value_is_refused(directions: list[str], tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(directions=directions)
    with pytest.raises(SearchError, match="must minimise one value"):
        run(tiny, corpus, study=study, n_trials=3)
    assert study.trials == []


def test_an_unknown_sampler_space_or_storage_is_refused(tiny: Any, corpus: Corpus) -> None:
    with pytest.raises(SearchError, match="unknown sampler 'best': expected one of tpe"):
        run(tiny, corpus, sampler="best", n_trials=3)
    with pytest.raises(SearchError, match="unknown space 'best': expected block, blocks, windows"):
        run(tiny, corpus, space="best", n_trials=3)
    with pytest.raises(SearchError, match="the storage no://thing cannot be used"):
        open_study("no://thing")
    with pytest.raises(SearchError, match="n_trials must be at least 1"):
        run(tiny, corpus, n_trials=0)


def doubled(trial: BaseTrial, n_layers: int) -> Recipe:
    """A user's space whose lowest values give the base: each layer once or twice."""
    return Recipe([i for i in range(n_layers) for _ in range(trial.suggest_int(f"visits_{i}", 1, 2))])


def without_one(trial: BaseTrial, n_layers: int) -> Recipe:
    """A user's space that cannot say the base: one layer is left out."""
    skipped = trial.suggest_categorical("skipped", list(range(n_layers)))
    return Recipe([i for i in range(n_layers) if i != skipped])


def test_a_plain_function_is_a_space_and_its_lowest_values_the_base(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space=doubled, n_trials=6)
    assert study.trials[0].params == {f"visits_{i}": 1 for i in range(6)}
    assert recipes_of(study.trials)[0] == BASE
    assert len(scored(study)) == 6
    for trial in study.trials:
        recipe = doubled(FixedTrial(trial.params), 6)
        assert trial.user_attrs["recipe"] == str(recipe)
        assert trial.value == score_recipes(tiny, [recipe], corpus)[0].nll


def test_a_space_that_cannot_say_the_base_has_it_as_trial_0_all_the_same(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space=without_one, n_trials=99)
    assert (study.trials[0].params, study.trials[0].user_attrs["recipe"]) == ({}, BASE)
    assert study.trials[0].value == perplexity(tiny, corpus).nll
    maps = {Recipe.parse(recipe).repeat_map for recipe in recipes_of(scored(study))[1:]}
    assert maps == {tuple(i for i in range(6) if i != skipped) for skipped in range(6)}
    assert len(scored(study)) == 7


def test_any_function_of_model_and_corpus_is_an_objective(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, space=without_one, objective=visits, n_trials=4)
    assert [trial.value for trial in scored(study)] == [6, 5, 5, 5]
    assert {trial.user_attrs["convention"] for trial in scored(study)} == {"visits"}


# ---- what goes wrong in a trial


def refuses(depth: int) -> Callable[[Any, Corpus], Score]:
    def objective(model: Any, corpus: Corpus) -> Score:
        if len(find(model).layers) == depth:
            raise ScoreError("the NLL of window 0 is not a number")
        return visits(model, corpus)

    return objective


def test_a_score_that_is_refused_fails_its_trial_and_the_search_goes_on(
    shallow: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(shallow, corpus, space=Block(max_length=3), objective=refuses(5), n_trials=5)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert failed
    assert all(len(Recipe.parse(trial.user_attrs["recipe"])) == 5 for trial in failed)
    assert f"trial {failed[0].number} failed: the NLL of window 0 is not a number" in capsys.readouterr().err
    assert sorted(trial.value for trial in scored(study)) == [3, 4, 4, 4, 6]


def test_a_base_that_cannot_be_scored_ends_the_search_at_once_and_is_tried_again(tiny: Any, corpus: Corpus) -> None:
    values = iter([math.nan, math.nan])

    def objective(model: Any, corpus: Corpus) -> Score:
        return Score((value,), (1,), (0,), "visits") if (value := next(values, 0.0)) else visits(model, corpus)

    study = optuna.create_study(sampler=TPESampler(seed=0))
    for tries in (1, 2):
        with pytest.raises(SearchError, match="the base itself cannot be scored: the objective's NLL is not a number"):
            run(tiny, corpus, study=study, objective=objective, n_trials=5)
        assert [trial.state for trial in study.trials] == [TrialState.FAIL] * tries
    run(tiny, corpus, study=study, objective=objective, n_trials=5)
    assert len(scored(study)) == 5


def test_twenty_failures_in_a_row_end_in_an_error(tiny: Any, corpus: Corpus) -> None:
    calls: list[int] = []

    def fails(model: Any, corpus: Corpus) -> Score:
        if calls:
            raise ScoreError("broken")
        calls.append(1)
        return visits(model, corpus)

    study = optuna.create_study(sampler=TPESampler(seed=0))
    with pytest.raises(SearchError, match="20 recipes in a row failed"):
        run(tiny, corpus, study=study, n_trials=5, objective=fails, space=Blocks())
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert len({trial.user_attrs["recipe"] for trial in failed if "duplicate_of" not in trial.user_attrs}) == 20
    assert recipes_of(scored(study)) == ["0:6"]


def test_a_nan_of_an_objective_by_hand_fails_its_trial(shallow: Any, corpus: Corpus) -> None:
    study = run(shallow, corpus, space=Block(max_length=3), objective=depths_that_give(math.nan, 5), n_trials=5)
    assert study.get_trials(states=(TrialState.FAIL,))
    assert sorted(trial.value for trial in scored(study)) == [3, 4, 4, 4, 6]


def test_an_infinite_score_is_kept_and_is_never_the_best(
    shallow: Any, corpus: Corpus, held_out: Corpus, tmp_path: Path
) -> None:
    objective = depths_that_give(math.inf, 5)
    study = run(
        shallow, corpus, space=Block(max_length=3), objective=objective, n_trials=7, held_out=held_out, out=tmp_path
    )
    assert sorted(trial.value for trial in scored(study)) == [3, 4, 4, 4, math.inf, math.inf, 6] or sorted(
        trial.value for trial in scored(study)
    ) == [3, 4, 4, 4, 6, math.inf, math.inf]
    assert study.best_value == 3
    assert math.inf not in set(tables.leaderboard(study)["search_nll"])
    assert {path.name for path in tmp_path.iterdir()} >= RUN_FILES


def test_an_exception_that_is_not_ours_fails_its_trial_alone_and_leaves_the_model_reset(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory() -> None:
        raise RuntimeError("no memory left")

    before, study = logits(tiny), optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, study=study, objective=Counting(at=3, instead=out_of_memory), n_trials=6)
    assert [trial.state.name for trial in study.trials][:4] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[2].user_attrs["error"] == "scoring raised RuntimeError: no memory left"
    assert "trial 2 failed: scoring raised RuntimeError: no memory left" in capsys.readouterr().err
    assert torch.equal(logits(tiny), before)
    assert len(scored(study)) == 6


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_is_scored_writes_the_run_and_the_same_call_goes_on(
    tiny: Any, corpus: Corpus, held_out: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, options = logits(tiny), {"space": Block(max_length=3), "held_out": held_out, "out": tmp_path}
    study = run(tiny, corpus, objective=Counting(at=4, instead=interrupt), n_trials=6, **options)
    assert "interrupted: 3 recipes scored" in capsys.readouterr().err
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["FAIL", "WAITING"]  # it comes again
    assert torch.equal(logits(tiny), before)
    assert {path.name for path in tmp_path.iterdir()} - {"blocks.png"} == RUN_FILES
    kept = lines_of(study)[:3]
    assert pd.read_csv(tmp_path / "trials.csv")["nll"].head(3).tolist() == [line[3] for line in kept]
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["trial"]) == {0, 1, 2}

    study = run(tiny, corpus, objective=Counting(), n_trials=6, **options)
    assert lines_of(study)[:3] == kept
    assert len(scored(study)) == 6
    assert len(set(recipes_of(scored(study)))) == 6
    assert pd.read_csv(tmp_path / "leaderboard.csv")["held_out_nll"].notna().all()


def test_ctrl_c_in_the_base_leaves_a_study_that_scores_it_at_the_next_call(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, study=study, objective=Counting(at=1, instead=interrupt), n_trials=5)
    run(tiny, corpus, study=study, objective=Counting(), n_trials=5)
    assert BASE in recipes_of(scored(study))


def test_ctrl_c_in_the_base_before_a_queue_does_not_put_it_last(tiny: Any, corpus: Corpus) -> None:
    queue, study = all_blocks(6, 2), optuna.create_study(sampler=RandomSampler(seed=0))
    for objective in (Counting(at=1, instead=interrupt), Counting()):
        run(tiny, corpus, study=study, space=Block(max_length=2), queue=queue, objective=objective, n_trials=5)
    assert set(recipes_of(scored(study))) == {BASE, *map(str, queue[:4])}


def test_a_batch_with_something_new_in_it_does_not_use_a_space_up(
    tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = loop.run_step
    monkeypatch.setattr(loop, "run_step", lambda *args, **kw: [*played(*args, **kw), *["duplicate"] * 250])
    assert len(scored(run(tiny, corpus, objective=visits, n_trials=6, batch=3))) == 6


def test_ctrl_c_in_a_queue_leaves_a_study_that_takes_it_up_at_the_next_call(tiny: Any, corpus: Corpus) -> None:
    queue, space = all_blocks(6, 2), Block(max_length=2)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for objective in (Counting(at=4, instead=interrupt), Counting()):
        run(tiny, corpus, study=study, space=space, queue=queue, objective=objective, n_trials=12)
    assert set(recipes_of(scored(study))) == {BASE, *map(str, queue)}
    assert not [trial for trial in study.trials if "duplicate_of" in trial.user_attrs]


class Interrupted(RandomSampler):
    """Ctrl-C while the sampler thinks."""

    def sample_relative(self, *args: Any) -> Any:
        if len(args[0].trials) == 4:
            raise KeyboardInterrupt
        return super().sample_relative(*args)


def test_ctrl_c_while_the_sampler_thinks_ends_cleanly_too(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(tiny, corpus, sampler=Interrupted(seed=0), objective=visits, n_trials=6)
    assert "interrupted: 3 recipes scored" in capsys.readouterr().err
    run(tiny, corpus, study=study, objective=visits, n_trials=6)
    assert len(scored(study)) == 6


@pytest.mark.parametrize("before", [None, Recipe((3, 1, 1), (1, 0.5, 1))], ids=["base", "slung"])
def test_the_model_is_afterwards_what_it_was(
    before: Recipe | None, tiny: Any, corpus: Corpus, held_out: Corpus
) -> None:
    plain = run(copy.deepcopy(tiny), corpus, held_out=held_out, n_trials=4)
    if before is not None:
        sling(tiny, before)
    was, configuration = logits(tiny), tiny.config.to_dict()
    study = run(tiny, corpus, held_out=held_out, n_trials=4)
    assert torch.equal(logits(tiny), was)
    assert tiny.config.to_dict() == configuration
    assert lines_of(study) == lines_of(plain)  # and a slung model is searched from its base


# ---- one study, one question


def other_model() -> Any:
    model = tiny_model("llama")
    with torch.no_grad():
        find(model).layers[2].mlp.up_proj.weight.add_(1)
    return model


@pytest.mark.parametrize(
    ("what", "other", "names"),
    [
        ("model", other_model, ["base", "fingerprint"]),
        ("model", lambda: tiny_model("llama", num_hidden_layers=5), ["num_layers 6", "num_layers 5"]),
        ("corpus", lambda: whole_corpus("another", 2).take(3), ["search data", "'random'", "'another'"]),
        ("corpus", lambda: whole_corpus().take(2), ["search data", "'0:3'", "'0:2'"]),
        ("space", lambda: Blocks(count=2), ["space", "Block(max_length=2", "Blocks(count=2"]),
        ("space", lambda: Block(max_length=3), ["space", "Block(max_length=2", "Block(max_length=3"]),
        ("objective", lambda: visits, ["objective", "perplexity", "visits"]),
        ("held_out", lambda: whole_corpus().split(3, 8, 4)[2], ["held out data", "'3:12'", "'11:15'"]),
    ],
    ids=["weights", "depth", "corpus", "windows", "space", "options", "objective", "held-out"],
)
def test_a_study_made_on_something_else_is_refused_and_both_are_named(
    what: str, other: Callable[[], Any], names: list[str], tiny: Any, corpus: Corpus, held_out: Corpus
) -> None:
    study = optuna.create_study(study_name="mine")
    given = {"model": tiny, "corpus": corpus, "held_out": held_out, "space": Block(max_length=2), "study": study}
    given |= {"objective": perplexity}
    run(**given, n_trials=3)
    before, signed = lines_of(study), dict(study.user_attrs)
    with pytest.raises(SearchError) as caught:
        run(**(given | {what: other()}), n_trials=5)
    assert all(name in str(caught.value) for name in ["'mine'", "another", *names]), caught.value
    assert (lines_of(study), study.user_attrs) == (before, signed)


def test_random_recipes_as_deep_as_the_best_stand_beside_it(
    tiny: Any, corpus: Corpus, held_out: Corpus, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"space": Block(max_length=2, scales=(0.1, 1)), "out": tmp_path / "run", "top": 3}
    study = run(tiny, corpus, held_out=held_out, n_trials=8, baseline=4, **options)
    best = StudyResults.read(study).judged_best
    found = StudyResults.read(study).baseline
    assert best is not None
    assert found is not None
    assert found.trial == best.number == tables.leaderboard(study, 3).query("recipe != 'base'")["trial"].iloc[0]
    assert len(found.nll) == 4
    for notation, nll in found.nll.items():
        recipe = Recipe.parse(notation)
        assert len(recipe) == len(Recipe.parse(best.user_attrs["recipe"]))
        with slung(tiny, recipe):
            assert nll == pytest.approx(perplexity(tiny, held_out).nll, abs=1e-6)
    its = StudyResults.read(study).held_out(best)
    assert its is not None
    said = sentences.baseline(study)
    assert f"trial {best.number}" in said
    assert said.endswith(f"it is lower than {sum(its.nll < nll for nll in found.nll.values())} of 4")
    assert said[1:] in page.page(study)
    before, looks = lines_of(study), StudyResults.read(study).evaluations
    again = run(tiny, corpus, held_out=held_out, n_trials=8, baseline=4, **options)
    assert (lines_of(again), StudyResults.read(again).evaluations, StudyResults.read(again).baseline) == (
        before,
        looks,
        found,
    )
    more = StudyResults.read(run(tiny, corpus, held_out=held_out, n_trials=8, baseline=6, **options)).baseline
    assert more is not None
    assert more.asked == 6
    assert len(more.nll) <= 6  # a block of two of six layers has four other places
    assert found.nll.items() <= more.nll.items()


def test_a_start_that_has_seen_the_held_out_windows_is_told(
    tiny: Any, corpus: Corpus, held_out: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny, corpus, held_out=held_out, space="block", n_trials=3)
    found = best_json.best_recipe(first)
    assert found is not None
    run(tiny, corpus, held_out=held_out.take(5), strategy=Refine(found), n_trials=2)
    assert "was scored on 5 of the held-out windows before" in capsys.readouterr().err
    run(tiny, corpus, held_out=whole_corpus("another", 7).take(5), strategy=Refine(found), n_trials=2)
    run(tiny, corpus, held_out=held_out, strategy=Refine(Recipe.parse("0:6, 5")), n_trials=2)
    assert "was scored on" not in capsys.readouterr().err


def test_the_same_windows_of_another_slice_are_refused(tiny: Any, corpus: Corpus, held_out: Corpus) -> None:
    other = dataclasses.replace(
        held_out, sha256="5" * 64, windows=torch.cat([held_out.windows[:8], corpus.windows[:1]])
    )
    with pytest.raises(SearchError, match=f"overlap in {WINDOW} tokens"):
        run(tiny, corpus, held_out=other, n_trials=3)


def test_a_baseline_of_none_measures_none(tiny: Any, corpus: Corpus, held_out: Corpus) -> None:
    study = run(tiny, corpus, held_out=held_out, space="block", n_trials=3, baseline=0)
    assert StudyResults.read(study).baseline is None
    assert sentences.baseline(study) == ""
    with pytest.raises(SearchError, match="baseline must be 0 or more; got -1"):
        run(tiny, corpus, n_trials=3, baseline=-1)


@pytest.mark.parametrize("shared", [(0, 3), (2, 5), (0, 9), (1, 2)])
def test_search_windows_among_the_held_out_ones_are_refused(shared: tuple[int, int], tiny: Any, corpus: Corpus) -> None:
    start, stop = shared
    overlapping = whole_corpus().split(start, stop - start)[1] if start else whole_corpus().take(stop)
    objective = Counting()
    with pytest.raises(SearchError, match="overlap"):
        run(tiny, corpus, held_out=overlapping, objective=objective, n_trials=3)
    assert objective.spans == []


def test_parts_of_one_document_are_told_of(tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    one = dataclasses.replace(whole_corpus(), documents=(0,) * 24, last_documents=(0,) * 24)
    seen, unseen = one.hold_out(3, 9)
    run(tiny, seen, held_out=unseen, n_trials=2)
    assert "come from one document" in capsys.readouterr().err
    seen, unseen = whole_corpus().hold_out(3, 9)
    run(tiny, seen, held_out=unseen, n_trials=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["run", "run/deeper"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_scored(
    place: str, tiny: Any, corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine")
    objective = Counting()
    with pytest.raises(SearchError, match=r"the output folder .*run.* cannot be (made|written)"):
        run(tiny, corpus, objective=objective, n_trials=3, out=tmp_path / place)
    assert objective.spans == []
    assert (tmp_path / "run").read_text() == "mine"


# ---- finalists


def test_the_best_of_the_search_are_measured_once_on_held_out_windows(
    tiny: Any, corpus: Corpus, held_out: Corpus
) -> None:
    objective, study = Counting(), optuna.create_study(sampler=RandomSampler(seed=1))
    options = {"space": Block(max_length=3), "objective": objective, "study": study, "held_out": held_out, "top": 3}
    options["baseline"] = 0
    run(tiny, corpus, n_trials=8, **options)
    assert Counter(objective.spans) == {(0, 3): 8, (3, 12): 4}  # three finalists and the base
    others = sorted((t for t in scored(study) if t.number), key=lambda t: t.value)
    assert {key for key in study.user_attrs if key.startswith("held_out:")} == {
        f"held_out:{t.number}" for t in [study.trials[0], *others[:3]]
    }

    assert StudyResults.read(study).evaluations == 1

    run(tiny, corpus, n_trials=8, **options)
    assert Counter(objective.spans) == {(0, 3): 8, (3, 12): 4}
    assert StudyResults.read(study).evaluations == 1
    run(tiny, corpus, n_trials=14, **options)
    assert StudyResults.read(study).evaluations == 2
    judged = sum(key.startswith("held_out:") for key in study.user_attrs)
    assert Counter(objective.spans) == {(0, 3): 14, (3, 12): judged}


def test_a_look_that_is_broken_off_goes_on_as_the_same_look(tiny: Any, corpus: Corpus, held_out: Corpus) -> None:
    objective, study = Counting(at=8 + 3, instead=interrupt), open_study(None)  # at the second finalist
    options = {"space": Block(max_length=3), "objective": objective, "held_out": held_out, "top": 3, "baseline": 0}
    run(tiny, corpus, n_trials=8, study=study, **options)
    assert len(StudyResults.read(study).judged) == 1
    run(tiny, corpus, n_trials=8, study=study, **options)
    assert Counter(objective.spans) == {(0, 3): 8, (3, 12): 4 + 1}
    assert len(StudyResults.read(study).judged) == 3
    assert StudyResults.read(study).evaluations == 1


def test_the_leaderboard_is_what_one_computes_by_hand(tiny: Any, corpus: Corpus, held_out: Corpus) -> None:
    study = run(tiny, corpus, space=Block(max_length=3), held_out=held_out, n_trials=8, top=4)
    board = tables.leaderboard(study, top=4)
    assert len(board) == 5
    base = np.array(perplexity(tiny, held_out).window_nll)
    for row in board.itertuples():
        recipe = Recipe.identity(6) if row.recipe == "base" else Recipe.parse(row.recipe)
        with slung(tiny, recipe):
            search_nll, mine = perplexity(tiny, corpus).nll, np.array(perplexity(tiny, held_out).window_nll)
        assert row.search_nll == search_nll
        assert row.held_out_nll == pytest.approx(mine.sum() / 135, rel=1e-12)  # 9 windows of 15 scored tokens
        if row.recipe == "base":
            continue
        differences = (mine - base) / 15
        half = stats.t.ppf(1 - 0.05 / 4 / 2, df=8) * stats.sem(differences)
        low, high = differences.mean() - half, differences.mean() + half
        assert [row.nll_difference, row.low95, row.high95] == pytest.approx([differences.mean(), low, high], rel=1e-9)
        assert row.verdict == ("better" if high < 0 else "worse" if low > 0 else "not told apart")
    assert board["held_out_nll"].is_monotonic_increasing
    assert board["rank"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("space", [Block(max_length=3), Blocks(scales=(0.1, 0.9))], ids=str)
def test_best_json_states_the_scores_that_a_really_stacked_copy_has(
    space: Any, tiny: Any, corpus: Corpus, held_out: Corpus, tmp_path: Path
) -> None:
    study = run(tiny, corpus, space=space, held_out=held_out, n_trials=8, out=tmp_path)
    best = Recipe.load(tmp_path / "best.json")
    searched, unseen = best.scores
    copied = stacked(tiny, best)
    for stated, data in ((searched, corpus), (unseen, held_out)):
        ours, base = (nll_by_hand(model, data) for model in (copied, tiny))
        assert math.log(stated.value) == pytest.approx(ours, abs=1e-5)
        assert math.log(stated.base) == pytest.approx(base, abs=1e-5)
        assert stated.nll_difference == pytest.approx(ours - base, abs=1e-5)
        assert stated.tokens == len(data) * (WINDOW - 1)
        assert (stated.data.sha256, stated.data.windows) == (data.sha256, data.places)
        assert (stated.convention.name, stated.convention.window) == ("window", WINDOW)
    assert (searched.held_out, unseen.held_out) == (False, True)
    trial = study.trials[best.search.trial]
    assert trial.user_attrs["recipe"] == str(best)
    assert math.log(searched.value) == pytest.approx(trial.value, abs=1e-12)
    assert (best.search.trials, best.search.sampler, best.search.space) == (
        8,
        "TPESampler",
        type(space).__name__.lower(),
    )
    assert best.base.num_layers == 6
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert str(best) == board[board["recipe"] != "base"]["recipe"].iloc[0]


def nll_by_hand(model: Any, corpus: Corpus) -> float:
    """Nats a token of a plain transformers model, every token but a window's first."""
    total = 0.0
    with torch.no_grad():
        for window in corpus.windows:
            chances = torch.log_softmax(model(window[None], use_cache=False).logits[0].double(), dim=-1)
            total -= sum(chances[i - 1, token].item() for i, token in enumerate(window.tolist()) if i)
    return total / (len(corpus) * (corpus.window - 1))


# ---- queues, and workers that died


def test_a_queue_is_run_in_order_and_completely(tiny: Any, corpus: Corpus) -> None:
    queue = all_blocks(6, 2)[::-1]
    study = run(tiny, corpus, space=Block(max_length=2), queue=queue, n_trials=1 + len(queue))
    assert recipes_of(study.trials) == [BASE, *map(str, queue)]
    assert len(scored(study)) == 12


def test_a_queue_is_taken_up_where_it_was_left(tiny: Any, corpus: Corpus) -> None:
    queue, study, objective = all_blocks(6, 2), optuna.create_study(sampler=TPESampler(seed=0)), Counting()
    options = {"space": Block(max_length=2), "queue": queue, "study": study, "objective": objective}
    run(tiny, corpus, n_trials=5, **options)
    assert recipes_of(scored(study)) == [BASE, *map(str, queue[:4])]
    run(tiny, corpus, n_trials=12, **options)
    assert recipes_of(scored(study)) == [BASE, *map(str, queue)]
    assert len(objective.spans) == 12


def test_a_strategy_is_asked_in_the_samplers_place_until_its_end(
    tiny: Any, corpus: Corpus, held_out: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(tiny, corpus, strategy=Scan(2), space=Block(max_length=2), n_trials=50, held_out=held_out)
    assert recipes_of(study.trials) == [BASE, *map(str, all_blocks(6, 2))]
    assert all(trial.params for trial in study.trials)
    assert capsys.readouterr().err == "strategy finished; 12 recipes scored\n"
    assert len(StudyResults.read(study).judged) == 5
    more = run(tiny, corpus, strategy=Refine(steps=["drop"]), space=Block(max_length=2), n_trials=14, study=study)
    refined = [trial for trial in more.trials[12:] if trial.state == TrialState.COMPLETE]
    assert [Recipe.parse(recipe).repeat_map for recipe in recipes_of(refined)] == [(1, 2, 3, 4, 5), (0, 2, 3, 4, 5)]
    assert not any(trial.params for trial in refined)


@pytest.mark.parametrize("batch", [None, 1, 16])
def test_under_a_strategy_nothing_is_drawn_and_nothing_is_left_behind(
    batch: int | None, tiny: Any, corpus: Corpus
) -> None:
    for n_trials, strategy in ((4, Refine(steps=["drop"])), (99, Refine(steps=["drop"])), (99, Scan(2))):
        study = run(tiny, corpus, strategy=strategy, n_trials=n_trials, batch=batch)
        others = study.trials[1:]
        assert {trial.user_attrs["strategy"] for trial in others} == {repr(strategy)}
        assert all(trial.state == TrialState.COMPLETE for trial in others)
        assert "strategy" not in study.trials[0].user_attrs
    assert best_json.best_recipe(study).search.strategy == repr(Scan(2))


def test_a_strategy_that_asks_for_nothing_but_what_is_known_ends(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, strategy=lambda _study, n_layers: all_blocks(n_layers, 1), n_trials=50)
    assert recipes_of(study.trials) == [BASE, *map(str, all_blocks(6, 1))]


def test_what_a_model_refuses_does_not_end_a_strategy(corpus: Corpus) -> None:
    model = tiny_model("xlnet", num_hidden_layers=6)  # it has no one hidden state to damp
    study = run(model, corpus, strategy=Refine(steps=["scale", "drop"]), n_trials=4)
    assert len(scored(study)) == 4
    assert sum(trial.state == TrialState.FAIL for trial in study.trials) > 20
    with pytest.raises(SlingError, match="scales are refused"):
        run(model, corpus, strategy=Refine(Recipe((0, 1), (1, 0.5))), n_trials=4)


def test_a_trial_that_another_worker_was_given_too_is_a_duplicate(tiny: Any, corpus: Corpus) -> None:
    study = open_study(None)

    def objective(model: Any, data: Corpus) -> Score:
        if len(study.trials) == 3:  # the other worker is faster
            study.tell(2, 5.0)
        return perplexity(model, data)

    run(tiny, corpus, study=study, objective=objective, n_trials=5)
    assert study.trials[2].value == 5.0
    assert len([trial for trial in study.trials if trial.state == TrialState.COMPLETE]) == 5


def test_a_sampler_that_goes_by_parameters_alone_says_what_it_cannot_see(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(tiny, corpus, space="blocks", queue=singles(6)[6:8], n_trials=3)
    assert capsys.readouterr().err == ""
    study.sampler = sampler_named("qmc", 0, 3)
    run(tiny, corpus, space="blocks", n_trials=5, study=study)
    assert "QMCSampler samples at random here: 2 of the recipes have no parameters" in capsys.readouterr().err


def test_a_study_of_before_that_keeps_less_is_taken_up(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, n_trials=2)
    about = dict(study.user_attrs["david"])
    del about["search_documents"]
    study.set_user_attr("david", about)
    assert len(scored(run(tiny, corpus, n_trials=4, study=study))) == 4
    assert tables.luck(study) is not None


def test_a_finalist_that_cannot_be_judged_is_infinitely_worse(
    tiny: Any, corpus: Corpus, held_out: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_on_held_out(model: Any, data: Corpus) -> Score:
        if len(data) == len(held_out) and model.config.num_hidden_layers != 6:
            raise ScoreError("not a number")
        return perplexity(model, data)

    study = run(tiny, corpus, held_out=held_out, objective=fails_on_held_out, n_trials=4, top=2)
    assert "cannot be scored on held-out data, and counts as infinitely worse: not a number" in capsys.readouterr().err
    board = tables.leaderboard(study, top=2)
    assert board["verdict"].tolist() == ["", "worse", "worse"]
    assert (
        StudyResults.read(
            run(tiny, corpus, held_out=held_out, objective=fails_on_held_out, n_trials=4, top=2, study=study)
        ).evaluations
        == 1
    )


def test_tpe_models_all_slots_together_behind_recipes_that_its_space_cannot_say(tiny: Any, corpus: Corpus) -> None:
    study = open_study(None)
    run(tiny, corpus, study=study, space=Blocks(max_length=3), queue=singles(6)[6:9], n_trials=4)
    run(tiny, corpus, study=study, space=Blocks(max_length=3), n_trials=16)
    assert [bool(trial.params) for trial in scored(study)] == [True] + [False] * 3 + [True] * 12
    trial = study.ask()
    joint = study.sampler.infer_relative_search_space(study, study.trials[trial.number])
    assert joint.keys() == {f"{name}_{slot}" for name in ("start", "length", "times") for slot in range(3)}


def test_a_recipe_that_the_space_cannot_say_can_be_queued_all_the_same(tiny: Any, corpus: Corpus) -> None:
    odd = [Recipe((0, 1, 5)), Recipe((5, 4, 3), (1, 0.5, -1))]
    study = run(tiny, corpus, space="block", queue=[odd[0], Recipe.parse("0:3, 2:6"), odd[1]], n_trials=6)
    assert recipes_of(scored(study))[:4] == [BASE, str(odd[0]), "0:3, 2:6", str(odd[1])]
    assert [bool(trial.params) for trial in study.trials[:4]] == [True, False, True, False]
    assert [scored(study)[1].value, scored(study)[3].value] == [x.nll for x in score_recipes(tiny, odd, corpus)]
    again = run(tiny, corpus, space="block", queue=odd, n_trials=6, study=study)
    assert len(again.trials) == len(study.trials)


def test_a_queued_recipe_that_does_not_fit_is_refused_before_anything_is_scored(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study()
    with pytest.raises(RecipeError, match="layer 6 is out of range"):
        run(tiny, corpus, queue=[Recipe((0, 6))], study=study, n_trials=5)
    assert study.trials == []


@pytest.fixture
def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def leave_running(study: Study, space: Block, start: int, worker: str) -> FrozenTrial:
    """A trial as a worker leaves it that was killed while it scored."""
    study.enqueue_trial({"start": start, "length": 2})
    trial = study.ask()
    trial.set_user_attr(OWNER, worker)
    trial.set_user_attr("recipe", str(space(trial, 6)))
    trial.set_user_attr(TICKET, 1)
    return study.trials[trial.number]


def test_the_trial_of_a_dead_worker_is_failed_and_its_recipe_scored(
    tiny: Any, corpus: Corpus, dead_process: int, tmp_path: Path
) -> None:
    space, study = Block(max_length=2), open_study(sqlite(tmp_path))
    run(tiny, corpus, space=space, study=study, n_trials=2)
    left = leave_running(study, space, 3, f"{MACHINE}:{dead_process}")
    run(tiny, corpus, space=space, study=study, n_trials=3)
    assert study.trials[left.number].state == TrialState.FAIL
    again = study.trials[left.number + 1]
    assert (again.params, again.state) == (left.params, TrialState.COMPLETE)
    assert again.value == score_recipes(tiny, [Recipe.parse("0:5, 3:6")], corpus)[0].nll
    assert len(scored(study)) == 3


@pytest.mark.parametrize("worker", ["elsewhere:1:ab", f"{MACHINE}:1:ab"], ids=["other machine", "alive"])
def test_what_a_live_worker_has_in_hand_is_waited_for_and_counts(
    worker: str, tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, study = Block(max_length=2), optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=2)
    left = leave_running(study, space, 1, worker)
    pauses = []

    def pause(seconds: float) -> None:  # until the other one is ready
        pauses.append(seconds)
        for name, its in {"window_nll": [8.0], "window_tokens": [1], "convention": "visits"}.items():
            study._storage.set_trial_user_attr(left._trial_id, name, its)
        study.tell(left.number, 8.0)

    monkeypatch.setattr(signals, "interruptible_sleep", pause)
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=4)
    assert len(pauses) == 1
    assert len(results.scored_trials(study)) == 4
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_a_recipe_that_another_worker_has_in_hand_is_left_to_it(
    tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, study = Block(max_length=2), optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=2)
    left = leave_running(study, space, 1, "elsewhere:1:ab")
    study.enqueue_trial(left.params)
    monkeypatch.setattr(signals, "interruptible_sleep", lambda _seconds: interrupt())
    run(tiny, corpus, space=space, study=study, objective=visits, queue=[Recipe.parse("0:2, 1:6")], n_trials=4)
    assert recipes_of(scored(study))[2:] == ["0:2, 1:6"]
    other = study.trials[left.number + 1]
    assert (other.state, other.user_attrs["duplicate_of"]) == (TrialState.FAIL, left.number)


# ---- nothing twice, nothing mixed


def test_a_recipe_that_cannot_be_scored_is_not_run_again(shallow: Any, corpus: Corpus) -> None:
    runs = Counter[int]()

    def objective(model: Any, corpus: Corpus) -> Score:
        depth = len(find(model).layers)
        runs[depth] += 1
        return depths_that_give(math.nan, 6)(model, corpus)

    study = run(shallow, corpus, space=Block(max_length=3), objective=objective, n_trials=50)
    assert runs[6] == 1
    assert len(results.scored_trials(study)) == 6  # of seven


def test_what_a_sampler_keeps_repeating_is_broken_by_random_draws(
    shallow: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(RandomSampler):
        def sample_independent(self, *of: Any) -> Any:
            return of[-1].low  # study, trial, name, distribution

    stubborn = Stubborn(seed=0)
    study = optuna.create_study(sampler=stubborn)
    run(shallow, corpus, study=study, space=Block(max_length=3), objective=visits, n_trials=5)
    assert len(results.scored_trials(study)) == 5  # the sampler alone gives nothing but the base
    assert study.sampler is stubborn


def test_what_another_worker_scored_meanwhile_counts_once(shallow: Any, corpus: Corpus, tmp_path: Path) -> None:
    study = open_study(sqlite(tmp_path))

    def objective(model: Any, corpus: Corpus) -> Score:
        other = optuna.load_study(study_name="david", storage=sqlite(tmp_path))
        running = other.get_trials(states=(TrialState.RUNNING,))[-1]
        scored = visits(model, corpus)
        kept = {"recipe": running.user_attrs["recipe"], "window_nll": [scored.nll], "window_tokens": [1]}
        if running.number == 2:
            other.add_trial(optuna.trial.create_trial(value=scored.nll, user_attrs={**kept, "convention": "visits"}))
        return scored

    run(shallow, corpus, study=study, space=Block(max_length=3), objective=objective, n_trials=4)
    recipes = recipes_of(results.scored_trials(study))
    assert len(recipes) == len(set(recipes)) == 4
    assert "duplicate_of" in study.trials[2].user_attrs


def test_a_study_of_another_dtype_is_refused(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, study=study, n_trials=2)
    with pytest.raises(SearchError, match="another dtype: float32, now bfloat16"):
        run(tiny.bfloat16(), corpus, study=study, n_trials=3)


def test_the_same_weights_from_another_place_may_join(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, study=study, objective=visits, n_trials=2)
    tiny.config._name_or_path = "elsewhere"
    assert len(results.scored_trials(run(tiny, corpus, study=study, objective=visits, n_trials=3))) == 3


def test_windows_of_another_length_that_share_tokens_are_refused(tiny: Any, corpus: Corpus) -> None:
    wider = dataclasses.replace(corpus, windows=corpus.windows[:2].reshape(1, -1), documents=(0,))
    with pytest.raises(SearchError, match="overlap"):
        run(tiny, corpus, held_out=wider, n_trials=2)


def test_a_refused_model_or_queue_leaves_no_study(corpus: Corpus, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="out of range"):
        run(tiny, corpus, space=Block(), queue=[Recipe.parse("0:3, 6")], n_trials=2, out=tmp_path / "new")
    with pytest.raises(SearchError, match="max_visits"):
        run(tiny, corpus, space=Block(max_visits=5), n_trials=2, out=tmp_path / "new")
    tiny.config.model_type = "unheard_of"
    with pytest.raises(SlingError, match="unheard_of"):
        run(tiny, corpus, n_trials=2, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_was_found_after_the_judging_is_shown_as_not_judged(tiny: Any, corpus: Corpus, held_out: Corpus) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    run(tiny, corpus, held_out=held_out, study=study, n_trials=3, top=1)
    run(tiny, corpus, study=study, n_trials=12)
    board = tables.leaderboard(study, top=3)
    assert {trial.number for trial in StudyResults.read(study).best_of_search(3)} <= set(board["trial"])
    assert set(board["verdict"]) >= {"not judged"}


def test_a_study_by_hand_states_no_seed_that_it_did_not_use(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=7))
    run(tiny, corpus, study=study, n_trials=3)
    assert best_json.best_recipe(study).search.seed is None


def test_a_custom_objective_is_named_in_best_json_and_is_no_perplexity(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, objective=visits, n_trials=3)
    best = best_json.best_recipe(study)
    assert (best.scores[0].metric, best.scores[0].value) == ("visits", len(best))


# ---- racing


class Recorded(tqdm):
    """A bar that remembers how far it was, and where it then took the end to be."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def update(self, n: float | None = 1) -> bool | None:
        """Go on, and remember."""
        shown = super().update(n)
        self.seen.append((self.n, self.total))
        return shown


@pytest.mark.parametrize(
    "options",
    [
        {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22},
        {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22, "batch": 5},
        {"space": "blocks", "n_trials": 30},
        {"space": "blocks", "n_trials": 30, "objective": visits},
    ],
    ids=["scan", "batches", "one by one", "objective"],
)
def test_what_is_left_is_known_within_a_factor_of_two_from_a_tenth_on(
    options: dict[str, Any], tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("david.study.loop.tqdm", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    monkeypatch.setattr(Engine, "end_visits", property(lambda _: 9.0, lambda *_: None), raising=False)
    search(tiny, corpus, held_out=None, **options)
    end = Recorded.seen[-1][0]
    between = [(done, total) for done, total in Recorded.seen if 0.1 * end <= done <= 0.9 * end]
    assert len(between) > 5
    for done, total in between:
        assert 0.5 <= (total - done) / (end - done) <= 2


@pytest.mark.filterwarnings("ignore:WilcoxonPruner is experimental")
@pytest.mark.parametrize("pruner", ["race", "wilcoxon"])
def test_recipes_race_and_whoever_is_best_has_seen_every_window(pruner: str, tiny: Any) -> None:
    windows, others = whole_corpus().split(16, 4)
    if pruner == "race":  # at a level at which chance drops some of a random model's recipes
        given: Any = RacingPruner(finalists=3, level=0.4)
    else:
        given = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    found = run(tiny, windows, n_trials=30, held_out=others, space=Blocks(), pruner=given, batch=3, top=2)
    scored = results.scored_trials(found)
    dropped = [trial for trial in scored if "partial" in trial.user_attrs]
    assert 0 < len(dropped) < len(scored) == 30
    best = StudyResults.read(found).best_of_search(5)
    assert {len(trial.user_attrs["window_nll"]) for trial in [*best, found.best_trial]} == {16}
    [base] = [trial for trial in scored if trial.user_attrs["recipe"] == BASE]
    for trial in dropped:
        seen = trial.user_attrs["partial"]
        assert seen in (2, 4, 8)  # the rungs
        with slung(tiny, trial.user_attrs["recipe"]):
            nll = perplexity(tiny, windows.take(seen)).window_nll
        assert trial.user_attrs["window_nll"] == pytest.approx(nll, rel=1e-5)
        apart = (sum(nll) - sum(base.user_attrs["window_nll"][:seen])) / (seen * (WINDOW - 1))
        assert trial.value == pytest.approx(max(base.value + apart, found.best_value), abs=0.05)
        assert trial.value >= found.best_value


def rounds_of(tiny: Any, study: Study, racing: Any, recipes: list[Recipe]) -> None:
    """One raced round of these recipes, as a worker of a search plays it."""
    windows, _ = whole_corpus().split(8, 4)
    study.pruner = racing
    engine, left = Engine(tiny, windows, rung=2), iter(recipes)
    run = Run(
        tiny,
        Engine,
        engine,
        lambda *_: next(left),
        None,
        0,
        len(recipes),
        racing=True,
        external_study=False,
        heartbeat=WorkerHeartbeat(study),
    )
    run_step(study, run, len(recipes), expect=lambda _: None, done=lambda _: None)


class After(optuna.pruners.BasePruner):
    """Gives up every recipe once it has called something."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def prune(self, study: Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        self.call()
        return True


def test_what_a_race_writes_can_be_read_at_any_moment_by_another_worker(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, set_user_attr = RacingPruner(finalists=1), Trial.set_user_attr

    def write_and_let_another_judge(trial: Trial, name: str, value: Any) -> None:
        set_user_attr(trial, name, value)
        for each in trial.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            read.prune(trial.study, each)

    monkeypatch.setattr(Trial, "set_user_attr", write_and_let_another_judge)
    study = run(tiny, whole_corpus().split(8, 4)[0], n_trials=6, pruner="race", batch=3)
    assert len(scored(study)) == 6


def test_where_the_base_is_infinite_what_is_dropped_is_still_not_the_best() -> None:
    base = create_trial(value=math.inf, user_attrs={"window_nll": [math.inf, 30.0], "window_tokens": [10, 10]})
    dropped = Score((math.inf, 10.0), (10, 10), (0, 1), "window")
    assert estimate_nll(dropped, base, best=2.0) > 2.0
    assert estimate_nll(Score((5.0,), (10,), (0,), "window"), base, best=2.0) > 2.0


def test_a_race_drops_nothing_before_the_base_is_known(tiny: Any) -> None:
    study = open_study(None)
    run(tiny, whole_corpus().split(8, 4)[0], n_trials=1, study=study)  # signs it
    other = open_study(None)
    for name, value in study.user_attrs.items():
        other.set_user_attr(name, value)
    rounds_of(tiny, other, After(lambda: None), [Recipe((0, 1)), Recipe((2,))])
    assert [len(trial.user_attrs["window_nll"]) for trial in other.trials] == [8, 8]
    assert StudyResults.read(other).base_trial is None


@pytest.mark.parametrize("whole", [True, False])
def test_of_two_workers_that_race_one_recipe_the_whole_score_counts(
    whole: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_claims, "_rivals", lambda *_: {})  # one of them was taken for dead
    study = open_study(None)
    run(tiny, whole_corpus().split(8, 4)[0], n_trials=1, study=study)
    wanted, done = Recipe((0, 1, 1, 2, 3, 4, 5)), []

    def other_worker() -> None:
        if not done:
            done.append(0)
            pruner = RacingPruner(finalists=50) if whole else After(lambda: None)
            rounds_of(tiny, study, pruner, [wanted])

    rounds_of(tiny, study, After(other_worker), [wanted])
    scored = [trial for trial in results.scored_trials(study) if trial.user_attrs["recipe"] == str(wanted)]
    assert [len(trial.user_attrs["window_nll"]) for trial in scored] == [8 if whole else 2]
    assert all(trial.state.is_finished() for trial in study.trials)


def test_a_pruner_of_ones_own_decides(tiny: Any) -> None:
    class Never(optuna.pruners.BasePruner):
        def prune(self, study: Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
            asked.append(len(trial.intermediate_values))
            return False

    asked: list[int] = []
    windows, _ = whole_corpus().split(8, 4)
    found = run(tiny, windows, n_trials=3, space=Blocks(), pruner=Never())
    assert asked == [2, 4] * 2  # not about the base, nor where every window is seen
    assert not any("partial" in trial.user_attrs for trial in found.trials)
    assert [len(trial.intermediate_values) for trial in results.scored_trials(found)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pruner": "fastest"}, "unknown pruner 'fastest': expected race or wilcoxon"),
        ({"pruner": "wilcoxon", "objective": visits}, "racing requires perplexity"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
    ],
)
def test_a_race_that_cannot_be_is_refused(options: dict[str, Any], told: str, tiny: Any, corpus: Corpus) -> None:
    with pytest.raises(SearchError, match=told):
        run(tiny, corpus, n_trials=2, **options)

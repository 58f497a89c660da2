"""A score that fails ends its trial; when it ends the search."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from david.candidates.spaces import Block, Blocks
from david.errors import ScoreError, SearchError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.report import tables
from david.scoring.corpus import Corpus
from david.sling.locate import find
from david.storage import results
from tests.helpers.searches import RUN_FILES, Counting, logits, recipes_of, run, scored, visits

optuna.logging.set_verbosity(optuna.logging.WARNING)


def depths_that_give(value: float, *depths: int) -> Callable[[Any, Corpus], Score]:
    """`visits`, but another value for models of some depths."""

    def objective(model: Any, corpus: Corpus) -> Score:
        depth = len(find(model).layers)
        return Score((value,), (1,), (0,), "visits") if depth in depths else visits(model, corpus)

    return objective


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


def test_a_recipe_that_cannot_be_scored_is_not_run_again(shallow: Any, corpus: Corpus) -> None:
    runs = Counter[int]()

    def objective(model: Any, corpus: Corpus) -> Score:
        depth = len(find(model).layers)
        runs[depth] += 1
        return depths_that_give(math.nan, 6)(model, corpus)

    study = run(shallow, corpus, space=Block(max_length=3), objective=objective, n_trials=50)
    assert runs[6] == 1
    assert len(results.scored_trials(study)) == 6  # of seven

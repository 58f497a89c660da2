"""Finalists are scored once on held-out windows; best.json states what a stacked copy has."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.samplers import RandomSampler
from scipy import stats

from david.candidates.spaces import Block, Blocks
from david.errors import ScoreError, SearchError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.report import best_json, tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import slung
from david.sling.stacked_copy import stacked
from david.storage.results import StudyResults
from david.study.create import open_study
from tests.helpers.searches import WINDOW, Counting, interrupt, run, scored, visits

optuna.logging.set_verbosity(optuna.logging.WARNING)


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


def test_a_file_of_somebody_else_in_the_folder_is_refused_before_anything_is_scored(
    tiny: Any, corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "best.json").write_text(Recipe.parse("0:6").to_json())
    calls = Counting()
    with pytest.raises(SearchError, match=r"not David's and would be replaced \(best\.json\)"):
        run(tiny, corpus, objective=calls, n_trials=2, out=tmp_path)
    assert calls.spans == []
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


def test_two_studies_without_names_may_follow_one_another_in_a_folder(
    tiny: Any, corpus: Corpus, tmp_path: Path
) -> None:
    for _ in range(2):
        run(tiny, corpus, study=optuna.create_study(), objective=visits, n_trials=2, out=tmp_path)
    named = tmp_path / "named"
    run(tiny, corpus, study_name="one", objective=visits, n_trials=2, out=named)
    run(tiny, corpus, study_name="one", objective=visits, n_trials=3, out=named)
    with pytest.raises(SearchError, match="of another study, one, and would be replaced"):
        run(tiny, corpus, study_name="two", objective=visits, n_trials=2, out=named)

"""Trials: what is proposed, scored and recorded; duplicates, exhausted spaces, seeds and resumed studies."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FixedTrial, TrialState

from david.candidates.spaces import Block, Blocks
from david.recipe.recipe import Recipe
from david.report import tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import slung
from david.study import loop
from david.study.create import open_study
from david.study.run_search import search
from tests.helpers.searches import BASE, WINDOW, Counting, lines_of, recipes_of, run, scored, sqlite, visits

optuna.logging.set_verbosity(optuna.logging.WARNING)


def every_block(n_layers: int) -> set[tuple[int, ...]]:
    """All maps that repeat one block once, and the base, put together from plain lists."""
    base = list(range(n_layers))
    return {tuple(base[:j] + base[i:]) for i in range(n_layers) for j in range(i + 1, n_layers + 1)} | {tuple(base)}


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


def test_a_batch_with_something_new_in_it_does_not_use_a_space_up(
    tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = loop.run_step
    monkeypatch.setattr(loop, "run_step", lambda *args, **kw: [*played(*args, **kw), *["duplicate"] * 250])
    assert len(scored(run(tiny, corpus, objective=visits, n_trials=6, batch=3))) == 6


def test_the_progress_shows_the_figure_of_the_leaderboard(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = search(tiny, corpus, held_out=None, space="block", n_trials=3)
    written = capsys.readouterr().err
    figures = tables.trials(study)[["perplexity", "nll"]]
    for name, trial in (("base", 0), ("best", 1)):  # written before the third is scored
        assert "{} ppl {:.3f} ({:.4f} nats)".format(name, *figures.iloc[trial]) in written

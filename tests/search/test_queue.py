"""Queued recipes and strategies run in order and completely, and resume where they stopped."""

from typing import Any

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from david.candidates.spaces import Block
from david.candidates.strategies import Refine, Scan
from david.engine.engine import score_recipes
from david.errors import RecipeError, SlingError
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.report import best_json
from david.scoring.corpus import Corpus
from david.storage.results import StudyResults
from tests.helpers.searches import BASE, Counting, recipes_of, run, scored
from tests.tiny_models import tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)


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

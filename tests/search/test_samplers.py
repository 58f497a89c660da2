"""Samplers, spaces, storages and objectives of the user's, and of Optuna's, drive a search."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial

from david.candidates.spaces import Block, Blocks
from david.candidates.strategies import singles
from david.engine.engine import score_recipes
from david.errors import SearchError
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.storage import results
from david.study.create import open_study, sampler_named
from tests.helpers.searches import BASE, lines_of, recipes_of, run, scored, sqlite, visits

optuna.logging.set_verbosity(optuna.logging.WARNING)


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


def test_a_sampler_that_goes_by_parameters_alone_says_what_it_cannot_see(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(tiny, corpus, space="blocks", queue=singles(6)[6:8], n_trials=3)
    assert capsys.readouterr().err == ""
    study.sampler = sampler_named("qmc", 0, 3)
    run(tiny, corpus, space="blocks", n_trials=5, study=study)
    assert "QMCSampler samples at random here: 2 of the recipes have no parameters" in capsys.readouterr().err


def test_tpe_models_all_slots_together_behind_recipes_that_its_space_cannot_say(tiny: Any, corpus: Corpus) -> None:
    study = open_study(None)
    run(tiny, corpus, study=study, space=Blocks(max_length=3), queue=singles(6)[6:9], n_trials=4)
    run(tiny, corpus, study=study, space=Blocks(max_length=3), n_trials=16)
    assert [bool(trial.params) for trial in scored(study)] == [True] + [False] * 3 + [True] * 12
    trial = study.ask()
    joint = study.sampler.infer_relative_search_space(study, study.trials[trial.number])
    assert joint.keys() == {f"{name}_{slot}" for name in ("start", "length", "times") for slot in range(3)}


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

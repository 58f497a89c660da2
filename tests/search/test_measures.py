"""A study's recipes by another measure: scored once, kept in the study, and told as a rank correlation."""

from typing import Any

import optuna
import pytest
from optuna import Study
from scipy import stats

from david.analysis.remeasure import measure
from david.candidates.strategies import Scan
from david.engine.engine import score_recipes
from david.errors import ScoreError, SearchError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.report import page, sentences
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.storage.results import StudyResults
from david.study.run_search import search
from tests.helpers.corpora import of_completions, windows
from tests.helpers.layer_calls import counted
from tests.tiny_models import tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def study(tiny: Any) -> Study:
    return search(tiny, windows(2), held_out=None, strategy=Scan(2), n_trials=20, progress=False)


def recipes_of(study: Study, numbers: Any) -> list[Recipe]:
    return [Recipe.parse(study.trials[number].user_attrs["recipe"]) for number in numbers]


def test_a_measure_is_each_recipes_score_and_the_correlation_is_theirs(study: Study, tiny: Any) -> None:
    answers = of_completions()
    found = measure(study, tiny, answers, name="answers", progress=False)
    kept = StudyResults.read(study).measured["answers"]
    assert len(kept) == found.pairs == 12
    scores = score_recipes(tiny, recipes_of(study, kept), answers)
    assert list(kept.values()) == pytest.approx([score.nll for score in scores], rel=1e-6)
    rho = stats.spearmanr([study.trials[number].value for number in kept], list(kept.values())).statistic
    assert found.rho == pytest.approx(rho)
    told = f"search NLL ranks 12 recipes for answers with a rank correlation of {rho:+.2f}"
    assert sentences.rankings(study)[0].startswith(told)
    assert "Other measures" in page.page(study)


def test_what_is_measured_is_not_measured_again(study: Study, tiny: Any) -> None:
    first = measure(study, tiny, windows(3), name="more", most=5, progress=False)
    assert first.pairs == 5
    order = [trial.number for trial in StudyResults.read(study).fully_scored]
    # from best to worst
    assert list(StudyResults.read(study).measured["more"]) == [order[place] for place in (0, 3, 6, 8, 11)]
    before = StudyResults.read(study).measured["more"]
    second = measure(study, tiny, windows(3), name="more", progress=False)
    assert second.pairs == 12
    assert StudyResults.read(study).measured["more"].items() >= before.items()
    with counted(tiny) as calls:
        assert measure(study, tiny, windows(3), name="more", objective=lambda *_: 1 / 0, progress=False) == second
    assert sum(calls) == 0


def test_any_objective_measures_and_what_it_cannot_score_is_left_out(study: Study, tiny: Any) -> None:
    def dislikes_seven(model: Any, data: Corpus) -> Score:
        if model.config.num_hidden_layers == 7:
            raise ScoreError("seven layers")
        return perplexity(model, data)

    found = measure(study, tiny, windows(1), name="odd", objective=dislikes_seven, progress=False)
    assert found.pairs == 12 - 6
    assert set(sentences.rankings(study)) == {sentences.rankings(study)[0]}


def test_a_study_of_another_model_is_refused(study: Study) -> None:
    with pytest.raises(SearchError, match="was made on another model"):
        measure(study, tiny_model("llama", num_hidden_layers=5), windows(1), name="x", progress=False)
    with pytest.raises(SearchError, match="most must be at least 2"):
        measure(study, tiny_model("llama"), windows(1), name="x", most=1)
    assert StudyResults.read(study).measured == {}

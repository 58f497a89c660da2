"""Several things minimised at once: each value is the one that is measured by hand, and the best are the front."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from david.candidates.spaces import Block, Removal
from david.candidates.strategies import Scan
from david.errors import ScoreError, SearchError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.report import page, sentences, tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import multiple_choice, perplexity
from david.sling.in_place import slung
from david.sling.locate import find
from david.storage import trial_attributes
from david.storage.results import StudyResults
from david.study.create import open_study
from tests.helpers.corpora import QUESTIONS, choice_corpus, random_corpus
from tests.helpers.searches import recipes_of, run, scored, whole_corpus
from tests.tiny_models import tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", vocab_size=300)


@pytest.fixture
def sides() -> tuple[Corpus, ...]:
    return whole_corpus().split(3, 9)


def by_hand(model: Any, recipe: Recipe, score: Callable[[Any], float]) -> float:
    with slung(model, recipe):
        return score(model)


def dominated(values: list[float], others: list[list[float]]) -> bool:
    return any(all(o <= v for o, v in zip(other, values, strict=True)) and other != values for other in others)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp", "qmc"])
def test_each_value_is_the_one_that_is_measured_by_hand(
    sampler: str, model: Any, sides: tuple[Corpus, ...], tmp_path: Path
) -> None:
    text, questions = random_corpus(2), choice_corpus(tmp_path)
    also = {"visits": len, "text": text, "choices": (multiple_choice, questions)}
    study = run(model, sides[0], space=Removal(count=2), also=also, sampler=sampler, n_trials=8)
    assert len(study.directions) == 4
    assert recipes_of(study.trials)[0] == "0:6"
    for trial in scored(study):
        recipe = Recipe.parse(trial.user_attrs["recipe"])
        expected = [
            by_hand(model, recipe, lambda m: perplexity(m, sides[0]).nll),
            len(recipe),
            by_hand(model, recipe, lambda m: perplexity(m, text).nll),
            by_hand(model, recipe, lambda m: multiple_choice(m, questions).nll),
        ]
        assert trial.values == pytest.approx(expected, abs=1e-5)
    rows = tables.trials(study)
    assert [name for name in rows if name.startswith("also_")] == ["also_visits", "also_text", "also_choices"]
    assert rows["also_text"].tolist() == [trial.values[2] for trial in study.trials]


def test_the_best_are_the_front_and_they_are_judged(model: Any, sides: tuple[Corpus, ...], tmp_path: Path) -> None:
    also = {"visits": len, "text 1": random_corpus(2)}
    study = run(
        model, sides[0], held_out=sides[1], space="removal", also=also, n_trials=25, top=4, out=tmp_path / "run"
    )
    values = {trial.number: trial.values for trial in scored(study)}
    front = {number for number, its in values.items() if not dominated(its, list(values.values()))}
    rows = tables.front(tables.trials(study))
    assert set(rows["trial"]) == front
    assert rows["visits"].is_monotonic_increasing
    ranked = sorted(front - {0}, key=lambda number: values[number][0])
    assert [trial.number for trial in StudyResults.read(study).best_of_search(4)] == ranked[:4]
    judged = {trial.number for trial in StudyResults.read(study).judged}
    assert judged == set(ranked[:4])
    board = tables.leaderboard(study, 4)
    assert set(board["trial"]) == judged | {0}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"depth.png", "against_text-1.png", "best.json"} <= names
    html = page.page(study, top=4)
    assert "The Pareto front" in html
    assert "visits, text 1" in html
    assert "text 1<br>in the search" in html
    assert "text 1" in sentences.board_text(board)


def test_the_front_of_visits_alone_is_what_depth_buys(model: Any, sides: tuple[Corpus, ...]) -> None:
    def deeper_is_better(slung_model: Any, _corpus: Corpus) -> Score:
        return Score((9 / len(find(slung_model).layers),), (1,), (0,), "depth")

    study = run(model, sides[0], space="removal", objective=deeper_is_better, also={"visits": len}, n_trials=12)
    rows = tables.front(tables.trials(study))
    assert rows.equals(tables.front(tables.trials(study), ["visits"]))
    assert rows["visits"].tolist() == sorted({len(Recipe.parse(recipe)) for recipe in recipes_of(scored(study))})
    assert "What depth buys" in page.page(study)


def test_a_front_leaves_out_what_is_beaten_and_what_is_equal_and_later() -> None:
    values = np.random.default_rng(1).integers(0, 4, (60, 3)).astype(float)
    kept = trial_attributes.unbeaten(values)
    listed = values.tolist()
    for i, row in enumerate(listed):
        assert kept[i] == (not dominated(row, listed) and row not in listed[:i])
    assert not trial_attributes.unbeaten(np.empty((0, 2))).any()


@pytest.mark.slow
def test_a_search_of_several_values_goes_on_where_it_stopped(
    model: Any, sides: tuple[Corpus, ...], tmp_path: Path
) -> None:
    def part(n: int, **also: Any) -> Any:
        return run(model, sides[0], space="block", also=also, n_trials=n, out=tmp_path / "run", sampler="random")

    part(4, visits=len)
    assert len(scored(part(7, visits=len))) == 7
    with pytest.raises(SearchError, match="must minimise one value, the NLL; it has 2"):
        part(8)
    with pytest.raises(SearchError, match="must minimise 3 values, the NLL and visits, more; it has 2"):
        part(8, visits=len, more=len)
    with pytest.raises(SearchError, match=r"another also: \[\['visits', 'len'\]\], now \[\['other', 'len'\]\]"):
        part(8, other=len)


def test_the_order_of_what_is_minimised_counts(model: Any, sides: tuple[Corpus, ...]) -> None:
    study = open_study(None, values=3)
    run(model, sides[0], study=study, space="block", also={"visits": len, "text": random_corpus(1)}, n_trials=2)
    with pytest.raises(SearchError, match="was made with another also"):
        run(model, sides[0], study=study, space="block", also={"text": random_corpus(1), "visits": len}, n_trials=3)


def test_a_base_that_beats_every_recipe_leaves_them_to_be_judged(
    model: Any, sides: tuple[Corpus, ...], tmp_path: Path
) -> None:
    study = run(
        model,
        sides[0],
        held_out=sides[1],
        space=Block(max_length=2),
        objective=deeper_is_worse,
        also={"visits": len},
        n_trials=6,
        top=2,
        out=tmp_path / "run",
    )
    board = tables.leaderboard(study, 2)
    shallowest = min(len(Recipe.parse(recipe)) for recipe in board["recipe"][1:])
    assert (len(board), shallowest) == (2, 7)  # of the recipes, none beats the other in all: the first of equals
    assert sentences.verdict(board) == "no finalist beats the base on held-out windows: every one is worse (1 of 1)"
    assert len(tables.front(tables.trials(study))) == 1
    assert (tmp_path / "run" / "front.csv").exists()


def deeper_is_worse(slung_model: Any, corpus: Corpus) -> Score:
    depth = float(len(find(slung_model).layers))
    nll = tuple(depth + i / 100 for i in range(len(corpus)))
    return Score(nll, (1,) * len(corpus), corpus.documents, "depth")


def test_a_strategy_and_a_queue_write_all_values(model: Any, sides: tuple[Corpus, ...]) -> None:
    odd = Recipe((5, 0, 3))
    study = run(
        model, sides[0], space=Block(max_length=1), also={"visits": len}, strategy=Scan(1), queue=[odd], n_trials=20
    )
    assert [trial.values[1] for trial in scored(study)] == [6, 3, *[7] * 6]


def test_a_recipe_that_comes_again_is_told_all_its_values(model: Any, sides: tuple[Corpus, ...]) -> None:
    study = open_study(None, sampler="random", values=2)
    run(model, sides[0], study=study, space=Block(max_length=1), also={"visits": len}, n_trials=3)
    study.enqueue_trial(study.trials[1].params)
    run(model, sides[0], study=study, space=Block(max_length=1), also={"visits": len}, n_trials=4)
    again = [trial for trial in study.trials if "duplicate_of" in trial.user_attrs]
    assert again
    assert all(trial.values == study.trials[trial.user_attrs["duplicate_of"]].values for trial in again)


def nothing(_recipe: Recipe) -> float:
    return math.nan


def test_a_value_that_is_no_number_fails_its_trial(model: Any, sides: tuple[Corpus, ...]) -> None:
    def cost(recipe: Recipe) -> float:
        return math.nan if len(recipe) == 7 else len(recipe)

    study = run(model, sides[0], space=Block(max_length=2), also={"cost": cost}, strategy=Scan(2), n_trials=20)
    failed = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert {trial.user_attrs["error"] for trial in failed} == {"also['cost'] is not a number"}
    assert [trial.values[1] for trial in scored(study)] == [6, *[8] * 5]
    with pytest.raises(ScoreError, match=r"also\['cost'\] is not a number"):
        run(model, sides[0], also={"cost": nothing}, queue=[], study=queued_first(), n_trials=3)


def queued_first() -> optuna.Study:
    """A study in whose queue something stands before the base, which is then scored by itself."""
    study = open_study(None, values=2)
    study.enqueue_trial({"start_0": 1})
    return study


def held_out_text() -> Corpus:
    return whole_corpus().split(3, 9)[1].take(2)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "races": ({"pruner": "race", "also": {"visits": len}}, "recipes race by their NLL alone"),
    "cmaes": ({"sampler": "cmaes", "also": {"visits": len}}, "cmaes minimises a single value: take tpe or nsga2"),
    "a cmaes of one's own": (
        {"sampler": optuna.samplers.CmaEsSampler(), "also": {"visits": len}},
        "cmaes minimises a single value",
    ),
    "held-out windows": (
        {"also": {"text": held_out_text()}},
        r"also\['text'\] and the held-out windows overlap in 32 tokens",
    ),
    "held-out windows by an objective": (
        {"also": {"text": (perplexity, held_out_text())}},
        "the held-out windows overlap in 32 tokens",
    ),
    "a name of signs": ({"also": {"a/b": len}}, "names in also must be up to 40 letters"),
    "names for one file": ({"also": {"a b": len, "A-b": len}}, "must differ in more than case and spaces"),
    "visits of another kind": ({"also": {"visits": lambda _recipe: 1.0}}, "is the number of visits, `len`"),
    "no measure": ({"also": {"cost": 3}}, r"also\['cost'\] must be a corpus, \(objective, corpus\) or a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_minimised_beside_is_refused_and_nothing_is_made(
    name: str, model: Any, sides: tuple[Corpus, ...], tmp_path: Path
) -> None:
    options, message = REFUSED[name]
    with pytest.raises(SearchError, match=message):
        run(model, sides[0], held_out=sides[1], n_trials=3, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_search_by_multiple_choice_tells_accuracy(model: Any, tmp_path: Path) -> None:
    questions = choice_corpus(tmp_path, [row | {"q": f"{n} {row['q']}"} for n in range(12) for row in QUESTIONS])
    seen, unseen = questions.hold_out(12, 18)
    study = run(
        model,
        seen,
        held_out=unseen,
        objective=multiple_choice,
        space=Block(max_length=2),
        n_trials=6,
        top=2,
        out=tmp_path / "run",
    )
    for trial in scored(study):
        score = by_hand(model, Recipe.parse(trial.user_attrs["recipe"]), lambda m: multiple_choice(m, seen))
        assert trial.value == pytest.approx(score.nll, abs=1e-6)
        assert trial_attributes.accuracy(trial) == score.accuracy
    board = tables.leaderboard(study, 2)
    for row in board.to_dict("records"):
        recipe = Recipe.identity(6) if row["recipe"] == "base" else Recipe.parse(row["recipe"])
        score = by_hand(model, recipe, lambda m: multiple_choice(m, unseen))
        assert row["held_out_accuracy"] == score.accuracy
        assert row["held_out_nll"] == pytest.approx(score.nll, abs=1e-6)
    assert "held-out acc" in sentences.board_text(board)
    html = page.page(study, top=2)
    assert "right</span>" in html
    assert "held-out accuracy" in html
    assert "12 questions of" in html
    assert "18 questions of" in html
    assert "nats a question" in sentences.luck(tables.luck(study), 5, StudyResults.read(study).unit)
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert [its["metric"] for its in best["scores"]] == ["multiple_choice"] * 2
    picked = Recipe.load(tmp_path / "run" / "best.json")
    for its, side in zip(picked.scores, (seen, unseen), strict=True):
        assert its.accuracy == by_hand(model, picked, lambda m, side=side: multiple_choice(m, side)).accuracy
        assert its.base_accuracy == multiple_choice(model, side).accuracy
        assert its.data.scored_sha256 == side.scored_sha256
    assert tables.luck(study) is not None
    other = dataclasses.replace(seen, choices=tuple(dataclasses.replace(c, right=not c.right) for c in seen.choices))
    with pytest.raises(SearchError, match="was made with another search data"):
        run(model, other, objective=multiple_choice, space=Block(max_length=2), n_trials=6, out=tmp_path / "run")
    with pytest.raises(SearchError, match="racing requires perplexity"):
        run(model, seen, objective=multiple_choice, pruner="race", n_trials=3)


@pytest.mark.parametrize("error", [ScoreError("seven is too many"), ZeroDivisionError(), KeyError("seven")])
def test_a_cost_that_raises_fails_its_trial_alone(model: Any, sides: tuple[Corpus, ...], error: Exception) -> None:
    def cost(recipe: Recipe) -> float:
        if len(recipe) == 7:
            raise error
        return 1.0

    study = run(
        model, sides[0], space=Block(max_length=2), also={"cost": cost}, strategy=Scan(2), n_trials=20, batch=32
    )
    assert len(scored(study)) == 6

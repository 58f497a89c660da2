"""One study answers one question: a search that differs in model, data or dtype is refused before it scores."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import TPESampler

from david.candidates.spaces import Block, Blocks
from david.candidates.strategies import Refine
from david.errors import RecipeError, SearchError, SlingError
from david.recipe.recipe import Recipe
from david.report import best_json, page, sentences, tables
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import slung
from david.sling.locate import find
from david.storage import results
from david.storage.results import StudyResults
from tests.helpers.searches import WINDOW, Counting, lines_of, run, scored, visits, whole_corpus
from tests.tiny_models import tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    assert "was scored on 5 of the held-out windows: for it, these are seen data" in capsys.readouterr().err
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


def test_a_study_of_before_that_keeps_less_is_taken_up(tiny: Any, corpus: Corpus) -> None:
    study = run(tiny, corpus, n_trials=2)
    about = dict(study.user_attrs["david"])
    del about["search_documents"]
    study.set_user_attr("david", about)
    assert len(scored(run(tiny, corpus, n_trials=4, study=study))) == 4
    assert tables.luck(study) is not None


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

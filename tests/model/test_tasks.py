"""Tasks of lm-eval: what David makes of a document is what lm-eval makes of it, on the base, slung and stacked."""

import copy
import importlib.util
import json
import math
import random
import subprocess
import sys
import warnings
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from david import tasks
from david.analysis.remeasure import measure
from david.engine.engine import score_recipes
from david.errors import CorpusError, DavidError, ScoreError, SearchError
from david.metrics import units
from david.recipe.recipe import Recipe
from david.report import page, sentences, tables
from david.scoring import lm_eval_adapter, lm_eval_metrics
from david.scoring.objectives import multiple_choice, perplexity
from david.sling.in_place import sling, slung, view
from david.sling.stacked_copy import stacked
from david.storage import results
from david.storage.results import StudyResults
from david.study.run_search import search
from tests.helpers.command import Run, refusal
from tests.helpers.corpora import FILES, HEAD, random_corpus
from tests.tiny_models import VOCABULARY, tiny_model

optuna.logging.set_verbosity(optuna.logging.WARNING)

REPEATED = Recipe.parse("0:4, 1:3*0.5, 2:6, 0")
LONGEST = 64  # tokens: some documents of `rolling` are longer, and take several windows
EACH = [
    ("choice", "acc_norm"),
    ("choice", "acc"),
    ("choice", "brier_score"),
    ("last", "perplexity"),
    ("last", "acc"),
    ("rolling", "word_perplexity"),
    ("rolling", "byte_perplexity"),
    ("rolling", "bits_per_byte"),
    ("written", "exact_match"),
]


def words(numbers: random.Random, n: int) -> str:
    return " ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(n))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    named = {"<u>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(named, unk_token="<u>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<u>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files beside their data: of every second document of `written` the base itself writes what is right."""
    made, numbers, base = tmp_path_factory.mktemp("tasks"), random.Random(1), tiny_model("llama")

    def writes(prompt: str) -> str:
        asked = torch.tensor([tokenizer.encode(prompt)])
        with torch.inference_mode():
            told = base.generate(asked, max_new_tokens=3, do_sample=False, pad_token_id=0)
        return str(tokenizer.decode(told[0, asked.shape[1] :], skip_special_tokens=True))

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    for i in range(12):
        q = words(numbers, 2 + i)
        answers = [words(numbers, 1 + k % 3) for k in range(3)]
        rows["choice"].append({"q": q, "a": answers, "gold": numbers.randrange(3)})
        rows["last"].append({"q": q, "t": writes(q).split()[0] if i % 2 else answers[0]})
        rows["rolling"].append({"t": words(numbers, 5 + 15 * i)})
        rows["written"].append({"q": q, "t": writes(q) if i % 2 else answers[1]})
    for name, text in FILES.items():
        (made / f"{name}.yaml").write_text(HEAD.format(name=name) + text)
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    return made


def loaded(folder: Path, names: str, model: Any, tokenizer: Any, **options: Any) -> tasks.Tasks:
    paths = [folder / f"{name.replace(':', '.yaml:', 1) if ':' in name else f'{name}.yaml'}" for name in names.split()]
    return tasks.load([str(path) for path in paths], model, tokenizer, max_length=LONGEST, **options)


def by_lm_eval(folder: Path, name: str, model: Any, tokenizer: Any, **options: Any) -> dict[str, Any]:
    """What lm-eval itself tells of a task."""
    own = copy.deepcopy(tokenizer)  # which it changes
    harness = HFLM(pretrained=model, tokenizer=own, backend="causal", max_length=LONGEST)
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = simple_evaluate(
            harness,
            tasks=[str(folder / f"{name}.yaml")],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            **options,
        )
    results: dict[str, Any] = found["results"][name]
    return results


@pytest.mark.parametrize("name", FILES)
def test_a_task_comes_to_what_lm_eval_makes_of_it(name: str, model: Any, tokenizer: Any, folder: Path) -> None:
    theirs = by_lm_eval(folder, name, model, tokenizer)
    for metric in [metric for task, metric in EACH if task == name]:
        asked = loaded(folder, f"{name}:{metric}", model, tokenizer)
        score = asked(model, asked.corpus)
        label, value = units.readable(score.unit, score.nll)
        expected = next(value for key, value in theirs.items() if key.startswith(f"{metric},"))
        assert value == pytest.approx(expected, rel=1e-6), metric
        assert label in ("perplexity", metric, "bits a byte")
        assert len(score.window_nll) == 12


def test_filters_are_told_apart_as_lm_eval_does(model: Any, tokenizer: Any, folder: Path) -> None:
    theirs = by_lm_eval(folder, "written", model, tokenizer)
    found = {}
    for kept in ("whole", "first"):
        asked = loaded(folder, f"written:exact_match:{kept}", model, tokenizer)
        found[kept] = 1 - asked(model, asked.corpus).nll
        assert found[kept] == pytest.approx(theirs[f"exact_match,{kept}"])
    assert found["whole"] == pytest.approx(0.5)
    assert found["first"] < 0.5  # one word of three


def test_a_limit_takes_the_documents_that_lm_eval_takes(model: Any, tokenizer: Any, folder: Path) -> None:
    asked = loaded(folder, "choice:acc", model, tokenizer, limit=5)
    assert len(asked.corpus) == 5
    expected = by_lm_eval(folder, "choice", model, tokenizer, limit=5)["acc,none"]
    assert 1 - asked(model, asked.corpus).nll == pytest.approx(expected)
    whole = loaded(folder, "choice:acc", model, tokenizer)
    assert asked.corpus.sha256 == whole.corpus.sha256
    assert whole(model, asked.corpus).window_nll == whole(model, whole.corpus).window_nll[:5]
    with pytest.raises(ScoreError, match="was loaded with a limit, without 7 of the documents of"):
        asked(model, whole.corpus)


@pytest.mark.parametrize(("name", "metric"), EACH)
def test_a_sling_and_a_view_come_to_what_a_stacked_copy_does(
    name: str, metric: str, model: Any, tokenizer: Any, folder: Path
) -> None:
    asked = loaded(folder, f"{name}:{metric}", model, tokenizer)
    before = asked(model, asked.corpus)
    assert model.config.use_cache is True  # as lm-eval leaves it: two visits in one slot would be another score
    copied = stacked(model, REPEATED)
    theirs = asked(copied, asked.corpus)
    with slung(model, REPEATED):
        mine = asked(model, asked.corpus)
        assert model.config.use_cache is True
    assert mine.window_nll == pytest.approx(theirs.window_nll, abs=1e-5)
    assert asked(view(model, REPEATED), asked.corpus).window_nll == pytest.approx(mine.window_nll, abs=1e-6)
    assert asked(model, asked.corpus) == before  # nothing that was answered is kept
    fresh = loaded(folder, f"{name}:{metric}", copied, tokenizer)
    assert fresh(copied, fresh.corpus).window_nll == pytest.approx(theirs.window_nll, abs=1e-6)
    if metric not in ("acc", "acc_norm", "exact_match"):
        assert mine.nll != pytest.approx(before.nll, abs=1e-3)


def test_the_cache_is_off_where_nothing_is_written_and_on_where_it_is(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = type(model).forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        found = forward(self, *args, **options)
        seen.append(found.past_key_values is not None)
        return found

    monkeypatch.setattr(type(model), "forward", watched)
    for name, cached in (("choice", False), ("rolling", False), ("written", True)):
        asked = loaded(folder, name, model, tokenizer)
        seen.clear()
        asked(model, asked.corpus)
        assert set(seen) == {cached}


def test_parts_of_the_documents_come_to_parts_of_the_score(model: Any, tokenizer: Any, folder: Path) -> None:
    asked = loaded(folder, "choice:acc written", model, tokenizer)
    whole, each = asked(model, asked.corpus), asked.each
    assert list(each) == ["choice", "written"]
    assert whole.unit == "1 − score"
    assert whole.window_nll == asked(model, each["choice"]).window_nll + asked(model, each["written"]).window_nll
    seen, unseen = asked.corpus.hold_out(8, 10)
    assert not set(seen.documents) & set(unseen.documents)
    assert seen.shared_tokens(unseen) == 0 == seen.shared_documents(unseen)
    for part in (seen, unseen):
        assert asked(model, part).window_nll == tuple(whole.window_nll[number] for number in part.numbers)
        assert asked(model, part).documents == part.documents
    assert repr(asked) == "tasks(choice:acc, written:exact_match:whole, max_length=64)"


def test_a_batch_comes_to_the_same(model: Any, tokenizer: Any, folder: Path) -> None:
    for name in ("choice:brier_score", "last", "rolling"):
        one, four = (loaded(folder, name, model, tokenizer, batch=batch) for batch in (1, 4))
        assert four(model, four.corpus).nll == pytest.approx(one(model, one.corpus).nll, abs=1e-5)


def test_what_is_sampled_is_the_same_each_time_and_no_one_elses_numbers_change(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    text = (folder / "written.yaml").read_text().replace("do_sample: false", "do_sample: true, temperature: 5.0")
    (tmp_path / "sampled.yaml").write_text(text.replace("written.jsonl", f"{folder}/written.jsonl"))
    asked = tasks.load(tmp_path / "sampled.yaml", model, tokenizer, max_length=LONGEST)
    torch.manual_seed(3)
    first = asked(model, asked.corpus)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    assert asked(model, asked.corpus) == first
    torch.manual_seed(3)
    assert torch.rand(1) == drawn


def test_a_search_by_a_task_ends_in_a_verdict_on_documents_it_has_not_seen(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    asked = loaded(folder, "choice:acc", model, tokenizer)
    seen, unseen = asked.corpus.hold_out(5, 7)
    options: dict[str, Any] = {"space": "block", "objective": asked, "top": 2, "baseline": 2, "progress": False}
    study = search(model, seen, held_out=unseen, n_trials=6, out=tmp_path / "run", **options)
    for trial in results.scored_trials(study):
        with slung(model, Recipe.parse(trial.user_attrs["recipe"])):
            assert trial.value == asked(model, seen).nll
    board = tables.leaderboard(study, 2)
    assert board.attrs["unit"] == "1 − acc"
    assert {"search_acc", "held_out_acc"} <= set(board)
    assert not {"search_perplexity", "held_out_perplexity"} & set(board)
    for row in board.to_dict("records"):
        with slung(model, Recipe.identity(6) if row["recipe"] == "base" else Recipe.parse(row["recipe"])):
            assert row["held_out_acc"] == pytest.approx(1 - asked(model, unseen).nll)
    assert set(board["verdict"]) <= {"", "better", "worse", "not told apart"}
    text = sentences.board_text(board)
    assert "held-out acc" in text
    assert "Δ (1 − acc)" in text
    assert "nats" not in text
    html = page.page(study, top=2)
    assert "5 documents of choice" in html
    assert "Held-out<br>acc" in html
    assert "nats" not in html.partition("How to read")[0].partition("<style>")[0]
    assert "in 1 − acc" in sentences.luck(tables.luck(study), 5, StudyResults.read(study).unit)
    best = Recipe.load(tmp_path / "run" / "best.json")
    assert [(its.metric, its.convention.name) for its in best.scores] == [("tasks", "lm-eval choice:acc")] * 2
    with slung(model, best):
        assert best.scores[1].value == pytest.approx(asked(model, unseen).nll)
    again = search(model, seen, held_out=unseen, n_trials=6, out=tmp_path / "run", **options)
    assert len(again.trials) == len(study.trials)
    others = loaded(folder, "choice:acc_norm", model, tokenizer)
    with pytest.raises(SearchError, match="was made with another objective"):
        search(model, seen, held_out=unseen, n_trials=6, out=tmp_path / "run", **options | {"objective": others})
    with pytest.raises(SearchError, match="overlap in"):
        search(model, seen, held_out=asked.corpus.take(6), n_trials=6, **options)
    with pytest.raises(SearchError, match="racing requires perplexity"):
        search(model, seen, held_out=unseen, n_trials=6, pruner="race", **options)


def test_data_that_changed_are_other_data(model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    asked = loaded(folder, "choice", model, tokenizer)
    text = (folder / "choice.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(text[-1])
    text[-1] = json.dumps(row | {"gold": (row["gold"] + 1) % 3}) + "\n"  # the tokens are the same
    (tmp_path / "choice.jsonl").write_text("".join(text))
    (tmp_path / "choice.yaml").write_bytes((folder / "choice.yaml").read_bytes())
    other = tasks.load(tmp_path / "choice.yaml", model, tokenizer, max_length=LONGEST)
    assert other.corpus.tokens_sha256 == asked.corpus.tokens_sha256
    assert other.corpus.sha256 != asked.corpus.sha256
    with pytest.raises(ScoreError, match="has no documents of"):
        asked(model, other.corpus)


def test_tasks_stand_beside_a_search_by_perplexity(model: Any, tokenizer: Any, folder: Path) -> None:
    asked = loaded(folder, "last", model, tokenizer)
    study = search(
        model,
        random_corpus(3),
        space="block",
        held_out=None,
        n_trials=6,
        also={"last": (asked, asked.corpus)},
        progress=False,
    )
    for trial in results.scored_trials(study):
        with slung(model, Recipe.parse(trial.user_attrs["recipe"])):
            assert trial.values[1] == pytest.approx(asked(model, asked.corpus).nll)
    measure(study, model, asked.corpus, objective=asked, name="measured", progress=False)
    kept = StudyResults.read(study).measured["measured"]
    assert kept == pytest.approx({trial.number: trial.values[1] for trial in results.scored_trials(study)})


def test_data_may_lie_where_lm_eval_was_started(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last.yaml").write_bytes((folder / "last.yaml").read_bytes())
    with pytest.raises(CorpusError, match="cannot be read: Unable to find"):
        tasks.load(tmp_path / "last.yaml", model, tokenizer)
    monkeypatch.chdir(folder)
    asked = tasks.load(tmp_path / "last.yaml", model, tokenizer)
    assert len(asked.corpus) == 12
    assert Path.cwd() == folder


def test_a_task_may_have_code_beside_it(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"q": f"w{i}"}) + "\n" for i in range(4, 9)))
    (tmp_path / "mine.py").write_text("def told(doc, results):\n    return {'length': len(doc['q']) / 4}\n")
    (tmp_path / "mine.yaml").write_text(
        HEAD.format(name="mine") + "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: ' w3'\n"
        "process_results: !function mine.told\n"
        "metric_list: [{metric: length, aggregation: mean, higher_is_better: false}]\n"
    )
    asked = tasks.load(tmp_path / "mine.yaml", model, tokenizer)
    score = asked(model, asked.corpus)
    assert (score.nll, score.unit) == (0.5, "length")
    (tmp_path / "mine.py").write_text("def told(doc, results):\n    return {'length': 1 / (doc['q'] == 0)}\n")
    asked = tasks.load(tmp_path / "mine.yaml", model, tokenizer)
    with pytest.raises(ScoreError, match="document 0 of the task mine cannot be measured by length: ZeroDivisionError"):
        score_recipes(model, [Recipe.identity(6)], asked.corpus, objective=asked)


def test_a_metric_of_all_documents_at_once_is_refused(model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    text = (folder / "choice.yaml").read_text().replace("choice.jsonl", f"{folder}/choice.jsonl")
    (tmp_path / "f1.yaml").write_text(text.replace("{metric: acc_norm}", "{metric: f1}"))
    with pytest.raises(ScoreError, match=r"f1 of the task choice is no mean over documents.*it has acc, brier_score"):
        tasks.load(tmp_path / "f1.yaml", model, tokenizer)


def test_prompts_that_are_too_long_are_cut_with_a_word(
    model: Any, tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tasks.load(folder / "choice.yaml", model, tokenizer, max_length=8)
    said = capsys.readouterr().err
    longer = sum(
        any(len(tokenizer.encode(f"{row['q']} {answer}")) > 9 for answer in row["a"])
        for row in map(json.loads, (folder / "choice.jsonl").read_text().splitlines())
    )
    assert f"{longer} of 12 documents of choice are longer than 8 tokens" in said
    assert asked.corpus.window == 8
    assert math.isfinite(asked(model, asked.corpus).nll)
    tasks.load(folder / "rolling.yaml", model, tokenizer, max_length=8)
    assert "longer" not in capsys.readouterr().err


WRONG: dict[str, tuple[str, str]] = {
    "no metric of that name": ("choice:best", "the task choice has no metric 'best': it has acc_norm, acc"),
    "no filter of that name": ("choice:acc:best", "the task choice has no filter 'best': it has none"),
    "more than a metric and a filter": ("choice:a:b:c", "cannot read the task .*: expected name, name:metric or"),
    "an empty metric": ("choice:", "cannot read the task"),
    "no such file": ("gone", "no such task file: .*gone.yaml"),
    "twice": ("last last:acc", "the task last is asked for twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_names_are_told(name: str, model: Any, tokenizer: Any, folder: Path) -> None:
    wanted, message = WRONG[name]
    with pytest.raises(DavidError, match=message):
        loaded(folder, wanted, model, tokenizer)


@pytest.mark.parametrize("names", ["", " , ", "choice.yaml,", []])
def test_no_name_is_told(names: Any, model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(CorpusError, match="expected the names of tasks"):
        tasks.load(names, model, tokenizer)


BROKEN: dict[str, tuple[str, str]] = {
    "no yaml": ("task: [", "cannot be read"),
    "a list": ("- 1", "cannot be read: Expected YAML dict"),
    "no task": ("a: 1", "cannot be read: Unknown config shape"),
    "another output": (HEAD.format(name="last") + "output_type: song\n", "cannot be read: Got invalid output_type"),
    "no such column": (
        HEAD.format(name="last") + FILES["last"].replace("{{q}}", "{{nothing}}"),
        "cannot be read: 'nothing' is undefined",
    ),
    "no such split": (
        (HEAD.format(name="last") + FILES["last"]).replace("test_split: test", "test_split: train"),
        "cannot be read",
    ),
    "no rows": (HEAD.format(name="none") + FILES["last"], "its data have no rows"),
    "an answer that is not there": (
        HEAD.format(name="odd") + FILES["choice"],
        "cannot be read: IndexError: list index",
    ),
    "runs what is written": (
        HEAD.format(name="last") + FILES["last"] + "unsafe_code: true\n",
        "runs what the model writes as a program",
    ),
    "sounds": (HEAD.format(name="last") + FILES["last"] + "doc_to_audio: ['q']\n", "shows pictures or plays sounds"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_task_file_is_told(name: str, model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    text, message = BROKEN[name]
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "last.jsonl").write_bytes((folder / "last.jsonl").read_bytes())
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "odd.jsonl").write_text('{"q": "w3", "a": ["w4", "w5"], "gold": 7}\n')
    with pytest.raises(CorpusError, match=message) as told:
        tasks.load(tmp_path / "bad.yaml", model, tokenizer)
    assert "\n" not in str(told.value)


def test_a_name_of_lm_evals_own_says_where_it_looks(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here := TaskManager(include_defaults=False, include_path=str(folder)))  # its own take 16 s to read
    monkeypatch.setattr(lm_eval_adapter, "_own_tasks", lambda: here)
    with pytest.raises(CorpusError, match=r"lm-eval has no task 'choise' \(it has choice\)"):
        tasks.load("choise", model, tokenizer)
    assert "no file here is called choise: reading lm-eval's own tasks" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    assert len(tasks.load("last", model, tokenizer).corpus) == 12
    text = HEAD.format(name="far").replace("dataset_path: json", "dataset_path: no-such/data").replace("far.jsonl", "x")
    (folder / "far").mkdir()
    (folder / "far" / "far.yaml").write_text(text + FILES["last"])
    with pytest.raises(CorpusError, match=r"the task .*far.yaml cannot be read: .*(Hub|offline|no-such)"):
        tasks.load(folder / "far" / "far.yaml", model, tokenizer)


def test_what_cannot_be_scored_is_refused(model: Any, tokenizer: Any, folder: Path) -> None:
    asked = loaded(folder, "choice last", model, tokenizer)
    with pytest.raises(ScoreError, match="need one unit; got choice in 1 − acc_norm, last in nats a document"):
        _ = asked.corpus
    with pytest.raises(ScoreError, match="need one unit"):
        asked(model, asked.everything)
    assert asked(model, asked.each["last"]).unit == "nats a document"
    with pytest.raises(ScoreError, match="has no documents of"):
        asked(model, random_corpus(2))
    for objective in (perplexity, multiple_choice):
        with pytest.raises(ScoreError, match="holds the documents of tasks"):
            objective(model, asked.each["last"])
    with pytest.raises(CorpusError, match=r"take\(99\) of a corpus of 12 documents"):
        asked.each["last"].take(99)
    for name in ("limit", "max_length", "batch"):
        with pytest.raises(ScoreError, match=f"{name} must be at least 1; got 0"):
            tasks.load(folder / "last.yaml", model, tokenizer, **{name: 0})
    with pytest.raises(ScoreError, match=r"max_length 999 is more than the model takes \(128 positions\)"):
        tasks.load(folder / "last.yaml", model, tokenizer, max_length=999)
    short = tasks.load(folder / "written.yaml", model, tokenizer, max_length=3)
    with pytest.raises(ScoreError, match=r"lm-eval cannot run .*: Invalid configuration: requested max tokens"):
        short(model, short.corpus)
    with pytest.raises(ScoreError, match="training mode"):
        tasks.load(folder / "last.yaml", model.train(), tokenizer)


def test_a_tokenizer_without_an_end_is_refused(model: Any, tokenizer: Any, folder: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<u>")
    with pytest.raises(ScoreError, match="needs a tokenizer with a BOS or EOS token"):
        tasks.load(folder / "last.yaml", model, bare)


def test_the_tokenizer_of_the_caller_stays_as_it_was(model: Any, tokenizer: Any, folder: Path) -> None:
    loaded(folder, "last", model, tokenizer)
    assert tokenizer.pad_token is None


def test_without_lm_eval_a_line_says_what_to_install(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ScoreError, match=r"pip install -c constraints\.txt -e '\.\[eval\]' in a clone of David"):
        tasks.load("last", model, tokenizer)


def test_tasks_are_loaded_on_a_slung_model_too(model: Any, tokenizer: Any, folder: Path) -> None:
    plain = loaded(folder, "last", model, tokenizer)
    before = plain(model, plain.corpus)
    sling(model, REPEATED)
    asked = loaded(folder, "last", model, tokenizer)
    with slung(model, Recipe.identity(6)):
        assert asked(model, asked.corpus) == before
    assert asked(model, asked.corpus) == plain(model, plain.corpus) != before


def test_a_brier_score_is_summed_over_answers() -> None:
    shares = np.array([0.2, 0.5, 0.3])
    assert lm_eval_metrics.brier_score(1, shares) == pytest.approx(0.04 + 0.25 + 0.09)


def test_importing_lm_eval_is_left_to_who_asks_for_it() -> None:
    assert "lm_eval" in sys.modules  # by this test
    code = "import david.tasks, sys; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- the command


@pytest.fixture
def there(place: Path, folder: Path, tokenizer: Any) -> Path:
    tokenizer.save_pretrained(place / "model")
    for name in ("choice", "last"):
        for ending in ("yaml", "jsonl"):
            (place / f"{name}.{ending}").write_bytes((folder / f"{name}.{ending}").read_bytes())
    return place


def test_the_command_scores_tasks_beside_perplexity(run: Run, there: Path, model: Any, tokenizer: Any) -> None:
    line = "score model --data data.txt --window 16 --windows 2 --tasks choice.yaml:acc,last.yaml --limit 8"
    code, out, err = run(line, "--recipe", "0:4, 2:6", "--json")
    assert code == 0, err
    found = json.loads(out)
    asked = tasks.load("choice.yaml:acc,last.yaml", model, tokenizer, limit=8)
    assert list(found["tasks"]) == ["choice", "last"]
    for name, corpus in asked.each.items():
        its = found["tasks"][name]
        label = "acc" if name == "choice" else "perplexity"
        base = asked(model, corpus)
        with slung(model, Recipe.parse("0:4, 2:6")):
            slung_ = asked(model, corpus)
        assert its["documents"] == 8
        assert its["base"][label] == pytest.approx(units.readable(base.unit, base.nll)[1])
        assert its["recipe"][label] == pytest.approx(units.readable(base.unit, slung_.nll)[1])
        difference = its["recipe"]["difference" if name == "choice" else "nll_difference"]
        assert difference == pytest.approx(slung_.nll - base.nll)
        assert its["recipe"]["interval95"][0] <= difference <= its["recipe"]["interval95"][1]
    code, out, _ = run(line, "--recipe", "0:4, 2:6")
    assert code == 0
    assert "documents 0:8), measured by lm-eval choice:acc" in out
    assert "in 1 − acc, paired 95% interval" in out
    assert "nats a document, paired" in out


def test_the_command_searches_by_tasks(run: Run, there: Path) -> None:
    line = "search model --tasks choice.yaml:acc --windows 4 --held-out 6 --trials 4 --top 2 --baseline 1 --out tasked"
    code, out, err = run(line)
    assert code == 0, err
    assert "held-out acc" in out
    assert "on held-out documents" in out
    assert "window" not in out
    assert (there / "tasked" / "best.json").exists()
    assert run(line)[1] == out


COMMAND = {
    "search, tasks and data": ("search model --tasks last.yaml --data data.txt --bos --out new", "leave --data, --bos"),
    "search, tasks of two kinds": ("search model --tasks choice.yaml,last.yaml --out new", "need one unit"),
    "search, few documents": ("search model --tasks last.yaml --out new", "cannot split 12 documents"),
    "score, a limit without tasks": ("score model --limit 3", "--limit requires --tasks"),
    "score, no such task file": ("score model --tasks gone.yaml", "no such task file: gone.yaml"),
    "score, no task file": ("score model --data data.txt --window 16 --windows 2 --tasks data.txt", "cannot be read"),
    "score, no metric": ("score model --data data.txt --window 16 --windows 2 --tasks last.yaml:x", "no metric 'x'"),
}


@pytest.mark.parametrize("name", COMMAND)
def test_what_the_command_cannot_do_is_told_in_a_line(name: str, run: Run, there: Path) -> None:
    line, says = COMMAND[name]
    assert says in refusal(run, there, line)


def test_equal_documents_and_those_of_one_field_count_as_one(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (folder / "choice.jsonl").read_text().splitlines()]
    rows = [row | {"id": number, "of": number // 4} for number, row in enumerate([*rows[:6], *rows[:6]])]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "twice.yaml").write_text(
        (folder / "choice.yaml")
        .read_text()
        .replace("choice.jsonl", "twice.jsonl")
        .replace("task: choice", "task: twice")
    )
    asked = tasks.load(f"{tmp_path / 'twice.yaml'}:acc", model, tokenizer, max_length=LONGEST)
    assert "6 of 12 documents of twice are copies" in capsys.readouterr().err
    assert asked.corpus.groups == (*range(6), *range(6))
    assert asked(model, asked.corpus).documents == tuple(f"group {number}" for number in (*range(6), *range(6)))
    named = tasks.load(f"{tmp_path / 'twice.yaml'}:acc", model, tokenizer, max_length=LONGEST, group="of", limit=6)
    assert named.corpus.groups[:6] == (0, 0, 0, 0, 4, 4)
    with pytest.raises(
        CorpusError, match="documents of the task twice have no field 'x': they have q, a, gold, id, of"
    ):
        tasks.load(tmp_path / "twice.yaml", model, tokenizer, group="x")

"""Several recipes side by side: every figure is the one that is measured by hand, by another way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from david import compare, tasks
from david.analysis import compare as compare_module
from david.cli.scores import _add_corpus
from david.engine.engine import Engine
from david.errors import CorpusError, RecipeError, ScoreError
from david.metrics.paired_test import paired_difference
from david.metrics.score import Score
from david.models.describe import token_costs
from david.recipe.explain import explain
from david.recipe.recipe import Recipe
from david.scoring.objectives import multiple_choice, perplexity
from david.sling.in_place import sling, slung, view
from david.sling.stacked_copy import stacked
from tests.helpers.command import Run, refusal
from tests.helpers.corpora import FILES, HEAD, QUESTIONS, choice_corpus, random_corpus
from tests.tiny_models import tiny_model

RECIPES = [Recipe.parse("0:4, 2:6"), Recipe.parse("0:5, 1:3*0.5, 5"), Recipe.parse("0:3, 4:6")]


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", vocab_size=300)


def test_each_figure_is_that_of_a_stacked_copy(model: Any, tmp_path: Path) -> None:
    text, questions = random_corpus(6), choice_corpus(tmp_path, QUESTIONS * 4)
    table = compare(model, RECIPES, {"text": text, "asked": (multiple_choice, questions)}, decode=0)
    assert table["recipe"].tolist() == ["base", *map(str, RECIPES)]
    assert "tokens_per_second" not in table
    cost = token_costs(model)
    base = perplexity(model, text), multiple_choice(model, questions)
    for row, recipe in zip(table.to_dict("records"), [Recipe.identity(6), *RECIPES], strict=True):
        its = stacked(model, recipe)
        assert row["visits"] == len(recipe)
        assert row["extra_depth"] == pytest.approx(len(recipe) / 6 - 1)
        assert row["kv_bytes_per_token"] == explain(recipe, cost).kv_bytes_per_token
        mine = perplexity(its, text), multiple_choice(its, questions)
        assert row["text_perplexity"] == pytest.approx(mine[0].perplexity, rel=1e-5)
        assert row["asked_accuracy"] == mine[1].accuracy
        if row["recipe"] == "base":
            assert (row["text_difference"], row["text_verdict"], row["asked_verdict"]) == (0.0, "", "")
            assert math.isnan(row["text_low95"])
            continue
        for name, score, theirs in zip(("text", "asked"), mine, base, strict=True):
            expected = paired_difference(
                score.window_nll,
                theirs.window_nll,
                theirs.window_tokens,
                documents=theirs.documents,
                finalists=len(RECIPES),
            )
            found = [row[f"{name}_{part}"] for part in ("difference", "low95", "high95")]
            assert found == pytest.approx([expected.mean, expected.low, expected.high], abs=1e-5)
            assert row[f"{name}_verdict"] == expected.word
    assert table.attrs["units"] == {"text": "nats a token", "asked": "nats a question"}
    assert table.attrs["labels"] == {"text": "perplexity", "asked": "accuracy"}


def test_intervals_are_wider_the_more_recipes_are_compared(model: Any) -> None:
    text = random_corpus(6)
    one, three = (compare(model, RECIPES[:n], {"text": text}, decode=0).iloc[1] for n in (1, 3))
    assert one["text_difference"] == pytest.approx(three["text_difference"])
    assert three["text_high95"] - three["text_low95"] > 1.1 * (one["text_high95"] - one["text_low95"])


def test_a_corpus_goes_through_the_engine_once_for_all_recipes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    outcomes = Engine.outcomes

    def counted(self: Any, recipes: Any, **options: Any) -> Any:
        calls.append(len(recipes.recipes))
        return outcomes(self, recipes, **options)

    monkeypatch.setattr(Engine, "outcomes", counted)
    compare(model, [*RECIPES, RECIPES[0]], {"a": random_corpus(3), "b": random_corpus(2)}, decode=0)
    assert calls == [4, 4]  # the one that is given twice is one row


def test_the_model_is_afterwards_what_it_was(model: Any) -> None:
    sling(model, RECIPES[1])
    text = random_corpus(2)
    before = perplexity(model, text)
    compare(model, RECIPES, {"text": text}, decode=2, rounds=1)
    assert perplexity(model, text) == before
    assert compare(model, RECIPES, {"text": text}, decode=0)["kv_bytes_per_token"][0] == sum(
        token_costs(tiny_model("llama", vocab_size=300)).layer_kv_bytes
    )


def test_recipes_take_turns_in_each_round_and_the_median_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], list[int]()
    seconds = {6: iter([9.0, 1.0, 2.0, 8.0]), 10: iter([9.0, 4.0, 4.0, 4.0]), 5: iter([9.0, 3.0, 5.0, 1.0])}

    def generate(prompt: torch.Tensor, *, max_new_tokens: int, use_cache: bool, **options: Any) -> torch.Tensor:
        depth = len(model.model.layers)
        assert (use_cache, options["do_sample"], options["eos_token_id"]) == (True, False, None)
        clock[0] += next(seconds[depth])
        order.append(depth)
        return torch.zeros(1, prompt.shape[1] + max_new_tokens, dtype=torch.long)

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(compare_module.time, "perf_counter", lambda: clock[0])
    recipes = [Recipe.identity(6), Recipe.parse("0:6, 2:6"), RECIPES[2]]
    found = compare_module.decode_speeds(model, recipes, torch.ones(1, 4, dtype=torch.long), 12, 3)
    assert found == [12 / 2, 12 / 4, 12 / 3]  # of 1, 2, 8; 4, 4, 4; 3, 5, 1: the first of each does not count
    rounds = [order[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(turn) == [5, 6, 10] for turn in rounds)
    assert len({turn[0] for turn in rounds[1:]}) == 3


def test_what_is_written_is_what_a_view_writes(model: Any) -> None:
    prompt = torch.arange(3, 11)[None]
    written: list[torch.Tensor] = []
    generate = model.generate

    def watched(*args: Any, **options: Any) -> Any:
        written.append(generate(*args, **options))
        return written[-1]

    model.generate = watched
    compare_module.decode_speeds(model, [RECIPES[0]], prompt, 5, 1)
    del model.generate
    for tokens in written:
        expected = view(model, RECIPES[0]).generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert torch.equal(tokens, expected)
        assert tokens.shape[1] == 8 + 5


def test_an_objective_of_ones_own_has_its_own_unit(model: Any) -> None:
    def depth(slung_model: Any, corpus: Any) -> Score:
        n = float(len(slung_model.model.layers))
        return Score((n,) * len(corpus), (1,) * len(corpus), corpus.documents, "depth", unit="layers")

    table = compare(model, RECIPES[:1], {"mine": (depth, random_corpus(4))}, decode=0)
    assert table["mine_layers"].tolist() == [6.0, 8.0]
    assert table["mine_verdict"][1] == "worse"
    assert "mine layers" in compare_module.comparison_text(table)


def test_more_tokens_than_the_model_takes_are_refused_before_anything_is_scored(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "score_recipes", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ScoreError, match=r"decode must be at most \d+ behind a prompt of \d+ tokens; got 5000"):
        compare(model, RECIPES, {"a": random_corpus(2)}, decode=5000)


def test_what_cannot_be_compared_is_refused_before_anything_is_scored(model: Any) -> None:
    def never(_model: Any, _corpus: Any) -> Score:
        pytest.fail("scored")

    text = random_corpus(2)
    with pytest.raises(RecipeError, match="layer 8 is out of range"):
        compare(model, [RECIPES[0], Recipe.parse("0:9")], {"text": (never, text)})
    with pytest.raises(ScoreError, match="at least one corpus"):
        compare(model, RECIPES, {})
    for wrong, words in (({"decode": -1}, "decode must be 0 or more"), ({"rounds": 0}, "rounds must be at least 1")):
        with pytest.raises(ScoreError, match=words):
            compare(model, RECIPES, {"text": (never, text)}, **wrong)


# ---- the command


def test_the_command_prints_a_row_for_the_base_and_each_recipe(run: Run, place: Path) -> None:
    line = (
        "compare model six.json --data data.txt --data pairs.jsonl --prompt-column q --column a --window 16 --windows 2"
    )
    code, out, err = run(f"{line} --decode 2 --rounds 1", "0:4, 2:6")
    assert code == 0, err
    head, base, six, other, _, note, one, two = out.splitlines()
    for part in ("visits", "KV bytes/token", "tokens/s", "data.txt ppl", "pairs.jsonl ppl", "Δ nats", "recipe"):
        assert part in head
    assert base.split()[0] == "6"
    assert base.endswith("base")
    assert six.endswith("0:4, 1:4*0.5, 4:6")
    assert other.endswith("0:4, 2:6")
    assert " ± " in other
    assert "corrected for 2 recipes" in note
    assert one.startswith("note: Corpus(data.txt: windows 0:2 of 16 tokens) is of one document")
    assert two.startswith(
        "note: Corpus(pairs.jsonl: windows 0:2 of 5 tokens) is of 2 documents, too few for an interval"
    )

    code, out, _ = run(f"{line} --decode 0 --json", "0:4, 2:6")
    found = json.loads(out)
    assert code == 0
    assert found["corrected_for"] == 2
    assert [its["recipe"] for its in found["recipes"]] == ["base", "0:4, 1:4*0.5, 4:6", "0:4, 2:6"]
    assert found["on"]["pairs.jsonl"]["unit"] == "nats a token"
    assert found["recipes"][0]["data.txt_low95"] is None
    assert "tokens_per_second" not in found["recipes"][0]


def test_the_command_compares_on_tasks_and_questions(run: Run, place: Path) -> None:
    rows = [{"q": f"w{i} w4", "a": ["w5", "w6"], "gold": i % 2} for i in range(3, 12)]
    (place / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "choice.yaml").write_text(HEAD.format(name="choice") + FILES["choice"])
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.eos_token = "w1"
    tokenizer.save_pretrained(place / "model")
    data = (
        "--data choices.jsonl --prompt-column q --column a --gold-column right --data data.txt --window 16 --windows 4"
    )
    code, out, err = run(f"compare model six.json {data} --tasks choice.yaml:acc --limit 6 --decode 0 --json")
    assert code == 0, err
    found = json.loads(out)
    assert {name: its["unit"] for name, its in found["on"].items()} == {
        "choices.jsonl": "nats a question",
        "data.txt": "nats a token",
        "choice": "1 − acc",
    }
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    asked = tasks.load(f"{place / 'choice.yaml'}:acc", model, tokenizer, limit=6)
    with slung(model, Recipe.load(place / "six.json")):
        assert found["recipes"][1]["choice_acc"] == pytest.approx(1 - asked(model, asked.corpus).nll)


WRONG = {
    "unreadable recipe": ("compare ./nowhere 0:x", "cannot read '0:x'"),  # before the model is looked for
    "missing recipe": ("compare ./nowhere gone.json", "cannot read recipe gone.json"),
    "layer out of range": ("compare model 0:9 --data data.txt --window 16", "layer 8 is out of range"),
    "the same data twice": ("compare model 0:3 --data data.txt --data data.txt --window 16", "data.txt occurs twice"),
    "a limit without tasks": ("compare model 0:3 --limit 3", "--limit requires --tasks"),
    "no such task file": ("compare ./nowhere 0:3 --tasks gone.yaml", "no such task file: gone.yaml"),
    "too few windows": (
        "compare model 0:3 --data data.txt --window 16 --windows 99",
        "--windows 99 is more than data.txt has: ",
    ),
    "no such data": ("compare model 0:3 --data gone.txt", "no such file: gone.txt"),
    "a prompt column of text": ("compare model 0:3 --data data.txt --prompt-column q", "data.txt is text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_in_a_line(name: str, run: Run, place: Path) -> None:
    line, says = WRONG[name]
    assert says in refusal(run, place, line)


def test_data_of_one_name_must_differ() -> None:
    with pytest.raises(CorpusError, match="wiki occurs twice"):
        _add_corpus({"wiki": 1}, "wiki", 2)

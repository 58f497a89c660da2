"""Generated answers that were cut at the token limit or inside the model's thinking: their share, beside the score."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from david import tasks
from david.analysis.compare import compare, comparison_text
from david.recipe.recipe import Recipe
from david.report import page, sentences, tables
from david.scoring.lm_eval_adapter import ends_in_thinking
from david.sling.in_place import slung
from david.sling.stacked_copy import stacked
from david.storage.results import StudyResults
from david.study.run_search import search
from tests.helpers.command import Run
from tests.helpers.corpora import FILES, HEAD, random_corpus
from tests.tiny_models import VOCABULARY, tiny_model

DEEPER = Recipe.parse("0:4, 1:3*0.5, 2:6, 0")
LONGEST = 64
DOCUMENTS = 12


def greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """The likeliest tokens behind a prompt, one forward pass each, without a cache and without `generate`."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(limit):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class Scene:
    """A model whose commonest tokens begin and end its thinking, end answers, and end the text."""

    model: Any
    tokenizer: Any
    prompts: list[list[int]]
    think: int
    end_think: int
    stop: int
    eos: int  # of the tokenizer
    turn: int  # of the model's generation configuration

    def share_by_hand(self, model: Any, limit: int) -> float:
        cut = []
        for prompt in self.prompts:
            tokens = greedy(model, prompt, limit)
            ends = [place for place, token in enumerate(tokens) if token in (self.stop, self.eos, self.turn)]
            answer = tokens[: ends[0]] if ends else tokens
            answer = [self.think, *answer] if prompt[-1] == self.think else answer
            thinks, is_thinking = {self.think: True, self.end_think: False}, False
            for token in answer:
                is_thinking = thinks.get(token, is_thinking)
            cut.append(not ends or is_thinking)
        return sum(cut) / len(cut)

    def save(self, folder: Path, limit: int, more: str = "") -> Path:
        rows = [{"q": self.tokenizer.decode(prompt), "t": "w3"} for prompt in self.prompts]
        (folder / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = (
            HEAD.format(name="written") + FILES["written"].replace("max_gen_toks: 3", f"max_gen_toks: {limit}") + more
        )
        (folder / "written.yaml").write_text(text)
        return folder / "written.yaml"


@pytest.fixture(scope="module")
def scene() -> Scene:
    model, numbers = tiny_model("llama"), random.Random(5)
    prompts = [[numbers.randrange(3, VOCABULARY) for _ in range(3 + n % 4)] for n in range(DOCUMENTS)]
    common = Counter(token for prompt in prompts for token in greedy(model, prompt, 24))
    [(think, _), (stop, _), (end_think, _), (eos, _), (turn, _)] = common.most_common(5)
    names = {think: "<think>", end_think: "</think>", stop: "|", eos: "</s>", turn: "<turn>"}
    inner = Tokenizer(models.WordLevel({names.get(i, f"w{i}"): i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", eos_token="</s>")
    model.generation_config.eos_token_id = [turn]
    named = set(names)
    prompts = [[token for token in prompt if token not in named] or [100 + n] for n, prompt in enumerate(prompts)]
    prompts = [[*prompt, think] if n % 3 == 0 else prompt for n, prompt in enumerate(prompts)]
    return Scene(model, tokenizer, prompts, think, end_think, stop, eos, turn)


def load(scene: Scene, file: Path, **options: Any) -> tasks.Tasks:
    return tasks.load(file, scene.model, scene.tokenizer, max_length=LONGEST, **options)


@pytest.mark.parametrize(("limit", "batch"), [(1, 5), (6, 1), (12, 5), pytest.param(24, 1, marks=pytest.mark.slow)])
def test_the_share_is_that_of_answers_written_by_hand(limit: int, batch: int, scene: Scene, tmp_path: Path) -> None:
    asked = load(scene, scene.save(tmp_path, limit), batch=batch)
    score = asked(scene.model, asked.corpus)
    assert score.cut_share == pytest.approx(scene.share_by_hand(scene.model, limit))
    assert len(score.cut) == DOCUMENTS
    with slung(scene.model, DEEPER):
        mine = asked(scene.model, asked.corpus)
    assert mine.cut_share == pytest.approx(scene.share_by_hand(stacked(scene.model, DEEPER), limit))


def test_the_scene_has_answers_of_every_kind(scene: Scene) -> None:
    shares = [scene.share_by_hand(scene.model, limit) for limit in (1, 6, 12, 24)]
    assert len(set(shares)) > 2
    assert 0 < shares[-1] < 1
    written = Counter(token for prompt in scene.prompts for token in greedy(scene.model, prompt, 12))
    assert all(written[token] for token in (scene.think, scene.end_think, scene.stop, scene.eos, scene.turn))


def test_each_answer_counts_where_a_task_asks_several_times(scene: Scene, tmp_path: Path) -> None:
    once = load(scene, scene.save(tmp_path, 6))
    cut = once(scene.model, once.corpus).cut
    thrice = load(scene, scene.save(tmp_path, 6, "repeats: 3\n"))
    assert thrice(scene.model, thrice.corpus).cut == cut
    part = once.corpus.take(5)
    assert once(scene.model, part).cut == cut[:5]


def test_documents_without_generated_answers_have_no_share(scene: Scene, tmp_path: Path) -> None:
    rows = [{"q": "w3 w4", "a": ["w5", "w6", "w7"], "gold": n % 3} for n in range(4)]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "choice.yaml").write_text(HEAD.format(name="choice") + FILES["choice"])
    files = [f"{tmp_path / 'choice.yaml'}:acc", str(scene.save(tmp_path, 6))]
    asked = tasks.load(files, scene.model, scene.tokenizer, max_length=LONGEST)
    assert len(asked(scene.model, asked.corpus).cut) == DOCUMENTS
    assert asked(scene.model, asked.each["choice"]).cut == ()


@pytest.mark.parametrize(
    ("prompt", "answer", "thinks"),
    [
        ("2 + 2?", "4", False),
        ("2 + 2?", "<think>I add", True),
        ("2 + 2?", "<think>I add</think>4", False),
        ("2 + 2?", "<think>I add</think>4<think>or", True),
        ("2 + 2? <think>\n", "I add", True),
        ("2 + 2? <think>\n", "I add</think>4", False),
        ("Write <think> first.", "4", False),
        ("2 + 2? <think>\n\n</think>\n", "4", False),
        ("2 + 2?", "[THINK]I add", True),
        ("2 + 2?", "[THINK]I add[/THINK]4", False),
        ("2 + 2?", "<|channel|>analysis<|message|>I add<|end|><|start|>assistant", True),
        ("2 + 2?", "<|channel|>analysis<|message|>I add<|end|><|start|>assistant<|channel|>final<|message|>4", False),
        ("2 + 2?", "<|channel>thought\nI add<channel|>4", False),
        ("2 + 2?", "<|channel>thought\nI add", True),
    ],
)
def test_an_answer_ends_in_thinking_unless_that_has_ended(prompt: str, answer: str, thinks: bool) -> None:
    assert ends_in_thinking(prompt, answer) is thinks


def test_a_search_stores_the_shares_and_shows_them(scene: Scene, tmp_path: Path) -> None:
    asked = load(scene, scene.save(tmp_path, 6))
    seen, unseen = asked.corpus.hold_out(5, 7)
    options: dict[str, Any] = {"space": "block", "objective": asked, "top": 2, "baseline": 0, "progress": False}
    study = search(scene.model, seen, held_out=unseen, n_trials=4, **options)
    board = tables.leaderboard(study)
    for row in board.to_dict("records"):
        with slung(scene.model, Recipe.identity(6) if row["recipe"] == "base" else Recipe.parse(row["recipe"])):
            assert row["search_cut"] == pytest.approx(asked(scene.model, seen).cut_share)
            if row["verdict"] != "not judged":
                assert row["held_out_cut"] == pytest.approx(asked(scene.model, unseen).cut_share)
    text = sentences.board_text(board)
    assert "search cut" in text
    assert "held-out cut" in text
    html = page.page(study)
    assert "% cut" in html
    assert "Cut: an answer is cut if it reaches its task&#39;s token limit" in html


def test_other_studies_and_scores_have_no_such_column(tiny: Any) -> None:
    study = search(tiny, random_corpus(3), space="block", held_out=None, n_trials=3, progress=False)
    assert not [name for name in tables.leaderboard(study) if "cut" in name]
    assert all("cut" not in trial.user_attrs for trial in StudyResults.read(study).trials)


def test_compare_has_a_column(scene: Scene, tmp_path: Path) -> None:
    asked = load(scene, scene.save(tmp_path, 6))
    table = compare(scene.model, [DEEPER], {"sums": (asked, asked.corpus), "text": random_corpus(3)}, decode=0)
    shares = [scene.share_by_hand(each, 6) for each in (scene.model, stacked(scene.model, DEEPER))]
    assert table["sums_cut"].tolist() == pytest.approx(shares)
    assert "text_cut" not in table
    assert f"{shares[0]:.1%}" in comparison_text(table)


def test_the_command_says_it_for_base_and_recipe(run: Run, place: Path, scene: Scene) -> None:
    scene.model.save_pretrained(place / "model")
    scene.tokenizer.save_pretrained(place / "model")
    scene.save(place, 6)
    shares = [scene.share_by_hand(each, 6) for each in (scene.model, stacked(scene.model, DEEPER))]
    line = "score model --data data.txt --window 16 --windows 2 --tasks written.yaml"
    code, out, err = run(line, "--recipe", str(DEEPER), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [found["tasks"]["written"][row]["cut_share"] for row in ("base", "recipe")] == pytest.approx(shares)
    assert "cut_share" not in found["base"]
    code, out, _ = run(line, "--recipe", str(DEEPER))
    assert code == 0
    assert [f"answers cut {share:.1%}" in out for share in shares] == [True, True]
    assert "note: an answer is cut if it reaches its task's token limit (max_gen_toks) or ends inside" in out
    line = "compare model --data data.txt --window 16 --windows 2 --tasks written.yaml --decode 0"
    code, out, err = run(line, str(DEEPER))
    assert code == 0, err
    assert f"{shares[1]:.1%}" in out
    assert "note: an answer is cut" in out

"""Strided and rolling windows score every token once, with the context that the published conventions give it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from david.errors import CorpusError
from david.scoring.conventions import CONSECUTIVE, CONVENTIONS, Convention
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.scoring.windows import CUTTERS
from tests.helpers.corpora import (
    BOS,
    QUESTIONS,
    SlowTokenizer,
    byte_tokenizer,
    of_guide,
    of_lm_eval,
    pairs,
    write,
    write_rows,
)
from tests.tiny_models import tiny_model

TEXT = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def tokenizer() -> Any:
    return byte_tokenizer()


def rows(corpus: Corpus, tokenizer: Any) -> list[tuple[str, str]]:
    """Of each window, what is read alone and what is scored behind it."""
    assert corpus.scored is not None
    found = []
    for window, mask in zip(corpus.windows, corpus.scored, strict=True):
        places = mask.nonzero()[:, 0].tolist()
        assert places == list(range(places[0], places[-1] + 1))
        found.append((tokenizer.decode(window[: places[0]]), tokenizer.decode(window[places[0] : places[-1] + 1])))
    return found


def test_strided_windows_are_those_of_the_transformers_guide(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    corpus = Corpus.load(file, tokenizer, window=10, stride=4)
    begins = range(0, 20, 4)  # begin + 10 reaches the text's 26 tokens at 16
    assert rows(corpus, tokenizer) == [
        ("a", "bcdefghij"),
        *((TEXT[b : b + 6], TEXT[b + 6 : b + 10]) for b in begins[1:-1]),
        (TEXT[16:22], TEXT[22:26]),
    ]
    assert corpus.convention == "strided 4"
    assert corpus.starts == tuple(begins)
    last = rows(Corpus.load(file, tokenizer, window=10, stride=7), tokenizer)[-1]
    assert last == (TEXT[21:24], TEXT[24:26])  # a last window is shorter, as in the guide


@pytest.mark.parametrize("length", range(2, 27))
def test_each_token_of_strided_windows_is_scored_once(length: int, tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "a.txt", TEXT[:length])
    for window, stride in ((2, 1), (5, 1), (5, 3), (8, 7), (40, 9)):
        corpus = Corpus.load(file, tokenizer, window=window, stride=stride)
        found = rows(corpus, tokenizer)
        assert "".join(scored for _, scored in found) == TEXT[1:length]
        spans = [
            (start, start + len(read) + len(scored), len(scored))
            for start, (read, scored) in zip(corpus.starts, found, strict=True)
        ]
        assert spans == list(of_guide(length, window, stride))


def test_bos_is_read_in_the_place_of_a_strided_windows_first_token(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    corpus = Corpus.load(file, byte_tokenizer(leads_with_bos=True), window=10, stride=4)
    assert corpus.windows[:, 0].tolist() == [BOS] * len(corpus)


@pytest.mark.parametrize("window", [2, 3, 6, 40])
def test_rolling_windows_are_those_of_lm_eval(window: int, tmp_path: Path, tokenizer: Any) -> None:
    texts = [TEXT, TEXT[:5], "a", TEXT[:6], TEXT[:11]]
    corpus = Corpus.load(write_rows(tmp_path / "a.jsonl", texts), tokenizer, window=window, rolling=True)
    expected, documents = [], []
    for number, text in enumerate(texts):
        for read, scored in of_lm_eval(tokenizer(text)["input_ids"], BOS, window - 1):
            expected.append(([*read, scored[-1]], scored))  # a row also holds the last token, which nothing reads
            documents.append(number)
    assert corpus.scored is not None
    for window_, mask, (row, scored) in zip(corpus.windows, corpus.scored, expected, strict=True):
        assert window_[: len(row)].tolist() == row
        assert window_[mask].tolist() == scored
        assert int(mask.nonzero().max()) == len(row) - 1
    assert corpus.documents == corpus.last_documents == tuple(documents)
    assert (corpus.convention, corpus.bos) == ("rolling", True)


def test_an_empty_document_has_no_rolling_window(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", ["ab", "", "cd"])
    assert Corpus.load(file, tokenizer, window=8, rolling=True).documents == (0, 2)
    with pytest.raises(CorpusError, match="has no tokens"):
        Corpus.load(write_rows(tmp_path / "b.jsonl", ["", ""]), tokenizer, window=8, rolling=True)


def test_of_ascii_each_scored_token_is_a_byte(tmp_path: Path, tokenizer: Any) -> None:
    corpus = Corpus.load(write(tmp_path / "a.txt", TEXT), tokenizer, window=8)
    assert corpus.window_bytes == (7, 7, 7)
    strided = Corpus.load(write(tmp_path / "a.txt", TEXT), tokenizer, window=8, stride=6)
    assert strided.window_bytes == (7, 6, 6, 6)


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"rolling": True}], ids=["plain", "strided", "rolling"])
def test_bytes_are_those_of_the_scored_tokens(options: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    texts = ["späte Äpfel 🍏", "plain", "日本"]
    file = write_rows(tmp_path / "a.jsonl", texts)
    corpus = Corpus.load(file, tokenizer, window=8, **options)
    whole = "\n\n".join(texts).encode()
    if "rolling" in options:
        assert sum(corpus.window_bytes) == sum(len(text.encode()) for text in texts)
    elif "stride" in options:
        assert sum(corpus.window_bytes) == len(whole) - 1
    else:  # a byte a token, and several at one character: those are counted with its last
        used = len(whole) // 8 * 8
        assert sum(corpus.window_bytes) == pytest.approx(used - used // 8, abs=4)
    assert corpus.part(1, 2).window_bytes == corpus.window_bytes[1:2]


def test_a_tokenizer_without_offsets_tells_no_bytes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    assert Corpus.load(file, SlowTokenizer(), window=8).window_bytes == ()
    rolling = Corpus.load(file, SlowTokenizer(), window=8, rolling=True)
    assert rolling.window_bytes == ()
    assert torch.equal(rolling.windows, Corpus.load(file, byte_tokenizer(), window=8, rolling=True).windows)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a stride of a window": ({"stride": 8}, "a stride must be 1 … 7, less than the window; got 8"),
    "no stride": ({"stride": 0}, "a stride must be 1 … 7"),
    "two ways to cut": ({"stride": 2, "rolling": True}, "convention rolling has no stride: leave stride out"),
    "two conventions": ({"convention": "strided", "rolling": True}, "got convention strided too: leave one out"),
    "an unknown convention": ({"convention": "best"}, "unknown convention 'best': expected window, llamacpp, strided"),
    "a gold column alone": ({"gold": "right"}, "name the column of prompts too"),
    "rolling without a BOS": ({"rolling": True, "bos": False}, "leave bos out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_cut_is_told(name: str, tmp_path: Path, tokenizer: Any) -> None:
    options, message = WRONG[name]
    with pytest.raises(CorpusError, match=message):
        Corpus.load(write(tmp_path / "a.txt", TEXT), tokenizer, window=8, **options)


def test_rolling_needs_a_token_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="a BOS or an EOS token to begin with; it has neither"):
        Corpus.load(write(tmp_path / "a.txt", TEXT), byte_tokenizer(has_bos=False), window=8, rolling=True)


def test_parts_of_a_strided_text_score_different_tokens(tmp_path: Path, tokenizer: Any) -> None:
    corpus = Corpus.load(write(tmp_path / "a.txt", TEXT), tokenizer, window=8, stride=3)
    first, second = corpus.split(2, 3)
    assert first.shared_tokens(second) == 0
    assert first.shared_tokens(corpus) == 7 + 3
    assert corpus.take(3).shared_tokens(corpus.part(2, 4)) == 3


# ---- the table of conventions


@pytest.mark.parametrize("entry", CONVENTIONS.values(), ids=CONVENTIONS)
def test_an_entry_of_the_table_is_complete(entry: Convention) -> None:
    assert CONVENTIONS[entry.name] is entry
    assert entry.help
    assert entry.source
    assert entry.cut in CUTTERS
    assert (entry.first_scored is None) == (entry.cut != CONSECUTIVE)  # such a cut marks the scored tokens itself
    if entry.first_scored is not None:
        shortest = entry.shortest_window
        assert all(1 <= entry.first_scored(window) < window for window in range(shortest, 99))
        assert entry.first_scored(shortest - 1) >= shortest - 1


@pytest.mark.parametrize(
    ("convention", "options"),
    [("strided", {"stride": 4}), ("rolling", {"rolling": True}), ("window", {})],
)
def test_a_convention_is_cut_by_its_name(
    convention: str, options: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [TEXT, TEXT[:5]])
    named, expected = (Corpus.load(file, tokenizer, window=8, **each) for each in ({"convention": convention}, options))
    assert torch.equal(named.windows, expected.windows)
    assert (named.convention, named.scored_sha256) == (expected.convention, expected.scored_sha256)


def test_a_new_convention_is_one_entry(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    last = Convention("last", "the last token of each window", "this test", first_scored=lambda window: window - 1)
    monkeypatch.setitem(CONVENTIONS, "last", last)
    monkeypatch.setitem(CONVENTIONS, "sliding", replace(CONVENTIONS["strided"], name="sliding"))
    model = tiny_model("llama", vocab_size=300)
    file = write(tmp_path / "a.txt", TEXT)
    with pytest.raises(CorpusError, match="give it to perplexity"):
        Corpus.load(file, tokenizer, window=8, convention="last")
    corpus = Corpus.load(file, tokenizer, window=8)
    score = perplexity(model, corpus, convention="last")
    assert (score.window_tokens, score.convention) == ((1, 1, 1), "last")
    with torch.no_grad():
        logits = model(corpus.windows, use_cache=False).logits[:, -2]
    nll = torch.nn.functional.cross_entropy(logits, corpus.windows[:, -1], reduction="none")
    assert score.window_nll == pytest.approx(nll.tolist(), rel=1e-5)
    sliding = Corpus.load(file, tokenizer, window=8, convention="sliding")
    assert torch.equal(sliding.windows, Corpus.load(file, tokenizer, window=8, stride=4).windows)
    assert perplexity(model, sliding).convention == "sliding 4"


# ---- one read of a source


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("gold", [None, "right"])
def test_a_table_is_read_once(
    suffix: str, gold: str | None, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = datasets.Dataset.from_list([{**row, "one": row["a"][0]} for row in QUESTIONS])
    file = tmp_path / f"table{suffix}"
    table.to_json(file) if suffix == ".jsonl" else table.to_parquet(file)
    reads = []
    read = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: reads.append(args) or read(*args, **options))
    corpus = Corpus.load(file, tokenizer, window=32, prompt="q", column="a" if gold else "one", gold=gold)
    assert len(corpus) == (9 if gold else 3)
    assert len(reads) == 1


def test_a_hub_dataset_is_read_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads = []
    table = datasets.Dataset.from_list(QUESTIONS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **_options: reads.append(args) or table)
    assert len(Corpus.load("owner/name", tokenizer, window=32, prompt="q", column="a", gold="right")) == 9
    assert reads == [("owner/name", None)]
    assert capsys.readouterr().err.count("asking the Hub") == 1


# ---- multiple choice


def questions(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    return pairs(tmp_path, rows)


def load(file: Path, tokenizer: Any, **options: Any) -> Corpus:
    return Corpus.load(file, tokenizer, window=32, prompt="q", column="a", gold="right", **options)


def test_each_answer_to_a_question_is_a_window(tmp_path: Path, tokenizer: Any) -> None:
    corpus = load(questions(tmp_path, QUESTIONS), tokenizer)
    expected = [(row["q"], f" {answer}") for row in QUESTIONS for answer in row["a"]]
    assert rows(corpus, tokenizer) == expected
    assert corpus.documents == (0, 0, 0, 1, 1, 2, 2, 2, 2)
    assert [choice.right for choice in corpus.choices] == [True, False, False, False, True, False, False, True, False]
    assert [choice.length for choice in corpus.choices] == [len(answer) - 1 for _, answer in expected]
    assert corpus.convention == "multiple choice"


def test_questions_are_taken_whole(tmp_path: Path, tokenizer: Any) -> None:
    asked = [row | {"q": f"{number} {row['q']}"} for number, row in enumerate(QUESTIONS * 8)]
    corpus = load(questions(tmp_path, asked), tokenizer)
    assert [len(corpus.take(n)) for n in (1, 2, 3)] == [3, 5, 9]
    first, second = corpus.split(2, 1)
    assert (len(first), len(second), second.documents[0]) == (5, 4, 2)
    with pytest.raises(CorpusError, match="corpus of 24 questions: ask for 1 … 24"):
        corpus.take(25)
    with pytest.raises(CorpusError, match="cannot split 24 questions"):
        corpus.split(20, 5)
    sides = corpus.hold_out(10, 9)
    assert [len(side.items()) for side in sides] == [10, 9]
    assert not set(sides[0].documents) & set(sides[1].documents)
    for side in sides:
        for item in side.items():
            number = side.documents[item.start]
            assert [side.documents[place] for place in item] == [number] * len(QUESTIONS[number % 3]["a"])


GOLD: dict[str, tuple[Any, Any, int]] = {
    "a number": (["x", "y"], 1, 1),
    "a number as text": (["x", "y"], "1", 1),
    "a letter": (["x", "y"], "B", 1),
    "labels": ({"text": ["x", "y"], "label": ["A", "B"]}, "B", 1),
    "a number without labels": ({"text": ["x", "y"]}, 1, 1),
    "labels that are numbers": ({"text": ["x", "y"], "label": ["1", "2"]}, "2", 1),
}


@pytest.mark.parametrize("name", GOLD)
def test_the_right_answer_is_told_in_several_ways(name: str, tmp_path: Path, tokenizer: Any) -> None:
    answers, right, place = GOLD[name]
    corpus = load(questions(tmp_path, [{"q": "q", "a": answers, "right": right}]), tokenizer)
    assert [choice.right for choice in corpus.choices].index(True) == place


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one answer": ({"a": ["x"]}, r"row 0 of .*: a must hold a list of two or more texts; got \['x'\]"),
    "no list": ({"a": "x"}, "must hold a list of two or more texts"),
    "an empty answer": ({"a": ["x", ""]}, "must hold a list of two or more texts"),
    "too high": ({"right": 2}, "right must be 0 … 1 or one of A, B; got 2"),
    "below": ({"right": -1}, "got -1"),
    "no number": ({"right": 0.5}, "got 0.5"),
    "a number beside labels": ({"a": {"text": ["x", "y"], "label": ["1", "2"]}, "right": 0}, "one of 1, 2; got 0"),
    "a long one": ({"a": "x" * 5000}, r"got 'x{1,20}\.\.\.x{1,20}'$"),
    "another letter": ({"right": "C"}, "got 'C'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_question_that_cannot_be_read_is_told(name: str, tmp_path: Path, tokenizer: Any) -> None:
    part, message = BAD[name]
    file = write(tmp_path / "bad.jsonl", json.dumps({"q": "q", "a": ["x", "y"], "right": 0} | part) + "\n")
    with pytest.raises(CorpusError, match=message):
        load(file, tokenizer)


def test_prompts_in_a_text_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    for source in (file, "python-topics"):
        with pytest.raises(CorpusError, match="is text: prompts need a table"):
            Corpus.load(source, tokenizer, prompt="q", column="a")


def test_windows_are_as_long_as_the_longest(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", ["abc", "abcdef"])
    assert Corpus.load(file, tokenizer, window=100, rolling=True).window == 7
    assert Corpus.load(file, tokenizer, window=100, stride=50).window == 11


def test_which_tokens_are_scored_has_a_hash(tmp_path: Path, tokenizer: Any) -> None:
    file = questions(tmp_path, QUESTIONS)
    first = load(file, tokenizer)
    other = load(questions(tmp_path, [row | {"right": 0} for row in QUESTIONS]), tokenizer)
    assert first.tokens_sha256 == other.tokens_sha256
    assert first.scored_sha256 != other.scored_sha256 is not None
    assert Corpus.load(write(tmp_path / "b.txt", TEXT), tokenizer, window=8).scored_sha256 is None

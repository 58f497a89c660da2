"""A corpus is exactly the text it was made from, cut in rows; what cannot be read is told in a line."""

import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from david.errors import CorpusError
from david.scoring.corpus import Corpus
from david.scoring.sources import BUILT_IN
from tests.helpers.corpora import BOS, SlowTokenizer, byte_tokenizer, pairs, write, write_rows

ROWS = ['one, "two"', "three\nfour  ", "späte Äpfel", "{five}"]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def whole(source: Any, tokenizer: Any, text: str, **options: Any) -> Corpus:
    """The corpus of a source that should hold this text, as one window."""
    return Corpus.load(source, tokenizer, window=len(text.encode()), **options)


def refusal(*args: Any, **options: Any) -> str:
    """The one line that `Corpus.load` refuses with."""
    with pytest.raises(CorpusError) as caught:
        Corpus.load(*args, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_windows_are_the_tokenised_text_cut_in_rows(demo: Any, tmp_path: Path) -> None:
    text = "".join(f"Line {i} of a small text,\tindented  \n\n" for i in range(40))
    path = write(tmp_path / "text.txt", text)
    corpus = Corpus.load(path, demo[1], window=16)
    expected = demo[1](path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    assert len(expected) % 16 != 0  # so that something is left out at the end
    assert corpus.windows.tolist() == [expected[i : i + 16] for i in range(0, len(expected) - 15, 16)]
    assert corpus.windows.dtype == torch.int64
    assert (corpus.window, len(corpus), corpus.places) == (16, len(expected) // 16, f"0:{len(expected) // 16}")
    assert [row.tolist() for row in corpus] == corpus.windows.tolist()


@pytest.mark.parametrize(
    "text", ["plain", " lead and trail \n\n\n", "\n\n\n", "tab\tform\fline\u2028end\u0085", "ünï\ncödé\n", "\ufeffmark"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
def test_a_text_file_survives_to_the_byte(text: str, name: str, tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / name, text)
    corpus = whole(path, tokenizer, text)
    assert tokenizer.decode(corpus.windows[0], clean_up_tokenization_spaces=False) == text
    assert corpus.sha256 == sha256(path.read_bytes())
    assert (corpus.source, corpus.slice) == (name, None)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_a_table_is_its_rows_with_an_empty_line_between(suffix: str, tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / f"rows{suffix}", ROWS)
    text = "\n\n".join(ROWS)
    corpus = whole(path, tokenizer, text)
    assert tokenizer.decode(corpus.windows[0], clean_up_tokenization_spaces=False) == text
    assert corpus.sha256 == sha256(text)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), SlowTokenizer()], ids=["fast", "slow"])
def test_a_window_belongs_to_the_document_it_begins_in(tokenizer: Any, tmp_path: Path) -> None:
    rows = ["aaaa", "bb", "cccccc", "d"]  # with two line ends between them, they begin at 0, 6, 10 and 18
    corpus = Corpus.load(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, window=2)
    assert corpus.documents == (0, 0, 0, 1, 1, 2, 2, 2, 2)
    assert corpus.windows.flatten().tolist() == byte_tokenizer()("\n\n".join(rows))["input_ids"][:18]


def test_another_column_can_be_read(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS, column="question")
    assert whole(path, tokenizer, "\n\n".join(ROWS), column="question").sha256 == sha256("\n\n".join(ROWS))


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine.txt", "some text")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Corpus.load("~/mine.txt", tokenizer, window=2).sha256 == sha256("some text")


def test_an_edited_file_is_read_anew(tmp_path: Path, tokenizer: Any) -> None:
    for text in ("first text", "other text", "first text"):
        path = write(tmp_path / "text.txt", text)
        assert Corpus.load(path, tokenizer, window=2).sha256 == sha256(text)


def test_the_built_in_text_is_the_help_of_this_python(tokenizer: Any) -> None:
    corpus = Corpus.load(tokenizer=tokenizer)
    text = "\n\n".join(topics[name] for name in sorted(topics))
    assert corpus.sha256 == sha256(text)
    assert (corpus.source, corpus.window) == (BUILT_IN, 512)
    assert len(corpus) == len(text.encode()) // 512
    assert set(corpus.documents) <= set(range(len(topics)))


# ---- slices


@pytest.mark.parametrize(
    ("rows", "start", "stop"),
    [
        ("[:3]", 0, 3),
        ("[2:5]", 2, 5),
        ("[5:]", 5, 10),
        ("[:]", 0, 10),
        ("[9:10]", 9, 10),
        ("[10%:50%]", 1, 5),
        ("[50%:]", 5, 10),
        ("[1:50%]", 1, 5),
        (" train[ 2 : 4 ] ", 2, 4),
    ],
)
def test_a_slice_picks_rows(rows: str, start: int, stop: int, tmp_path: Path, tokenizer: Any) -> None:
    letters = list("abcdefghij")
    path = write_rows(tmp_path / "rows.jsonl", [letter * 4 for letter in letters])
    corpus = Corpus.load(path, tokenizer, slice=rows, window=2)
    assert corpus.sha256 == sha256("\n\n".join(letter * 4 for letter in letters[start:stop]))
    assert corpus.slice == rows
    assert corpus.documents[-1] == stop - start - 1


def test_slices_in_per_cent_that_touch_share_no_row_and_leave_none_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [letter * 4 for letter in "abcdefg"]  # seven, so that no bound falls on a row
    path = write_rows(tmp_path / "rows.jsonl", rows)
    bounds = ["0%", "33%", "50%", "100%"]
    parts = [
        Corpus.load(path, tokenizer, slice=f"[{low}:{high}]", window=2) for low, high in itertools.pairwise(bounds)
    ]
    assert [part.sha256 for part in parts] == [sha256("\n\n".join(r)) for r in (rows[:2], rows[2:3], rows[3:])]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("[3:3]", "empty"),
        ("[:0]", "empty"),
        ("[5:2]", "empty"),
        ("[50%:10%]", "empty"),
        ("[10:]", "empty"),
        ("[:11]", "reaches row 11, but"),
        ("[:200%]", "reaches 200% of"),
        ("", "cannot read the slice"),
        ("[-1:]", "cannot read the slice"),
        ("[3]", "cannot read the slice"),
        ("[:3", "cannot read the slice"),
        ("[::2]", "cannot read the slice"),
        ("two words", "cannot read the slice"),
        ("[:3][:2]", "cannot read the slice"),
    ],
)
def test_a_slice_that_is_not_there_is_an_error(rows: str, says: str, tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", list("abcdefghij"))
    message = refusal(path, tokenizer, slice=rows, window=2)
    assert says in message
    assert rows in message


# ---- the Hub, with what it would hand back

HUB = datasets.DatasetDict(
    train=datasets.Dataset.from_dict({"text": ["train one", "train two"]}),
    test=datasets.Dataset.from_dict({"text": ["test one", "test two", "test three"]}),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None]]:
    """A Hub that holds HUB under every name, and what was asked of it."""
    questions = []

    def load_dataset(name: str, configuration: str | None = None, *, split: str | None = None) -> Any:
        questions.append((name, configuration, split))
        if split is not None and split not in HUB:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(HUB)}.\nSee the documentation.')
        if name == "owner/single":
            return datasets.DatasetDict(train=HUB["train"])
        return HUB if split is None else HUB[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return questions


@pytest.mark.parametrize(
    ("source", "rows", "question", "texts"),
    [
        ("owner/name", "test", ("owner/name", None, "test"), ["test one", "test two", "test three"]),
        ("owner/name", "test[:2]", ("owner/name", None, "test"), ["test one", "test two"]),
        ("owner/name", "train[50%:]", ("owner/name", None, "train"), ["train two"]),
        ("owner/name:raw-v1", "test[1:2]", ("owner/name", "raw-v1", "test"), ["test two"]),
        ("plain", "train", ("plain", None, "train"), ["train one", "train two"]),
        ("owner/single", None, ("owner/single", None, None), ["train one", "train two"]),
        ("owner/single", "[1:]", ("owner/single", None, None), ["train two"]),
    ],
)
def test_a_hub_dataset_is_read_by_split_and_rows(
    source: str, rows: str | None, question: Any, texts: list[str], asked: list[Any], tokenizer: Any
) -> None:
    corpus = Corpus.load(source, tokenizer, slice=rows, window=2)
    assert corpus.sha256 == sha256("\n\n".join(texts))
    assert asked == [question]
    assert (corpus.source, corpus.slice) == (source, rows)


def test_a_hub_dataset_of_several_splits_asks_which(asked: list[Any], tokenizer: Any) -> None:
    assert "has the splits train, test" in refusal("owner/name", tokenizer, window=2)
    assert "has the splits train, test" in refusal("owner/name", tokenizer, slice="[:1]", window=2)


def test_a_split_that_is_missing_is_one_line(asked: list[Any], tokenizer: Any) -> None:
    message = refusal("owner/name", tokenizer, slice="dev[:2]", window=2)
    assert "'owner/name'" in message
    assert 'Unknown split "dev"' in message


def test_an_unreadable_slice_is_told_before_the_hub_is_asked(asked: list[Any], tokenizer: Any) -> None:
    assert "cannot read the slice" in refusal("owner/name", tokenizer, slice="test[oops]", window=2)
    assert asked == []


def test_a_hub_dataset_that_cannot_be_reached_is_one_line(tokenizer: Any) -> None:
    message = refusal("nobody-here/nothing-here", tokenizer, slice="test[:2]", window=2)
    assert "no file and no Hub dataset could be read as 'nobody-here/nothing-here': " in message


# ---- what cannot be read


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.txt", "no such file: missing.txt"),
        ("missing.jsonl", "no such file"),
        ("./owner/name", "no such file"),
        ("a/b/c", "no such file"),
        ("not a name", "no such file"),
        ("", "no such file"),
    ],
)
def test_what_is_neither_file_nor_hub_name_is_not_asked_of_the_hub(
    source: str, says: str, asked: list[Any], tokenizer: Any
) -> None:
    assert says in refusal(source, tokenizer, window=2)
    assert asked == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data.xyz", b"some text", "ends in .txt, .md, .json, .jsonl, .parquet, .csv; got .xyz"),
        ("data", b"some text", "got no ending"),
        ("latin.txt", "Äpfel".encode("latin-1"), "cannot be read as text: 'utf-8' codec can't decode byte 0xc4"),
        ("latin.csv", "text\nÄpfel\n".encode("latin-1"), "cannot be read as csv"),
        ("half.jsonl", b'{"text": "one"}\n{"text": "tw', "cannot be read as json"),
        ("no.parquet", b"no parquet", "cannot be read as parquet"),
        ("empty.txt", b"", "0 tokens, too few for one window of 4"),
        ("short.txt", b"abc", "3 tokens, too few for one window of 4"),
        ("other.jsonl", b'{"question": "one", "answer": "two"}', "no column 'text': it has question, answer"),
        ("numbers.jsonl", b'{"text": 1}\n{"text": 2}', "must hold text; got int"),
        ("lists.jsonl", b'{"text": ["one", "two"]}', "must hold text; got list"),
    ],
)
def test_a_file_that_is_no_text_says_why(name: str, content: bytes, says: str, tmp_path: Path, tokenizer: Any) -> None:
    message = refusal(write(tmp_path / name, content), tokenizer, window=4)
    assert says in message
    assert name in message


def test_a_slice_too_short_for_a_window_names_the_slice(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ["abc", "defghi"])
    assert "rows.jsonl [:1] has 3 tokens, too few for one window of 4" in refusal(
        path, tokenizer, slice="[:1]", window=4
    )


@pytest.mark.parametrize("window", [1, 0, -8])
def test_a_window_needs_a_token_to_read_and_one_to_score(window: int, tokenizer: Any) -> None:
    assert f"at least 2 tokens, one to read and one to score; got {window}" in refusal(
        BUILT_IN, tokenizer, window=window
    )


def test_a_corpus_needs_a_tokenizer() -> None:
    assert "needs the tokenizer of its model" in refusal(BUILT_IN)


# ---- BOS


@pytest.mark.parametrize(
    ("habit", "wish", "leads"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
    ids=["its habit", "not its habit", "forced off", "forced on"],
)
def test_bos_stands_in_the_place_of_a_windows_first_token(
    habit: bool, wish: bool | None, leads: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "text.txt", "abcdefghijkl")
    plain = Corpus.load(path, byte_tokenizer(), window=4, bos=False).windows
    corpus = Corpus.load(path, byte_tokenizer(leads_with_bos=habit), window=4, bos=wish)
    assert corpus.bos is leads
    assert corpus.windows[:, 0].tolist() == ([BOS] * 3 if leads else plain[:, 0].tolist())
    assert corpus.windows[:, 1:].tolist() == plain[:, 1:].tolist()


def test_bos_cannot_lead_where_there_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", "abcdefgh")
    none = byte_tokenizer(has_bos=False)
    assert "needs a tokenizer with a BOS token" in refusal(path, none, window=4, bos=True)
    assert Corpus.load(path, none, window=4).bos is False


# ---- parts


@pytest.fixture
def ten(tmp_path: Path, tokenizer: Any) -> Corpus:
    """Ten windows of four tokens, every one different."""
    return Corpus.load(write_rows(tmp_path / "rows.jsonl", list("abcdefghijklmno")), tokenizer, window=4)


def test_parts_are_disjoint_neighbours_of_one_text(ten: Corpus) -> None:
    first, second, third = ten.split(4, 1, 3)
    assert [part.places for part in (first, second, third)] == ["0:4", "4", "5:8"]
    for part in (first, second, third):
        start, stop = part.numbers[0], part.numbers[-1] + 1
        assert part.windows.tolist() == ten.windows[start:stop].tolist()
        assert part.documents == ten.documents[start:stop]
        assert (part.sha256, part.source, part.bos) == (ten.sha256, ten.source, ten.bos)


def test_a_part_of_a_part_keeps_its_place_in_the_text(ten: Corpus) -> None:
    part = ten.split(4, 6)[1].split(2, 3)[1].take(2)
    assert part.places == "6:8"
    assert part.windows.tolist() == ten.windows[6:8].tolist()


def test_take_is_the_first_windows(ten: Corpus) -> None:
    assert ten.take(3).places == "0:3"
    assert ten.take(3).windows.tolist() == ten.windows[:3].tolist()
    assert ten.take(len(ten)).windows.tolist() == ten.windows.tolist()


@pytest.mark.parametrize("n", [0, -1, 11])
def test_take_reaches_no_further_than_there_are_windows(n: int, ten: Corpus) -> None:
    assert len(ten) == 10
    with pytest.raises(CorpusError, match=rf"take\({n}\) of a corpus of 10 windows: ask for 1 … 10"):
        ten.take(n)


@pytest.mark.parametrize("sizes", [(), (0,), (11,), (5, 6), (5, 0), (12, -2)])
def test_split_reaches_no_further_than_there_are_windows(sizes: tuple[int, ...], ten: Corpus) -> None:
    with pytest.raises(CorpusError, match="cannot split 10 windows of 4 tokens"):
        ten.split(*sizes)


def test_a_corpus_shows_itself_in_a_line(ten: Corpus) -> None:
    assert repr(ten.split(4, 6)[1]) == "Corpus(rows.jsonl: windows 4:10 of 4 tokens)"


# ---- prompts and completions

PAIRS = [{"asked": "2 + 2 =", "answer": "4"}, {"asked": "abc ", "answer": "def"}, {"asked": "", "answer": "gh"}]


def completions_of(corpus: Corpus, tokenizer: Any) -> list[str]:
    """What is scored of each window."""
    assert corpus.scored is not None
    return [tokenizer.decode(row[mask]) for row, mask in zip(corpus.windows, corpus.scored, strict=True)]


def test_each_prompt_with_its_completion_is_a_window_and_the_completion_is_what_counts(
    tmp_path: Path, tokenizer: Any
) -> None:
    corpus = Corpus.load(pairs(tmp_path, PAIRS), tokenizer, window=32, prompt="asked", column="answer")
    texts = ["2 + 2 = 4", "abc def", " gh"]
    assert corpus.window == max(map(len, texts))
    for row, text in zip(corpus.windows, texts, strict=True):
        assert tokenizer.decode(row[: len(text)], clean_up_tokenization_spaces=False) == text
    expected = [" 4", " def", "gh"]  # white space before a completion is its own; nothing is before a first token
    assert completions_of(corpus, tokenizer) == expected
    assert corpus.documents == corpus.last_documents == (0, 1, 2)
    assert corpus.sha256 == sha256("\n\n".join(texts))
    picked = corpus.part(1, 3)
    assert completions_of(picked, tokenizer) == [" def", "gh"]


def test_bos_begins_a_window_before_its_prompt(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(leads_with_bos=True)
    corpus = Corpus.load(pairs(tmp_path, PAIRS), tokenizer, window=32, prompt="asked", column="answer")
    assert corpus.windows[:, 0].tolist() == [BOS] * 3
    assert completions_of(corpus, tokenizer) == [" 4", " def", " gh"]


def test_of_a_long_row_the_end_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    corpus = Corpus.load(pairs(tmp_path, PAIRS), tokenizer, window=5, prompt="asked", column="answer")
    assert [tokenizer.decode(row) for row in corpus.windows[:2]] == ["2 = 4"[-5:], "c def"]
    assert completions_of(corpus, tokenizer) == [" 4", " def", "gh"]


def test_a_completion_that_is_empty_or_longer_than_a_window_is_told(tmp_path: Path, tokenizer: Any) -> None:
    file = pairs(tmp_path, PAIRS)
    message = refusal(file, tokenizer, window=3, prompt="asked", column="answer")
    assert "row 1" in message
    assert "completion has 4 tokens; expected 1 … 2" in message
    assert "no column 'question'" in refusal(file, tokenizer, prompt="question", column="answer")
    empty = pairs(tmp_path, [{"asked": "ab ", "answer": ""}])
    assert "completion has 0 tokens" in refusal(empty, tokenizer, prompt="asked", column="answer")


# ---- windows to search on, and windows to judge by


def of_documents(lengths: list[int], window: int = 4) -> Corpus:
    """Windows of documents of so many tokens, each token of which is its document's number."""
    tokens = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    windows = tokens[: len(tokens) // window * window].reshape(-1, window)
    return Corpus(
        windows=windows,
        documents=tuple(windows[:, 0].tolist()),
        last_documents=tuple(windows[:, -1].tolist()),
        source="numbers",
        slice=None,
        sha256="5e",
        bos=False,
    )


def text_of(corpus: Corpus) -> set[int]:
    """The documents whose tokens are in it."""
    return set(corpus.windows.flatten().tolist())


def test_a_window_ends_in_the_document_of_its_last_token(tmp_path: Path, tokenizer: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["aaaa", "bb", "cccccc", "d"])  # they begin at 0, 6, 10 and 18
    corpus = Corpus.load(rows, tokenizer, window=5)
    assert (corpus.documents, corpus.last_documents) == ((0, 0, 2), (0, 1, 2))
    corpus = Corpus.load(rows, tokenizer, window=9)
    assert (corpus.documents, corpus.last_documents) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("lengths", "search", "held_out"),
    [
        ([9] * 40, 12, 24),
        ([3] * 80, 8, 12),
        ([200, 40, 40], 8, 20),
        ([400, 400], 40, 40),
        ([2, 50, 3, 7, 90] * 9, 20, 50),
    ],
    ids=["middling", "short", "unequal", "two", "mixed"],
)
@pytest.mark.parametrize("seed", range(5))
def test_no_document_is_in_both_parts(lengths: list[int], search: int, held_out: int, seed: int) -> None:
    corpus = of_documents(lengths)
    parts = corpus.hold_out(search, held_out, seed=seed)
    assert tuple(map(len, parts)) == (search, held_out)
    assert not text_of(parts[0]) & text_of(parts[1])
    assert parts[0].shared_documents(parts[1]) == parts[0].shared_tokens(parts[1]) == 0
    for part in parts:
        assert torch.equal(part.windows, corpus.windows[list(part.numbers)])
        assert part.documents == tuple(part.windows[:, 0].tolist())
        assert part.last_documents == tuple(part.windows[:, -1].tolist())
        assert len(set(part.numbers)) == len(part)


def test_each_document_gives_one_window_before_any_gives_two() -> None:
    seen, unseen = of_documents([20] * 30).hold_out(9, 12)
    assert len(set(seen.documents)) == 9
    assert len(set(unseen.documents)) == 12
    many, _ = of_documents([20] * 30).hold_out(30, 30)
    assert len(set(many.documents)) >= 13
    assert len(set(many.documents[:10])) == 10  # and neighbours are of different ones


@pytest.mark.parametrize("lengths", [[9] * 60, [3] * 200, [2, 50, 3, 7, 90] * 12])
def test_more_windows_are_more_of_the_same_sides(lengths: list[int]) -> None:
    corpus = of_documents(lengths)
    few, many = corpus.hold_out(6, 8), corpus.hold_out(12, 16)
    assert [part.numbers for part in few] == [part.numbers[:n] for part, n in zip(many, (6, 8), strict=True)]
    for one, other in ((few, many), (many, few)):
        assert one[0].shared_documents(other[1]) == 0


def test_the_same_seed_draws_the_same_parts_and_another_others() -> None:
    corpus = of_documents([9] * 40)
    drawn = {seed: [part.numbers for part in corpus.hold_out(8, 8, seed=seed)] for seed in (0, 1)}
    assert drawn[0] == [part.numbers for part in corpus.hold_out(8, 8)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("lengths", [[400], [300, 9]])
def test_where_documents_are_too_few_the_parts_follow_one_another(lengths: list[int]) -> None:
    seen, unseen = of_documents(lengths).hold_out(20, 30)
    assert (seen.places, unseen.places) == ("0:20", "20:50")
    assert seen.shared_documents(unseen) == 1
    assert seen.shared_tokens(unseen) == 0


def test_hold_out_reaches_no_further_than_there_are_windows() -> None:
    with pytest.raises(CorpusError, match=r"cannot split 100 windows of 4 tokens into 60 \+ 50"):
        of_documents([400]).hold_out(60, 50)


def test_tokens_that_both_have_are_counted_also_of_windows_of_two_lengths() -> None:
    four, six = of_documents([100]), of_documents([100], window=6)
    assert four.part(0, 3).shared_tokens(six.part(1, 3)) == 6  # tokens 0 … 11 and 6 … 17
    assert four.part(0, 3).shared_tokens(six.part(2, 3)) == 0
    other = dataclasses.replace(four, sha256="6f")
    assert four.shared_documents(other) == 0
    assert four.shared_tokens(other) == 4  # a window like one of the other text's, as two slices may have it


def test_the_hash_of_the_tokens_is_of_these_windows_in_this_order() -> None:
    corpus = of_documents([9] * 4)
    tokens = b"".join(int(token).to_bytes(8, "little") for token in corpus.take(3).windows.flatten())
    assert corpus.take(3).tokens_sha256 == hashlib.sha256(tokens).hexdigest()
    assert corpus.part(1, 3).tokens_sha256 != corpus.part(0, 2).tokens_sha256


def test_places_are_told_as_ranges_in_their_order() -> None:
    corpus = of_documents([40])
    picked = [corpus._at(places).places for places in ([3], [0, 1, 2], [7, 3, 4, 5, 1], [2, 1, 0])]
    assert picked == ["3", "0:3", "7, 3:6, 1", "2, 1, 0"]


@pytest.mark.parametrize("rows", [[None, "abcd"], ["abcd", None], ["abcd", None, "ef"]])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_row_without_text_is_told(rows: Any, suffix: Any, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="must hold text"):
        Corpus.load(write_rows(tmp_path / f"r{suffix}", rows), byte_tokenizer(), window=2)


def test_a_csv_cell_that_reads_na_is_text_or_told(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        Corpus.load(write(tmp_path / "r.csv", 'text\nabcd\n"NA"\n'), byte_tokenizer(), window=2)


def test_latin1_jsonl_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        Corpus.load(write(tmp_path / "r.jsonl", '{"text": "Äpfel"}'.encode("latin-1")), byte_tokenizer(), window=2)


def test_crlf_survives(tmp_path: Path) -> None:
    text = b"one\r\ntwo\r\n"
    assert Corpus.load(write(tmp_path / "r.txt", text), byte_tokenizer(), window=2).sha256 == sha256(text)


@pytest.mark.parametrize("second", ["other text", "another text, longer"])
def test_a_replaced_file_with_the_same_time_is_read_anew(second: Any, tmp_path: Path) -> None:
    for text in ("first text", second):
        path = write(tmp_path / "r.txt", text)
        os.utime(path, (1, 1))  # as unpacked archives and cp -p leave it
        assert Corpus.load(path, byte_tokenizer(), window=2).sha256 == sha256(text)


def test_a_missing_split_of_a_local_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        Corpus.load(write_rows(tmp_path / "r.jsonl", ["abcd"] * 3), byte_tokenizer(), slice="nonsense[:2]", window=2)


# Copies and groups


LONG = "the same twenty words " * 5


def test_copies_of_a_text_are_one_document_on_one_side_and_that_is_said_once(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row % 6} {LONG}" for row in range(24)]
    path = write_rows(tmp_path / "copies.jsonl", rows)
    corpus = Corpus.load(path, tokenizer, window=64, convention="rolling")
    assert capsys.readouterr().err.count("18 of 24 texts of") == 1
    assert corpus.groups == tuple(row % 6 for row in range(24))
    seen, unseen = corpus.hold_out(16, 16)
    assert not {rows[number] for number in seen.documents} & {rows[number] for number in unseen.documents}
    assert set(corpus.clusters) == {f"group {number}" for number in range(6)}
    one, other = corpus.split(16, 16)
    assert one.shares_copies(other)
    assert not seen.shares_copies(unseen)


def test_one_text_over_and_over_cannot_be_held_out(tmp_path: Path, tokenizer: Any) -> None:
    corpus = Corpus.load(write_rows(tmp_path / "one.jsonl", [LONG] * 16), tokenizer, window=32)
    with pytest.raises(CorpusError, match="copies of one text"):
        corpus.hold_out(4, 4)


def test_headings_that_recur_in_a_joined_text_are_no_copies(tmp_path: Path, tokenizer: Any) -> None:
    rows = [text for number in range(8) for text in ("= Reception =", "", f"{number} {LONG}")]
    corpus = Corpus.load(write_rows(tmp_path / "wiki.jsonl", rows), tokenizer, window=64)
    assert corpus.groups == ()
    assert corpus.clusters == corpus.documents


def test_a_column_names_what_belongs_together(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"{number} {LONG}", "title": title} for number, title in enumerate(["a", "b", "a", None, None])]
    path = write(tmp_path / "chunks.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus.load(path, tokenizer, window=64, group="title")
    assert corpus.groups == (0, 1, 0, 3, 4)
    assert "is text: groups need a table" in refusal(write(tmp_path / "text.txt", LONG), tokenizer, group="title")

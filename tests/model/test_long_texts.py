"""A long text is tokenised part by part, to the same tokens, and no more of it is held than its windows need."""

import json
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from david.errors import CorpusError
from david.scoring import tokens
from david.scoring.corpus import Corpus
from david.scoring.tokens import encode
from tests.helpers.corpora import QUESTIONS, SlowTokenizer, byte_tokenizer, pairs, write, write_rows

TEXT = "\n\n".join(topics[name] for name in sorted(topics))
ODD = ["😀é ", "日本語の文章", " " * 400, "\n" * 300, "a" * 700, "x" * 2500, "-=" * 200, " \t ", "naïve "]
FIELDS = ("documents", "last_documents", "starts", "numbers", "window_bytes", "choices", "groups", "sha256")


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of the kinds that there are."""
    lines = TEXT[:30_000].split("\n")
    special = {"special_tokens": ["<unk>"]}
    if kind == "words and bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    elif kind == "merges over spaces":
        inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, max_token_length=9, show_progress=False, **special)
    elif kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.normalizer, inner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", show_progress=False, **special)
    else:
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, show_progress=False, **special)
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("kind", ["words and bytes", "merges over spaces", "unigram", "wordpiece"])
def test_chunks_have_the_tokens_of_the_whole_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, draw = trained(kind), random.Random(1)
    words = TEXT[40_000:80_000].split(" ")
    text = "".join(draw.choice(ODD) if draw.random() < 0.005 else f"{word} " for word in words)
    cuts = sorted(draw.sample(range(len(text)), 30))
    documents = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    documents[3:5] = ["", documents[3], "", documents[4]]
    whole = encode(tokenizer, enumerate(documents))  # one chunk: less than 65,536 characters
    assert len("".join(documents)) < tokens._CHUNK
    expected = tokenizer("\n\n".join(documents), add_special_tokens=False, return_offsets_mapping=True)
    assert whole.ids.tolist() == expected["input_ids"]
    for name, value in {"_CHUNK": 1500, "_OVERLAP": 96, "_AGREEING": 16}.items():
        monkeypatch.setattr(tokens, name, value)
    calls: list[int] = []

    def counting(text: str, **options: Any) -> Any:
        calls.append(len(text))
        return tokenizer(text, **options)

    counting.is_fast = True  # type: ignore[attr-defined]
    parted = encode(counting, enumerate(documents))  # type: ignore[arg-type]
    assert len(calls) > 20
    assert parted.ids.tolist() == whole.ids.tolist()
    assert parted.starts.tolist() == whole.starts.tolist()
    assert parted.nbytes is not None
    assert whole.nbytes is not None
    assert parted.nbytes.tolist() == whole.nbytes.tolist()
    for most in (1, 500, 5000):
        first = encode(tokenizer, enumerate(documents), most)
        assert first.ids.tolist() == whole.ids[:most].tolist()
        n = int((whole.starts < most).sum())
        assert first.starts[:n].tolist() == whole.starts[:n].tolist()


def test_chunks_that_do_not_agree_are_read_together_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 1000)
    inner = byte_tokenizer()

    def contrary(limit: int, agreeing: int) -> Any:
        """A tokenizer that gives other tokens at each call, except to long texts, and the first few times."""
        calls: list[int] = []

        def tokenize(text: str, **options: Any) -> Any:
            encoded = inner(text, **options)
            calls.append(len(text))
            change = len(calls) if len(text) < limit and len(calls) > agreeing else 0
            encoded["input_ids"] = [i + change for i in encoded["input_ids"]]
            return encoded

        tokenize.is_fast = True  # type: ignore[attr-defined]
        return tokenize

    text = "some words " * 600
    assert encode(contrary(1500, 0), [(0, text)]).ids.tolist() == inner(text)["input_ids"]
    with pytest.raises(CorpusError, match="too long for this tokenizer, whose tokens depend on text far away"):
        encode(contrary(10**9, 3), [(0, text)])


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), SlowTokenizer()], ids=["fast", "slow"])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 10}, {"rolling": True}, {"slice": "[2:9]"}, {"bos": True}, {"group": "text"}],
    ids=["window", "strided", "rolling", "slice", "bos", "group"],
)
def test_the_first_windows_are_those_of_the_whole(
    options: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 700)
    rows = ["short", "", *topics.values()][:12] + ["copied words " * 20] * 2 + ["short"]
    path = write_rows(tmp_path / "rows.jsonl", [row[:3000] for row in rows])
    whole = Corpus.load(path, tokenizer, window=40, **options)
    for n in (1, 7, len(whole) - 1, len(whole), len(whole) + 5):
        same(Corpus.load(path, tokenizer, window=40, windows=n, **options), whole.take(min(n, len(whole))))


@pytest.mark.parametrize("gold", [None, "right"])
def test_the_first_rows_with_a_prompt_are_those_of_the_whole(gold: str | None, tmp_path: Path) -> None:
    rows: list[Any] = QUESTIONS if gold else [{"q": q["q"], "a": a} for q in QUESTIONS for a in q["a"]]
    path = pairs(tmp_path, rows)
    for window in (12, 32):
        options: dict[str, Any] = {"window": window, "prompt": "q", "column": "a", "gold": gold}
        whole = Corpus.load(path, byte_tokenizer(), **options)
        for n in (1, 2, 3):
            same(Corpus.load(path, byte_tokenizer(), windows=n, **options), whole.take(n))


def same(one: Corpus, other: Corpus) -> None:
    assert torch.equal(one.windows, other.windows)
    assert (one.scored is None) == (other.scored is None)
    assert one.scored is None or torch.equal(one.scored, other.scored)
    assert [getattr(one, name) for name in FIELDS] == [getattr(other, name) for name in FIELDS]


def test_no_more_of_a_text_is_tokenised_than_its_windows_need(tmp_path: Path) -> None:
    path = write(tmp_path / "long.txt", "ten bytes " * 200_000)
    lengths: list[int] = []
    inner = byte_tokenizer()

    class Counting(SlowTokenizer):
        is_fast = True

        def __call__(self, text: str, **options: Any) -> Any:
            lengths.append(len(text))
            return inner(text, **options)

    corpus = Corpus.load(path, Counting(), window=64, windows=3)
    assert sum(lengths) < 4 * tokens._CHUNK
    assert list(islice(corpus.windows.flatten().tolist(), 192)) == inner(("ten bytes " * 20)[:192])["input_ids"]


def test_a_byte_that_is_no_text_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.txt", b"a" * 100_000 + b"\xff" + b"b" * 100_000)
    with pytest.raises(CorpusError, match="can't decode byte 0xff in position 100000: invalid start byte"):
        Corpus.load(path, byte_tokenizer(), window=8, windows=1)
    cut = write(tmp_path / "cut.txt", b"a" * 70_000 + "ä".encode()[:1])
    with pytest.raises(CorpusError, match="can't decode byte 0xc3 in position 70000: unexpected end of data"):
        Corpus.load(cut, byte_tokenizer(), window=8)


_MEASURE = """
import json, resource, sys
from david.scoring.corpus import Corpus
from tests.helpers.corpora import byte_tokenizer
small, path, windows = sys.argv[1:]
tokenizer, peaks = byte_tokenizer(), []
for source in (small, path):
    corpus = Corpus.load(source, tokenizer, window=128, windows=int(windows) or None)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))
print(json.dumps([peaks[1] - peaks[0], corpus.windows.nbytes]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no peak of memory to read")
@pytest.mark.slow
@pytest.mark.parametrize(("windows", "suffix"), [(2, ".txt"), (0, ".jsonl")])
def test_memory_is_that_of_the_windows(windows: int, suffix: str, tmp_path: Path) -> None:
    line = "the quick brown fox jumps over the lazy dog; "
    small, large = (write_or_rows(tmp_path / f"{name}{suffix}", line, n) for name, n in (("small", 2), ("large", 90)))
    command = [sys.executable, "-c", _MEASURE, str(small), str(large), str(windows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, held = json.loads(done.stdout.splitlines()[-1])
    assert grown < 100_000_000 + 5 * held  # all 4 MB encoded at once took 1.1 GB
    assert (held < 10_000) == bool(windows)


def write_or_rows(path: Path, line: str, n: int) -> Path:
    parts = [f"{i} {line * 1000}" for i in range(n)]
    return write(path, "".join(parts)) if path.suffix == ".txt" else write_rows(path, parts)

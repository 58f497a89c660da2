"""The command run as its console script does, in a folder with a tiny model; and what it says of wrong input."""

import json
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from david.cli import app
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from tests.tiny_models import VOCABULARY, tiny_model

WINDOW = 16
ON_DATA = "model --data data.txt --window 16"
SCORE = f"score {ON_DATA} --windows 2"
SEARCH = f"search {ON_DATA} --windows 3 --held-out 4 --top 2 --out run"
CHOICES = "--data choices.jsonl --prompt-column q --column a --gold-column right --window 16"

MOST = f"at most {LONGEST} visits"
TURNED = "\u202e"  # what follows is read from right to left

Run = Callable[..., tuple[int, str, str]]


def furnish(folder: Path) -> Path:
    """Fill a folder with a model of six layers and words for tokens, and a text of 1,200 of them."""
    tiny_model("llama").save_pretrained(folder / "model")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(folder / "model")
    numbers = random.Random(0)
    (folder / "data.txt").write_text(" ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(1200)))
    Recipe.from_blocks(6, [(1, 4, 2, 0.5)]).save(folder / "six.json")
    Recipe.from_blocks(7, [(1, 4, 2)]).save(folder / "seven.json")
    (folder / "broken.json").write_text('{"format": "david.recipe", "version": 1, "repeat_map": [0, "one"]}')
    (folder / "half.json").write_text('{"format": "david.recipe", "ver')
    rows = [{"q": f"w{6 + i} w2", "a": ["w3", "w4 w5"], "right": i % 2, "w": "w2"} for i in range(12)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text('{"q": "w1 w2 w3", "a": "w4 w5"}\n{"q": "w6 w7", "a": "w8"}\n')
    (folder / "table.jsonl").write_text('{"said": "w1 w2"}\n')
    (folder / "empty").mkdir()
    return folder


def runner(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command as its console script does; its exit code, what it printed, and what it said."""
    monkeypatch.chdir(place)

    def call(line: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["david", *line.split(), *more])
        code: Any = 0
        try:
            app.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@contextmanager
def same_levels() -> Iterator[None]:
    """The levels of others' loggers, which the command quietens, are afterwards as before."""
    levels = transformers.logging.get_verbosity(), optuna.logging.get_verbosity(), logging.getLogger("datasets").level
    yield
    transformers.logging.set_verbosity(levels[0])
    optuna.logging.set_verbosity(levels[1])
    logging.getLogger("datasets").setLevel(levels[2])


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refusal(run: Run, place: Path, line: str, *more: str, told: str = "") -> str:
    """The one line that wrong input is told in; nothing else is said but what is `told` first, and nothing is left."""
    before = contents(place)
    code, out, err = run(line, *more)
    after = contents(place)
    for name in sorted(set(after) - set(before), reverse=True):  # so that one failure is one failure
        (place / name).rmdir() if (place / name).is_dir() else (place / name).unlink()
    said = [part for part in err.replace("\r", "\n").splitlines() if part.strip() and "Loading weights" not in part]
    assert said[:-1] == [told] * bool(told)
    assert said[-1].startswith("error: ")
    assert (code, out) == (1, "")
    assert after == before
    return said[-1]


def matches(says: str, line: str) -> bool:
    """Whether a pattern is in a line; where not, the test fails with both."""
    return re.search(says, line) is not None or pytest.fail(f"{says!r} is not in {line!r}")


def written(name: str, data: str | bytes) -> Callable[[Path], None]:
    """A folder in which a file is another."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return write


def cut(name: str, share: float) -> Callable[[Path], None]:
    """A folder in which a file ends too early."""

    def shorten(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])

    return shorten

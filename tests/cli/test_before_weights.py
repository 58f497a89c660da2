"""What is wrong with a command is said before a weight is read, on a model whose weights nobody could read."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import transformers
from typer.testing import CliRunner

from david.cli.app import app
from david.models import stored_weights
from tests.helpers.corpora import byte_tokenizer
from tests.tiny_models import tiny_config

TEXT = " ".join(f"w{i % 90}" for i in range(2000))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of 50 GB (a sparse file), whose weights must not be opened, and a text beside it."""
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    tiny_config("llama", vocab_size=300).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    size = 50_000_000_000
    header = json.dumps({"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": TEXT, "other": 1}) + "\n" for _ in range(3)))

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were opened")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(opened))
    monkeypatch.setattr(safetensors, "safe_open", opened)
    monkeypatch.setattr(stored_weights, "safe_open", opened)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", opened)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(line: str) -> str:
    result = CliRunner().invoke(app, line.split("|"))
    assert result.exit_code != 0
    assert not isinstance(result.exception, AssertionError), "weights were opened"
    return " ".join(f"{result.output} {result.exception}".split())


DATA = "--data|text.txt|--window|16"
WRONG = {
    f"search|model|{DATA}|--sampler|tpf": "unknown sampler 'tpf'",
    f"search|model|{DATA}|--strategy|bean": "unknown strategy 'bean'",
    f"search|model|{DATA}|--pruner|rac": "unknown pruner 'rac'",
    f"search|model|{DATA}|--space|bloks": "bloks",
    f"search|model|{DATA}|--memory-budget|2 lemons": "--memory-budget",
    f"search|model|{DATA}|--storage|nothing://x": "the storage nothing://x",
    f"search|model|{DATA}|--strategy|refine|--start|0:99": "layer",
    f"search|model|{DATA}|--windows|900": "cannot split",
    f"search|model|{DATA}|--out|text.txt/run": "cannot be",
    "search|model|--data|texd.txt": "no such file: texd.txt",
    "search|model|--data|text.txt|--window|40960": "too few for one window of 40960",
    "search|model|--data|rows.jsonl|--window|16|--slice|[:1%]": "is empty",
    "search|model|--data|rows.jsonl|--window|16|--slice|[5": "cannot read the slice",
    "search|model|--data|rows.jsonl|--window|16|--column|txt": "has no column 'txt'",
    "search|model|--tasks|missing.yaml": "missing.yaml",
    f"scan|model|{DATA}|--pruner|rac": "unknown pruner 'rac'",
    "scan|model|--data|texd.txt": "no such file: texd.txt",
    f"scan|model|{DATA}|--storage|nothing://x": "the storage nothing://x",
    f"score|model|{DATA}|--recipe|0:99": "layer",
    f"score|model|{DATA}|--ratios|0:2": "2",
    f"score|model|{DATA}|--memory-budget|2 lemons": "--memory-budget",
    f"score|model|{DATA}|--windows|900": "--windows 900 is more than text.txt has",
    "score|model|--data|rows.jsonl|--window|16|--column|other": "must hold text",
    f"compare|model|0:99|{DATA}": "layer",
    "compare|model|0:2|--data|texd.txt": "no such file: texd.txt",
    "generate|model|--recipe|0:99": "layer",
    "generate|model|--chat": "has no chat template",
    "generate|model|--temperature|2|--top-p|7": "top_p",
    "chat|model|--recipe|0:99": "layer",
    "export|0:99|out|--model|model": "layer",
    "export|0:2|model|--model|model": "model",
    "profile|model|--data|texd.txt": "no such file: texd.txt",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_before_weights_are_opened(line: str, place: Path) -> None:
    assert WRONG[line] in error_of(line)


def cut_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"no pickle")


def no_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{oh")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def small_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shards": (cut_shards, "it lacks 1 of its 1 files of weights, such as model-1.safetensors"),
    "pickle": (pickled, "its weights are a pickle (pytorch_model-00001-of-00002.bin), which is not opened here"),
    "index": (no_index, "model.safetensors.index.json is not valid JSON"),
    "no tokenizer": (no_tokenizer, "it has no tokenizer: expected tokenizer.json in it"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{oh"), "tokenizer.json is not valid JSON"),
    "vocabulary": (small_vocabulary, "its tokenizer has 257 tokens, its model 50"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("line", ["generate|model", f"score|model|{DATA}", "check|model"])
def test_a_folder_that_cannot_be_loaded_is_named_for_what_it_is(kind: str, line: str, place: Path) -> None:
    change, reason = BROKEN[kind]
    change(place / "model")
    assert f"model cannot be loaded: {reason}" in error_of(line)

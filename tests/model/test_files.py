"""The files of a model on disk: what has happened to them since it was loaded."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from david.checkpoint.export_stacked import export
from david.errors import ModelError
from david.models.load import changed, load_model
from tests.helpers.gguf_files import write_gguf


def test_a_model_whose_files_change_says_which(place: Path, bad: Path) -> None:
    shutil.copytree(place / "model", bad)
    model, _ = load_model(bad, device="cpu")
    weights, config = bad / "model.safetensors", bad / "config.json"
    assert changed(model) is None
    (bad / "notes.txt").write_text("not the model's")
    (bad / "tokenizer.json").touch()
    assert changed(model) is None
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert changed(model) == "model.safetensors was written again"
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed(model) is None
    shutil.copy2(weights, bad / "beside")
    (bad / "beside").replace(weights)
    assert changed(model) == "model.safetensors is another file of the same size"
    config.write_text(config.read_text() + " ")
    size = config.stat().st_size
    assert changed(model) == f"config.json has {size} bytes, and had {size - 1}"
    config.unlink()
    assert changed(model) == "config.json is gone"


def test_of_a_gguf_file_the_file_itself_is_watched_and_of_what_was_not_loaded_nothing(bad: Path, tiny: Any) -> None:
    path = write_gguf(tiny, bad.with_suffix(".gguf"))
    model, _ = load_model(path, device="cpu")
    assert changed(model) is None
    path.unlink()
    assert changed(model) == "bad.gguf is gone"
    assert changed(tiny) is None


def test_a_model_whose_files_have_changed_is_not_exported(place: Path, bad: Path) -> None:
    shutil.copytree(place / "model", bad)
    model, _ = load_model(bad, device="cpu")
    (bad / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"not what they were when it was loaded: config\.json has 2 bytes, and had"):
        export(model, [0, 1], place / "new")
    assert not (place / "new").exists()


def test_a_model_that_changes_while_it_is_loaded_is_refused(
    place: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "model", bad)
    read = "david.models.load.read_tokenizer"
    monkeypatch.setattr(read, lambda *_args: os.utime(bad / "model.safetensors", (1, 1)))
    with pytest.raises(ModelError, match=r"changed while it was loaded, model\.safetensors was written again: load it"):
        load_model(bad, device="cpu")

"""What several tests need: the demo model, loaded once, and tiny random models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the Hub
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in a process for each core

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools  # noqa: F401  # it replaces distutils, and warns if another module has imported that before


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    """The demo model and its tokenizer. Shared by the session: a test that slings it must reset it."""
    from david.models.load import load_model

    return load_model("demo", device="cpu")


@pytest.fixture
def tiny() -> Any:
    """A random Llama of 6 layers and 32 dimensions whose layers matter, in eval mode."""
    from tests.tiny_models import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and data, where the command is run."""
    from tests.helpers.command import furnish

    return furnish(tmp_path_factory.mktemp("place"))


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command, run in `place`; it quietens others' loggers, which are as before afterwards."""
    from tests.helpers.command import runner, same_levels

    with same_levels():
        yield runner(place, monkeypatch, capsys)


@pytest.fixture
def bad(place: Path) -> Iterator[Path]:
    """A place for what is wrong: a file or a folder `bad`, gone afterwards."""
    yield place / "bad"
    for path in place.glob("bad*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    """Seed torch before each test, if it is loaded: `tests/unit` and `tests/report` run without it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)

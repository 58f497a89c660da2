"""What several tests need: the demo model, loaded once, and tiny random models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the Hub
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in a process for each core

from typing import Any

import pytest
import setuptools  # noqa: F401  # before anything finds Python's own distutils: to replace that, it warns, and breaks
import torch


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    """The demo model and its tokenizer. Shared by the session: a test that slings it must reset it."""
    from david.models import load_model

    return load_model("demo", device="cpu")


@pytest.fixture
def tiny() -> Any:
    """A random Llama of 6 layers and 32 dimensions whose layers matter, in eval mode."""
    from tiny_models import tiny_model

    return tiny_model("llama")


@pytest.fixture
def compiler() -> None:
    """Skips a test where torch cannot compile to machine code."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler: install g++")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)

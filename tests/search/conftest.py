"""The corpus of a small search, its held-out windows, and a model with few layers."""

from typing import Any

import pytest

from david.scoring.corpus import Corpus
from tests.helpers.searches import whole_corpus
from tests.tiny_models import tiny_model


@pytest.fixture
def corpus() -> Corpus:
    return whole_corpus().split(3, 9)[0]


@pytest.fixture
def held_out() -> Corpus:
    return whole_corpus().split(3, 9)[1]


@pytest.fixture
def shallow() -> Any:
    """A model of three layers: seven recipes of one block."""
    return tiny_model("llama", num_hidden_layers=3)

"""The corpus of a small search, and its held-out windows."""

import pytest

from david.scoring.corpus import Corpus
from tests.helpers.searches import whole_corpus


@pytest.fixture
def corpus() -> Corpus:
    return whole_corpus().split(3, 9)[0]


@pytest.fixture
def held_out() -> Corpus:
    return whole_corpus().split(3, 9)[1]

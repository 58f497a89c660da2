"""Generated input: strategies of Hypothesis that several tests draw from."""

from collections.abc import Callable
from itertools import chain
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from david.recipe.base_model import Base
from david.recipe.recipe import Recipe

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)

DEPTH = 12
ARCHITECTURES = ("LlamaForCausalLM", "CohereForCausalLM", "GPT2LMHeadModel")
BASE = Base(num_layers=DEPTH, model="owner/name", architecture="LlamaForCausalLM")
LAYER = st.integers(0, DEPTH - 1)
RUN = st.tuples(LAYER, LAYER).map(lambda ends: list(range(min(ends), max(ends) + 1)))
MAPS = st.lists(RUN | RUN.map(lambda run: run[::-1]), min_size=1, max_size=4).map(
    lambda runs: [*chain.from_iterable(runs)]
)
SCALE = st.sampled_from([1.0, 1.0, 0.0, 0.5, -1.0, 1e-7, 1e16]) | st.floats(-2, 2)


@st.composite
def recipes(draw: Callable[[Any], Any], scaled: bool = True) -> Recipe:
    visits = draw(MAPS)
    scales = draw(st.lists(SCALE, min_size=len(visits), max_size=len(visits)) | st.none()) if scaled else None
    return Recipe(visits, scales, base=BASE.model_copy(update={"architecture": draw(st.sampled_from(ARCHITECTURES))}))


ANY_TEXT = st.text(st.characters(), max_size=30)  # lone surrogates and control characters too

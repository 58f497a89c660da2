"""The model card of an export takes no text of a recipe but names on the Hub."""

import re
from typing import Any

from david.checkpoint.model_card import StackedCheckpoint, complete_recipe, render_card
from david.models.describe import describe_base
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from tests.helpers.pages import HOSTILE


def test_a_model_card_holds_nothing_that_a_recipe_says_but_names_of_the_hub(tiny: Any) -> None:
    fingerprint, stacked = (
        describe_base(tiny).fingerprint,
        StackedCheckpoint("AutoModelForCausalLM", 1, "float32", "1 MB"),
    )
    for revision in (HOSTILE, "main`\n# Owned", "a" * 40):
        base = Base(model="owner/name", revision=revision, num_layers=6, fingerprint=fingerprint)
        kept = complete_recipe(tiny, Recipe((0, 1, 1), base=base, written_as=HOSTILE))
        text = render_card(kept, stacked)
        assert ("owner/name" in text) is (revision == "a" * 40)
        assert not {"alert", "Owned", "<script"} & set(re.findall(r"alert|Owned|<script", text))
    hostile = Base(model=HOSTILE, revision="main", num_layers=6, fingerprint=fingerprint)
    assert "alert" not in render_card(complete_recipe(tiny, Recipe((0,), base=hostile)), stacked)

"""A recipe file with every field, and recipes that Hypothesis draws."""

from hypothesis import strategies as st

from david.recipe.recipe import Recipe

# The example of the design, its gaps filled: what other programs write and read.
DESIGN_FILE = """
{"format": "david.recipe", "version": 1,
 "base": {"model": "a Hub id, or what load_model was given", "revision": null, "architecture": "LlamaForCausalLM",
          "num_layers": 4, "fingerprint": "sha256:0f"},
 "repeat_map": [0, 1, 1, 2, 3], "scales": [1, 1, 0.25, 1, 1], "written_as": null,
 "scores": [{"metric": "perplexity", "value": 20.1, "base": 20.3, "nll_difference": -0.01, "interval95": [-0.02, 0.0],
             "tokens": 16352, "held_out": true, "convention": {"name": "window", "window": 512, "bos": false},
             "data": {"source": "wikitext", "slice": "test[:200]", "sha256": "ab"}}],
 "search": {"study": "night", "trial": 17, "space": "blocks", "sampler": "TPESampler", "trials": 200, "seed": 0},
 "made_with": {"david": "0.1.0", "torch": "2.13", "transformers": "5.23", "created": "2026-01-01T00:00:00Z"}}
"""


LAYER = st.integers(0, 200)
SCALE = st.floats(allow_nan=False, allow_infinity=False)
VISITS = st.lists(st.tuples(LAYER, st.just(1.0) | st.sampled_from([0.5, 0.0, -1.0]) | SCALE), min_size=1, max_size=20)
RUNS = st.lists(st.tuples(LAYER, st.integers(1, 9), st.just(1.0) | SCALE), min_size=1, max_size=5).map(
    lambda runs: [(layer, scale) for first, length, scale in runs for layer in range(first, first + length)]
)
RECIPES = (VISITS | RUNS).map(lambda visits: Recipe(*zip(*visits, strict=True)))

"""The scores in best.json are true: scored again by code that shares nothing with David (experiments/verify)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from david.candidates.spaces import Blocks
from david.scoring.corpus import Corpus
from david.study.run_search import search

VERIFY = Path(__file__).parents[2] / "experiments" / "verify" / "verify.py"


def _verify() -> Any:
    spec = importlib.util.spec_from_file_location("verify", VERIFY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("scales", [None, (0.1, 1.0)])
def test_best_json_states_the_nll_that_plain_transformers_finds(
    demo: tuple[Any, Any], tmp_path: Path, scales: tuple[float, float] | None
) -> None:
    model, tokenizer = demo
    seen, unseen = Corpus.load(tokenizer=tokenizer, window=64).split(2, 3)
    space = Blocks(count=2, max_length=4, scales=scales)
    search(model, seen, space=space, held_out=unseen, n_trials=4, out=tmp_path, top=2, progress=False)
    verify = _verify()
    rows = verify.verify(json.loads((tmp_path / "best.json").read_text()), model, tokenizer, verify.built_in_text())
    assert [held_out for held_out, _, _ in rows] == [False, True]
    for _, stated, found in rows:
        assert stated == pytest.approx(found, abs=1e-4)

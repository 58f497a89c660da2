"""Every example in a docstring runs and shows what it says; what users call has one."""

import contextlib
import copy
import doctest
import importlib
import inspect
import io
import json
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

import david
from tests.helpers.demo_stand_in import furnish_cache
from tests.helpers.source_tree import MODULES

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [
    pytest.param(test, id=test.name.removeprefix("david."))
    for module in MODULES
    for test in FINDER.find(importlib.import_module(module))
    if test.examples
]
TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: gsm8k.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: '{{question}}'
doc_to_target: 0
doc_to_choice: '{{[answer, question]}}'
metric_list: [{metric: acc}]
"""
FOR_USERS = [
    "analysis.compare",
    "chat.conversation",
    "notation.formats",
    "notation.rescale",
    "report.plots",
    "analysis.profile",
    "candidates.spaces",
    "candidates.block_spaces",
    "candidates.depth_spaces",
    "report.tables",
    "scoring.tasks",
    "chat.widgets",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the examples speak of: a model with its tokenizer, a corpus, a study, a recipe, files beside them."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(8)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"{i} + {i} =", "answers": [str(2 * i), str(i)], "right": 0} for i in (1, 2)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "mine.yaml").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("DAVID_CACHE", str(furnish_cache(folder / "cache")))
        model, tokenizer = david.load_model("demo", device="cpu")
        corpus = david.Corpus.load(tokenizer=tokenizer, window=32).take(60)
        windows, others = corpus.hold_out(2, 3)
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = david.search(model, windows, space=david.space.Block(max_length=2), held_out=others, n_trials=6)
        recipe = david.Recipe.from_blocks(30, [(8, 12, 2, 0.3)])
        recipe.save("recipe.json")
        yield {
            **{name: getattr(david, name) for name in david.__all__},
            "model": model,
            "tokenizer": tokenizer,
            "corpus": corpus,
            "windows": windows,
            "others": others,
            "study": study,
            "recipe": recipe,
            "optuna": optuna,
            "david": david,
            "table": david.table,
        }
        optuna.logging.set_verbosity(level)


@pytest.mark.parametrize("test", EXAMPLES)
def test_an_example_shows_what_it_says(test: doctest.DocTest, place: dict[str, Any]) -> None:
    named = place | {"study": copy.deepcopy(place["study"])} | test.globs  # which an example may add to
    test = doctest.DocTest(test.examples, named, test.name, test.filename, test.lineno, test.docstring)
    assert not any(example.options.get(doctest.SKIP) for example in test.examples), "an example that is not run"
    said: list[str] = []
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        found = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    david.David.reset(place["model"])
    assert found.failed == 0, "".join(said)


@pytest.mark.parametrize("name", [name for name in david.__all__ if name not in ("David", "DavidError", "Corpus")])
def test_what_david_offers_has_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(getattr(david, name)) or "")


@pytest.mark.parametrize("name", FOR_USERS)
def test_what_users_call_in_a_module_has_an_example(name: str) -> None:
    module = importlib.import_module(f"david.{name}")
    offered = getattr(module, "__all__", None) or [other for other in vars(module) if not other.startswith("_")]
    own = [
        value
        for other in offered
        if (value := getattr(module, other)) and getattr(value, "__module__", None) == module.__name__
        if inspect.isfunction(value) or (inspect.isclass(value) and not getattr(value, "_is_protocol", False))
    ]
    bare = [value.__name__ for value in own if ">>>" not in (inspect.getdoc(value) or "")]
    # A class that a function gives back is shown by the function's example.
    assert [name for name in bare if not inspect.isclass(getattr(module, name)) or name[0] == "_"] == []

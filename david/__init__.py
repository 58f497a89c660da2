"""David: rearrange the layers of a loaded language model by reference, score the result, search for better ones.

The names below load on first use, so that importing david costs nothing and needs no torch.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from david._version import __version__ as __version__

if TYPE_CHECKING:
    from david.chat import Chat
    from david.checkpoint import export
    from david.comparison import compare
    from david.corpus import Corpus
    from david.engine import score_recipes
    from david.errors import DavidError
    from david.measures import measure
    from david.models import load_model
    from david.racing import RacingPruner
    from david.recipe import Recipe
    from david.score import Score, multiple_choice, perplexity
    from david.sling import David
    from david.study import search

if "ipykernel" in sys.modules:  # a notebook without ipywidgets has bars of text: no need to warn of that
    warnings.filterwarnings("ignore", "IProgress not found")

__all__ = [
    "Chat",
    "Corpus",
    "David",
    "DavidError",
    "RacingPruner",
    "Recipe",
    "Score",
    "compare",
    "export",
    "load_model",
    "measure",
    "multiple_choice",
    "perplexity",
    "score_recipes",
    "search",
]

_HOME = {
    "Chat": "chat",
    "Corpus": "corpus",
    "David": "sling",
    "DavidError": "errors",
    "RacingPruner": "racing",
    "Recipe": "recipe",
    "Score": "score",
    "compare": "comparison",
    "export": "checkpoint",
    "load_model": "models",
    "measure": "measures",
    "multiple_choice": "score",
    "perplexity": "score",
    "score_recipes": "engine",
    "search": "study",
}
_MODULES = {
    "neighbours",
    "notation",
    "page",
    "plot",
    "profile",
    "report",
    "space",
    "strategy",
    "table",
    "tasks",
    "verdict",
    "widgets",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"david.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"david.{name}")
    raise AttributeError(f"module 'david' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__) | _MODULES)

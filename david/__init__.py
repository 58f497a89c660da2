"""David: rearrange the layers of a loaded language model by reference, score the result, search for better ones.

The names below load on first use, so that importing david costs nothing and needs no torch.
"""

import sys
import warnings
from typing import TYPE_CHECKING

from david._lazy import attach
from david._version import __version__ as __version__

if TYPE_CHECKING:
    from david.analysis.compare import compare
    from david.analysis.remeasure import measure
    from david.candidates.pruner import RacingPruner
    from david.chat.conversation import Chat
    from david.checkpoint.export import export
    from david.engine.engine import score_recipes
    from david.errors import DavidError
    from david.metrics.score import Score
    from david.models.load import load_model
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus
    from david.scoring.objectives import multiple_choice, perplexity
    from david.sling.in_place import David
    from david.study.search import search

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

_HOMES = {
    "Chat": "chat.conversation",
    "Corpus": "scoring.corpus",
    "David": "sling.in_place",
    "DavidError": "errors",
    "RacingPruner": "candidates.pruner",
    "Recipe": "recipe.recipe",
    "Score": "metrics.score",
    "compare": "analysis.compare",
    "export": "checkpoint.export",
    "load_model": "models.load",
    "measure": "analysis.remeasure",
    "multiple_choice": "scoring.objectives",
    "perplexity": "scoring.objectives",
    "score_recipes": "engine.engine",
    "search": "study.search",
}
_MODULES = (
    "corpus",
    "neighbours",
    "notation",
    "page",
    "plot",
    "profile",
    "report",
    "score",
    "space",
    "strategy",
    "table",
    "tasks",
    "verdict",
    "widgets",
)

__getattr__, __dir__ = attach(__name__, _HOMES | dict.fromkeys(_MODULES, ""))

"""Rearrange the layers of a loaded language model by reference, score recipes, search for better ones.

    load_model         load a model and its tokenizer; "demo" is a small one
    Recipe             which layers run, in which order, how strongly; a file of two kilobytes
    David              run a recipe: David.sling, reset, slung, view, check
    Corpus             a slice of a dataset as windows of tokens
    perplexity         score a model on a corpus; multiple_choice scores answers
    score_recipes      score many recipes, each shared visit computed once
    search             search with Optuna; measure and compare test recipes on further data
    export             write the rearranged model as a checkpoint
    Chat               talk to a model and its recipes, side by side

Modules: `david.space`, `david.strategy` and `david.neighbours` propose recipes; `david.table`, `david.plot`,
`david.page` and `david.report` show a study; `david.notation` reads and writes other tools' recipes; `david.tasks`
scores tasks of lm-eval; `david.verdict` has the paired tests; `david.profile` measures what each layer does;
`david.widgets` has sliders for notebooks; `david.errors` has all exceptions. Names and modules load on first use:
`import david` needs no torch.
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
    from david.checkpoint.export_stacked import export
    from david.engine.engine import score_recipes
    from david.errors import DavidError
    from david.metrics.score import Score
    from david.models.load import load_model
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus
    from david.scoring.objectives import multiple_choice, perplexity
    from david.sling.namespace import David
    from david.study.run_search import search

if "ipykernel" in sys.modules:  # without ipywidgets a notebook shows progress bars as text: no need for a warning
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
    "David": "sling.namespace",
    "DavidError": "errors",
    "RacingPruner": "candidates.pruner",
    "Recipe": "recipe.recipe",
    "Score": "metrics.score",
    "compare": "analysis.compare",
    "export": "checkpoint.export_stacked",
    "load_model": "models.load",
    "measure": "analysis.remeasure",
    "multiple_choice": "scoring.objectives",
    "perplexity": "scoring.objectives",
    "score_recipes": "engine.engine",
    "search": "study.run_search",
}
_MODULES = (
    "corpus",
    "errors",
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

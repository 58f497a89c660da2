"""What a study shows: tables, plots, sentences, the best recipe, the page."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.report.artifacts import write, write_profile
    from david.report.best_json import best_recipe
    from david.report.sentences import baseline, board_text, looks, luck, rankings, verdict

__all__ = ["baseline", "best_recipe", "board_text", "looks", "luck", "rankings", "verdict", "write", "write_profile"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "baseline": "sentences",
        "best_recipe": "best_json",
        "board_text": "sentences",
        "looks": "sentences",
        "luck": "sentences",
        "rankings": "sentences",
        "verdict": "sentences",
        "write": "artifacts",
        "write_profile": "artifacts",
    },
)

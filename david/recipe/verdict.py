"""What the scores of a recipe say of it: whether it was better than its base on held-out data.

A search's recipe file holds the recipe that leads the leaderboard, which may be worse than the base: whoever gets the
file reads this sentence first.
"""

from typing import TYPE_CHECKING

from david.recipe.schema import Measurement
from david.support.console import say
from david.support.text import plain

if TYPE_CHECKING:
    from david.recipe.recipe import Recipe

# as in the leaderboard of a study
BETTER, WORSE, UNDECIDED, NOT_JUDGED = "better", "worse", "not told apart", "not judged"


def verdict_of(recipe: "Recipe") -> str | None:
    """Return whether a recipe was better than its base: see `Recipe.verdict`."""
    if not recipe.scores:
        return None
    words = [_word(score) for score in recipe.scores if score.held_out]
    return next((word for word in (WORSE, UNDECIDED, BETTER) if word in words), NOT_JUDGED)


def verdict_sentence(recipe: "Recipe") -> str | None:
    """Return the verdict in words, with the figures that it rests on; None for a recipe without scores.

    Only words of David's and numbers: the file may be a stranger's.

    Example:
        >>> verdict_sentence(Recipe.parse("0:4, 2:6")) is None
        True
    """
    verdict = verdict_of(recipe)
    if verdict is None:
        return None
    if verdict == NOT_JUDGED:
        return "not judged: it has no score on data that its search had not seen"
    score = next(score for score in recipe.scores if score.held_out and _word(score) == verdict)
    words = {
        BETTER: "better than its base on held-out data",
        WORSE: "worse than its base on held-out data",
        UNDECIDED: "not shown to be better than its base on held-out data (inconclusive)",
    }
    return f"{words[verdict]}: {_figures(score)}"


def note_verdict(recipe: "Recipe", name: str) -> None:
    """Print a note if the scores of a recipe do not say that it was better than its base.

    Args:
        recipe: The recipe.
        name: What the user called it.
    """
    if verdict_of(recipe) not in (None, BETTER):
        say(f"note: {plain(name)} was {verdict_sentence(recipe)}")


def _word(score: Measurement) -> str:
    """Return the word for a held-out score: its interval on one side of 0, or not."""
    low, high = score.interval95 or (-1.0, 1.0)
    return BETTER if high < 0 else WORSE if low > 0 else UNDECIDED


def _figures(score: Measurement) -> str:
    """Return a score, the base's, and their difference."""
    if score.accuracy is not None and score.base_accuracy is not None:
        figures = f"accuracy {score.accuracy:.1%}, base {score.base_accuracy:.1%}"
    else:
        metric = "perplexity" if score.metric == "perplexity" else "score"
        figures = f"{metric} {score.value:.4g}, base {score.base:.4g}"
    interval = "" if score.interval95 is None else ", 95% interval {:+.4f} to {:+.4f}".format(*score.interval95)
    unit = " nats" if score.metric in ("perplexity", "multiple_choice") else ""
    return f"{figures}; difference {score.nll_difference:+.4f}{unit}{interval}"

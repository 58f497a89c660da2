"""How numbers and verdicts are written on the page and on the terminal."""

import math

from david.metrics.paired_test import UNDECIDED


def verdict_text(verdict: str) -> str:
    """Return a verdict as people read it: files store `not told apart`, screen and page say `inconclusive`.

    Example:
        >>> verdict_text("not told apart"), verdict_text("better")
        ('inconclusive', 'better')
    """
    return "inconclusive" if verdict == UNDECIDED else verdict


def figure(value: float) -> str:
    """Return a perplexity, or a score like it, for the page."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    return plain_figure(value)


def plain_figure(value: float) -> str:
    """Return a perplexity, or a score like it, for the terminal; an empty text for NaN."""
    return "" if math.isnan(value) else f"{value:.3f}" if value < 1e5 else f"{value:.2e}"


def signed(value: float, digits: int | None = 4) -> str:
    """Return a difference with its sign, for the page.

    Args:
        value: The difference.
        digits: Digits after the point; None for as many as it needs.
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "+∞" if value > 0 else "−∞"
    return (f"{value:+g}" if digits is None else f"{value:+.{digits}f}").replace("-", "−")


def plain_signed(value: float) -> str:
    """Return a difference with its sign, for the terminal; an empty text for NaN."""
    return "" if math.isnan(value) else f"{value:+.4f}"


def percent(value: float) -> str:
    """Return a growth in per cent with its sign, for the page."""
    return f"{value:+.0%}".replace("-", "−")


def share(value: float) -> str:
    """Return a share in per cent, for the page."""
    return plain_share(value) or "–"


def plain_share(value: float) -> str:
    """Return a share in per cent, for the terminal; an empty text for NaN."""
    return "" if math.isnan(value) else f"{value:.1%}"


def number(value: float) -> str:
    """Return any number in four digits."""
    return "∞" if math.isinf(value) else f"{value:.4g}"


def rounded_up(value: float) -> float:
    """Return the next value of two digits, for the ends of a scale."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / step, 6)) * step:.2g}")


def capitalised(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]

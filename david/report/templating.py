"""The template of a page, and how figures are written in it."""

import math
from functools import cache
from importlib import resources
from typing import Any, cast

from jinja2 import Environment, StrictUndefined
from jinja2.environment import TemplateModule
from markupsafe import Markup

from david.metrics.paired_test import BETTER, UNDECIDED, WORSE
from david.support.text import plain


@cache
def _template() -> TemplateModule:
    text = resources.files("david.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen)
    made.filters |= {
        "figure": figure,
        "signed": signed,
        "percent": percent,
        "share": share,
        "number": number,
        "tone": tone,
    }
    return made.from_string(text).module


def _seen(value: Any) -> Any:
    """Text as it is put into the page, before it is escaped: no character of it acts without being seen."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def part(name: str, *given: object) -> Markup:
    """What a macro of the template makes of this."""
    return cast(Markup, getattr(_template(), name)(*given))


def tone(word: str) -> str:
    """The class that a verdict is coloured by."""
    return {BETTER: "better", WORSE: "worse", UNDECIDED: "even"}.get(word, "none")


def figure(value: float) -> str:
    """A perplexity, or a score of its kind."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    return f"{value:.3f}" if value < 1e5 else f"{value:.2e}"


def signed(value: float, digits: int | None = 4) -> str:
    """A difference, with its sign; `digits` None writes as many as it needs."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "+∞" if value > 0 else "−∞"
    return (f"{value:+g}" if digits is None else f"{value:+.{digits}f}").replace("-", "−")


def percent(value: float) -> str:
    """A growth in per cent, with its sign."""
    return f"{value:+.0%}".replace("-", "−")


def share(value: float) -> str:
    """A share of all, in per cent."""
    return "–" if math.isnan(value) else f"{value:.1%}"


def number(value: float) -> str:
    """Any number, in four digits."""
    return "∞" if math.isinf(value) else f"{value:.4g}"


def counted(how_many: int, name: str) -> str:
    """So many of a thing: `1 window`, `2,000 windows`."""
    return f"{how_many:,} {name}" + "s" * (how_many != 1)


def rounded_up(value: float) -> float:
    """The next value of two digits, for the ends of a scale."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / step, 6)) * step:.2g}")

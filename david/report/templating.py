"""The template of the page: `part` renders one of its macros."""

from functools import cache
from importlib import resources
from typing import Any, cast

from jinja2 import Environment, StrictUndefined
from jinja2.environment import TemplateModule
from markupsafe import Markup

from david.metrics.paired_test import BETTER, UNDECIDED, WORSE
from david.report.formatting import figure, number, percent, signed, verdict_text
from david.support.text import plain


@cache
def _template() -> TemplateModule:
    text = resources.files("david.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters |= {
        "figure": figure,
        "signed": signed,
        "percent": percent,
        "number": number,
        "tone": tone,
        "verdict": verdict_text,
    }
    return environment.from_string(text).module


def _visible(value: Any) -> Any:
    """Make control characters of a text visible before the text is escaped, so that none acts unseen."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def part(name: str, *arguments: object) -> Markup:
    """Render a macro of the template.

    Args:
        name: Name of the macro.
        arguments: Its arguments; text among them is escaped.
    """
    return cast(Markup, getattr(_template(), name)(*arguments))


def tone(verdict: str) -> str:
    """Return the CSS class that colours a verdict."""
    return {BETTER: "better", WORSE: "worse", UNDECIDED: "even"}.get(verdict, "none")

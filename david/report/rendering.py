"""How the page is made of parts: macros of its template, and plots as SVG elements.

`part` renders a macro of the template. `inline_svg` draws a plot with the page's font and its colours for the light and
the dark theme.
"""

import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from jinja2.environment import TemplateModule
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from david.metrics.paired_test import BETTER, UNDECIDED, WORSE
from david.report.formatting import figure as figure_text
from david.report.formatting import number, percent, signed, verdict_text
from david.support.text import plain

# Placeholders that no plot uses: each is replaced by a colour of the page.
_INK, _LINE, _CARD, VOID = "#010203", "#010204", "#010205", "#010206"
_COLOURS = {_INK: "var(--muted)", _LINE: "var(--line)", _CARD: "var(--card)", VOID: "var(--void)"}
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], _INK),
    **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color", "grid.color", "legend.edgecolor"], _LINE),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor"], "none"),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right"], False),
    "legend.facecolor": _CARD,
    "legend.framealpha": 0.9,
    "axes.axisbelow": True,
    "font.size": 10,
    "svg.fonttype": "none",
}
_MANY_DOTS = 300  # more dots take less space as one picture than as elements


@cache
def _template() -> TemplateModule:
    text = resources.files("david.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters |= {
        "figure": figure_text,
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


def inline_svg(
    draw: Callable[[Axes], Axes], size: tuple[float, float], name: str, style: Mapping[str, Any]
) -> dict[str, Any]:
    """Draw a plot as an SVG element of the page.

    Args:
        draw: Draws the plot on axes.
        size: Width and height in inches.
        name: Stands before the ids of the drawing.
        style: Matplotlib settings beside those of the page.

    Returns:
        `svg`, the element, and `caption`, the plot's title, which is left out of the drawing.
    """
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name, **style}
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        ax = draw(figure.add_subplot())
        caption = re.sub(r"(\(\w+,) (\w+\))", "\\1\N{NO-BREAK SPACE}\\2", ax.get_title().replace("\n", "; "))
        ax.set_title("")
        for dots in ax.collections:
            dots.set_rasterized(len(np.asarray(dots.get_offsets())) > _MANY_DOTS)
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return {"caption": caption, "svg": Markup(_as_element(file.getvalue(), name, caption))}


def _as_element(svg: str, name: str, caption: str) -> str:
    """Return Matplotlib's SVG file as an element without prolog, style, metadata or font, with unique ids."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = Markup('<svg class="plot" {} role="img" aria-label="{}">').format(Markup(size[0]), caption)
    return opening + Markup(svg[svg.index(">") + 1 :].strip())

"""A plot as an SVG that stands in a page: the page's colours, which know light from dark, and the page's font."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _LINE, _CARD, VOID = "#010203", "#010204", "#010205", "#010206"  # stand-ins that no plot uses
_COLOURS = {_INK: "var(--muted)", _LINE: "var(--line)", _CARD: "var(--card)", VOID: "var(--void)"}
_LOOK: dict[Any, Any] = {
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
_MANY = 300  # dots: more of them are smaller as one picture than as so many elements


def drawing(draw: Callable[[Axes], Axes], size: tuple[float, float], name: str, look: dict[Any, Any]) -> dict[str, Any]:
    """A plot as an SVG that stands in a page, and its title apart, as the caption."""
    with mpl.rc_context({**_LOOK, "svg.hashsalt": name, **look}):
        figure = Figure(figsize=size, layout="constrained")
        ax = draw(figure.add_subplot())
        caption = re.sub(r"(\(\w+,) (\w+\))", "\\1\N{NO-BREAK SPACE}\\2", ax.get_title().replace("\n", "; "))
        ax.set_title("")
        for dots in ax.collections:
            dots.set_rasterized(len(np.asarray(dots.get_offsets())) > _MANY)
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return {"caption": caption, "svg": Markup(_for_a_page(file.getvalue(), name, caption))}


def _for_a_page(svg: str, name: str, caption: str) -> str:
    """Matplotlib's SVG file as an element: no prolog, style or metadata, the page's font, ids of its own."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = Markup('<svg class="plot" {} role="img" aria-label="{}">').format(Markup(size[0]), caption)
    return opening + Markup(svg[svg.index(">") + 1 :].strip())

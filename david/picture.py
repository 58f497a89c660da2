"""A recipe as a picture: one line of text, or an SVG for notebooks."""

from collections.abc import Sequence
from html import escape

_BARS = "▁▂▃▄▅▆▇█"


def text_picture(repeat_map: Sequence[int], n_layers: int) -> str:
    """One character a visit, its height the depth of the layer: seams are where the line jumps.

    Example:
        >>> text_picture([0, 1, 2, 3, 2, 3, 4, 5, 6, 7], 8)
        '▁▂▃▄▃▄▅▆▇█'
    """
    top = max(n_layers - 1, 1)
    return "".join(_BARS[layer * (len(_BARS) - 1) // top] for layer in repeat_map)


def svg_picture(
    repeat_map: Sequence[int], scales: Sequence[float], n_layers: int, title: str | None = None, *, room: float = 640.0
) -> str:
    """The path over the base layers: visits left to right, layers bottom to top, seams dashed, scales as opacity.

    Colours follow the page (`currentColor`), so that it reads on light and dark backgrounds. Without a title, the key
    to the colours is left out too: the page has its own. `room` is the width for up to 160 visits.
    """
    visits = len(repeat_map)
    step = max(room / 160, min(18.0, room / max(visits, 1)))
    row = max(3.0, min(8.0, 200.0 / n_layers))
    left, top, foot = (44.0, 24.0, 34.0) if title is not None else (44.0, 4.0, 18.0)
    width, height = left + step * visits + 12.0, top + row * n_layers + foot

    def corner(visit: int, layer: int) -> tuple[float, float]:
        return left + step * visit, top + row * (n_layers - 1 - layer)

    marks: list[str] = []
    seen: set[int] = set()
    for visit, (layer, scale) in enumerate(zip(repeat_map, scales, strict=True)):
        x, y = corner(visit, layer)
        colour = "#e8743b" if layer in seen else "#3b82c4"
        seen.add(layer)
        opacity = min(1.0, 0.25 + 0.75 * abs(scale))
        note = f"visit {visit}: layer {layer}" + ("" if scale == 1 else f", scale {scale:g}")
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step:.1f}" height="{row:.1f}" fill="{colour}" '
            f'fill-opacity="{opacity:.2f}"><title>{note}</title></rect>'
        )
        if visit and layer != repeat_map[visit - 1] + 1:
            _, before = corner(visit - 1, repeat_map[visit - 1])
            marks.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{before + row / 2:.1f}" y2="{y + row / 2:.1f}" '
                'stroke="currentColor" stroke-dasharray="2 2"/>'
            )
    floor = top + row * n_layers
    labels = (
        f'<text x="{left - 4}" y="{floor:.1f}" text-anchor="end">0</text>'
        f'<text x="{left - 4}" y="{top + 8:.1f}" text-anchor="end">{n_layers - 1}</text>'
        f'<text x="2" y="{(top + floor) / 2:.1f}">layer</text>'
        f'<text x="{left}" y="{floor + 14:.1f}">visit 0</text>'
        f'<text x="{width - 12:.1f}" y="{floor + 14:.1f}" text-anchor="end">{visits - 1}</text>'
    )
    if title is not None:
        labels += (
            f'<text x="2" y="14" font-weight="bold">{escape(title)}</text>'
            f'<text x="{left}" y="{floor + 28:.1f}">'
            "blue: first visit · orange: visited again · paler: weaker scale</text>"
        )
    frame = (
        f'<rect x="{left}" y="{top}" width="{step * visits:.1f}" height="{row * n_layers:.1f}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.3"/>'
    )
    width = max(width, 420.0 if title is not None else left + room + 12.0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="11" fill="currentColor" '
        f'style="background:transparent">{frame}{"".join(marks)}{labels}</svg>'
    )

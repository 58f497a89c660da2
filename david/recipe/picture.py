"""Draw a recipe's path: `text_picture` as one line of text, `svg_picture` for notebooks and pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BARS = "▁▂▃▄▅▆▇█"
_FIRST_COLOUR, _REPEAT_COLOUR = "#3b82c4", "#e8743b"
_LEFT, _RIGHT = 66.0, 16.0  # margins: for the visits' numbers, and for a seam to turn
_MAX_SWEEPS = 120
_MAX_HEIGHT = 480.0  # of all sweeps together


def text_picture(repeat_map: Sequence[int], n_layers: int) -> str:
    """Draw a repeat map as text, a character for each visit, as high as the layer is deep; seams are jumps.

    Example:
        >>> text_picture([0, 1, 2, 3, 2, 3, 4, 5, 6, 7], 8)
        '▁▂▃▄▃▄▅▆▇█'
    """
    top = max(n_layers - 1, 1)
    return "".join(_BARS[layer * (len(_BARS) - 1) // top] for layer in repeat_map)


@dataclass(frozen=True)
class Stretch:
    """Consecutive layers `start … stop − 1`, visited in a row at one scale, all for the first time or all again.

    Attributes:
        visit: The number of the first visit.
        start: The first layer.
        stop: One more than the last layer.
        scale: The strength of the visits.
        again: Whether the layers were visited before.
    """

    visit: int
    start: int
    stop: int
    scale: float
    again: bool


def sweeps(repeat_map: Sequence[int], scales: Sequence[float]) -> list[list[Stretch]]:
    """Divide a path into sweeps over the base, which each go upwards until the path turns back.

    Returns:
        The stretches of each sweep.

    Example:
        >>> [[(part.start, part.stop, part.again) for part in sweep] for sweep in sweeps([0, 1, 2, 1, 2, 4], [1.0] * 6)]
        [[(0, 3, False)], [(1, 3, True), (4, 5, False)]]
    """
    rows: list[list[Stretch]] = []
    seen: set[int] = set()
    for visit, (layer, scale) in enumerate(zip(repeat_map, scales, strict=True)):
        again = layer in seen
        seen.add(layer)
        last = rows[-1][-1] if rows else None
        if last is None or layer < last.stop:
            rows.append([Stretch(visit, layer, layer + 1, scale, again)])
        elif (layer, scale, again) == (last.stop, last.scale, last.again):
            rows[-1][-1] = Stretch(last.visit, last.start, layer + 1, scale, again)
        else:
            rows[-1].append(Stretch(visit, layer, layer + 1, scale, again))
    return rows


def svg_picture(
    repeat_map: Sequence[int], scales: Sequence[float], n_layers: int, title: str | None = None, *, room: float = 640.0
) -> str:
    """Draw the path over the base as SVG: layers from left to right, a row for each sweep, seams dashed.

    Blue is the first visit of a layer, orange a repeat. A visit is filled as high as it is strong, with its scale as a
    figure if there is space. Text and lines take the colour of the surrounding text (`currentColor`), so that the
    picture can be read on light and on dark. Of more than 120 sweeps the first are drawn and the others counted.

    Args:
        repeat_map: The layer of each visit.
        scales: The strength of each visit.
        n_layers: Layers of the base.
        title: The title; left out, the legend is left out too, for the page, which has its own.
        room: Greatest width of all layers, in the drawing's units.
    """
    rows = sweeps(repeat_map, scales)
    drawn = rows[:_MAX_SWEEPS]
    top = 18.0 + (22.0 if title is not None else 0.0)
    sheet = _Sheet(n_layers, min(22.0, room / n_layers), top, min(26.0, _MAX_HEIGHT / len(drawn)))
    parts = [] if title is None else [f'<text x="2" y="14" font-size="12" font-weight="bold">{escape(title)}</text>']
    parts.append(_axis(sheet))
    for number, sweep in enumerate(drawn):
        parts += _sweep(sheet, number, sweep)
        if number:
            parts.append(_turn(sheet, number, drawn[number - 1][-1].stop, sweep[0].start))
    foot = sheet.y(len(drawn))
    if len(rows) > len(drawn):
        foot += 14.0
        more = f"… and {len(rows) - len(drawn)} more sweeps, {len(repeat_map) - rows[len(drawn)][0].visit} visits"
        parts.append(f'<text x="{_LEFT:g}" y="{foot - 3:.1f}">{more}</text>')
    width = sheet.x(n_layers) + _RIGHT
    if title is not None:
        width = max(width, 560.0)
        parts.append(_legend(foot + 16.0))
        foot += 22.0
    else:
        width = max(width, _LEFT + room + _RIGHT)
    height = foot + 4.0
    lines = "\n".join(parts)  # a notebook that is not trusted yet shows the words alone: keep them apart
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="11" fill="currentColor" '
        f'style="background:transparent;max-width:100%">{lines}</svg>'
    )


@dataclass(frozen=True)
class _Sheet:
    """Positions of layers and sweeps in the drawing, in its units."""

    n_layers: int
    step: float  # the width of a layer
    top: float
    row: float  # the height of a sweep, with the gap below it

    @property
    def bar(self) -> float:
        return self.row * 0.62

    def x(self, layer: int) -> float:
        return _LEFT + self.step * layer

    def y(self, sweep: int) -> float:
        return self.top + self.row * sweep


def _axis(sheet: _Sheet) -> str:
    """Draw the numbers of the layers above, at even distances, the last one always."""
    interval = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if sheet.step * n >= 22)
    last = sheet.n_layers - 1
    labelled = [layer for layer in range(0, last, interval) if sheet.step * (last - layer) >= 20] + [last]
    middle = sheet.step / 2
    ticks = "\n".join(
        f'<text x="{sheet.x(layer) + middle:.1f}" y="{sheet.top - 6:.1f}" text-anchor="middle">{layer}</text>'
        for layer in labelled
    )
    return _row_label("layer", sheet.top - 6) + "\n" + ticks


def _sweep(sheet: _Sheet, number: int, sweep: Sequence[Stretch]) -> list[str]:
    """Draw a row: the base's layers as a faint track, the stretches over it, dashes over skips, the first visit."""
    y = sheet.y(number)
    middle = y + sheet.bar / 2
    parts = [
        f'<rect x="{sheet.x(0):.1f}" y="{y:.1f}" width="{sheet.step * sheet.n_layers:.1f}" height="{sheet.bar:.1f}" '
        'fill-opacity="0.07"/>'
    ]
    if sheet.row >= 11:
        parts.append(_row_label(f"visit {sweep[0].visit}", middle + 4))
    for before, part in zip([None, *sweep], sweep, strict=False):
        if before is not None and before.stop != part.start:
            parts.append(_dashes(f"M{sheet.x(before.stop):.1f} {middle:.1f}H{sheet.x(part.start):.1f}"))
        parts.append(_stretch(sheet, y, part))
        if part.scale != 1 and sheet.row >= 14:
            parts.append(_figure(sheet, middle + 4, part, is_last=part is sweep[-1]))
    return parts


def _stretch(sheet: _Sheet, y: float, part: Stretch) -> str:
    """Draw the layers of a stretch side by side, each a cell filled as high as its visit is strong."""
    level = min(1.0, abs(part.scale))
    layers = f"layer {part.start}" if part.stop == part.start + 1 else f"layers {part.start} … {part.stop - 1}"
    last = part.visit + part.stop - part.start - 1
    visits = f"visit {part.visit}" if last == part.visit else f"visits {part.visit} … {last}"
    note = f"{visits}: {layers}{' again' * part.again}" + ("" if part.scale == 1 else f", scale {part.scale:g}")
    whole = f'<path d="{_cells(sheet, y, part, 1.0)}" fill-opacity="0.25"/>' if level < 1 else ""
    colour = _REPEAT_COLOUR if part.again else _FIRST_COLOUR
    return f'<g fill="{colour}">{whole}<path d="{_cells(sheet, y, part, level)}"/><title>{note}</title></g>'


def _cells(sheet: _Sheet, y: float, part: Stretch, level: float) -> str:
    """Return the outlines of a stretch's cells up to a level; narrow cells share one outline."""
    high = sheet.bar * level
    low = y + sheet.bar - high
    if sheet.step < 5:
        across = sheet.step * (part.stop - part.start)
        return f"M{sheet.x(part.start):.1f} {low:.1f}h{across:.1f}v{high:.1f}h{-across:.1f}z"
    wide = sheet.step - 1
    return "".join(
        f"M{sheet.x(layer):.1f} {low:.1f}h{wide:.1f}v{high:.1f}h{-wide:.1f}z" for layer in range(part.start, part.stop)
    )


def _figure(sheet: _Sheet, y: float, part: Stretch, *, is_last: bool) -> str:
    """Draw the scale of a stretch: in it, or after it at the end of a row; nothing if there is no space."""
    label = f"×{part.scale:g}".replace("-", "−")
    needed = 6.4 * len(label)
    middle = (sheet.x(part.start) + sheet.x(part.stop) - 1) / 2
    if sheet.step * (part.stop - part.start) < needed:
        middle = sheet.x(part.stop) + 10 + needed / 2
        if not is_last or middle + needed / 2 > sheet.x(sheet.n_layers):
            return ""
    return f'<text x="{middle:.1f}" y="{y:.1f}" text-anchor="middle" pointer-events="none">{label}</text>'


def _turn(sheet: _Sheet, number: int, stop: int, start: int) -> str:
    """Draw a seam that goes back: from the end of a sweep through the gap below it to the start of the next."""
    above, below = sheet.y(number - 1) + sheet.bar / 2, sheet.y(number) + sheet.bar / 2
    between = (sheet.y(number - 1) + sheet.bar + sheet.y(number)) / 2
    out, into = sheet.x(stop), sheet.x(start) - 1
    if sheet.row < 8:
        return _dashes(f"M{out:.1f} {above:.1f}L{into:.1f} {below:.1f}")
    aside = min(6.0, sheet.row / 4)
    return _dashes(f"M{out:.1f} {above:.1f}h{aside:.1f}V{between:.1f}H{into - aside:.1f}V{below:.1f}h{aside:.1f}")


def _row_label(label: str, y: float) -> str:
    return f'<text x="{_LEFT - 12:g}" y="{y:.1f}" text-anchor="end" opacity="0.65">{label}</text>'


def _dashes(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="0.75" stroke-dasharray="2 2"/>'


def _legend(y: float) -> str:
    """Draw the legend of colours and lines."""
    parts, x = [], _LEFT
    for colour, label in (
        (_FIRST_COLOUR, "first visit"),
        (_REPEAT_COLOUR, "visited again (filled as high as it is strong)"),
    ):
        parts.append(f'<rect x="{x:.0f}" y="{y - 8:.1f}" width="9" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="{y:.1f}">{label}</text>')
        x += 32 + 5.4 * len(label)
    parts.append(_dashes(f"M{x:.0f} {y - 4:.1f}h18"))
    parts.append(f'<text x="{x + 24:.0f}" y="{y:.1f}">seam</text>')
    return "".join(parts)

"""Charts as SVG text: heat maps, bars, lines. All text in them is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

_CELL_WIDTH, _CELL_HEIGHT = 52, 24
_LEFT, _TOP = 64, 24
_WIDTH, _HEIGHT, _MARGIN = 420, 260, 44


def heat_map(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, across: str, down: str, chosen: tuple[int, int]
) -> str:
    """Return a heat map of values (rows, columns), the lowest the brightest, with a frame around ``chosen``."""
    low, high = float(np.min(values)), float(np.quantile(values, 0.9))
    width, height = _LEFT + _CELL_WIDTH * len(columns), _TOP + _CELL_HEIGHT * (len(rows) + 1)
    parts = [_text(_LEFT, 14, across, "start"), _text(4, 14, down, "start")]
    for i, name in enumerate(rows):
        y = _TOP + _CELL_HEIGHT * i
        parts.append(_text(_LEFT - 6, y + 16, name, "end"))
        for j in range(len(columns)):
            left = _LEFT + _CELL_WIDTH * j
            value = float(values[i][j])
            share = min(1.0, (value - low) / (high - low)) if high > low else 0.0
            colour = f"hsl({140 - 130 * share:.0f} 55% {78 - 18 * share:.0f}%)"
            frame = ' stroke="#111" stroke-width="2"' if (i, j) == chosen else ""
            size = f'width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}"'
            parts.append(f'<rect x="{left}" y="{y}" {size} fill="{colour}"{frame}/>')
            parts.append(_text(left + _CELL_WIDTH / 2 - 1, y + 15, _short(value), "middle", "cell"))
    for j, name in enumerate(columns):
        x = _LEFT + _CELL_WIDTH * (j + 0.5)
        parts.append(_text(x, _TOP + _CELL_HEIGHT * len(rows) + 14, name, "middle"))
    return _svg(width, height, parts)


def bars(names: Sequence[str], values: Sequence[float], labels: Sequence[str]) -> str:
    """Return horizontal bars from a common zero; negative ones point left and have another colour."""
    low, high = min(0.0, *values), max(0.0, *values)
    scale, left = 300 / ((high - low) or 1.0), 150
    zero = left + 50 - low * scale
    parts = []
    for i, (name, value, label) in enumerate(zip(names, values, labels, strict=True)):
        y = 22 * i + 4
        x, width = (zero, value * scale) if value >= 0 else (zero + value * scale, -value * scale)
        kind = "good" if value >= 0 else "bad"
        parts.append(_text(left, y + 13, name, "end"))
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="17"/>')
        end = x + width + 5 if value >= 0 else x - 5
        parts.append(_text(end, y + 13, label, "start" if value >= 0 else "end"))
    return _svg(left + 640, 22 * len(values) + 8, parts)


def lines(series: dict[str, tuple[Any, Any]], *, across: str, up: str) -> str:
    """Return a plot of named lines, x and y in [0, 1], with the diagonal."""
    span = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(x: float, y: float) -> str:
        return f"{_MARGIN + span[0] * x:.1f},{_HEIGHT - _MARGIN - span[1] * y:.1f}"

    parts = [f'<polyline class="axis" points="{place(0, 1)} {place(0, 0)} {place(1, 0)}"/>']
    parts.append(f'<polyline class="diagonal" points="{place(0, 0)} {place(1, 1)}"/>')
    for tick in (0, 0.5, 1):
        x, y = place(tick, 0).split(",")
        parts.append(_text(float(x), float(y) + 15, f"{tick:g}", "middle"))
        x, y = place(0, tick).split(",")
        parts.append(_text(float(x) - 6, float(y) + 4, f"{tick:g}", "end"))
    for number, (name, (xs, ys)) in enumerate(series.items()):
        points = " ".join(place(float(x), float(y)) for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="line{number}" points="{points}"/>')
        parts.append(_text(_MARGIN + 12, _MARGIN + 14 + 16 * number, name, "start", f"name{number}"))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 8, across, "middle"))
    parts.append(_text(8, 18, up, "start"))
    return _svg(_WIDTH, _HEIGHT, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"

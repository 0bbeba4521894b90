"""Plots as SVG text: histograms of several sets, and curves with error bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 600, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
COLORS = ("#c8553d", "#2d6a8f", "#5b8e4a", "#8a5a9e", "#b08a2e", "#444444")
MAX_BINS = 80
LEGEND_ROOM = 0.08
"""Of the height, for each line of the legend."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points with symmetric errors."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Axis:
    """A data range on a pixel range, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = log10(low), log10(high), log10(max(value, 1e-300))
        return self.start + (v - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the range."""
        if self.log:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) <= 4 else (1,)
            marks = [m * 10.0**p for p in powers for m in steps]
            return [m for m in marks if self.low * 0.999 <= m <= self.high * 1.001]
        raw = (self.high - self.low) / 5
        size = 10 ** floor(log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
        count = range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)
        return [i * step for i in count]


def histogram(
    series: Sequence[tuple[str, Array]],
    *,
    title: str,
    x_label: str,
    limit: float | None = None,
) -> str:
    """Return overlaid outlines of normalised histograms over the 0.5–99.5 % range of all values.

    Values outside the range fall into the outermost bins. `limit` draws a dashed line.
    """
    values = [np.asarray(v, dtype=np.float64)[np.isfinite(v)] for _, v in series]
    together = np.concatenate(values) if values else np.array([])
    if len(together) == 0:
        return _frame(title, "<text x='300' y='160' text-anchor='middle'>no values</text>")
    low, high = np.percentile(together, [0.5, 99.5])
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    smallest = min(len(v) for v in values if len(v))
    bins = int(np.clip(2 * np.sqrt(smallest), 12, MAX_BINS))
    edges = np.linspace(low, high, bins + 1)
    heights = []
    for v in values:
        counts, _ = np.histogram(np.clip(v, low, high), edges)
        heights.append(counts / max(1, len(v)) / (edges[1] - edges[0]))
    top = max(float(h.max()) for h in heights) * (1.05 + LEGEND_ROOM * len(series)) or 1.0
    x, y = _axes((float(low), float(high)), (0.0, top))
    body = _axes_lines(x, y, x_label, "density of structures")
    for index, h in enumerate(heights):
        points = [(x(edges[0]), y(0))]
        for left, right, value in zip(edges[:-1], edges[1:], h, strict=True):
            points += [(x(left), y(value)), (x(right), y(value))]
        points.append((x(edges[-1]), y(0)))
        color = COLORS[index % len(COLORS)]
        body += f"<polygon points='{_points(points)}' fill='{color}' fill-opacity='0.16'/>"
        body += f"<polyline points='{_points(points)}' fill='none' stroke='{color}' "
        body += "stroke-width='1.6'/>"
    if limit is not None:
        body += f"<line x1='{x(limit):.1f}' x2='{x(limit):.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}' "
        body += "stroke='#222' stroke-dasharray='4 3'/>"
    labels = [f"{label} (n = {len(v)})" for (label, _), v in zip(series, values, strict=True)]
    return _frame(title, body + _legend(labels))


def curves(
    series: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Return curves with error bars; on a logarithmic axis values <= 0 are left out."""
    points = [
        (float(a), float(b))
        for curve in series
        for a, b in zip(curve.x, curve.y, strict=True)
        if np.isfinite(b) and not (log_x and a <= 0) and not (log_y and b <= 0)
    ]
    if not points:
        return _frame(title, "<text x='300' y='160' text-anchor='middle'>no values</text>")
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x, y = _axes(_widen(xs, log=log_x), _widen(ys, log=log_y, zero=True), log_x=log_x, log_y=log_y)
    body = _axes_lines(x, y, x_label, y_label)
    for index, curve in enumerate(series):
        color = COLORS[index % len(COLORS)]
        errors = curve.error or [0.0] * len(curve.x)
        kept = [p for p in zip(curve.x, curve.y, errors, strict=True) if (p[0], p[1]) in points]
        line = [(x(a), y(b)) for a, b, _ in kept]
        body += f"<polyline points='{_points(line)}' fill='none' stroke='{color}' "
        body += "stroke-width='1.6'/>"
        for (px, py), (_, b, e) in zip(line, kept, strict=True):
            body += f"<circle cx='{px:.1f}' cy='{py:.1f}' r='2.8' fill='{color}'/>"
            if e and np.isfinite(e):
                bottom = y(max(b - e, y.low))
                body += f"<line x1='{px:.1f}' x2='{px:.1f}' y1='{bottom:.1f}' "
                body += f"y2='{y(min(b + e, y.high)):.1f}' stroke='{color}'/>"
    labels = [curve.label for curve in series] if len(series) > 1 else []
    return _frame(title, body + _legend(labels))


def bars(labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], title: str) -> str:
    """Return grouped bars of fractions."""
    room = 1.05 + LEGEND_ROOM * len(series)
    top = max((max(v, default=0.0) for _, v in series), default=0.0) * room or 1.0
    x, y = _axes((0.0, float(max(1, len(labels)))), (0.0, top))
    body = _axes_lines(x, y, "space group", "fraction of structures", x_ticks=False)
    width = 0.8 / len(series)
    for k, (_, values) in enumerate(series):
        for i, value in enumerate(values):
            left = x(i + 0.1 + k * width)
            body += f"<rect x='{left:.1f}' y='{y(value):.1f}' width='{x(width) - x(0):.1f}' "
            body += f"height='{y(0) - y(value):.1f}' fill='{COLORS[k % len(COLORS)]}'/>"
    for i, label in enumerate(labels):
        body += f"<text x='{x(i + 0.5):.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>"
        body += f"{escape(label)}</text>"
    return _frame(title, body + _legend([name for name, _ in series]))


def _widen(values: list[float], *, log: bool, zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    if zero and low > 0:
        low = 0.0
    margin = 0.06 * (high - low) or 0.5
    return (low if low == 0 else low - margin), high + margin


def _axes(
    x: tuple[float, float], y: tuple[float, float], *, log_x: bool = False, log_y: bool = False
) -> tuple[Axis, Axis]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    return Axis(*x, LEFT, right, log_x), Axis(*y, bottom, TOP, log_y)


def _axes_lines(x: Axis, y: Axis, x_label: str, y_label: str, *, x_ticks: bool = True) -> str:
    bottom = HEIGHT - BOTTOM
    out = ""
    for tick in x.ticks() if x_ticks else []:
        out += f"<line x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{bottom}' y2='{bottom + 4}' "
        out += f"stroke='#555'/><text x='{x(tick):.1f}' y='{bottom + 16}' text-anchor='middle'>"
        out += f"{tick:.6g}</text>"
    for tick in y.ticks():
        out += f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' "
        out += f"stroke='#e4e4e4'/><text x='{LEFT - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>"
        out += f"{tick:.6g}</text>"
    out += f"<polyline points='{LEFT},{TOP} {LEFT},{bottom} {WIDTH - RIGHT},{bottom}' fill='none' "
    out += f"stroke='#555'/><text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' "
    out += f"text-anchor='middle'>{escape(x_label)}</text>"
    middle = (TOP + bottom) / 2
    return out + (
        f"<text transform='rotate(-90)' x='{-middle}' y='14' text-anchor='middle'>"
        f"{escape(y_label)}</text>"
    )


def _legend(labels: Sequence[str]) -> str:
    out = ""
    for index, label in enumerate(labels):
        y = TOP + 8 + 16 * index
        out += f"<rect x='{WIDTH - 24}' y='{y - 8}' width='10' height='10' "
        out += f"fill='{COLORS[index % len(COLORS)]}'/><text x='{WIDTH - 30}' y='{y + 1}' "
        out += f"text-anchor='end'>{escape(label)}</text>"
    return out


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _frame(title: str, body: str) -> str:
    style = "font:12px system-ui,sans-serif;background:#fff"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
        f"width='{WIDTH}' height='{HEIGHT}' role='img' style='{style}' font-family='sans-serif' "
        f"font-size='12' fill='#222'><text x='{LEFT}' y='20' font-weight='bold' font-size='13'>"
        f"{escape(title)}</text>{body}</svg>"
    )

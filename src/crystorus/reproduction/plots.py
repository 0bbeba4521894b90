"""Curves and histograms of Figures 3 to 6, drawn from their results alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crystorus.reproduction.settings import Tree

COLOURS = {
    "paper": "#2d6a8f",
    "default": "#c8553d",
    "checkpoint": "#5b8e4a",
    "real": "#333333",
}
_MORE = ("#8a5a9e", "#b08a2e", "#3fb8c4", "#9aa3ab")
_BINS = 40
_DECADES = [step * 10.0**power for power in range(-5, 4) for step in (1, 2, 5)]
_SHOWN = (0.5, 99.5)
"""Percentiles of the real values between which a histogram is shown, widened by a tenth."""


def draw_noise(report: Tree) -> Figure:
    """Draw the distance against the share of the diffusion steps (Fig. 3)."""
    figure, (axes, lost) = _figure(2)
    for name, curve in report["curves"].items():
        points = curve["points"]
        shares = [p["share"] for p in points]
        known = [p for p in points if p["frechet"] is not None]
        errors = [p["error"] or 0.0 for p in known]
        values = [p["frechet"] for p in known]
        style = {"color": COLOURS[name], "label": f"{name}'s noise", "marker": "o", "ms": 3}
        axes.errorbar([p["share"] for p in known], values, errors, capsize=2, lw=1.2, **style)
        without = [p["failed"] / (p["n"] + p["failed"]) for p in points]
        lost.plot(shares, without, lw=1.2, **style)
    axes.set_ylabel("Fréchet CHGNet distance")
    lost.set_ylabel("share without features")
    for one in (axes, lost):
        one.set_xlabel("diffusion step t / T")
        one.set_ylim(bottom=0)
    lost.legend(frameon=False, fontsize=8, loc="upper left")  # the share starts at zero
    return figure


def draw_size(report: Tree) -> Figure:
    """Draw the distance of two sets of real crystals against their size (Fig. 4)."""
    figure, (axes,) = _figure(1)
    points = report["points"]
    sizes = [p["n"] for p in points]
    spread = [p["spread"] or 0.0 for p in points]
    axes.errorbar(
        sizes, [p["mean"] for p in points], spread, marker="o", ms=3, lw=1.2, capsize=2,
        color=COLOURS["real"],
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [v for v in _DECADES if low <= v <= high]
    axes.set_yticks(ticks, [f"{v:g}" for v in ticks])
    axes.set_xlabel("crystals on each side")
    axes.set_ylabel("Fréchet CHGNet distance")
    return figure


def draw_distribution(report: Tree) -> Figure:
    """Draw the densities of values of every set over those of the real crystals (Figs 5, 6)."""
    figure, (axes,) = _figure(1)
    values = {label: _finite(row) for label, row in report["values"].items()}
    edges = _edges(values["real"])
    spare = iter(_MORE * 3)
    for label, row in values.items():
        colour = COLOURS.get(label) or next(spare)
        shares, _ = np.histogram(row, edges)
        height = shares / max(len(row), 1) / np.diff(edges)
        filled = label == "real"
        text = f"{label} (n = {len(row)}, outside {len(row) - shares.sum()})"
        style: Mapping[str, Any] = (
            {"fill": True, "color": "#cccccc"} if filled else {"color": colour, "lw": 1.3}
        )
        axes.stairs(height, edges, label=text, **style)
    axes.set_xlabel(f"{report['property']} / {report['unit']}")
    axes.set_ylabel("share per unit")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _finite(row: Sequence[float | None]) -> np.ndarray:
    values = np.array([np.nan if v is None else v for v in row], float)
    return values[np.isfinite(values)]


def _edges(real: np.ndarray) -> np.ndarray:
    low, high = np.percentile(real, _SHOWN)
    margin = 0.1 * (high - low)
    return np.linspace(low - margin, high + margin, _BINS + 1)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3.6 * panels + 0.4, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])

"""Hull plots for files: a curve for two elements, a triangle for three, a tetrahedron for four."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element

from crystorus.generation.disk import disk_errors
from crystorus.hull.assessing import RankedPhase, Ranking
from crystorus.hull.errors import CampaignError
from crystorus.hull.novelty import reduced_formula_of
from crystorus.hull.ranking import Hull, Phase

SHOWN_EV = 0.5  # eV/atom above hull; higher candidates are left out of triangles and tetrahedra
FULL_COLOUR = 0.2  # eV/atom above hull at which the colour scale ends
_CORNERS = {
    3: np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]]),
    # Seen from a little above, no edge hiding another.
    4: np.array([[0.0, 0.05], [1.0, 0.0], [0.62, 0.38], [0.47, 0.98]]),
}


def plot_hull(ranking: Ranking, stem: Path) -> None:
    """Write the hull as `stem`.svg and `stem`.png; no display is needed.

    Raises:
        CampaignError: If matplotlib is not installed.
        OutputError: If the files cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CampaignError(
            f"plots need matplotlib ({error}): pip install 'crystorus[hull]', or --no-report"
        ) from error
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawer = _DRAWERS.get(len(ranking.hull.elements), _draw_ladder)
    drawer(axes, ranking)
    axes.set_title(f"{'-'.join(ranking.hull.elements)}: known phases and candidates", fontsize=12)
    with disk_errors(stem):
        for ending in ("svg", "png"):
            # No date, so that the same ranking gives the same file.
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            figure.savefig(stem.with_suffix(f".{ending}"), dpi=160, metadata=metadata)


def place(composition: Composition, elements: Sequence[str]) -> tuple[float, float]:
    """Return where a composition is in the triangle or tetrahedron."""
    fractions = [composition.get_atomic_fraction(Element(symbol)) for symbol in elements]
    x, y = np.array(fractions) @ _CORNERS[len(elements)]
    return float(x), float(y)


def _draw_curve(axes: Any, ranking: Ranking) -> None:
    hull, second = ranking.hull, Element(ranking.hull.elements[1])
    for line in hull.tie_lines:
        ends = [_phase(hull, name) for name in line]
        xs = [p.composition.get_atomic_fraction(second) for p in ends]
        axes.plot(xs, [hull.formation_energy(p) for p in ends], color="#555", lw=1.2, zorder=1)
    known = [
        (p.composition.get_atomic_fraction(second), hull.formation_energy(p)) for p in hull.phases
    ]
    axes.scatter(*zip(*known, strict=True), s=26, c="#222", marker="s", label="known", zorder=2)
    ranked = [p for p in ranking.phases if p.formation_energy is not None]
    points = [(_composition(p).get_atomic_fraction(second), p.formation_energy) for p in ranked]
    if points:
        shown = axes.scatter(*zip(*points, strict=True), **_colours(ranked), zorder=3)
        _colour_bar(axes, shown)
    heights = [y for _, y in (*known, *points) if y is not None and y < SHOWN_EV]
    low = min(0.0, *heights)
    axes.set_ylim(low - 0.08 * (SHOWN_EV - low), min(SHOWN_EV, max(0.1, *heights)) * 1.08)
    for phase in (p for p in hull.phases if p.name in hull.stable):
        spot = (phase.composition.get_atomic_fraction(second), hull.formation_energy(phase))
        _label(axes, spot, reduced_formula_of(phase.composition))
    axes.set_xlabel(f"fraction of {second.symbol}")
    axes.set_ylabel("formation energy / eV per atom")
    axes.legend(loc="upper right", frameon=False)


def _draw_simplex(axes: Any, ranking: Ranking) -> None:
    hull, elements = ranking.hull, ranking.hull.elements
    corners = _CORNERS[len(elements)]
    for i in range(len(corners)):
        for j in range(i):
            axes.plot(*corners[[i, j]].T, color="#bbb", lw=1.0, zorder=0)
    for line in hull.tie_lines:
        ends = np.array([place(_phase(hull, name).composition, elements) for name in line])
        axes.plot(*ends.T, color="#555", lw=0.9, zorder=1)
    stable = [p for p in hull.phases if p.name in hull.stable]
    spots = [place(p.composition, elements) for p in stable]
    axes.scatter(*zip(*spots, strict=True), s=80, c="#222", marker="s", zorder=2, label="known")
    ranked = [
        p
        for p in reversed(ranking.phases)
        if p.e_above_hull is not None and p.e_above_hull < SHOWN_EV
    ]
    if ranked:
        points = [place(_composition(p), elements) for p in ranked]
        shown = axes.scatter(*zip(*points, strict=True), **_colours(ranked), zorder=3)
        _colour_bar(axes, shown)
    for phase, spot in zip(stable, spots, strict=True):
        _label(axes, spot, reduced_formula_of(phase.composition))
    axes.legend(loc="upper left", frameon=False)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.margins(0.08)


def _draw_ladder(axes: Any, ranking: Ranking) -> None:
    """Five elements and more have no picture: energies above hull by rank."""
    heights = [p.e_above_hull for p in ranking.phases if p.e_above_hull is not None]
    axes.scatter(range(1, len(heights) + 1), heights, s=18, c="#2d6a8f")
    axes.axhline(0.0, color="#555", lw=1)
    axes.set_xlabel("rank")
    axes.set_ylabel("energy above hull / eV per atom")


_DRAWERS: dict[int, Callable[[Any, Ranking], None]] = {
    2: _draw_curve,
    3: _draw_simplex,
    4: _draw_simplex,
}


def _colours(ranked: Sequence[RankedPhase]) -> dict[str, Any]:
    heights = [max(0.0, p.e_above_hull or 0.0) for p in ranked]
    return {
        "c": heights, "cmap": "viridis_r", "vmin": 0.0, "vmax": FULL_COLOUR, "s": 40,
        "edgecolors": "white", "linewidths": 0.6, "label": "candidates",
    }  # fmt: skip


def _colour_bar(axes: Any, shown: Any) -> None:
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, extend="max")
    bar.set_label("candidates: energy above hull / eV per atom")


def _label(axes: Any, spot: tuple[float, float], formula: str) -> None:
    text = re.sub(r"(\d+)", r"$_{\1}$", formula)
    axes.annotate(
        text, spot, xytext=(5, 5), textcoords="offset points", fontsize=9, zorder=1.5,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _phase(hull: Hull, name: str) -> Phase:
    return next(phase for phase in hull.phases if phase.name == name)


def _composition(phase: RankedPhase) -> Composition:
    return Composition(phase.atoms.get_chemical_formula())

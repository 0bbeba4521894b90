"""Hull plots for files: a curve for two elements, a triangle for three, a tetrahedron for four."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element

from crystorus.hull.assessing import RankedPhase, Ranking
from crystorus.hull.errors import CampaignError
from crystorus.hull.novelty import reduced_formula_of
from crystorus.hull.ranking import ON_HULL, Hull, Phase
from crystorus.sample.disk import disk_errors

SHOWN_EV = 0.5  # eV/atom above hull; higher candidates are left out of triangles and tetrahedra
FULL_COLOUR = 0.2  # eV/atom above hull at which the colour scale ends
_ROOM = 0.08  # length of a label, in edges of the triangle
_SIDES = {"right": (1.0, 0.5), "left": (-1.0, 0.5), "below right": (1.0, -0.5),
          "below left": (-1.0, -0.5), "below": (0.0, -0.7)}  # fmt: skip
_EDGES = {True: "#c8553d", False: "white"}
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


def energy_range(heights: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis of formation energies in eV/atom; what is far above is cut."""
    shown = [y for y in heights if y < SHOWN_EV]
    low, high = min(0.0, *shown), max(0.0, *shown)
    high = max(high, low + 0.05)
    return low - 0.12 * (high - low), high + 0.08 * (high - low)


def free_side(spot: tuple[float, float], around: Sequence[tuple[float, float]]) -> str:
    """Return the side of a spot on which a label is farthest from all other spots."""
    rooms = {}
    for side, (x, y) in _SIDES.items():
        label = np.array(spot) + _ROOM * np.array([x, y])
        rooms[side] = min((float(np.linalg.norm(label - other)) for other in around), default=1.0)
    return max(rooms, key=lambda side: (min(rooms[side], 2 * _ROOM), side == "right"))


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
    axes.set_ylim(*energy_range([y for _, y in (*known, *points) if y is not None]))
    for phase in (p for p in hull.phases if p.name in hull.stable):
        spot = (phase.composition.get_atomic_fraction(second), hull.formation_energy(phase))
        _label(axes, spot, reduced_formula_of(phase.composition), "below")
    axes.set_xlabel(f"fraction of {second.symbol}")
    axes.set_ylabel("formation energy / eV per atom")
    axes.legend(loc="best", frameon=False)


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
    points = [place(_composition(p), elements) for p in ranked]
    if ranked:
        shown = axes.scatter(*zip(*points, strict=True), **_colours(ranked), zorder=3)
        _colour_bar(axes, shown)
    for phase, spot in zip(stable, spots, strict=True):
        around = [other for other in (*spots, *points) if other != spot]
        _label(axes, spot, reduced_formula_of(phase.composition), free_side(spot, around))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
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


def below(phase: RankedPhase) -> bool:
    """Tell whether a candidate lies below the hull of the known phases."""
    return phase.e_above_hull is not None and phase.e_above_hull < -ON_HULL


def _colours(ranked: Sequence[RankedPhase]) -> dict[str, Any]:
    heights = [max(0.0, p.e_above_hull or 0.0) for p in ranked]
    return {
        "c": heights, "cmap": "viridis_r", "vmin": 0.0, "vmax": FULL_COLOUR, "s": 40,
        "edgecolors": [_EDGES[below(p)] for p in ranked], "linewidths": 0.9,
        "label": "candidates (red rim: below the hull)" if any(map(below, ranked)) else
        "candidates",
    }  # fmt: skip


def _colour_bar(axes: Any, shown: Any) -> None:
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, extend="max")
    bar.set_label("candidates: energy above hull / eV per atom")


def _label(axes: Any, spot: tuple[float, float], formula: str, side: str) -> None:
    text = re.sub(r"(\d+)", r"$_{\1}$", formula)
    x, y = _SIDES[side]
    axes.annotate(
        text, spot, xytext=(6 * x, 10 * y), textcoords="offset points", fontsize=9, zorder=1.5,
        ha={-1.0: "right", 0.0: "center", 1.0: "left"}[x], va="bottom" if y > 0 else "top",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _phase(hull: Hull, name: str) -> Phase:
    return next(phase for phase in hull.phases if phase.name == name)


def _composition(phase: RankedPhase) -> Composition:
    return Composition(phase.atoms.get_chemical_formula())

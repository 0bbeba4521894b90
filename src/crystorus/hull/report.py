"""The drawing of the hull, and one HTML file with it: table, structures in 3D, denoising."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from markupsafe import Markup
from pymatgen.core import Composition, Element

from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.viewer import element_data, render_page
from crystorus.errors import CampaignError
from crystorus.hull.campaign import trajectory_file
from crystorus.hull.rank import ON_HULL, RankedPhase, Ranking
from crystorus.hull.references import formula_of

SHOWN_EV = 0.5  # eV/atom above hull; higher candidates are left out of triangles and tetrahedra
FULL_COLOUR = 0.2  # eV/atom above hull at which the colour scale ends
REPORT = "report.html"
MAX_STRUCTURES = 400  # of candidates, the best first; a report stays below a few MB
TRAJECTORIES, FRAMES = 8, 48  # shown for the best candidates, and frames of each
_ROOM = 0.08  # length of a label, in edges of the triangle
_SIDES = {"right": (1.0, 0.5), "left": (-1.0, 0.5), "below right": (1.0, -0.5),
          "below left": (-1.0, -0.5), "below": (0.0, -0.7)}  # fmt: skip
_CORNERS = {
    3: np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]]),
    # Seen from a little above, no edge hiding another.
    4: np.array([[0.0, 0.05], [1.0, 0.0], [0.62, 0.38], [0.47, 0.98]]),
}
_COLUMNS = ("name", "formula", "status", "reason", "novelty", "known_id", "start", "origin")


def draw_hull(ranking: Ranking) -> dict[str, bytes]:
    """Draw a curve for two elements, a triangle for three, a tetrahedron for four; no display.

    Every marker is a link to "#name", "#known name" for a known phase, by which the report finds
    it. The same ranking gives the same bytes.

    Returns:
        The drawing by format, "svg" and "png".

    Raises:
        CampaignError: If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CampaignError(
            f"plots need matplotlib ({error}): pip install 'crystorus[hull]', or --no-report"
        ) from error
    drawn = {}
    # Ids of clip paths are random without a salt, and files are dated without being told not to.
    with mpl.rc_context({"svg.hashsalt": "crystorus"}):
        figure = Figure(figsize=(7.5, 6.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        match len(ranking.hull.elements):
            case 2:
                _draw_curve(axes, ranking)
            case 3 | 4:
                _draw_simplex(axes, ranking)
            case _:
                _draw_ladder(axes, ranking)
        system = "-".join(ranking.hull.elements)
        axes.set_title(f"{system}: known phases and candidates", fontsize=12)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, dpi=160, metadata=metadata)
            drawn[ending] = stream.getvalue()
    return drawn


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
    spots = {
        p.name: (p.composition.get_atomic_fraction(second), hull.formation_energy(p))
        for p in hull.phases
    }
    for line in hull.tie_lines:
        axes.plot(
            *zip(*(spots[name] for name in line), strict=True), color="#555", lw=1.2, zorder=1
        )
    _draw_known(axes, spots, size=26)
    ranked = [p for p in ranking.phases if p.formation_energy is not None]
    points = [
        (_composition(p).get_atomic_fraction(second), p.formation_energy or 0.0) for p in ranked
    ]
    _draw_candidates(axes, ranked, points)
    axes.set_ylim(*energy_range([y for _, y in (*spots.values(), *points)]))
    for phase in hull.phases:
        if phase.name in hull.stable:
            _label(axes, spots[phase.name], formula_of(phase.composition), "below")
    axes.set_xlabel(f"fraction of {second.symbol}")
    axes.set_ylabel("formation energy / eV per atom")
    axes.legend(loc="best", frameon=False)


def _draw_simplex(axes: Any, ranking: Ranking) -> None:
    hull, elements = ranking.hull, ranking.hull.elements
    corners = _CORNERS[len(elements)]
    for i in range(len(corners)):
        for j in range(i):
            axes.plot(*corners[[i, j]].T, color="#bbb", lw=1.0, zorder=0)
    spots = {p.name: place(p.composition, elements) for p in hull.phases}
    for line in hull.tie_lines:
        axes.plot(
            *zip(*(spots[name] for name in line), strict=True), color="#555", lw=0.9, zorder=1
        )
    stable = [p for p in hull.phases if p.name in hull.stable]
    _draw_known(axes, {p.name: spots[p.name] for p in stable}, size=80)
    ranked = [
        p
        for p in reversed(ranking.phases)
        if p.e_above_hull is not None and p.e_above_hull < SHOWN_EV
    ]
    points = [place(_composition(p), elements) for p in ranked]
    _draw_candidates(axes, ranked, points)
    taken = [*(spots[p.name] for p in stable), *points]
    for phase in stable:
        spot = spots[phase.name]
        side = free_side(spot, [other for other in taken if other != spot])
        _label(axes, spot, formula_of(phase.composition), side)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.margins(0.08)


def _draw_ladder(axes: Any, ranking: Ranking) -> None:
    """Five elements and more have no picture: energies above hull by rank."""
    ranked = [p for p in ranking.phases if p.e_above_hull is not None]
    heights = [p.e_above_hull for p in ranked]
    dots = axes.scatter(range(1, len(heights) + 1), heights, s=18, c="#2d6a8f")
    dots.set_urls([f"#{p.name}" for p in ranked])
    axes.axhline(0.0, color="#555", lw=1)
    axes.set_xlabel("rank")
    axes.set_ylabel("energy above hull / eV per atom")


def _draw_known(axes: Any, spots: dict[str, tuple[float, float]], *, size: float) -> None:
    places = zip(*spots.values(), strict=True)
    squares = axes.scatter(*places, s=size, c="#222", marker="s", zorder=2, label="known")
    squares.set_urls([f"#known {name}" for name in spots])


def _draw_candidates(
    axes: Any, ranked: Sequence[RankedPhase], points: Sequence[tuple[float, float]]
) -> None:
    if not ranked:
        return
    heights = [p.e_above_hull or 0.0 for p in ranked]
    lower = [height < -ON_HULL for height in heights]
    dots = axes.scatter(
        *zip(*points, strict=True), c=[max(0.0, h) for h in heights], cmap="viridis_r", vmin=0.0,
        vmax=FULL_COLOUR, s=40, edgecolors=["#c8553d" if one else "white" for one in lower],
        linewidths=0.9, zorder=3,
        label="candidates (red rim: below the hull)" if any(lower) else "candidates",
    )  # fmt: skip
    dots.set_urls([f"#{p.name}" for p in ranked])
    bar = axes.figure.colorbar(dots, ax=axes, shrink=0.7, extend="max")
    bar.set_label("candidates: energy above hull / eV per atom")


def _label(axes: Any, spot: tuple[float, float], formula: str, side: str) -> None:
    text = re.sub(r"(\d+)", r"$_{\1}$", formula)
    x, y = _SIDES[side]
    axes.annotate(
        text, spot, xytext=(6 * x, 10 * y), textcoords="offset points", fontsize=9, zorder=1.5,
        ha={-1.0: "right", 0.0: "center", 1.0: "left"}[x], va="bottom" if y > 0 else "top",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _composition(phase: RankedPhase) -> Composition:
    return Composition(phase.atoms.get_chemical_formula())


def write_report(
    folder: Path,
    ranking: Ranking,
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    animate: Sequence[str] = (),
) -> None:
    """Write hull.svg, hull.png and report.html.

    Args:
        folder: Of the campaign, with the denoising trajectories where there are any.
        ranking: What they show.
        settings: Of the campaign.
        versions: Of the programs.
        animate: Names of candidates whose denoising is shown beside that of the best.

    Raises:
        CampaignError: If a candidate named has no trajectory, or matplotlib is not installed.
        FileError: If a file cannot be written.
    """
    hull = ranking.hull
    drawn = draw_hull(ranking)
    known = [
        {
            "name": phase.name,
            "formula": formula_of(phase.composition),
            "e": _rounded(hull.energy_above(phase)),
            "form": _rounded(hull.formation_energy(phase)),
            "stable": hull.energy_above(phase) < ON_HULL,
            "parts": _fractions(phase.composition),
        }
        for phase in hull.phases
    ]
    number_of = {one["name"]: number for number, one in enumerate(known)}
    shown = [p for p in ranking.phases if p.energy_per_atom is not None][:MAX_STRUCTURES]
    data = {
        "elements": list(hull.elements),
        "phases": [_point(phase) for phase in ranking.phases],
        "known": known,
        "lines": [[number_of[a], number_of[b]] for a, b in hull.tie_lines],
        "counts": ranking.counts,
        "structures": {p.name: _structure(p.atoms) for p in shown}
        | {f"known {name}": _structure(a) for name, a in ranking.reference_atoms.items()},
        "trajectories": _trajectories(shown, folder, animate),
        "atoms": element_data(Element(symbol).Z for symbol in hull.elements),
        "settings": settings,
        "versions": versions,
    }
    svg = drawn["svg"].decode()
    page = render_page(
        "hull.html.j2",
        package="crystorus.hull",
        script="hull.js",
        data=data,
        title=f"{'-'.join(hull.elements)}: convex hull",
        svg=Markup(svg[svg.index("<svg") :]),
    )
    with disk_errors(folder):
        for ending, content in drawn.items():
            write_atomic(folder / f"hull.{ending}", content)
        write_atomic(folder / REPORT, page)


def check_trajectories(folder: Path, animate: Sequence[str]) -> None:
    """Make sure that every candidate named has a trajectory.

    Raises:
        CampaignError: Naming the first that has none.
    """
    for name in animate:
        if not trajectory_file(folder, name).is_file():
            raise CampaignError(
                f"--animate {name}: {folder} holds no trajectory of it; name a candidate as the "
                "table does, of a campaign without --no-trajectories"
            )


def _point(phase: RankedPhase) -> dict[str, Any]:
    cells = phase.cells
    return {
        **{key: cells[key] for key in _COLUMNS},
        "held_out": phase.held_out,
        "e": _rounded(phase.e_above_hull),
        "full": _rounded(phase.e_above_full_hull),
        "form": _rounded(phase.formation_energy),
        "group": phase.space_group[0],
        "volume": _rounded(phase.volume_change, 4),
        "found": phase.found,
        "fraction": _rounded(phase.prototype_fraction, 3),
        "atoms": len(phase.atoms),
        "file": cells["file_symmetrised"],
        "parts": _fractions(_composition(phase)),
    }


def _fractions(composition: Composition) -> dict[str, float]:
    return {e.symbol: float(composition.get_atomic_fraction(e)) for e in composition}


def _structure(atoms: Atoms) -> dict[str, Any]:
    return {
        "cell": np.round(atoms.cell.array, 4).tolist(),
        "symbols": atoms.get_chemical_symbols(),
        "frac": np.round(atoms.get_scaled_positions(wrap=True), 4).tolist(),
    }


def _trajectories(
    shown: Sequence[RankedPhase], folder: Path, animate: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return frames from start to crystal of the best candidates and of those named."""
    check_trajectories(folder, animate)
    best = [p.name for p in shown if trajectory_file(folder, p.name).is_file()][:TRAJECTORIES]
    frames_of = {}
    for name in dict.fromkeys([*animate, *best]):
        frames = ase.io.read(trajectory_file(folder, name), index=":")
        chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
        frames_of[name] = [_structure(frames[i]) for i in chosen]
    return frames_of


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(float(value), digits) + 0.0

"""The drawing of the hull, and one HTML file with it: table, structures in 3D, denoising."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from markupsafe import Markup
from pymatgen.core import Composition, Element

from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.options import SYMPREC
from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import cell_of, dataset
from crystal_fidelity.viewer import element_data, render_page, structure_data
from crystorus.errors import CampaignError
from crystorus.hull.campaign import trajectory_file
from crystorus.hull.matching import crystal_of
from crystorus.hull.rank import ON_HULL, Hull, RankedPhase, Ranking
from crystorus.hull.references import formula_of

SHOWN_EV = 0.5  # eV/atom above hull; higher candidates are left out of triangles and tetrahedra
FULL_COLOUR = 0.2  # eV/atom above hull at which the colour scale ends
REPORT = "report.html"
MAX_STRUCTURES = 400  # of candidates, the best first; a report stays below a few MB
SHOWN_COLUMNS = (
    ("rank", "#", "number"), ("formula", "formula", "formula"),
    ("e_above_hull", "above hull / eV/atom", "ev"),
    ("e_above_lowest", "above lowest / eV/atom", "ev"), ("space_group", "space group", "group"),
    ("novelty", "novelty", "text"), ("known_id", "known as", "text"),
    ("held_out_id", "held-out phase", "text"), ("found", "found", "number"),
    ("lowest_phonon", "lowest mode at Γ / THz", "decimal"),
    ("imaginary_phonons", "imaginary modes", "number"),
    ("energy_per_atom", "E / eV/atom", "ev"), ("volume_per_atom", "V / Å³/atom", "decimal"),
    ("a", "a / Å", "decimal"), ("b", "b / Å", "decimal"), ("c", "c / Å", "decimal"),
    ("alpha", "α / °", "angle"),
    ("beta", "β / °", "angle"), ("gamma", "γ / °", "angle"),
    ("formation_energy", "formation / eV/atom", "ev"),
    ("e_above_full_hull", "above hull with candidates / eV/atom", "ev"),
    ("volume_change", "volume by relaxation", "percent"), ("start", "start", "text"),
    ("prototype_fraction", "prototype fraction", "fraction"), ("origin", "origin", "text"),
    ("n_atoms", "atoms", "number"), ("status", "status", "text"), ("reason", "remark", "text"),
    ("name", "name", "text"), ("file_symmetrised", "file", "text"),
)  # fmt: skip
TRAJECTORIES, FRAMES = 8, 48  # shown for the best candidates, and frames of each
_SIDES = ((0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (1, 0), (-1, 0))
"""Of a spot, on which a label can stand, the first preferred."""
_GAP = 7.0  # points between a spot and its label
_NEW = "#c8553d"  # what lies below the hull of known phases, and the hull that it makes
_CORNERS = {
    3: np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]]),
    # Seen from a little above, no edge hiding another.
    4: np.array([[0.0, 0.05], [1.0, 0.0], [0.62, 0.38], [0.47, 0.98]]),
}


def draw_hull(hull: Hull, full: Hull, phases: Sequence[RankedPhase]) -> dict[str, bytes]:
    """Draw a curve for two elements, a triangle for three, a tetrahedron for four; no display.

    Lines are those of the hull of known phases; dashed are those that candidates add. Stable
    phases of both hulls have a label where there is room for it.

    Every marker is a link to "#name", "#known name" for a known phase, by which the report finds
    it. The same ranking gives the same bytes.

    Args:
        hull: Of the known phases.
        full: Of known phases and candidates.
        phases: The candidates.

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
        match len(hull.elements):
            case 2:
                _draw_curve(axes, hull, full, phases)
            case 3 | 4:
                _draw_simplex(axes, hull, full, phases)
            case _:
                _draw_ladder(axes, phases)
        system = "-".join(hull.elements)
        axes.set_title(f"{system}: known phases and candidates", fontsize=12)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, dpi=160, metadata=metadata)
            drawn[ending] = stream.getvalue()
    return drawn


def place(composition: Composition, elements: Sequence[str]) -> tuple[float, float]:
    """Return where a composition is in the triangle or tetrahedron.

    Args:
        composition: Of a phase.
        elements: Symbols of the system, three or four.
    """
    fractions = [composition.get_atomic_fraction(Element(symbol)) for symbol in elements]
    x, y = np.array(fractions) @ _CORNERS[len(elements)]
    return float(x), float(y)


def energy_range(heights: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis of formation energies in eV/atom; what is far above is cut.

    Args:
        heights: Formation energies, eV/atom.
    """
    shown = [y for y in heights if y < SHOWN_EV]
    low, high = min(0.0, *shown), max(0.0, *shown)
    high = max(high, low + 0.05)
    return low - 0.12 * (high - low), high + 0.08 * (high - low)


def _draw_curve(axes: Any, hull: Hull, full: Hull, phases: Sequence[RankedPhase]) -> None:
    second = Element(hull.elements[1])
    spots = {
        p.name: (p.composition.get_atomic_fraction(second), hull.formation_energy(p))
        for p in full.phases
    }
    known = {p.name: spots[p.name] for p in hull.phases}
    ranked = [p for p in phases if p.formation_energy is not None]
    lines = _draw_lines(axes, hull, full, spots)
    _draw_known(axes, known, size=26)
    _draw_candidates(axes, ranked, [spots[p.name] for p in ranked])
    axes.set_ylim(*energy_range([y for _, y in spots.values()]))
    axes.set_xlabel(f"fraction of {second.symbol}")
    axes.set_ylabel("formation energy / eV per atom")
    axes.legend(loc="best", frameon=False)
    label_stable(axes, hull, full, spots, lines)


def _draw_simplex(axes: Any, hull: Hull, full: Hull, phases: Sequence[RankedPhase]) -> None:
    elements = hull.elements
    corners = _CORNERS[len(elements)]
    for i in range(len(corners)):
        for j in range(i):
            axes.plot(*corners[[i, j]].T, color="#bbb", lw=1.0, zorder=0)
    ranked = [
        p for p in reversed(phases) if p.e_above_hull is not None and p.e_above_hull < SHOWN_EV
    ]
    shown = {*hull.stable, *full.stable, *(p.name for p in ranked)}
    spots = {p.name: place(p.composition, elements) for p in full.phases if p.name in shown}
    lines = _draw_lines(axes, hull, full, spots)
    _draw_known(axes, {name: spots[name] for name in hull.stable}, size=80)
    _draw_candidates(axes, ranked, [spots[p.name] for p in ranked])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.margins(0.08)
    label_stable(axes, hull, full, spots, lines)


def _draw_ladder(axes: Any, phases: Sequence[RankedPhase]) -> None:
    """Five elements and more have no picture: energies above hull by rank."""
    ranked = [p for p in phases if p.e_above_hull is not None]
    heights = [p.e_above_hull for p in ranked]
    dots = axes.scatter(range(1, len(heights) + 1), heights, s=18, c="#2d6a8f")
    dots.set_urls([f"#{p.name}" for p in ranked])
    axes.axhline(0.0, color="#555", lw=1)
    axes.set_xlabel("rank")
    axes.set_ylabel("energy above hull / eV per atom")


Spot = tuple[float, float]
Line = tuple[Spot, Spot]


def _draw_lines(axes: Any, hull: Hull, full: Hull, spots: Mapping[str, Spot]) -> list[Line]:
    """Draw the edges of the hull, dashed those that candidates add; return all of them."""
    old = [(spots[a], spots[b]) for a, b in hull.tie_lines]
    new = sorted({(spots[a], spots[b]) for a, b in full.tie_lines} - set(old))
    for number, ends in enumerate(new):
        axes.plot(*zip(*ends, strict=True), color=_NEW, lw=0.9, ls="--", zorder=0.9,
                  label=None if number else "hull with candidates")  # fmt: skip
    for ends in old:
        axes.plot(*zip(*ends, strict=True), color="#555", lw=1.0, zorder=1)
    return old + new


def _draw_known(axes: Any, spots: Mapping[str, Spot], *, size: float) -> None:
    places = zip(*spots.values(), strict=True)
    squares = axes.scatter(*places, s=size, c="#222", marker="s", zorder=2, label="known")
    squares.set_urls([f"#known {name}" for name in spots])


def _draw_candidates(axes: Any, ranked: Sequence[RankedPhase], points: Sequence[Spot]) -> None:
    if not ranked:
        return
    heights = [p.e_above_hull or 0.0 for p in ranked]
    lower = [height < -ON_HULL for height in heights]
    dots = axes.scatter(
        *zip(*points, strict=True), c=[max(0.0, h) for h in heights], cmap="viridis_r", vmin=0.0,
        vmax=FULL_COLOUR, s=40, edgecolors=[_NEW if one else "white" for one in lower],
        linewidths=0.9, zorder=3,
    )  # fmt: skip
    dots.set_urls([f"#{p.name}" for p in ranked])
    bar = axes.figure.colorbar(dots, ax=axes, shrink=0.7, extend="max")
    bar.set_label("candidates: energy above hull / eV per atom")
    for rim, label in (("#999", "candidate"), (_NEW, "candidate below the hull")):
        if rim != _NEW or any(lower):
            axes.scatter([], [], s=40, c="white", edgecolors=rim, linewidths=0.9, label=label)


def label_stable(
    axes: Any, hull: Hull, full: Hull, spots: Mapping[str, Spot], lines: Sequence[Line]
) -> None:
    """Write formulas beside stable phases, off other labels, markers and lines where that goes.

    A label for which there is no room beside other labels and markers is left out.

    Args:
        axes: Of matplotlib.
        hull: Of the known phases.
        full: With the candidates.
        spots: Where each phase is drawn, by its name.
        lines: What labels keep off.
    """
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()  # so that everything else has its place
    renderer, to_pixels = figure.canvas.get_renderer(), axes.transData.transform
    point = figure.dpi / 72
    markers = to_pixels(list(spots.values()))
    drawn = [Outline(to_pixels(ends)) for ends in lines]
    taken = [axes.get_legend().get_window_extent(renderer)]
    stable = [p for p in full.phases if p.name in {*hull.stable, *full.stable}]
    for formula, spot in dict.fromkeys((formula_of(p.composition), spots[p.name]) for p in stable):
        text = axes.annotate(
            re.sub(r"(\d+)", r"$_{\1}$", formula), spot, xytext=(0, 0), ha="center", va="center",
            textcoords="offset points", fontsize=9, zorder=1.5, in_layout=False,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        size = np.array(text.get_window_extent(renderer).size)
        choices = []
        for rank, side in enumerate(_SIDES):
            reach = np.array(side) * (size / 2 + _GAP * point / np.hypot(*side))
            centre = to_pixels(spot) + reach
            box = Bbox([centre - size / 2, centre + size / 2])
            covered = sum(box.overlaps(other) for other in taken)
            covered += sum(box.contains(*marker) for marker in markers)
            near = sum(box.padded(3 * point).contains(*marker) for marker in markers)
            crossed = sum(outline.intersects_bbox(box, filled=False) for outline in drawn)
            outside = not figure.bbox.contains(*box.min) or not figure.bbox.contains(*box.max)
            price = 100 * (covered + outside) + 3 * near + crossed
            choices.append((price, rank, tuple(reach / point), box))
        price, _, offset, box = min(choices, key=lambda choice: choice[:2])
        if price >= 100:
            text.remove()
        else:
            text.set_position(offset)
            taken.append(box)


def write_report(
    folder: Path,
    ranking: Ranking,
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    animate: Sequence[str] = (),
) -> None:
    """Write report.html, and where there is a hull hull.svg and hull.png.

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
    check_trajectories(folder, animate)
    hull, drawn, known, lines = ranking.hull, {}, [], []
    notes = [f"Energies: {settings.get('level', 'of the references')}."]
    title = ", ".join(dict.fromkeys(p.formula for p in ranking.phases))
    if hull is not None and ranking.full_hull is not None:
        drawn = draw_hull(hull, ranking.full_hull, ranking.phases)
        notes[0] += (
            " Energies above hull are relative to the hull of the known phases: negative means "
            "below it."
        )
        title = f"{'-'.join(hull.elements)}: convex hull"
        known = [
            {
                "key": f"known {phase.name}",
                "name": phase.name,
                "formula": formula_of(phase.composition),
                "e_above_hull": _rounded(hull.energy_above(phase)),
                "stable": phase.name in hull.stable,
                "parts": _fractions(phase.composition),
            }
            for phase in hull.phases
        ]
        number_of = {one["name"]: number for number, one in enumerate(known)}
        lines = [[number_of[a], number_of[b]] for a, b in hull.tie_lines]
    shown = [p for p in ranking.phases if p.energy_per_atom is not None][:MAX_STRUCTURES]
    named = {p.name: p.atoms for p in shown}
    named |= {f"known {name}": atoms for name, atoms in ranking.reference_atoms.items()}
    counts = {name: n for name, n in ranking.counts.items() if n or name != "waiting"}
    if not ranking.counts.get("held-out phases"):
        counts = {name: n for name, n in counts.items() if not name.startswith("held-out")}
    svg = drawn["svg"].decode() if drawn else ""
    page = results_page(
        title,
        [_row(rank, phase) for rank, phase in enumerate(ranking.phases, start=1)],
        SHOWN_COLUMNS,
        {name: crystal_of(atoms) for name, atoms in named.items()},
        svg=svg[svg.find("<svg") :] if svg else "",
        heading="Phases",
        notes=notes,
        known=known,
        lines=lines,
        elements=hull.elements if hull else (),
        counts=counts,
        trajectories=_trajectories(shown, folder, animate),
        settings=settings,
        versions=versions,
    )
    with disk_errors(folder):
        for ending, content in drawn.items():
            write_atomic(folder / f"hull.{ending}", content)
        write_atomic(folder / REPORT, page)


def results_page(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, str, str]],
    crystals: Mapping[str, Crystal],
    *,
    svg: str = "",
    heading: str = "Crystals",
    notes: Sequence[str] = (),
    known: Sequence[Mapping[str, Any]] = (),
    lines: Sequence[Sequence[int]] = (),
    elements: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
    trajectories: Mapping[str, Sequence[Crystal]] | None = None,
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the page that shows results: a table, structures in 3D, their denoising, a hull.

    Args:
        title: Headline.
        rows: Of the table, by column; each has a "name" of its own, "formula", and
            "failed" if it is shown in grey.
        columns: Key, label and form of each: "text", "formula", "group" (of space), "number",
            "ev" (eV/atom, signed), "decimal" (three places), "angle" (degrees), "fraction" (per
            cent) or "percent" (signed). Those without any value are left out.
        crystals: By the name of their row; at most some hundred.
        svg: Drawing of the hull.
        heading: Of the table.
        notes: Lines below the headline.
        known: Phases of the hull: "key", "name", "formula", "e_above_hull", "stable" and
            "parts", the atomic fraction of each element.
        lines: Pairs of numbers of known phases that coexist.
        elements: Of the hull.
        counts: Figures below the headline.
        trajectories: From start to crystal, by the name of their row.
        settings: Shown as they are.
        versions: Of the programs.
    """
    used = [
        c for c in columns if any(row.get(c[0]) is not None and row[c[0]] != "" for row in rows)
    ]
    numbers = {int(z) for crystal in crystals.values() for z in crystal.atomic_numbers}
    data = {
        "rows": rows,
        "columns": used,
        "known": known,
        "lines": lines,
        "elements": list(elements),
        "counts": counts or {},
        "structures": {name: _with_conventional(crystal) for name, crystal in crystals.items()},
        "trajectories": {
            name: [structure_data(frame) for frame in frames]
            for name, frames in (trajectories or {}).items()
        },
        "atoms": element_data(numbers),
        "settings": settings or {},
        "versions": versions or {},
    }
    return render_page(
        "results.html.j2", package="crystorus.hull", script="results.js", data=data, title=title,
        svg=Markup(svg), heading=heading, notes=notes,
    )  # fmt: skip


def _with_conventional(crystal: Crystal) -> dict[str, Any]:
    data = dataset(crystal, SYMPREC)
    conventional = None if data is None else structure_data(cell_of(data.std_cell))
    return structure_data(crystal) | ({"conventional": conventional} if conventional else {})


def check_trajectories(folder: Path, animate: Sequence[str]) -> None:
    """Make sure that every candidate named has a trajectory.

    Args:
        folder: Of the campaign.
        animate: Names of candidates.

    Raises:
        CampaignError: Naming the first that has none.
    """
    for name in animate:
        if not trajectory_file(folder, name).is_file():
            raise CampaignError(
                f"--animate {name}: {folder} holds no trajectory of it; name a candidate as the "
                "table does, of a campaign without --no-trajectories"
            )


def _row(rank: int, phase: RankedPhase) -> dict[str, Any]:
    rounded = {k: _rounded(v) if isinstance(v, float) else v for k, v in phase.record.items()}
    parts = _fractions(Composition(phase.atoms.get_chemical_formula()))
    return {**rounded, "rank": rank, "parts": parts, "failed": phase.energy_per_atom is None}


def _fractions(composition: Composition) -> dict[str, float]:
    return {e.symbol: float(composition.get_atomic_fraction(e)) for e in composition}


def _trajectories(
    shown: Sequence[RankedPhase], folder: Path, animate: Sequence[str]
) -> dict[str, list[Crystal]]:
    """Return frames from start to crystal of the best candidates and of those named."""
    best = [p.name for p in shown if trajectory_file(folder, p.name).is_file()][:TRAJECTORIES]
    names = dict.fromkeys([*animate, *best])
    return {name: read_trajectory(trajectory_file(folder, name)) for name in names}


def read_trajectory(path: Path) -> list[Crystal]:
    """Read a denoising trajectory: at most `FRAMES` of it, the first and the last among them.

    Args:
        path: An extxyz file.
    """
    frames = ase.io.read(path, index=":")
    chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    return [crystal_of(frames[i]) for i in chosen]


def _rounded(value: float) -> float:
    return round(float(value), 5) + 0.0

"""Crystals drawn as chemists expect them (Figures 1 and 2): cell, atoms, bonds, depth, names.

Elements have Jmol's colours and covalent radii; bodies are painted from the back to the front,
so that the nearer hide the farther, also in SVG.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from crystorus.reproduction.portraits import DrawnAtoms, Portrait, bonds, complete, upright

AZIMUTH, ELEVATION = np.radians(21.0), np.radians(13.0)
"""Where the eye is: a comes towards it, to the lower left; b points right, c up."""

RADIUS = 0.42
"""Drawn radius in covalent radii."""

BOND_RADIUS = 0.09
"""Å."""

FOG = 0.45
"""Share of white in what is farthest from the eye."""

WIDTH = 7.0
"""Inches, a printed page between its margins."""

_LIGHT = np.array([-0.30, 0.36])
_HALO = np.linspace(0.0, 1.0, 10)
_CIRCLE = Outline.unit_circle()
_EDGE = np.array([0.45, 0.47, 0.50])
_EDGE_PIECES = 20
_INK = "#222222"


@dataclass(frozen=True)
class Gallery:
    """Crystals in rows: the same place in every row is the same composition.

    Attributes:
        names: Name of every row, such as "generated".
        rows: As many crystals in every row.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[Portrait, ...], ...]


@dataclass(frozen=True, eq=False)
class _Body:
    """One painted shape: an outline in Å on the screen, and how far from the eye it is."""

    depth: float
    outline: Outline
    face: Any
    line: Any
    width: float


@dataclass(frozen=True, eq=False)
class _Scene:
    """The shapes of a crystal, farthest first, and the corners of what they cover, in Å."""

    bodies: list[_Body]
    low: np.ndarray
    high: np.ndarray


def draw_gallery(gallery: Gallery, *, columns: int = 5) -> Figure:
    """Draw rows of crystals below each other, at most `columns` beside each other.

    The crystals of a composition share one scale. Under each stands its space group, under a
    composition which colour is which element, and at the bottom the tolerance of the groups.

    Raises:
        ValueError: If there is nothing to draw or the rows are not equally long.
    """
    lengths = {len(row) for row in gallery.rows}
    if len(lengths) != 1 or len(gallery.rows) != len(gallery.names) or 0 in lengths:
        raise ValueError(
            f"{len(gallery.names)} names for rows of {sorted(lengths)} crystals: give one name a "
            "row, and equally many crystals, 1 or more"
        )
    (count,) = lengths
    columns = min(columns, count)
    margin, side = 0.26, (WIDTH - 0.26) / columns
    scenes = [[_scene(row[index]) for row in gallery.rows] for index in range(count)]
    panel = min(side, 2.2) * float(np.clip(max(map(_slimness, scenes)) * 0.98, 0.7, 1.25))
    block = 0.27 + len(gallery.rows) * (panel + 0.19) + 0.27
    blocks = -(-count // columns)
    height = blocks * block + 0.22
    figure = _figure(WIDTH, height)
    for index in range(count):
        line, column = divmod(index, columns)
        left, top = margin + (column + 0.5) * side, height - line * block
        crystals = [row[index] for row in gallery.rows]
        _draw_column(figure, crystals, scenes[index], left, top, (side, panel))
        if column == 0:
            for row, name in enumerate(gallery.names):
                middle = top - 0.27 - row * (panel + 0.19) - panel / 2
                _text(figure, 0.12, middle, name, size=8, rotation=90, va="center")
    tolerances = sorted({p.symprec for row in gallery.rows for p in row})
    note = " or ".join(f"{t:g}" for t in tolerances)
    _text(figure, WIDTH / 2, 0.08, f"space groups found within {note} Å", size=6.5, colour="#555")
    return figure


def draw_crystal(drawn: Portrait, *, inches: float = 2.5) -> Figure:
    """Draw one crystal with its name, its space group and its elements."""
    scene = _scene(drawn)
    panel = inches * min(_slimness([scene]), 1.25)
    figure = _figure(inches, panel + 0.75)
    _draw_column(figure, [drawn], [scene], inches / 2, panel + 0.75, (inches, panel))
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.png and `stem`.svg; the same figure gives the same bytes.

    Raises:
        OSError: If they cannot be written.
    """
    from matplotlib import rc_context

    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with rc_context({"svg.hashsalt": "crystorus", "svg.fonttype": "path"}):
        figure.savefig(paths[0], dpi=220, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def formula_text(formula: str) -> str:
    """Return a formula with its counts lowered, as mathtext: LiFeO2 → LiFeO$_{2}$."""
    return re.sub(r"(\d+)", r"$_{\1}$", formula)


def group_text(symbol: str) -> str:
    """Return a space-group symbol as it is printed, as mathtext: P6_3/mmc, Fm-3m with a bar."""
    barred = re.sub(r"-(\d)", r"\\bar{\1}", symbol)
    return "$" + re.sub(r"_(\d)", r"_{\1}", barred) + "$"


def _draw_column(
    figure: Figure,
    crystals: Sequence[Portrait],
    scenes: Sequence[_Scene],
    middle: float,
    top: float,
    size: tuple[float, float],
) -> None:
    """Draw crystals of one composition below each other; all lengths in inches."""
    side, panel = size
    formulas = list(dict.fromkeys(p.formula for p in crystals))
    _text(figure, middle, top - 0.16, formula_text(formulas[0]), size=9, weight="bold")
    wide, tall = _extent(scenes)
    scale = max(wide / (0.94 * side), tall / (0.96 * panel))  # Å per inch
    for row, (drawn, scene) in enumerate(zip(crystals, scenes, strict=True)):
        bottom = top - 0.27 - (row + 1) * panel - row * 0.19
        axes = _axes(figure, middle - side / 2, bottom, side, panel)
        centre, half = (scene.low + scene.high) / 2, scale * np.array([side, panel]) / 2
        axes.set_xlim(centre[0] - half[0], centre[0] + half[0])
        axes.set_ylim(centre[1] - half[1], centre[1] + half[1])
        axes.add_collection(_painted(scene.bodies))
        label = group_text(drawn.symbol)
        if drawn.formula != formulas[0]:
            label = f"{formula_text(drawn.formula)}, {label}"
        _text(figure, middle, bottom - 0.10, label, size=7.5)
    symbols = dict.fromkeys(s for text in formulas for s in re.findall(r"[A-Z][a-z]?", text))
    elements = [chemical_symbols.index(s) for s in symbols]
    _draw_key(figure, elements, middle, top - 0.27 - len(crystals) * (panel + 0.19) - 0.08)


def _draw_key(figure: Figure, elements: Sequence[int], middle: float, height: float) -> None:
    """Name the colours: a ball and a symbol per element, centred."""
    step, ball = 0.30, 0.045
    start = middle - step * len(elements) / 2
    for place, z in enumerate(elements):
        x = start + place * step
        axes = _axes(figure, x, height - 0.06, 0.12, 0.12)
        axes.set_xlim(-0.06, 0.06)
        axes.set_ylim(-0.06, 0.06)
        axes.add_collection(_painted(_ball(np.zeros(3), ball, jmol_colors[z], 0.0, 0.4)))
        _text(
            figure, x + 0.125, height, chemical_symbols[z], size=7, ha="left", va="center_baseline"
        )


def _scene(drawn: Portrait) -> _Scene:
    """Return all shapes of a crystal."""
    lattice, atoms = upright(np.array(drawn.lattice)), complete(drawn)
    seen = atoms.positions @ _camera().T  # right, up, towards the eye
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners = corners @ lattice.T @ _camera().T
    near = max(corners[:, 2].max(), seen[:, 2].max())
    far = min(corners[:, 2].min(), seen[:, 2].min())

    def fog(depth: float) -> float:
        return FOG * (near - depth) / max(near - far, 1e-6)

    radii = RADIUS * covalent_radii[atoms.atomic_numbers]
    shapes = _edges(corners, fog, seen, radii) + _sticks(atoms, seen, fog)
    for place, radius, z in zip(seen, radii, atoms.atomic_numbers, strict=True):
        shapes += _ball(place, radius, jmol_colors[z], fog(place[2]), 0.45)
    low = np.minimum(corners[:, :2].min(0), (seen[:, :2] - radii[:, None]).min(0))
    high = np.maximum(corners[:, :2].max(0), (seen[:, :2] + radii[:, None]).max(0))
    return _Scene(sorted(shapes, key=lambda shape: shape.depth), low, high)


def _camera() -> np.ndarray:
    """Return the rows right, up and towards the eye."""
    a, e = AZIMUTH, ELEVATION
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return np.array([right, up, np.cross(right, up)])


def _ball(place: np.ndarray, radius: float, colour: Any, fog: float, width: float) -> list[_Body]:
    """Shade a sphere: discs that shrink towards the light."""
    colour, shapes = np.asarray(colour, float), []
    for number, step in enumerate(_HALO):
        shade = 0.72 * colour * (1 - step) + step * colour if step < 0.5 else colour
        bright = max(0.0, step - 0.35) * 0.95
        face = _fogged(shade + (1 - shade) * bright**1.3, fog)
        centre = place[:2] + _LIGHT * radius * step
        disc = Outline(centre + radius * (1 - 0.86 * step) * _CIRCLE.vertices, _CIRCLE.codes)
        line = _fogged(0.35 * colour, fog) if number == 0 else None
        # Discs of one ball follow each other: no other body comes between them.
        shapes.append(
            _Body(place[2] + 1e-9 * number, disc, face, line, width if line is not None else 0)
        )
    return shapes


def _sticks(atoms: DrawnAtoms, seen: np.ndarray, fog: Any) -> list[_Body]:
    """Draw every bond as two halves in the colours of their atoms."""
    shapes = []
    for i, j in bonds(atoms):
        for here, there in ((i, j), (j, i)):
            z = atoms.atomic_numbers[here]
            along = seen[there] - seen[here]
            length = float(np.linalg.norm(along))
            # Starts where the stick leaves the ball, so that its depth is its own.
            inside = 0.9 * RADIUS * float(covalent_radii[z])
            start = seen[here] + along * min(0.45, inside / length)
            end = seen[here] + along / 2
            across = np.array([-along[1], along[0]])
            across *= BOND_RADIUS / max(float(np.linalg.norm(across)), 1e-9)
            colour = 0.86 * np.asarray(jmol_colors[z], float)
            depth = (start[2] + end[2]) / 2
            shapes += _stick(start[:2], end[:2], across, colour, depth, fog(depth))
    return shapes


def _stick(
    start: np.ndarray,
    end: np.ndarray,
    across: np.ndarray,
    colour: np.ndarray,
    depth: float,
    fog: float,
) -> list[_Body]:
    """Shade a cylinder: a dark strip, and a lighter one along its lit side."""
    dark, light = _fogged(0.75 * colour, fog), _fogged(colour + (1 - colour) * 0.25, fog)
    whole = _strip(start - across, start + across, end + across, end - across)
    side = across if across @ _LIGHT > 0 else -across
    lit = _strip(start - 0.3 * side, start + 0.7 * side, end + 0.7 * side, end - 0.3 * side)
    return [
        _Body(depth, whole, dark, _fogged(0.35 * colour, fog), 0.25),
        _Body(depth + 1e-9, lit, light, None, 0),
    ]


def _edges(corners: np.ndarray, fog: Any, places: np.ndarray, radii: np.ndarray) -> list[_Body]:
    """Draw the twelve edges outside the atoms in pieces, each at its own depth."""
    shapes = []
    for i in range(8):
        for bit in (1, 2, 4):
            if i & bit:
                continue
            points = np.linspace(corners[i], corners[i | bit], _EDGE_PIECES + 1)
            for start, end in pairwise(points):
                if (np.linalg.norm(places - (start + end) / 2, axis=1) < radii).any():
                    continue
                depth = float((start[2] + end[2]) / 2)
                line = Outline([start[:2], end[:2]])
                shapes.append(_Body(depth, line, None, _fogged(_EDGE, fog(depth)), 0.8))
    return shapes


def _strip(*points: np.ndarray) -> Outline:
    return Outline([*points, points[0]], closed=True)


def _fogged(colour: Any, fog: float) -> np.ndarray:
    return np.clip(np.asarray(colour) * (1 - fog) + fog, 0, 1)


def _extent(scenes: Sequence[_Scene]) -> tuple[float, float]:
    """Return the largest width and the largest height of some scenes."""
    wide, tall = np.max([scene.high - scene.low for scene in scenes], axis=0)
    return float(wide), float(tall)


def _slimness(scenes: Sequence[_Scene]) -> float:
    """Return height over width of what holds all scenes."""
    wide, tall = _extent(scenes)
    return tall / wide


def _painted(bodies: Sequence[_Body]) -> PathCollection:
    """Return one collection that paints the shapes in order."""
    none = (0.0, 0.0, 0.0, 0.0)
    return PathCollection(
        [b.outline for b in bodies],
        facecolors=[none if b.face is None else (*b.face, 1.0) for b in bodies],
        edgecolors=[none if b.line is None else (*b.line, 1.0) for b in bodies],
        linewidths=[b.width for b in bodies],
        capstyle="round",
    )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Return bare axes at a place given in inches."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.axis("off")
    return axes


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    colour: str = _INK,
    ha: str = "center",
    va: str = "center",
    weight: str = "normal",
    rotation: float = 0,
) -> None:
    w, h = figure.get_size_inches()
    figure.text(
        x / w, y / h, text, fontsize=size, color=colour, ha=ha, va=va, fontweight=weight,
        rotation=rotation,
    )  # fmt: skip

"""Plots as SVG text by matplotlib: histograms of several sets, curves with errors, grouped bars.

The same numbers give the same text: identifiers come from a fixed salt, and no date is written.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes

COLORS = ("#c8553d", "#2d6a8f", "#5b8e4a", "#8a5a9e", "#b08a2e", "#444444")
SIZE = (6.0, 3.4)
"""Inches."""
MAX_BINS = 80
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "crystal-fidelity",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points with symmetric errors."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None


class Plot:
    """One plot while it is drawn, and then its text."""

    axes: "Axes"
    svg = Markup()


@contextmanager
def _plot(title: str, x_label: str, y_label: str) -> Iterator[Plot]:
    import matplotlib
    from matplotlib.figure import Figure

    made = Plot()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        made.axes = figure.subplots()
        made.axes.set_prop_cycle(color=COLORS)
        made.axes.set_title(title, loc="left", fontweight="bold")
        made.axes.set_xlabel(x_label)
        made.axes.set_ylabel(y_label)
        yield made
        if not made.axes.has_data():
            made.axes.text(0.5, 0.5, "no values", transform=made.axes.transAxes, ha="center")
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = buffer.getvalue()
    made.svg = Markup(text[text.index("<svg") :])


def binned(samples: Sequence[Array], limit: float | None = None) -> tuple[Array, list[Array]]:
    """Return edges and normalised heights over the 0.5 to 99.5 % range of all finite values.

    Values outside the range fall into the outermost bins.

    Args:
        samples: One or more, each (n,); values that are not finite are left out.
        limit: A value that the range must hold.

    Returns:
        (bins + 1,) edges, and (bins,) heights of each sample, whose area is 1; none without values.
    """
    finite = [np.asarray(v, dtype=np.float64)[np.isfinite(v)] for v in samples]
    together = np.concatenate(finite)
    if len(together) == 0:
        return np.empty(0), []
    low, high = np.percentile(together, [0.5, 99.5])
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    smallest = min(len(v) for v in finite if len(v))
    edges = np.linspace(low, high, int(np.clip(2 * np.sqrt(smallest), 12, MAX_BINS)) + 1)
    counts = [np.histogram(np.clip(v, low, high), edges)[0] for v in finite]
    sizes = [max(1, len(v)) * (edges[1] - edges[0]) for v in finite]
    return edges, [count / size for count, size in zip(counts, sizes, strict=True)]


def histogram(
    series: Sequence[tuple[str, Array]], *, title: str, x_label: str, limit: float | None = None
) -> Markup:
    """Return overlaid normalised histograms, see `binned`.

    Args:
        series: Label and (n,) values of each set.
        title: Of the plot.
        x_label: Quantity and unit.
        limit: Where to draw a dashed line.
    """
    edges, heights = binned([values for _, values in series], limit)
    with _plot(title, x_label, "density of structures") as plot:
        for (label, values), height, color in zip(series, heights, COLORS, strict=False):
            text = f"{label} (n = {np.isfinite(values).sum()})"
            plot.axes.stairs(height, edges, fill=True, alpha=0.16, color=color)
            plot.axes.stairs(height, edges, color=color, linewidth=1.3, label=text)
        if heights:
            plot.axes.set_ylim(bottom=0)
            plot.axes.legend()
            if limit is not None:
                plot.axes.axvline(limit, color="#222", linestyle="--", linewidth=0.9)
    return plot.svg


def curves(
    series: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """Return curves with error bars; on a logarithmic axis values <= 0 are left out.

    Args:
        series: The curves, of any length.
        title: Of the plot.
        x_label: Quantity and unit.
        y_label: Quantity and unit.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
    """
    with _plot(title, x_label, y_label) as plot:
        for curve in series:
            x, y = np.array(curve.x, float), np.array(curve.y, float)
            errors = [0.0 if e is None else e for e in curve.error or [0.0] * len(x)]
            kept = np.isfinite(y) & ~((log_x & (x <= 0)) | (log_y & (y <= 0)))
            if kept.any():
                bars = np.nan_to_num(errors)[kept]
                plot.axes.errorbar(x[kept], y[kept], bars, marker="o", ms=3.5, label=curve.label)
        if log_x:
            plot.axes.set_xscale("log")
        if log_y:
            plot.axes.set_yscale("log")
        if plot.axes.has_data() and len(series) > 1:
            plot.axes.legend()
    return plot.svg


def bars(
    labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], title: str
) -> Markup:
    """Return grouped bars of fractions of structures.

    Args:
        labels: Space groups.
        series: Label of each set and its fractions, one per space group.
        title: Of the plot.
    """
    width, places = 0.8 / len(series), np.arange(len(labels))
    with _plot(title, "space group", "fraction of structures") as plot:
        for k, (name, values) in enumerate(series if labels else ()):
            shift = (k - (len(series) - 1) / 2) * width
            plot.axes.bar(places + shift, values, width, color=COLORS[k % len(COLORS)], label=name)
        if labels:
            plot.axes.set_xticks(places, labels)
            plot.axes.legend()
    return plot.svg


def draw_crystal(
    axes: "Axes",
    atoms: "Atoms",
    *,
    tilt: tuple[float, float] = (15.0, 12.0),
    bonds: bool = True,
) -> None:
    """Draw one cell of a crystal: c up, the face of a and c towards the reader.

    Atoms on faces, edges and corners are drawn on all of them. Spheres have 0.4 of the covalent
    radius in the colours of Jmol; bonds join different elements closer than 1.15 times the sum of
    their covalent radii and than 1.2 times the nearest neighbour of one of them.

    Args:
        axes: Where to; its frame is taken off.
        atoms: Periodic in three directions.
        tilt: Degrees by which the crystal is turned about the vertical, and then to show its top.
        bonds: Whether they are drawn.

    Examples:
        >>> from ase.build import bulk
        >>> from matplotlib.figure import Figure
        >>> figure = Figure(figsize=(2, 2))
        >>> draw_crystal(figure.subplots(), bulk("NaCl", "rocksalt", a=5.64, cubic=True))
        >>> figure.savefig("salt.svg")
    """
    from ase.cell import Cell
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.patches import Circle
    from scipy.spatial.transform import Rotation

    turn, down = np.radians(tilt)
    turned = Rotation.from_euler("z", -turn) * Rotation.from_euler("x", down)
    # Right, into the page, up, of a standard cell: a along x, b in the plane of x and y.
    frame = Cell(np.asarray(atoms.cell)).standard_form()[0].array @ turned.as_matrix()
    corners = np.indices((2, 2, 2)).reshape(3, -1).T
    scaled = atoms.get_scaled_positions() % 1
    edge = 0.02  # of the cell's vectors: atoms so near a face are on it, and on the one across
    images = np.where(scaled > 1 - edge, scaled - 1, scaled)[:, None] + corners
    inside = (images < 1 + edge).all(axis=2)
    drawn, numbers = images[inside], np.broadcast_to(atoms.numbers[:, None], inside.shape)[inside]
    places = (drawn - 0.5) @ frame
    radii = covalent_radii[numbers]
    for start in corners:
        for axis in range(3):
            if not start[axis]:
                edge = (np.array([start, start + np.eye(3)[axis]]) - 0.5) @ frame
                axes.plot(edge[:, 0], edge[:, 2], color="#999", lw=0.7, zorder=-1000)
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    others = numbers[:, None] != numbers
    nearest = np.where(others, apart, np.inf).min(axis=1)
    touching = apart < 1.15 * (radii[:, None] + radii)
    nearly_nearest = apart < 1.2 * np.maximum(nearest[:, None], nearest)
    bonded = touching & nearly_nearest & (numbers[:, None] < numbers)
    for one, other in np.argwhere(bonded) if bonds else ():
        ends = places[[one, other]]
        axes.plot(ends[:, 0], ends[:, 2], color="#777", lw=1.4, zorder=-ends[:, 1].max() - 0.1)
    for place, number, radius in zip(places, numbers, radii, strict=True):
        axes.add_patch(
            Circle((place[0], place[2]), 0.4 * radius, fc=jmol_colors[number], ec="#333", lw=0.6,
                   zorder=-place[1])
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()

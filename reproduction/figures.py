"""The figures of every result, drawn from its JSON alone."""

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from crystal_fidelity.files import write_atomic
from crystal_fidelity.plots import draw_crystal
from reproduction.probes import ANION_GROUPS, INTERMETALLIC, mean_scores
from reproduction.settings import Tree
from reproduction.symmetry import shares

COLOURS = {"paper": "#2d6a8f", "default": "#c8553d", "checkpoint": "#5b8e4a", "real": "#333333"}
MORE = ("#8a5a9e", "#b08a2e", "#3fb8c4", "#9aa3ab", "#d98fb0", "#7a4a2b")
GROUP_COLOURS = {
    "oxide": "#d1495b", "halide": "#3a9d5d", "chalcogenide": "#e0a526", "pnictide": "#3b6fb6",
    "boride to germanide": "#8a5a9e", "hydride": "#3fb8c4", INTERMETALLIC: "#9aa3ab",
}  # fmt: skip
DRAWN_TOLERANCES = (0.1, 0.5)
"""Å. The tolerances of Fig. 2 that the paper names; all are drawn where these were not measured."""
LINE: dict[str, Any] = {"marker": "o", "ms": 3, "lw": 1.1, "capsize": 2}


def _figure(rows: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **more)
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _colours(names: Sequence[str]) -> list[str]:
    spare = itertools.cycle(MORE)
    return [COLOURS.get(name) or next(spare) for name in names]


def draw_gallery(report: Tree) -> Figure:
    """Draw generated crystals above the real ones of their compositions (Fig. 1).

    Every crystal stands in the conventional cell of its space group.
    """
    gallery = report["gallery"]
    figure, grid = _figure(
        len(gallery["rows"]), len(gallery["rows"][0]), (7.0, 1.9 * len(gallery["rows"]))
    )
    for line, name, crystals in zip(grid, gallery["names"], gallery["rows"], strict=True):
        for axes, one in zip(line, crystals, strict=True):
            draw_crystal(
                axes,
                Atoms(
                    numbers=one["atomic_numbers"],
                    cell=np.array(one["lattice"]).T,
                    scaled_positions=one["frac_coords"],
                    pbc=True,
                ),
            )
            formula = re.sub(r"(\d+)", r"$_{\1}$", one["formula"])
            bar = re.sub(r"-(\d)", r"\\bar{\1}", one["symbol"])
            symbol = re.sub(r"_(\d)", r"_{\1}", bar)
            axes.set_title(f"{formula}\n${symbol}$", fontsize=8)
        line[0].text(-0.1, 0.5, name, rotation=90, va="center", transform=line[0].transAxes)
    return figure


def draw_lattice_systems(report: Tree) -> Figure:
    """Draw the fractions of the lattice systems (Fig. 2), with one standard error.

    Cells above, crystals below, a panel a tolerance.
    """
    sets = report["lattices"]["sets"]
    measured = sorted({s["symprec"] for s in sets})
    tolerances = [s for s in DRAWN_TOLERANCES if s in measured] or measured
    names = list(dict.fromkeys(s["name"] for s in sets))
    figure, grid = _figure(2, len(tolerances), (7.0, 4.7), sharey="row", sharex=True)
    for column, symprec in enumerate(tolerances):
        grid[0][column].set_title(f"within {symprec:g} Å", fontsize=9)
        for axes, key in zip(grid[:, column], ("holohedries", "groups"), strict=True):
            groups = {s["name"]: s[key] for s in sets if s["symprec"] == symprec and s[key]}
            counts = {name: len(groups.get(name, ())) for name in names}
            fractions = pd.DataFrame({name: shares(groups[name]) for name in groups})
            fractions = fractions.reindex(columns=names)
            fractions.columns = [f"{name} (n = {n})" for name, n in counts.items()]
            error = np.sqrt(fractions * (1 - fractions) / np.maximum(list(counts.values()), 1))
            fractions.plot.bar(
                ax=axes, yerr=error, width=0.8, color=_colours(names), legend=False,
                error_kw={"lw": 0.6, "ecolor": "#333"},
            )  # fmt: skip
            axes.tick_params(axis="x", rotation=60)
    grid[0][0].set_ylabel("fraction of cells", fontsize=8)
    grid[1][0].set_ylabel("fraction of crystals\n(by space group)", fontsize=8)
    bars = grid[0][0].get_legend_handles_labels()
    figure.legend(*bars, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def draw_noise(report: Tree) -> Figure:
    """Draw the distance against the fraction of the diffusion steps (Fig. 3)."""
    figure, ((axes, lost),) = _figure(1, 2, (7.6, 3.0))
    for name, curve in report["curves"].items():
        points = pd.DataFrame(curve["points"]).set_index("share")
        style = LINE | {"color": COLOURS[name], "label": f"{name}'s noise"}
        known = points.dropna(subset="frechet").astype({"error": float})
        known["frechet"].plot(ax=axes, yerr=known["error"].fillna(0), **style)
        (points["failed"] / (points["n"] + points["failed"])).plot(ax=lost, yerr=0, **style)
    axes.set_ylabel("Fréchet CHGNet distance")
    lost.set_ylabel("fraction without features")
    for one in (axes, lost):
        one.set_xlabel("diffusion step t / T")
        one.set_ylim(bottom=0)
    lost.legend(frameon=False, fontsize=8, loc="upper left")  # the fraction starts at zero
    return figure


def draw_size(report: Tree) -> Figure:
    """Draw the distance of two sets of real crystals against their size (Fig. 4)."""
    figure, ((axes,),) = _figure(1, 1, (4.0, 3.0))
    points = pd.DataFrame(report["points"]).set_index("n").astype(float)
    spread = points["spread"].fillna(0)
    points["mean"].plot(ax=axes, yerr=spread, loglog=True, color=COLOURS["real"], **LINE)
    axes.set_xticks(points.index, points.index.map(str))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("crystals on each side")
    axes.set_ylabel("Fréchet CHGNet distance")
    return figure


def draw_distribution(report: Tree) -> Figure:
    """Draw the densities of values of every set over those of the real crystals (Figs 5, 6).

    Shown is the range between the 0.5th and the 99.5th percentile of the real values, widened by a
    tenth on each side; the legend counts what lies outside.
    """
    figure, ((axes,),) = _figure(1, 1, (4.0, 3.0))
    values = {label: np.array(row, dtype=float) for label, row in report["values"].items()}
    values = {label: row[np.isfinite(row)] for label, row in values.items()}
    low, high = np.percentile(values["real"], (0.5, 99.5))
    margin = 0.1 * (high - low)
    edges = np.linspace(low - margin, high + margin, 41)
    for (label, row), colour in zip(values.items(), _colours(list(values)), strict=True):
        counts, _ = np.histogram(row, edges)
        axes.stairs(
            counts / max(len(row), 1) / np.diff(edges), edges, lw=1.3, fill=label == "real",
            color="#cccccc" if label == "real" else colour,
            label=f"{label} (n = {len(row)}, outside {len(row) - counts.sum()})",
        )  # fmt: skip
    axes.set_xlabel(f"{report['property']} / {report['unit']}")
    axes.set_ylabel("fraction per unit")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def draw_latent_map(report: Tree) -> Figure:
    """Draw the map three times: coloured by anions, by formation energy, by density.

    Colours of properties run between their 2nd and 98th percentile; crystals of unknown energy are
    left out of that panel, and the panel where none is known.
    """
    latent = report["map"]
    # In one shuffled order, so that no group lies on top for being last.
    frame = pd.DataFrame({key: latent[key] for key in ("x", "y", "anions")})
    frame["formation energy / eV per atom"] = pd.Series(latent["energy_ev_per_atom"], dtype=float)
    frame["density / g cm⁻³"] = latent["density_g_cm3"]
    frame = frame.dropna(axis="columns", how="all").sample(frac=1, random_state=0)
    panels = list(frame.columns[3:])
    figure, (line,) = _figure(
        1, 1 + len(panels), (7.0 * (1 + len(panels)) / 3, 2.95), sharex=True, sharey=True
    )
    dots: dict[str, Any] = {"s": 3.5, "lw": 0, "alpha": 0.75, "rasterized": True}
    line[0].scatter(frame["x"], frame["y"], c=frame["anions"].map(GROUP_COLOURS), **dots)
    for group in (*ANION_GROUPS, INTERMETALLIC):
        if group in latent["anions"]:
            line[0].scatter([], [], s=14, color=GROUP_COLOURS[group], label=group)
    line[0].legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, fontsize=6, frameon=False,
        handletextpad=0.1, columnspacing=0.8, borderaxespad=0,
    )  # fmt: skip
    line[0].set_title("chemistry", fontsize=8)
    for axes, title in zip(line[1:], panels, strict=True):
        known = frame.dropna(subset=title)
        low, high = np.percentile(known[title], [2, 98])
        shown = axes.scatter(
            known["x"], known["y"], c=known[title], cmap="viridis", vmin=low, vmax=high, **dots
        )
        bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, aspect=28, pad=0.03)
        bar.set_label(title, fontsize=7)
        bar.ax.tick_params(labelsize=6)
        axes.set_title(title.partition(" /")[0], fontsize=8)
    explained = [f"{100 * part:.0f} %" for part in latent["explained"]]
    line[0].set_xlabel(f"first direction ({explained[0]})", fontsize=7)
    line[0].set_ylabel(f"second direction ({explained[1]})", fontsize=7)
    return figure


def draw_probe(report: Tree) -> Figure:
    """Draw the error of every probe against the number of training crystals, and R².

    Whiskers are standard deviations over seeds; the dashed line is the error of a constant.
    """
    study = report["probe"]
    scores = mean_scores(study)
    figure, ((error, explained),) = _figure(1, 2, (7.0, 3.0))
    names = list(dict.fromkeys(s["features"] for s in study["scores"]))
    for axes, key in ((error, "mae"), (explained, "r2")):
        mean, spread = (scores[key][which].unstack("features")[names] for which in ("mean", "std"))
        mean.plot(
            ax=axes, yerr=spread.fillna(0), logx=True, **LINE,
            color=[*COLOURS.values(), *MORE][: len(names)], legend=False,
        )  # fmt: skip
        axes.set_xticks(mean.index, [f"{size:,}".replace(",", " ") for size in mean.index])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training crystals", fontsize=8)
    error.axhline(study["spread"], ls="--", lw=0.8, color="#777")
    error.set_ylim(bottom=0)
    error.set_ylabel(f"mean absolute error,\n{study['target']}", fontsize=8)
    explained.set_ylabel("R²", fontsize=8)
    lowest = min((s["r2"] for s in study["scores"] if s["r2"] > -1), default=0.0)
    explained.set_ylim(min(-0.1, lowest) - 0.02, 1.0)
    lines = error.get_legend_handles_labels()
    figure.legend(*lines, loc="outside right center", frameon=False, fontsize=7)
    return figure


DRAWERS: Mapping[str, Mapping[str, Callable[[Tree], Figure]]] = {
    "figure1": {"figure1": draw_gallery},
    "figure2": {"figure2": draw_lattice_systems},
    "figure3": {"figure3": draw_noise},
    "figure4": {"figure4": draw_size},
    "figure5": {"figure5": draw_distribution},
    "figure6": {"figure6": draw_distribution},
    "latent": {"latent-map": draw_latent_map, "latent-probe": draw_probe},
}
"""The figures of every experiment by the names of their files."""


def draw(folder: Path, report: Tree) -> None:
    """Draw the figures of a result into a folder, as PNG with a palette of 192 colours.

    Figures that the result names as withheld are left as they are.
    """
    for stem, drawer in DRAWERS.get(report["experiment"], {}).items():
        if stem not in report.get("withheld", ()):
            drawn, small = io.BytesIO(), io.BytesIO()
            drawer(report).savefig(drawn, format="png", dpi=110, metadata={"Software": None})
            Image.open(drawn).convert("RGB").quantize(192).save(small, "png", optimize=True)
            write_atomic(folder / f"{stem}.png", small.getvalue())

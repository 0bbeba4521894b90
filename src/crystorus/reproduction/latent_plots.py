"""The latent representation on paper: its map, and what linear probes read from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crystorus.reproduction.latent import ANION_GROUPS, INTERMETALLIC, LatentMap
from crystorus.reproduction.probing import ProbeStudy

GROUP_COLOURS = {
    "oxide": "#d1495b",
    "halide": "#3a9d5d",
    "chalcogenide": "#e0a526",
    "pnictide": "#3b6fb6",
    "boride to germanide": "#8a5a9e",
    "hydride": "#3fb8c4",
    INTERMETALLIC: "#9aa3ab",
}
_LINES = (
    "#c8553d",
    "#2d6a8f",
    "#5b8e4a",
    "#8a5a9e",
    "#b08a2e",
    "#3fb8c4",
    "#9aa3ab",
    "#444444",
    "#d98fb0",
)


def draw_latent_map(latent: LatentMap) -> Figure:
    """Draw the map three times: coloured by anions, by formation energy, by density.

    Colours of properties run between their 2nd and 98th percentile; crystals of unknown energy
    are left out of that panel, and the panel where none is known.
    """
    # Drawn in one shuffled order, so that no group lies on top for being last.
    order = np.random.default_rng(0).permutation(len(latent.x))
    x, y = np.array(latent.x)[order], np.array(latent.y)[order]
    energies = np.array([np.nan if e is None else e for e in latent.energy_ev_per_atom])[order]
    properties = {
        "energy": ("formation energy / eV per atom", energies),
        "density": ("density / g cm⁻³", np.array(latent.density_g_cm3)[order]),
    }
    properties = {k: v for k, v in properties.items() if not np.isnan(v[1]).all()}
    panels = 1 + len(properties)
    figure = Figure(figsize=(7.0 * panels / 3, 2.95), layout="constrained")
    FigureCanvasAgg(figure)
    chemistry, *others = figure.subplots(1, panels, sharex=True, sharey=True)
    _draw_chemistry(chemistry, x, y, [latent.anions[i] for i in order])
    for axes, (title, (label, values)) in zip(others, properties.items(), strict=True):
        known = ~np.isnan(values)
        shown = _scatter(axes, x[known], y[known], **_scale(values[known]))
        _bar(figure, shown, axes, label)
        axes.set_title(title, fontsize=8)
    for axes in (chemistry, *others):
        axes.tick_params(labelsize=6)
        axes.set_xlabel(f"first direction ({100 * latent.explained[0]:.0f} %)", fontsize=7)
    chemistry.set_ylabel(f"second direction ({100 * latent.explained[1]:.0f} %)", fontsize=7)
    return figure


def _draw_chemistry(axes: Any, x: np.ndarray, y: np.ndarray, anions: Sequence[str]) -> None:
    _scatter(axes, x, y, c=[GROUP_COLOURS[group] for group in anions])
    for group in (*ANION_GROUPS, INTERMETALLIC):
        if group in anions:
            axes.scatter([], [], s=14, color=GROUP_COLOURS[group], label=group)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, fontsize=6, frameon=False,
        handletextpad=0.1, columnspacing=0.8, borderaxespad=0,
    )  # fmt: skip
    axes.set_title("chemistry", fontsize=8)


def draw_probe(study: ProbeStudy) -> Figure:
    """Draw the error of every probe against the number of training crystals, and R².

    Whiskers are standard deviations over seeds; the dashed line is the error of a constant.
    """
    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    error, explained = figure.subplots(1, 2)
    sizes = sorted({s.n_train for s in study.scores})
    names = list(dict.fromkeys(s.features for s in study.scores))
    for axes, key in ((error, "mae"), (explained, "r2")):
        for place, name in enumerate(names):
            points = [study.mean(name, size, key) for size in sizes]
            axes.errorbar(
                sizes, [p[0] for p in points], [p[1] for p in points], marker="o", ms=3, lw=1.1,
                capsize=2, color=_LINES[place % len(_LINES)], label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}".replace(",", " ") for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("training crystals", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    error.axhline(study.spread, ls="--", lw=0.8, color="#777")
    error.set_ylim(bottom=0)
    error.set_ylabel(f"mean absolute error,\n{study.target}", fontsize=8)
    explained.set_ylabel("R²", fontsize=8)
    explained.set_ylim(min(-0.1, *(s.r2 for s in study.scores if s.r2 > -1)) - 0.02, 1.0)
    handles, labels = error.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=7)
    return figure


def _scatter(axes: Any, x: np.ndarray, y: np.ndarray, **colours: Any) -> Any:
    return axes.scatter(x, y, s=3.5, lw=0, alpha=0.75, rasterized=True, **colours)


def _scale(values: np.ndarray) -> dict[str, Any]:
    low, high = np.percentile(values, [2, 98])
    return {"c": values, "cmap": "viridis", "vmin": low, "vmax": high}


def _bar(figure: Figure, shown: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, aspect=28, pad=0.03)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6)

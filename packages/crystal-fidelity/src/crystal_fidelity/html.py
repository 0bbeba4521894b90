"""One self-contained HTML file: scores, plots, and structures to sort, filter and look at."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import gemmi
import numpy as np

from crystal_fidelity import __version__
from crystal_fidelity.compare import Comparison
from crystal_fidelity.files import whole_file
from crystal_fidelity.report import protocol_text, shown
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Crystal, Entry, element_symbol
from crystal_fidelity.svg import bars, histogram
from crystal_fidelity.table import FIELDS, structure_rows

ARROWS = {"higher": "↑", "lower": "↓", "": ""}
MAX_DRAWN_ATOMS = 200_000
"""Atoms of all structures together whose coordinates the page carries, about 5 MB."""
TOP_GROUPS = 12
PLOTS_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:1280px;padding:0 1rem}"
    "h1{font-size:1.35rem}figure{display:inline-block;margin:0 1rem 1rem 0;max-width:100%}"
    "svg{max-width:100%;height:auto}"
)


def write_report(
    path: str | Path,
    title: str,
    generated: Sequence[Entry],
    result: Comparison,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the report; it loads nothing from anywhere.

    Args:
        path: file to write.
        title: headline.
        generated: structures of the table.
        result: what was computed of them.
        facts: where it comes from, a line each.
    """
    data = {
        "columns": list(FIELDS.values()),
        "rows": structure_rows(generated, result),
        "groups": _group_symbols(result),
        "elements": _elements(generated),
        "cells": _cells(generated),
    }
    lines = [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in (facts or {}).items()]
    content = {
        "TITLE": escape(title),
        "VERSION": escape(__version__),
        "FACTS": "".join(lines),
        "SCORES": score_rows(result.scores),
        "MISSING": _missing(result.not_computed),
        "PLOTS": _figures(result_plots(result)),
        "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (resources.files("crystal_fidelity") / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"{{([A-Z]+)}}", lambda found: content[found[1]], template)
    with whole_file(path) as file:
        file.write_text(page, encoding="utf-8")


def _group_symbols(result: Comparison) -> dict[str, str]:
    """Return the Hermann-Mauguin symbol of each space-group number that occurs."""
    numbers = np.unique(result.groups.generated) if result.groups else np.array([], dtype=int)
    groups = [gemmi.find_spacegroup_by_number(int(n)) for n in numbers if n > 0]
    return {str(g.number): g.hm for g in groups if g is not None}


def _elements(generated: Sequence[Entry]) -> dict[str, list[object]]:
    """Return covalent radius (Å) and colour of every element that occurs."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    crystals = [entry for entry in generated if isinstance(entry, Crystal)]
    found: dict[str, list[object]] = {}
    for z in sorted({int(z) for crystal in crystals for z in np.unique(crystal.atomic_numbers)}):
        known = z < len(jmol_colors) and z < len(covalent_radii)
        rgb = (255 * jmol_colors[z]).round().astype(int) if known else (128, 128, 128)
        radius = float(covalent_radii[z]) if known else 1.5
        found[element_symbol(z)] = [round(radius, 2), "#{:02x}{:02x}{:02x}".format(*rgb)]
    return found


def _cells(generated: Sequence[Entry]) -> list[list[object] | None]:
    """Return lattice rows, elements and fractional coordinates, flat, while there is room."""
    cells: list[list[object] | None] = []
    room = MAX_DRAWN_ATOMS
    for entry in generated:
        room -= len(entry) if isinstance(entry, Crystal) else 0
        if not isinstance(entry, Crystal) or room < 0:
            cells.append(None)
            continue
        symbols = [element_symbol(int(z)) for z in entry.atomic_numbers]
        frac = np.round(entry.frac_coords % 1.0, 5)
        cells.append([np.round(entry.lattice, 5).ravel().tolist(), symbols, frac.ravel().tolist()])
    return cells


def write_plots(path: str | Path, title: str, plots: Sequence[str]) -> None:
    """Write a page of plots."""
    head = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{PLOTS_STYLE}</style></head>"
    )
    body = f"<body><h1>{escape(title)}</h1>{_figures(plots)}</body></html>"
    with whole_file(path) as file:
        file.write_text(head + body, encoding="utf-8")


def _missing(not_computed: dict[str, str]) -> str:
    lines = [f"Not computed: {name}: {reason}" for name, reason in not_computed.items()]
    return "".join(f"<p class=missing>{escape(line)}</p>" for line in lines)


def _figures(plots: Sequence[str]) -> str:
    return "".join(f"<figure>{svg}</figure>" for svg in plots)


def score_rows(scores: Sequence[Score]) -> str:
    """Return the rows of the score table."""
    out = []
    for score in scores:
        n = f"{score.n_generated}"
        n += f" / {score.n_reference}" if score.n_reference is not None else ""
        *cells, unit = shown(score)
        numbers = "".join(
            f"<td class='n {kind}'>{cell}</td>" for kind, cell in zip("ver", cells, strict=True)
        )
        arrow = f" <span title='{score.better} is better'>{ARROWS[score.better]}</span>"
        out.append(
            f"<tr><th>{escape(score.name)}{arrow if score.better else ''}</th>{numbers}"
            f"<td>{escape(unit)}</td><td class='n c'>{n}</td>"
            f"<td class=p>{escape(protocol_text(score))}</td></tr>"
        )
    return "".join(out)


def result_plots(result: Comparison) -> list[str]:
    """Return the plots the results allow."""
    plots = []
    for emd in (result.density, result.energy):
        if emd is not None:
            series = [("generated", emd.generated), ("reference", emd.reference)]
            name = emd.name.removesuffix(" EMD")
            plots.append(histogram(series, title=f"{name}", x_label=f"{name} / {emd.unit}"))
    if result.validity is not None:
        contacts = [("generated", result.validity.min_distance)]
        title, label = "closest contact, self-images included", "closest contact / Å"
        plots.append(histogram(contacts, title=title, x_label=label, limit=0.5))
    if result.match is not None and result.match.matched.any():
        series = [("matched pairs", result.match.rms)]
        if result.match.baseline is not None:
            series.append(("random coordinates", result.match.baseline.rms))
        plots.append(histogram(series, title="RMS of matches", x_label="RMS / (V/atom)^⅓"))
    if result.groups is not None:
        plots.append(_group_plot(result))
    return plots


def _group_plot(result: Comparison) -> str:
    assert result.groups is not None
    sets = (("generated", result.groups.generated), ("reference", result.groups.reference))
    shares = [np.bincount(groups, minlength=231) / len(groups) for _, groups in sets]
    top = np.argsort(-(shares[0] + shares[1]), kind="stable")[:TOP_GROUPS]
    labels = [str(group) if group else "none" for group in top]
    series = [(name, share[top].tolist()) for (name, _), share in zip(sets, shares, strict=True)]
    return bars(labels, series, title="most frequent space groups")

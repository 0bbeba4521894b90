"""Results to a table on screen, to JSON, and to one HTML page that loads nothing."""

import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crystal_fidelity import __version__
from crystal_fidelity.compare import Comparison
from crystal_fidelity.distances import densities
from crystal_fidelity.files import write_atomic
from crystal_fidelity.plots import bars, histogram
from crystal_fidelity.scores import PARTS, Score
from crystal_fidelity.structures import Crystal, Entry, element_symbol
from crystal_fidelity.viewer import element_data, render_page, structure_data

MAX_DECIMALS = 6
MAX_DRAWN_ATOMS = 200_000
"""Atoms of all structures together whose coordinates the page carries, about 5 MB."""
TOP_GROUPS = 12
FIELDS = {
    "index": "#",
    "name": "name",
    "formula": "formula",
    "atoms": "atoms",
    "volume_per_atom": "Å³ / atom",
    "density": "density / g cm⁻³",
    "valid": "valid",
    "closest_contact": "closest contact / Å",
    "charge_balanced": "charge balanced",
    "energy": "energy / eV per atom",
    "space_group": "space group",
    "match": "match",
    "rms": "RMS",
    "unique": "unique",
    "novel": "novel",
    "substitution_derived": "substitution-derived",
    "above_hull": "above hull / eV per atom",
    "remark": "remark",
}
"""Keys in JSON, and headings."""


def score_table(scores: Sequence[Score], title: str = "") -> Table:
    """Return the scores as a rich table that fits 80 columns; numbers point to the protocols.

    Args:
        scores: In their order.
        title: Printed above.
    """
    # A Text is printed as it is: brackets in a path are no markup.
    heading = Text(title, style="table.title") if title else None
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("", justify="right")
    table.add_column("metric", overflow="fold")
    for column in ("value", "± 1 s.e.", "real data"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    parent = ""
    for index, score in enumerate(scores, start=1):
        n = f"{score.n_generated}"
        n += f"/{score.n_reference}" if score.n_reference is not None else ""
        name = score.name
        if parent and name.startswith(f"{parent}, "):
            name = "  " + name.removeprefix(f"{parent}, ")
        else:
            parent = name
        table.add_row(str(index), name, *shown(score), n)
    return table


def digits(value: float | None, significant: int = 4) -> str:
    """Return a number for a table: nothing for None, "none" for NaN.

    Args:
        value: Any number.
        significant: Digits.
    """
    if value is None:
        return ""
    return "none" if math.isnan(value) else f"{value:.{significant}g}"


def shown(score: Score) -> tuple[str, str, str, str]:
    """Return value, error, real data and unit for a table.

    Rates are in per cent; the error has two digits, and the others as many decimals as it. A rate
    of 0 or 1 is an end of Wilson's interval, which goes one way from there: -20, not ±10, is shown.

    Args:
        score: Of the table.
    """
    scale, unit = (100.0, "%") if score.rate else (1.0, score.unit)
    value, error, real = (
        None if number is None else scale * number
        for number in (score.value, score.uncertainty, score.real)
    )
    if not error or not math.isfinite(error):
        return digits(value), digits(error, 2), digits(real), unit
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > MAX_DECIMALS:
        return digits(value, 3), digits(error, 2), digits(real, 3), unit
    text = _fixed(error, places)
    if score.rate and score.value in (0, 1):
        text = f"{'-' if score.value else '+'}{_fixed(2 * error, places)}"
    return _fixed(value, places), text, _fixed(real, places), unit


def _fixed(value: float | None, places: int) -> str:
    finite = value is not None and math.isfinite(value)
    return f"{value:.{places}f}" if finite else digits(value)


def print_scores(scores: Sequence[Score], title: str = "") -> None:
    """Print the table and, under it, the protocol of each row.

    Args:
        scores: In their order.
        title: Printed above.
    """
    screen = Console()
    screen.print(score_table(scores, title))
    for index, score in enumerate(scores, start=1):
        line = f"{index:3d}  {score.name}: {protocol_text(score)}"
        screen.print(line, markup=False, highlight=False)
    if any(score.rate and score.value in (0, 1) and score.uncertainty for score in scores):
        screen.print("     an error with a sign: a rate of 0 or 100 % is off in one direction only")
    if any("n of real against real" in s.details and s.uncertainty is None for s in scores):
        screen.print(f"     distances have errors from {2 * PARTS} generated structures on")


def published_figures() -> list[dict[str, str]]:
    """Return published figures by quantity, named as scores are, rates in per cent.

    Nothing of it was measured by this package: `source` says where each is printed.
    """
    text = (resources.files("crystal_fidelity") / "published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_table(scores: Sequence[Score], title: str) -> Table:
    """Return the scores that others have published too, each among theirs, the best first.

    Args:
        scores: Ours.
        title: What ours are called.
    """
    table = Table(title=Text("Beside published figures"), title_justify="left", box=SIMPLE_HEAD)
    for column in ("metric", "system", "value", "n", "data", "source"):
        table.add_column(column, overflow="fold", justify="right" if column == "value" else "left")
    published = published_figures()
    for score in scores:
        rows = [row for row in published if row["quantity"] == score.name]
        if not rows:
            continue
        value, n = 100 * score.value if score.rate else score.value, score.n_reference
        ours = {"system": title, "value": f"{value:.4g}", "n": str(n or score.n_generated)}
        rows.append(ours | {"data": "as given", "source": "measured here"})
        rows.sort(key=lambda row: float(row["value"]), reverse=score.better == "higher")
        for place, row in enumerate(rows):
            name = "" if place else score.name
            style = "bold" if row["source"] == "measured here" else ""
            values = (Text(row[key]) for key in ("system", "value", "n", "data", "source"))
            table.add_row(name, *values, style=style, end_section=place == len(rows) - 1)
    return table


def protocol_text(score: Score) -> str:
    """Return the protocol with the n of the noise floor, where the row has one.

    Args:
        score: Of the table.
    """
    floor_n = score.details.get("n of real against real")
    if floor_n is None:
        return score.protocol
    if not floor_n:
        return f"{score.protocol}; the reference is too small to be parted: no real against real"
    sizes = " and ".join(str(n) for n in floor_n) if isinstance(floor_n, tuple) else str(floor_n)
    return f"{score.protocol}; real against real: n = {sizes}"


def write_json(path: str | Path, content: object) -> None:
    """Write JSON; NaN and infinity become null, as JSON has neither.

    Args:
        path: The file.
        content: Anything of mappings, sequences, arrays, numbers and text; the rest as text.
    """
    write_atomic(path, json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def structure_rows(generated: Sequence[Entry], result: Comparison) -> list[list[object]]:
    """Return what is known of each generated structure.

    Args:
        generated: Structures, in the order in which they were compared.
        result: What was computed of them.

    Returns:
        One row per structure, in the order of FIELDS; None where not computed.
    """
    match, validity, groups = result.match, result.validity, result.groups
    one_shot = match if match is not None and len(match.runs) == 1 else None
    density = densities(generated)
    energy = result.energy.per_structure if result.energy else None
    rows: list[list[object]] = []
    for i, entry in enumerate(generated):
        crystal = entry if isinstance(entry, Crystal) else None
        unread = "" if crystal else f"unreadable: {entry.reason}"  # type: ignore[union-attr]
        rows.append(
            [
                i + 1,
                entry.name,
                formula_text(entry),
                len(crystal) if crystal else None,
                _rounded(crystal.volume / len(crystal)) if crystal else None,
                _rounded(density[i]),
                bool(validity.valid[i]) if validity else None,
                _rounded(validity.min_distance[i]) if validity else None,
                _flag(result.balanced, i),
                _rounded(energy[i]) if energy is not None else None,
                (int(groups.generated[i]) or None) if groups else None,
                one_shot.outcomes[i].status if one_shot else None,
                _rounded(one_shot.outcomes[i].rms) if one_shot else None,
                _flag(result.unique, i),
                _flag(result.novel, i),
                _flag(result.prototypes.derived if result.prototypes else None, i),
                _rounded(result.above_hull[i]) if result.above_hull is not None else None,
                validity.reasons[i] if validity else unread,
            ]
        )
    return rows


def _flag(mask: "np.ndarray[tuple[int], np.dtype[np.bool_]] | None", index: int) -> bool | None:
    return None if mask is None else bool(mask[index])


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def formula_text(entry: Entry) -> str:
    """Return the reduced formula, electropositive elements first.

    Args:
        entry: A failure has no formula.
    """
    return _formula_text(entry.formula) if isinstance(entry, Crystal) else ""


@cache
def _formula_text(formula: tuple[tuple[int, int], ...]) -> str:
    from pymatgen.core import Composition

    reduced = {element_symbol(z): count for z, count in formula}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity to sort by
        return str(Composition(reduced).reduced_formula)


def write_report(
    path: str | Path,
    title: str,
    generated: Sequence[Entry],
    result: Comparison,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write scores, plots, and structures to sort, filter and look at, as one page.

    Args:
        path: The file.
        title: Headline.
        generated: Structures of the table.
        result: What was computed of them.
        facts: Where it comes from, a line each.
    """
    crystals = [entry for entry in generated if isinstance(entry, Crystal)]
    data = {
        "columns": FIELDS,
        "rows": structure_rows(generated, result),
        "groups": _group_symbols(result),
        "elements": element_data(int(z) for c in crystals for z in np.unique(c.atomic_numbers)),
        "cells": _cells(generated),
    }
    page = render_page(
        "report.html.j2",
        script="report.js",
        data=data,
        title=title,
        facts=facts or {},
        version=__version__,
        not_computed=result.not_computed,
        scores=[_shown_row(score) for score in result.scores],
        figures=result_plots(result),
    )
    write_atomic(path, page)


def write_plots(path: str | Path, title: str, plots: Sequence[Markup]) -> None:
    """Write a page of plots, made by the functions of `plots`.

    Args:
        path: The file.
        title: Headline.
        plots: SVG.
    """
    write_atomic(path, render_page(title=title, figures=plots))


def _shown_row(score: Score) -> dict[str, str]:
    value, error, real, unit = shown(score)
    n = f"{score.n_generated}"
    n += f" / {score.n_reference}" if score.n_reference is not None else ""
    shown_row = {"value": value, "error": error, "real": real, "unit": unit, "n": n}
    text = {"name": score.name, "better": score.better, "protocol": protocol_text(score)}
    return shown_row | text


def _group_symbols(result: Comparison) -> dict[str, str]:
    """Return the Hermann-Mauguin symbol of each space-group number that occurs."""
    import gemmi

    numbers = np.unique(result.groups.generated) if result.groups else np.array([], dtype=int)
    groups = [gemmi.find_spacegroup_by_number(int(n)) for n in numbers if n > 0]
    return {str(g.number): g.hm for g in groups if g is not None}


def _cells(generated: Sequence[Entry]) -> list[dict[str, object] | None]:
    """Return the structures for the viewer, while there is room."""
    cells: list[dict[str, object] | None] = []
    room = MAX_DRAWN_ATOMS
    for entry in generated:
        room -= len(entry) if isinstance(entry, Crystal) else 0
        drawn = structure_data(entry) if isinstance(entry, Crystal) and room >= 0 else None
        cells.append(drawn)
    return cells


def result_plots(result: Comparison) -> list[Markup]:
    """Return the plots that the results allow.

    Args:
        result: Of `compare`.
    """
    plots = []
    for emd in (result.density, result.energy):
        if emd is not None:
            series = [("generated", emd.generated), ("reference", emd.reference)]
            name = emd.name.removesuffix(" EMD")
            plots.append(histogram(series, title=name, x_label=f"{name} / {emd.unit}"))
    if result.validity is not None:
        contacts = [("generated", result.validity.min_distance)]
        title, label = "closest contact, self-images included", "closest contact / Å"
        plots.append(histogram(contacts, title=title, x_label=label, limit=0.5))
    if result.match is not None and result.match.matched.any():
        series = [("matched pairs", result.match.rms)]
        if result.match.baseline is not None:
            series.append(("random coordinates", result.match.baseline.rms))
        plots.append(histogram(series, title="RMS of matches", x_label="RMS / (V/atom)^⅓"))
    if (groups := result.groups) is not None:
        sets = {"generated": groups.generated, "reference": groups.reference}
        fractions = {k: np.bincount(v, minlength=231) / len(v) for k, v in sets.items()}
        top = np.argsort(-sum(fractions.values()), kind="stable")[:TOP_GROUPS]
        labels = [str(group) if group else "none" for group in top]
        heights = [(name, values[top].tolist()) for name, values in fractions.items()]
        plots.append(bars(labels, heights, title="most frequent space groups"))
    return plots

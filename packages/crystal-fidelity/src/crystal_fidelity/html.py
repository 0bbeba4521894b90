"""One self-contained HTML file: scores, plots, and a table of structures a chemist can sort."""

import json
import math
import re
import warnings
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from crystal_fidelity import __version__
from crystal_fidelity.compare import Comparison
from crystal_fidelity.distances import densities
from crystal_fidelity.report import digits, protocol_text
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Crystal, Entry, element_symbol
from crystal_fidelity.svg import bars, histogram

COLUMNS = (
    "#",
    "name",
    "formula",
    "atoms",
    "valid",
    "closest contact / Å",
    "density / g cm⁻³",
    "space group",
    "match",
    "RMS",
    "unique",
    "novel",
    "remark",
)
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
    plots: Sequence[str] = (),
) -> None:
    """Write the report; it loads nothing from anywhere."""
    rows = json.dumps(structure_rows(generated, result), ensure_ascii=False)
    content = {
        "TITLE": escape(title),
        "VERSION": escape(__version__),
        "SCORES": score_rows(result.scores),
        "MISSING": _missing(result.not_computed),
        "PLOTS": _figures([*result_plots(result), *plots]),
        "COLUMNS": json.dumps(COLUMNS, ensure_ascii=False),
        "ROWS": rows.replace("<", "\\u003c"),
    }
    template = (resources.files("crystal_fidelity") / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"{{([A-Z]+)}}", lambda found: content[found[1]], template)
    Path(path).write_text(page, encoding="utf-8")


def write_plots(path: str | Path, title: str, plots: Sequence[str]) -> None:
    """Write a page of plots."""
    head = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{PLOTS_STYLE}</style></head>"
    )
    body = f"<body><h1>{escape(title)}</h1>{_figures(plots)}</body></html>"
    Path(path).write_text(head + body, encoding="utf-8")


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
        cells = digits(score.value), digits(score.uncertainty, 2), digits(score.real)
        numbers = "".join(
            f"<td class='n {kind}'>{cell}</td>" for kind, cell in zip("ver", cells, strict=True)
        )
        out.append(
            f"<tr><th>{escape(score.name)}</th>{numbers}<td>{escape(score.unit)}</td>"
            f"<td class='n c'>{n}</td><td class=p>{escape(protocol_text(score))}</td></tr>"
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


def structure_rows(generated: Sequence[Entry], result: Comparison) -> list[list[object]]:
    """Return one row per generated structure, in the order of COLUMNS; null where not computed."""
    match, validity, groups = result.match, result.validity, result.groups
    one_shot = match if match is not None and match.candidates == 1 else None
    density = densities(generated)
    rows: list[list[object]] = []
    for i, entry in enumerate(generated):
        readable = isinstance(entry, Crystal)
        remark = validity.reasons[i] if validity else ("" if readable else "unreadable")
        rows.append(
            [
                i + 1,
                entry.name,
                formula_text(entry),
                len(entry) if isinstance(entry, Crystal) else None,
                bool(validity.valid[i]) if validity else None,
                _rounded(validity.min_distance[i]) if validity else None,
                _rounded(density[i]),
                (int(groups.generated[i]) or None) if groups else None,
                one_shot.outcomes[i].status if one_shot else None,
                _rounded(one_shot.outcomes[i].rms) if one_shot else None,
                bool(result.unique[i]) if result.unique is not None else None,
                bool(result.novel[i]) if result.novel is not None else None,
                remark,
            ]
        )
    return rows


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def formula_text(entry: Entry) -> str:
    """Return the reduced formula, electropositive elements first."""
    if not isinstance(entry, Crystal):
        return ""
    from pymatgen.core import Composition

    reduced = {element_symbol(z): count for z, count in entry.formula}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity to sort by
        return str(Composition(reduced).reduced_formula)

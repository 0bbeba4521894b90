"""Tables and figures as Markdown: pure functions of a result."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from crystorus.reproduction.parts import part_with, parts
from crystorus.reproduction.settings import Tree


@dataclass(frozen=True)
class Column:
    """One score as a table shows it: its key, its heading, its scale, and which way is better."""

    key: str
    title: str
    percent: bool
    higher_is_better: bool


COLUMNS = (
    Column("validity", "validity, %", True, True),
    Column("density_emd", "density EMD, g/cm³", False, False),
    Column("energy_emd", "energy EMD, eV/atom", False, False),
    Column("fad", "FAD", False, False),
    Column("frechet_chgnet", "Fréchet CHGNet", False, False),
    Column("match_rate", "match, %", True, True),
    Column("match_rmse", "match RMSE", False, False),
)
BY_KEY = {column.key: column for column in COLUMNS}
TABLE_2 = ("validity", "density_emd", "energy_emd", "match_rate", "match_rmse")
TABLE_3 = ("fad", "frechet_chgnet", "frechet_chgnet_corrected", "kernel_chgnet")
TABLE_4 = tuple(c.key for c in COLUMNS)
PRINTED_4 = ("validity", "density_emd", "energy_emd", "fad")
"""What the columns of the paper's Table 4 are here; FAD stands beside the CHGNet distance."""
NOT_MEASURED = "not measured"
NOISE_FACTOR = 2.0
"""A difference counts from this many standard errors on."""


def heading(report: Tree) -> str:
    """Say of a result which budget, seeds and machine made it."""
    p, budget = report["provenance"], report["budget"]
    data = report["inputs"]
    seeds = ", ".join(map(str, report["seeds"]))
    return (
        f"*Budget `{budget['name']}` ({budget['about']}); seeds {seeds}; "
        f"{data['compositions']} held-out compositions; {p['hardware']}; "
        f"torch {p['programs']['torch']}; commit {p['commit'][:10]}; {p['date'][:10]}.*"
    )


def table2(report: Tree) -> str:
    """Return Table 2 beside the paper's."""
    rows = all_rows(report)
    keys = _present(rows, TABLE_2)
    lines = [header(["system", "", *(BY_KEY[k].title for k in keys)])]
    for name, *values in report["printed"]["table2"]["rows"]:
        lines.append(line([name, "printed", *values, *[""] * (len(keys) - 3)]))
    lines += [_measured(row, keys) for row in rows]
    return "\n\n".join([_headings(report), "\n".join(lines)])


def table3(report: Tree) -> str:
    """Return Table 3 beside the paper's: FAD where there are weights, CHGNet's distances."""
    titles = {
        "fad": "FAD",
        "frechet_chgnet": "Fréchet CHGNet",
        "frechet_chgnet_corrected": "bias-corrected",
        "kernel_chgnet": "kernel CHGNet",
    }
    rows = all_rows(report)
    keys = [k for k in TABLE_3 if k == "fad" or k in _present(rows, TABLE_3)]
    lines = [header(["system", "", *(titles[k] for k in keys)])]
    for name, value in report["printed"]["table3"]["rows"]:
        lines.append(line([name, "printed", value, *[""] * (len(keys) - 1)]))
    lines += [_measured(row, keys) for row in rows]
    return "\n\n".join([_headings(report), "\n".join(lines)])


def table4(report: Tree) -> str:
    """Return Table 4: the paper's ablations as printed and measured, then the repairs'.

    Rows measured at different times are tables of their own.
    """
    return "\n\n".join(_table4(part) for part in parts(report))


def _table4(report: Tree) -> str:
    keys = _present(report["rows"], TABLE_4)
    printed = report["printed"]["table4"]["rows"]
    lines = [header(["setting", "", *(BY_KEY[k].title for k in keys)])]
    for row in report["rows"]:
        if row["printed"] is not None:
            found = dict(zip(PRINTED_4, printed[row["printed"]][1:], strict=True))
            found["frechet_chgnet"] = f"(FAD {found['fad']})"
            cells = [found.get(k, "").replace("%", "") for k in keys]
            lines.append(line([row["label"], "printed", *cells]))
        lines.append(_measured(row, keys))
    return page(report, lines)


def effects(report: Tree) -> str:
    """Return the direction of every effect, with the paper's in brackets.

    A difference is called one if it exceeds twice its standard error. The variance of a score is
    that of the two rows' seeds, or the median of all rows of the preset where that is larger.
    """
    rows = all_rows(report)
    keys = [k for k in _present(rows, TABLE_4) if k != "match_rmse"]
    lines = [header(["changed", *(BY_KEY[k].title for k in keys)])]
    for row in rows:
        if row["name"] != row["preset"]:
            cells = [effect(report, row["name"], key) for key in keys]
            lines.append(line([row["label"], *cells]))
    return "\n".join(lines)


def effect(report: Tree, name: str, key: str) -> str:
    """Return one effect in words: worse, better or none, and what the paper has."""
    part = part_with(report, name)
    if part is None:
        return NOT_MEASURED
    row = _row(part, name)
    found = _direction(part, row, _row(part, row["preset"]), key)
    theirs = _printed_direction(part, row, key)
    return f"{found} (paper: {theirs})" if theirs else found


def value(report: Tree, name: str, key: str) -> str:
    """Return one score of one row as text."""
    part = part_with(report, name)
    return NOT_MEASURED if part is None else _score(_row(part, name), key)


def _direction(report: Tree, row: Tree, base: Tree, key: str) -> str:
    if any("diverged" in run for run in row["runs"]):
        return "diverged"
    if key not in row["mean"] or key not in base["mean"]:
        return "not computed"
    same = [r for r in report["rows"] if r["preset"] == row["preset"]]
    spread = [r["deviation"][key] ** 2 for r in same if key in r["deviation"]]
    usual = statistics.median(spread) if spread else 0.0
    variance = sum(
        max(r["deviation"].get(key, 0.0) ** 2, usual) / len(r["runs"]) for r in (row, base)
    )
    difference = row["mean"][key] - base["mean"][key]
    error = math.sqrt(variance)
    if len(row["runs"]) < 2 or abs(difference) <= NOISE_FACTOR * error:
        word = "none"
    else:
        word = "better" if (difference > 0) == BY_KEY[key].higher_is_better else "worse"
    scale = 100 if BY_KEY[key].percent else 1
    return f"{word}, {scale * difference:+.3g} ± {scale * error:.2g}"


def _printed_direction(report: Tree, row: Tree, key: str) -> str:
    key = "fad" if key == "frechet_chgnet" else key
    if not row["printed"] or key not in PRINTED_4:
        return ""
    printed = report["printed"]["table4"]["rows"]
    place = 1 + PRINTED_4.index(key)
    theirs, base = (float(printed[i][place].strip("%")) for i in (row["printed"], 0))
    return "better" if (theirs > base) == BY_KEY[key].higher_is_better else "worse"


def all_rows(report: Tree) -> list[Tree]:
    """Return the rows of a table, of all its measurements."""
    return [row for part in parts(report) for row in part["rows"]]


def _headings(report: Tree) -> str:
    """Say what made the rows, and of several measurements which rows each made."""
    several = parts(report)
    if len(several) == 1:
        return heading(report)
    return "\n\n".join(
        ", ".join(row["label"] for row in part["rows"]) + ": " + heading(part) for part in several
    )


def _row(report: Tree, name: str) -> Tree:
    return next(row for row in report["rows"] if row["name"] == name)


def _present(rows: Sequence[Tree], keys: Sequence[str]) -> list[str]:
    return [k for k in keys if any(k in row["mean"] for row in rows)]


def _measured(row: Tree, keys: Sequence[str]) -> str:
    failed = sum("diverged" in run for run in row["runs"])
    note = f"measured, {failed} diverged" if failed else "measured"
    return line([row["label"], note, *(_score(row, key) for key in keys)])


def _score(row: Tree, key: str) -> str:
    """Return mean ± deviation of several runs, value ± standard error of one."""
    if key not in row["mean"]:
        return "–"
    scale = 100 if key in BY_KEY and BY_KEY[key].percent else 1
    if key in row["deviation"]:
        spread: float | None = row["deviation"][key]
    else:
        spread = row["runs"][0]["scores"][key]["uncertainty"]
    text = number(scale * row["mean"][key])
    return text if spread is None else f"{text} ± {scale * spread:.2g}"


def number(found: float) -> str:
    """Return a number with three digits, without exponents where that is short."""
    if found and not 1e-3 <= abs(found) < 1e5:
        return f"{found:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(found)))) if found else 0
    return f"{found:.{digits}f}"


def noise_points(report: Tree) -> str:
    """Return Fig. 3 as a table."""
    lines = [header(["t / T", *report["curves"]])]
    curves = [curve["points"] for curve in report["curves"].values()]
    for row in zip(*curves, strict=True):
        cells = [f"{_or_dash(p['frechet'])} ({p['failed']} without)" for p in row]
        lines.append(line([f"{row[0]['share']:g}", *cells]))
    return page(report, lines)


def _or_dash(found: float | None) -> str:
    return "–" if found is None else number(found)


def size_points(report: Tree) -> str:
    """Return Fig. 4 as a table."""
    lines = [header(["n", "Fréchet CHGNet", "± of one subset"])]
    for p in report["points"]:
        lines.append(line([str(p["n"]), number(p["mean"]), number(p["spread"] or 0.0)]))
    lines.append(line(["∞, by a line in 1/n", number(report["limit"]), ""]))
    return page(report, lines)


def distribution(report: Tree) -> str:
    """Return mean and deviation of the values of every set."""
    unit = report["unit"]
    lines = [header(["set", "n", f"mean, {unit}", "median", "deviation"])]
    for label, row in report["values"].items():
        known = [v for v in row if v is not None]
        numbers = [statistics.fmean(known), statistics.median(known), statistics.pstdev(known)]
        lines.append(line([label, str(len(known)), *map(number, numbers)]))
    return page(report, lines)


def page(report: Tree, lines: Sequence[str]) -> str:
    """Return a table below what made it."""
    return heading(report) + "\n\n" + "\n".join(lines)


def header(cells: Sequence[str]) -> str:
    """Return the first line of a table and the rule below it."""
    return line(cells) + "\n|" + "---|" * len(cells)


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"

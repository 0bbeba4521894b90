"""Results as Markdown, and the page that shows them all: pure functions of the results' JSON."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from crystal_fidelity.files import disk_errors, write_atomic
from reproduction import ReproductionError, figures
from reproduction.probes import CONTROLS, mean_scores
from reproduction.symmetry import LATTICE_SYSTEMS, agreement, shares, total_variation

Tree = dict[str, Any]
FOLDER = Path(__file__).parent
EARLIER = "earlier"
"""Key under which a published result keeps rows that were measured before."""
NOT_MEASURED = "not measured"
NOISE_FACTOR = 2.0
"""A difference counts from this many standard errors on."""


class Column(NamedTuple):
    """A score as a table shows it."""

    title: str
    scale: float = 1
    higher_is_better: bool = False


COLUMNS = {
    "validity": Column("validity, %", 100, True),
    "density_emd": Column("density EMD, g/cm³"),
    "energy_emd": Column("energy EMD, eV/atom"),
    "fad": Column("FAD"),
    "frechet_chgnet": Column("Fréchet CHGNet"),
    "match_rate": Column("match, %", 100, True),
    "match_rmse": Column("match RMSE"),
    "frechet_chgnet_corrected": Column("bias-corrected"),
    "kernel_chgnet": Column("kernel CHGNet"),
}
TABLE_2 = ("validity", "density_emd", "energy_emd", "match_rate", "match_rmse")
TABLE_3 = ("fad", "frechet_chgnet", "frechet_chgnet_corrected", "kernel_chgnet")
TABLE_4 = tuple(COLUMNS)[:7]
PRINTED_4 = ("validity", "density_emd", "energy_emd", "fad")
"""What the columns of the paper's Table 4 are here; FAD stands beside the CHGNet distance."""

BUDGETS = {
    "smoke": (
        "It shows that every command works, on prototypes that nothing is learnt from: no number\n"
        "on it says anything of the paper."
    ),
    "cpu": (
        "It cannot confirm or refute the paper's absolute numbers: a training here\n"
        "sees less than a hundredth of the crystals that Table 1 asks for, through narrower "
        "networks\n(`reproduction/budgets.toml`). It shows directions: which change "
        "helps and which harms at equal\nprocessor time, beside the noise between seeds."
    ),
    "full": "These are the paper's own settings.",
}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def number(found: float | None) -> str:
    """Return a number with three digits, without exponents where that is short."""
    if found is None:
        return "–"
    if found and not 1e-3 <= abs(found) < 1e5:
        return f"{found:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(found)))) if found else 0
    return f"{found:.{digits}f}"


def heading(report: Tree) -> str:
    """Say which budget, seeds and machine made a result."""
    p, budget = report["provenance"], report["budget"]
    return (
        f"*Budget `{budget['name']}` ({budget['about']}); seeds "
        f"{', '.join(map(str, report['seeds']))}; {report['inputs']['compositions']} held-out "
        f"compositions; {p['hardware']}; torch {p['programs']['torch']}; commit "
        f"{p['commit'][:10]}; {p['date'][:10]}.*"
    )


# Rows of one table may have been measured at different times. Such parts are never mixed: a
# difference is taken between rows of one part, each of which has its preset measured beside it.


def parts(report: Tree) -> list[Tree]:
    """Return the measurements a result is made of, the earliest first."""
    return [*report.get(EARLIER, ()), {k: v for k, v in report.items() if k != EARLIER}]


def rows_of(report: Tree) -> list[Tree]:
    """Return the rows of all measurements of a table."""
    return [row for part in parts(report) for row in part["rows"]]


def merge_with_published(new: Tree, published: Tree) -> Tree:
    """Keep the published rows that were not measured again, as earlier measurements.

    A row that was measured again is dropped from the earlier part, unless it is the preset that
    other rows there are compared with.

    Raises:
        ReproductionError: If rows would stand beside rows of another budget or other crystals.
    """
    again = {row["name"] for row in new["rows"]}
    earlier = []
    for part in parts(published):
        kept = [row for row in part["rows"] if row["name"] not in again]
        needed = {row.get("preset") for row in kept} | {row["name"] for row in kept}
        if not kept:
            continue
        for key in ("budget", "inputs"):
            if part[key] != new[key]:
                rows = ", ".join(row["name"] for row in part["rows"] if row["name"] in needed)
                raise ReproductionError(
                    f"the published rows {rows} have other {key}: measure them too, or "
                    "choose another --docs"
                )
        earlier.append(part | {"rows": [r for r in part["rows"] if r["name"] in needed]})
    return new | {EARLIER: earlier} if earlier else new


def _part_and_row(report: Tree, name: str) -> tuple[Tree, Tree] | None:
    """Return the last measurement that has a row, and the row."""
    found = [(part, row) for part in parts(report) for row in part["rows"] if row["name"] == name]
    return found[-1] if found else None


def _present(rows: Sequence[Tree], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if any(key in row["mean"] for row in rows)]


def _score(row: Tree, key: str) -> str:
    """Return mean ± deviation of several runs, value ± standard error of one."""
    if key not in row["mean"]:
        return "–"
    scale, spread = COLUMNS[key].scale, row["deviation"].get(key)
    if spread is None:
        spread = row["runs"][0]["scores"][key]["uncertainty"]
    text = number(scale * row["mean"][key])
    return text if spread is None else f"{text} ± {scale * spread:.2g}"


def _measured(row: Tree, keys: Sequence[str]) -> list[str]:
    failed = sum("diverged" in run for run in row["runs"])
    note = f"measured, {failed} diverged" if failed else "measured"
    return [row["label"], note, *(_score(row, key) for key in keys)]


def _systems(report: Tree, printed: str, keys: Sequence[str]) -> str:
    """Return Table 2 or 3: printed rows above measured ones."""
    rows, several = rows_of(report), parts(report)
    lines = [[name, "printed", *values] for name, *values in report["printed"][printed]["rows"]]
    lines = [line + [""] * (len(keys) + 2 - len(line)) for line in lines]
    lines += [_measured(row, keys) for row in rows]
    made_by = [
        ", ".join(r["label"] for r in part["rows"]) + ": " + heading(part) for part in several
    ]
    made_by = made_by if len(several) > 1 else [heading(report)]
    titles = ["system", "", *(COLUMNS[key].title for key in keys)]
    return "\n\n".join(["\n\n".join(made_by), table(titles, lines)])


def table2(report: Tree) -> str:
    """Return Table 2 beside the paper's."""
    return _systems(report, "table2", _present(rows_of(report), TABLE_2))


def table3(report: Tree) -> str:
    """Return Table 3 beside the paper's: FAD where there are weights, CHGNet's distances."""
    present = _present(rows_of(report), TABLE_3)
    return _systems(report, "table3", [k for k in TABLE_3 if k == "fad" or k in present])


def table4(report: Tree) -> str:
    """Return Table 4: ablations as printed and measured; rows of different times apart."""
    texts = []
    for part in parts(report):
        keys, lines = _present(part["rows"], TABLE_4), []
        for row in part["rows"]:
            if row["printed"] is not None:
                printed = part["printed"]["table4"]["rows"][row["printed"]]
                found = dict(zip(PRINTED_4, printed[1:], strict=True))
                found["frechet_chgnet"] = f"(FAD {found['fad']})"
                cells = [found.get(key, "").replace("%", "") for key in keys]
                lines.append([row["label"], "printed", *cells])
            lines.append(_measured(row, keys))
        titles = ["setting", "", *(COLUMNS[key].title for key in keys)]
        texts.append(heading(part) + "\n\n" + table(titles, lines))
    return "\n\n".join(texts)


def effect(report: Tree, name: str, key: str) -> str:
    """Return the effect of one change: worse, better or none, with the paper's in brackets.

    A difference counts if it exceeds twice its standard error. The variance of a score is that of
    the two rows' seeds, or the median of all rows of the preset where that is larger: two seeds
    alone may agree by chance.
    """
    found = _part_and_row(report, name)
    if found is None:
        return NOT_MEASURED
    part, row = found
    base = next(r for r in part["rows"] if r["name"] == row["preset"])
    word = _direction(part, row, base, key)
    shown = "fad" if key == "frechet_chgnet" else key
    if not row["printed"] or shown not in PRINTED_4:
        return word
    printed, place = part["printed"]["table4"]["rows"], 1 + PRINTED_4.index(shown)
    theirs, usual = (float(printed[i][place].strip("%")) for i in (row["printed"], 0))
    better = (theirs > usual) == COLUMNS[key].higher_is_better
    return f"{word} (paper: {'better' if better else 'worse'})"


def _direction(part: Tree, row: Tree, base: Tree, key: str) -> str:
    if any("diverged" in run for run in row["runs"]):
        return "diverged"
    if key not in row["mean"] or key not in base["mean"]:
        return "not computed"
    same = [r["deviation"] for r in part["rows"] if r["preset"] == row["preset"]]
    spread = [deviation[key] ** 2 for deviation in same if key in deviation]
    usual = statistics.median(spread) if spread else 0.0
    variance = sum(
        max(r["deviation"].get(key, 0.0) ** 2, usual) / len(r["runs"]) for r in (row, base)
    )
    difference, error = row["mean"][key] - base["mean"][key], math.sqrt(variance)
    column = COLUMNS[key]
    if len(row["runs"]) < 2 or abs(difference) <= NOISE_FACTOR * error:
        word = "none"
    else:
        word = "better" if (difference > 0) == column.higher_is_better else "worse"
    return f"{word}, {column.scale * difference:+.3g} ± {column.scale * error:.2g}"


def effects(report: Tree) -> str:
    """Return the direction of every effect as a table."""
    rows = rows_of(report)
    keys = [key for key in _present(rows, TABLE_4) if key != "match_rmse"]
    changed = [row for row in rows if row["name"] != row["preset"]]
    lines = [[r["label"], *(effect(report, r["name"], key) for key in keys)] for r in changed]
    return table(["changed", *(COLUMNS[key].title for key in keys)], lines)


def figure1(report: Tree) -> str:
    """Return the space groups of the crystals of Fig. 1."""
    made = report["gallery"]["rows"][0]
    lines = [
        [one["formula"], f"{one['symbol']} ({one['number']})", real]
        for one, real in zip(made, report["real_groups"], strict=True)
    ]
    return table(["composition", "generated", "real"], lines)


def _set_of(report: Tree, name: str, tolerance: float) -> Tree:
    sets = report["lattices"]["sets"]
    return next(s for s in sets if s["name"] == name and s["symprec"] == tolerance)


def figure2(report: Tree) -> str:
    """Return the shares of the lattice systems, by space group and by the cell alone."""
    lines = []
    sets = report["lattices"]["sets"]
    names = list(dict.fromkeys(s["name"] for s in sets))
    for tolerance in sorted({s["symprec"] for s in sets}):
        real = _set_of(report, "real", tolerance)
        for found in (_set_of(report, name, tolerance) for name in names):
            for key, by in (("groups", "group"), ("holohedries", "cell")):
                if found[key]:
                    own, theirs = shares(found[key]), shares(real[key])
                    cells = [f"{100 * own[system]:.1f}" for system in LATTICE_SYSTEMS]
                    apart = f"{total_variation(own, theirs):.3f}"
                    lines.append([found["name"], f"{tolerance:g}", by, *cells, apart])
    titles = ["set", "tolerance, Å", "by", *LATTICE_SYSTEMS, "distance from real"]
    lost = [f"{name} {count}" for name, count in report["no_crystals"].items() if count]
    note = f"\n\nCounted as triclinic, collapsed or not finite: {', '.join(lost)}." if lost else ""
    return table(titles, lines) + note


def figure3(report: Tree) -> str:
    """Return Fig. 3 as a table."""
    curves = [curve["points"] for curve in report["curves"].values()]
    lines = [
        [f"{row[0]['share']:g}", *(f"{number(p['frechet'])} ({p['failed']} without)" for p in row)]
        for row in zip(*curves, strict=True)
    ]
    return table(["t / T", *report["curves"]], lines)


def figure4(report: Tree) -> str:
    """Return Fig. 4 as a table."""
    lines = [[str(p["n"]), number(p["mean"]), number(p["spread"] or 0.0)] for p in report["points"]]
    lines.append(["∞, by a line in 1/n", number(report["limit"]), ""])
    return table(["n", "Fréchet CHGNet", "± of one subset"], lines)


def figures5_6(report: Tree) -> str:
    """Return mean, median and deviation of the values of every set."""
    lines = []
    for label, row in report["values"].items():
        known = pd.Series(row, dtype=float).dropna()
        found = (known.mean(), known.median(), known.std(ddof=0))
        lines.append([label, str(len(known)), *map(number, found)])
    unit = report["unit"]
    return table(["set", "n", f"mean, {unit}", "median", "deviation"], lines)


def latent(report: Tree) -> str:
    """Return the errors of the linear probes with most crystals."""
    probe = report["probe"]
    scores = mean_scores(probe)
    size = scores.index.get_level_values("n_train").max()
    lines = []
    for name in dict.fromkeys(s["features"] for s in probe["scores"]):
        cells = []
        for key in ("mae", "r2", "right_order"):
            mean, spread = scores.loc[(name, size), key]
            text = f"{spread:.2g}" if spread > 1e-9 else "0"
            cells.append("–" if math.isnan(mean) else f"{number(mean)} ± {text}")
        lines.append([name, *cells])
    lines.append(["a constant", number(probe["spread"]), "0", ""])
    titles = [f"features ({size} training crystals)", f"MAE, {probe['target']}", "R²"]
    return table([*titles, "right order"], lines)


def times(report: Tree) -> str:
    """Return what the full experiment takes of one thread, from the measured rates."""
    amounts, presets = report["amounts"], report["presets"]
    n_train, n_sampled = amounts["train"], amounts["compositions"]
    columns = []
    for name, rate in presets.items():
        own = amounts[name]
        training = own["epochs"] * n_train / rate["crystals_per_second"]
        shorter = own["ablation_epochs"] * n_train / rate["crystals_per_second"]
        sampling = n_sampled * own["steps"] * rate["seconds_per_step"]
        whole = own["ablation_trainings"] * shorter + own["ablation_samples"] * sampling
        columns.append(
            {
                "training at full size, measured": f"{rate['crystals_per_second']:.3g} crystals/s",
                "a step of sampling one crystal, measured": (
                    f"{1000 * rate['seconds_per_step']:.3g} ms"
                ),
                f"a training of {own['epochs']} epochs (Tables 2 and 3, one seed)": _duration(
                    training
                ),
                f"{n_sampled} crystals sampled by one model": _duration(sampling),
                f"Tables 2 and 3, {amounts['seeds']} seeds": _duration(
                    amounts["seeds"] * (training + sampling)
                ),
                f"a training of {own['ablation_epochs']} epochs (Table 4)": _duration(shorter),
                f"Table 4, {amounts['ablation_seeds']} seeds": _duration(whole),
            }
        )
    lines = [[what, *(column[what] for column in columns)] for what in columns[0]]
    return table(["what", *(f"`{name}`" for name in presets)], lines)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


# What results say of the paper's statements, in words that follow from the numbers.


def verdict(report: Tree, preset: str = "") -> str:
    """Say what a result says of the paper's statement.

    Args:
        report: The result of Table 4, of Fig. 3 or 4, or of the latent space.
        preset: Of Table 4: whose rows to speak of.
    """
    match report["experiment"]:
        case "table4":
            return _changes_that_count(report, preset)
        case "figure3":
            return "; ".join(_rise(name, c) for name, c in report["curves"].items())
        case "figure4":
            last = report["points"][-1]
            return (
                f"real against real: {number(last['mean'])} at {last['n']} crystals, "
                f"{number(report['limit'])} beyond all sizes"
            )
    mae = mean_scores(report["probe"])["mae"]["mean"].unstack("n_train").iloc[:, -1]
    told = ", ".join(f"{name} {number(mae[name])}" for name in CONTROLS)
    better = [name for name in CONTROLS if mae[name] <= mae["latent"]]
    word = f"no better than {' and '.join(better)}" if better else "better than its controls"
    return (
        f"{word}: error of a linear probe of the {report['probe']['target']}: "
        f"latent {number(mae['latent'])}, {told}"
    )


def _changes_that_count(report: Tree, preset: str) -> str:
    lines = []
    for row in rows_of(report):
        if row["preset"] == preset and row["name"] != preset:
            found = {
                COLUMNS[key].title.split(",")[0]: effect(report, row["name"], key)
                for key in TABLE_4
            }
            ways = {
                way: [title for title, text in found.items() if text.startswith(way)]
                for way in ("worse", "better", "diverged")
            }
            said = [f"{way} by {', '.join(titles)}" for way, titles in ways.items() if titles]
            lines.append(f"- {row['label']}: {'; '.join(said) or 'no difference that counts'}")
    return "\n".join(lines)


def _rise(name: str, curve: Tree) -> str:
    """Say where the distance of a forward process starts, how it goes on and where it ends."""
    points = [p for p in curve["points"] if p["frechet"] is not None]
    falls = [
        f"t = {after['share']:g} T"
        for before, after in pairwise(points)
        if after["frechet"] < before["frechet"]
    ]
    last = curve["points"][-1]
    lost = 100 * last["failed"] / (last["n"] + last["failed"])
    way = f"but for {', '.join(falls)}" if falls else "at every step"
    first, highest = number(points[0]["frechet"]), number(points[-1]["frechet"])
    return (
        f"`{name}`: {first} at t = 0, rises {way}, to {highest} at "
        f"{points[-1]['share']:g} T; at T {lost:.0f} % of the crystals have no features"
    )


TEXTS: Mapping[str, Callable[[Tree], str]] = {
    "table2": table2, "table3": table3, "table4": table4, "figure1": figure1, "figure2": figure2,
    "figure3": figure3, "figure4": figure4, "figure5": figures5_6, "figure6": figures5_6,
    "latent": latent, "times": times,
}  # fmt: skip
"""The Markdown of every experiment."""


def text_of(report: Tree) -> str:
    """Return a result as Markdown, below what made it."""
    name = report["experiment"]
    text = TEXTS[name](report)
    return text if name.startswith("table") else heading(report) + "\n\n" + text


class Shown:
    """A result as the page's template asks for it, so that no number of the page is typed."""

    def __init__(self, name: str, report: Tree | None) -> None:
        self._name, self._report = name, report

    def __getattr__(self, part: str) -> Any:
        """Return what the template names: a text, or a function of more words."""
        report = self._report
        if report is None:
            missing = f"*not measured yet: `python -m reproduction {self._name}`*"
            return missing if part in ("all", "budget", "effects") else lambda *words: missing
        match part:
            case "all":
                names = figures.DRAWERS.get(self._name, ())
                return "".join(f"![{n}](paper/{n}.png)\n\n" for n in names) + text_of(report)
            case "budget":
                name = report["budget"]["name"]
                return f"**This page is of budget `{name}`.** {BUDGETS[name]}"
            case "effects":
                return effects(report)
            case "verdict":
                return lambda *words: verdict(report, *words)
            case "effect":
                return lambda row, key: effect(report, row, key)
            case "value":
                return lambda row, key: (
                    _score(found[1], key) if (found := _part_and_row(report, row)) else NOT_MEASURED
                )
            case "distance":
                return lambda name, tolerance: _distance(report, name, tolerance)
            case "agreement":
                return lambda name, tolerance: _agreement(report, name, tolerance)
        raise AttributeError(part)


def _distance(report: Tree, name: str, tolerance: float) -> str:
    left, right = (shares(_set_of(report, n, tolerance)["holohedries"]) for n in (name, "real"))
    return f"{total_variation(left, right):.2f}"


def _agreement(report: Tree, name: str, tolerance: float) -> str:
    left, right = (_set_of(report, n, tolerance)["groups"] for n in (name, "real"))
    share, chance = agreement(left, right)
    return f"{100 * share:.0f} % (by chance {100 * chance:.0f} %)"


def read_result(path: Path) -> Tree:
    """Read a result.

    Raises:
        ReproductionError: If it is damaged.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        if report["experiment"] not in TEXTS:
            raise KeyError(report["experiment"])
        return dict(report)
    except (ValueError, KeyError, TypeError) as error:
        raise ReproductionError(f"{path} is not a result ({error}): measure it again") from error


def render_page(folder: Path) -> str:
    """Return the page that the results in a folder make.

    Raises:
        ReproductionError: If a result is damaged, or the template asks for no part of one.
    """
    reports = {
        name: Shown(name, read_result(path) if (path := folder / f"{name}.json").exists() else None)
        for name in TEXTS
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    template = environment.from_string((FOLDER / "page.md.j2").read_text("utf-8"))
    try:
        return template.render(reports)
    except jinja2.TemplateError as error:
        raise ReproductionError(f"the template asks for no part of a result: {error}") from error


def write_result(folder: Path, report: Tree) -> None:
    """Write a result as JSON, as Markdown and drawn.

    Raises:
        FileError: If the disk is full or refuses.
    """
    name = report["experiment"]
    with disk_errors(folder):
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / f"{name}.json", text + "\n")
        write_atomic(folder / f"{name}.md", text_of(report) + "\n")
        figures.draw(folder, report)


def write_page(docs: Path) -> Path:
    """Write the page, and draw its figures, from the results in `docs`/paper.

    Raises:
        ReproductionError: If there are no results, or one is damaged.
        FileError: If the disk is full or refuses.
    """
    folder = docs / "paper"
    results = sorted(folder.glob("*.json"))
    if not results:
        raise ReproductionError(f"{folder} holds no results: publish some there first")
    text = render_page(folder)
    with disk_errors(folder):
        for path in results:
            figures.draw(folder, read_result(path))
        write_atomic(docs / "paper.md", text)
    return docs / "paper.md"


def publish(out: Path, docs: Path) -> Path:
    """Copy the results of an experiment into the docs and write the page anew.

    What a data set holds stays out: real crystals and their energies are left out of the JSON, and
    the figures that show them are copied as they are. Rows of a table that were published before
    and not measured again stay, as a measurement of their own.

    Raises:
        ReproductionError: If there are no results, one is damaged, or rows would stand beside rows
            of another budget or of other crystals.
        FileError: If the disk is full or refuses.
    """
    paths = [path for name in TEXTS if (path := out / f"{name}.json").exists()]
    if not paths:
        raise ReproductionError(f"{out} holds no results: measure some first")
    folder = docs / "paper"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            report = read_result(path)
            if report["experiment"] == "figure1":
                rows = {key: report["gallery"][key][:1] for key in ("names", "rows")}
                report |= {"gallery": rows, "withheld": ["figure1"]}
            elif report["experiment"] == "latent":
                report = {k: v for k, v in report.items() if k != "map"}
                report["withheld"] = ["latent-map"]
            before = folder / path.name
            if "rows" in report and before.exists():
                report = merge_with_published(report, read_result(before))
            text = json.dumps(report, ensure_ascii=False, allow_nan=False)
            write_atomic(before, text + "\n")
            for stem in report.get("withheld", ()):
                write_atomic(folder / f"{stem}.png", (out / f"{stem}.png").read_bytes())
    return write_page(docs)

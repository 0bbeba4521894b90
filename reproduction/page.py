"""Results as Markdown, and the page that shows them all: pure functions of the results' JSON."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jinja2
import pandas as pd

from crystal_fidelity.files import disk_errors, write_atomic
from reproduction import ReproductionError, figures
from reproduction.probes import CONTROLS, mean_scores
from reproduction.settings import ExperimentName, Tree
from reproduction.symmetry import LATTICE_SYSTEMS, agreement, shares, total_variation

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
SHOWN = {
    "table2": ("validity", "density_emd", "energy_emd", "match_rate", "match_rmse"),
    "table3": ("fad", "frechet_chgnet", "frechet_chgnet_corrected", "kernel_chgnet"),
    "table4": tuple(COLUMNS)[:7],
}
"""Columns of the tables; those that no row has are left out."""
PRINTED_4 = ("validity", "density_emd", "energy_emd", "fad")
"""What the columns of the paper's Table 4 are here; FAD stands beside the CHGNet distance."""


def number(found: float | None) -> str:
    """Return a number with three digits, without exponents where that is short."""
    if found is None:
        return "–"
    if found and not 1e-3 <= abs(found) < 1e5:
        return f"{found:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(found)))) if found else 0
    return f"{found:.{digits}f}"


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


def present(rows: Sequence[Tree], table: str) -> list[str]:
    """Return the scores that a table shows of its rows; FAD also where it was not measured."""
    asked_for = {"fad"} if table == "table3" else set()
    scored = asked_for.union(*(row["mean"] for row in rows))
    return [key for key in SHOWN[table] if key in scored]


def score(key: str, row: Tree) -> str:
    """Return mean ± deviation of several runs, value ± standard error of one."""
    if key not in row["mean"]:
        return "–"
    scale, spread = COLUMNS[key].scale, row["deviation"].get(key)
    if spread is None:
        spread = row["runs"][0]["scores"][key]["uncertainty"]
    text = number(scale * row["mean"][key])
    return text if spread is None else f"{text} ± {scale * spread:.2g}"


def printed(key: str, part: Tree, row: Tree) -> str:
    """Return what the paper's Table 4 has in the place of a score."""
    found = dict(zip(PRINTED_4, part["printed"]["table4"]["rows"][row["printed"]][1:], strict=True))
    found["frechet_chgnet"] = f"(FAD {found['fad']})"
    return found.get(key, "").replace("%", "")


def value(report: Tree, name: str, key: str) -> str:
    """Return one score of one row of a table, with its error."""
    found = _part_and_row(report, name)
    return score(key, found[1]) if found else NOT_MEASURED


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


def same_system(report: Tree, name: str, tolerance: float) -> str:
    """Return how many crystals of a set are in the lattice system of their real counterpart."""
    sets = report["lattices"]["sets"]
    groups = {one["name"]: one["groups"] for one in sets if one["symprec"] == tolerance}
    same, chance = agreement(groups[name], groups["real"])
    return f"{100 * same:.0f} % (by chance {100 * chance:.0f} %)"


def probed(report: Tree, name: str, size: int, key: str) -> str:
    """Return mean ± deviation of a probe's score over the seeds."""
    mean, spread = mean_scores(report["probe"]).loc[(name, size), key]
    text = f"{spread:.2g}" if spread > 1e-9 else "0"
    return "–" if math.isnan(mean) else f"{number(mean)} ± {text}"


def cost(report: Tree, preset: str, what: str) -> str:
    """Return what a part of the full experiment takes of one thread, from the measured rates."""
    amounts, rate = report["amounts"], report["presets"][preset]
    own, speed = amounts[preset], rate["crystals_per_second"]
    if what == "rate":
        return f"{speed:.3g} crystals/s"
    if what == "step":
        return f"{1000 * rate['seconds_per_step']:.3g} ms"
    training, shorter = (
        own[key] * amounts["train"] / speed for key in ("epochs", "ablation_epochs")
    )
    sampling = amounts["compositions"] * own["steps"] * rate["seconds_per_step"]
    seconds = {
        "training": training,
        "sampling": sampling,
        "tables": amounts["seeds"] * (training + sampling),
        "shorter": shorter,
        "ablations": own["ablation_trainings"] * shorter + own["ablation_samples"] * sampling,
    }[what]
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def probe_verdict(report: Tree) -> str:
    """Say whether a linear probe of the latent space is better than its controls."""
    mae = mean_scores(report["probe"])["mae"]["mean"].unstack("n_train").iloc[:, -1]
    told = ", ".join(f"{name} {number(mae[name])}" for name in CONTROLS)
    better = [name for name in CONTROLS if mae[name] <= mae["latent"]]
    word = f"no better than {' and '.join(better)}" if better else "better than its controls"
    return (
        f"{word}: error of a linear probe of the {report['probe']['target']}: "
        f"latent {number(mae['latent'])}, {told}"
    )


def text_of(report: Tree, part: str = "", *words: Any) -> str:
    """Return a result, or a part of it, as Markdown.

    Args:
        report: The result.
        part: Name of a macro of `results.md.j2`; the experiment's own by default.
        words: Its arguments.
    """
    macros = _environment().get_template("results.md.j2").module
    return str(getattr(macros, part or report["experiment"])(report, *words)).strip()


def shown(report: Tree) -> str:
    """Return the figures of a result, and its text."""
    names = figures.DRAWERS.get(report["experiment"], ())
    return "".join(f"![{name}](paper/{name}.png)\n\n" for name in names) + text_of(report)


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    made.globals |= {"zip": zip, "lattice_systems": LATTICE_SYSTEMS}
    helpers = (number, parts, present, score, printed, effect, shares, probed, cost)
    made.filters |= {helper.__name__: helper for helper in helpers}
    made.filters |= {
        "rows": rows_of,
        "title": lambda key: COLUMNS[key].title,
        "known": lambda values: pd.Series(values, dtype=float).dropna(),
        "apart": lambda one, real, key: total_variation(shares(one[key]), shares(real[key])),
    }
    return made


def read_result(path: Path) -> Tree:
    """Read a result.

    Raises:
        ReproductionError: If it is damaged.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        if report["experiment"] not in get_args(ExperimentName):
            raise KeyError(report["experiment"])
        return dict(report)
    except (ValueError, KeyError, TypeError) as error:
        raise ReproductionError(f"{path} is not a result ({error}): measure it again") from error


def render_page(folder: Path) -> str:
    """Return the page that the results in a folder make.

    No number of the page is typed: the template names results and filters of them. What was not
    measured is said to be missing.

    Raises:
        ReproductionError: If a result is damaged, or the template asks for no part of one.
    """
    reports: dict[str, Tree] = {}
    for name in get_args(ExperimentName):
        path = folder / f"{name}.json"
        reports[name] = read_result(path) if path.exists() else {"missing": name}

    def unless_missing(function: Callable[..., str]) -> Callable[..., str]:
        def fill(report: Tree, *words: Any) -> str:
            if "missing" in report:
                return f"*not measured yet: `python -m reproduction {report['missing']}`*"
            return function(report, *words)

        return fill

    environment = _environment()
    for function in (shown, text_of, value, effect, same_system, probe_verdict):
        environment.filters[function.__name__] = unless_missing(function)
    try:
        return environment.get_template("page.md.j2").render(reports)
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
    paths = [path for name in get_args(ExperimentName) if (path := out / f"{name}.json").exists()]
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

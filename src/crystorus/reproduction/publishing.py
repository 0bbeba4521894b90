"""Results to files: JSON, Markdown, figures, and the page that shows them all.

Everything but the JSON is a pure function of the JSON.
"""

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from crystorus.data.files import write_whole
from crystorus.reproduction import captions, markdown, verdicts
from crystorus.reproduction.drawing import Gallery, draw_gallery
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.latent import LatentMap
from crystorus.reproduction.latent_plots import draw_latent_map, draw_probe
from crystorus.reproduction.lattice_systems import LatticeStudy, draw_lattice_systems
from crystorus.reproduction.parts import beside
from crystorus.reproduction.plots import draw_distribution, draw_noise, draw_size
from crystorus.reproduction.probing import ProbeStudy
from crystorus.reproduction.records import from_json
from crystorus.reproduction.settings import Tree
from crystorus.sample.disk import disk_errors

PAGE, FOLDER = "paper.md", "paper"
TEMPLATE = "page.md"
_PLACE = re.compile(r"\{\{([^{}]+)\}\}")
_DPI = 110
_SHADES = 192
"""Colours of a figure's palette."""

Text = Callable[[Tree], str]
Drawer = Callable[[Tree], Any]

TEXTS: Mapping[str, Text] = {
    "table2": markdown.table2,
    "table3": markdown.table3,
    "table4": markdown.table4,
    "figure1": captions.gallery,
    "figure2": captions.lattices,
    "figure3": markdown.noise_points,
    "figure4": markdown.size_points,
    "figure5": markdown.distribution,
    "figure6": markdown.distribution,
    "latent": captions.latent,
    "times": captions.times,
}
"""The Markdown of every experiment."""

VERDICTS: Mapping[str, Callable[..., str]] = {
    "table4": verdicts.of_ablations,
    "figure3": verdicts.of_noise,
    "figure4": verdicts.of_size,
    "latent": verdicts.of_probe,
}
"""What a result says of the paper's statement, where words can follow from numbers."""

DRAWERS: Mapping[str, Mapping[str, Drawer]] = {
    "figure1": {"figure1": lambda r: draw_gallery(from_json(Gallery, r["gallery"]))},
    "figure2": {"figure2": lambda r: draw_lattice_systems(from_json(LatticeStudy, r["lattices"]))},
    "figure3": {"figure3": draw_noise},
    "figure4": {"figure4": draw_size},
    "figure5": {"figure5": draw_distribution},
    "figure6": {"figure6": draw_distribution},
    "latent": {
        "latent-map": lambda r: draw_latent_map(from_json(LatentMap, r["map"])),
        "latent-probe": lambda r: draw_probe(from_json(ProbeStudy, r["probe"])),
    },
}
"""The figures of every experiment by the names of their files."""


def write_result(folder: Path, report: Tree) -> None:
    """Write a result as JSON, as Markdown and drawn.

    Raises:
        OutputError: If the disk is full or refuses.
    """
    name = report["experiment"]
    with disk_errors(folder):
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(folder / f"{name}.json", text + "\n")
        write_whole(folder / f"{name}.md", TEXTS[name](report) + "\n")
        draw(folder, report)


def draw(folder: Path, report: Tree) -> None:
    """Draw the figures of a result into a folder, as PNG."""
    from PIL import Image

    for stem, drawer in DRAWERS.get(report["experiment"], {}).items():
        if stem in report.get("withheld", ()):
            continue
        drawn, small = io.BytesIO(), io.BytesIO()
        drawer(report).savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
        Image.open(drawn).convert("RGB").quantize(_SHADES).save(small, "png", optimize=True)
        aside = folder / f"{stem}.png.tmp"
        aside.write_bytes(small.getvalue())
        aside.replace(folder / f"{stem}.png")


def publish(out: Path, docs: Path) -> Path:
    """Copy the results of an experiment into the docs and write the page anew.

    What a data set holds stays out: real crystals and their energies are left out of the JSON,
    and the figures that show them are copied as they are. Rows of a table that were published
    before and not measured again stay, as a measurement of their own.

    Raises:
        PaperError: If there are no results, one is damaged, or rows would stand beside rows of
             another budget or of other crystals.
        OutputError: If the disk is full or refuses.
    """
    paths = [path for name in TEXTS if (path := out / f"{name}.json").exists()]
    if not paths:
        raise PaperError(f"{out} holds no results: measure some with `crystorus paper`")
    folder = docs / FOLDER
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            report = _without_data(read_result(path))
            before = folder / path.name
            if "rows" in report and before.exists():
                report = beside(report, read_result(before))
            text = json.dumps(report, indent=None, ensure_ascii=False, allow_nan=False)
            write_whole(before, text + "\n")
            for stem in report.get("withheld", ()):
                shutil.copyfile(out / f"{stem}.png", folder / f"{stem}.png")
    return write_page(docs)


def _without_data(report: Tree) -> Tree:
    if report["experiment"] == "figure1":
        gallery = report["gallery"]
        made = {"names": gallery["names"][:1], "rows": gallery["rows"][:1]}
        return report | {"gallery": made, "withheld": ["figure1"]}
    if report["experiment"] == "latent":
        return {k: v for k, v in report.items() if k != "map"} | {"withheld": ["latent-map"]}
    return report


def read_result(path: Path) -> Tree:
    """Read a result.

    Raises:
        PaperError: If it is damaged.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        if report["experiment"] not in TEXTS:
            raise KeyError(report["experiment"])
        return dict(report)
    except (ValueError, KeyError, TypeError) as error:
        raise PaperError(f"{path} is not a result ({error}): measure it again") from error


def render_page(folder: Path) -> str:
    """Return the page that the results in a folder make.

    The text around them is a template. `{{table4}}` is a table, `{{table4 effects}}` the
    directions, `{{table4 verdict PRESET}}` those that count,
    `{{table4 NAME SCORE}}` one value and `{{table4 NAME SCORE effect}}` its
    effect; so no number of a result is typed. What was not measured is said to be missing.

    Raises:
        PaperError: If a result is damaged, or the template asks for no part of it.
    """
    template = resources.files("crystorus.reproduction").joinpath(TEMPLATE).read_text("utf-8")
    reports: dict[str, Tree] = {}

    def fill(match: re.Match[str]) -> str:
        name, *words = match.group(1).split()
        if not (folder / f"{name}.json").exists():
            return f"*not measured yet: `crystorus paper {name}`*"
        if name not in reports:
            reports[name] = read_result(folder / f"{name}.json")
        return _part(reports[name], words)

    return _PLACE.sub(fill, template)


def _part(report: Tree, words: list[str]) -> str:
    match words:
        case []:
            name = report["experiment"]
            images = [f"![{stem}]({FOLDER}/{stem}.png)\n\n" for stem in DRAWERS.get(name, ())]
            return "".join(images) + TEXTS[name](report)
        case ["effects"]:
            return markdown.effects(report)
        case ["verdict", *about]:
            return VERDICTS[report["experiment"]](report, *about)
        case ["distance", name, tolerance]:
            return captions.distance_of(report, name, float(tolerance))
        case ["budget"]:
            return verdicts.of_budget(report)
        case ["heading"]:
            return markdown.heading(report)
        case ["agreement", name, tolerance]:
            share, chance = captions.agreement_of(report, name, float(tolerance))
            return f"{100 * share:.0f} % (by chance {100 * chance:.0f} %)"
        case [row, score]:
            return markdown.value(report, row, score)
        case [row, score, "effect"]:
            return markdown.effect(report, row, score)
        case _:
            raise PaperError(f"the template asks for {' '.join(words)!r}: that is no part")


def write_page(docs: Path) -> Path:
    """Write the page, and draw its figures, from the results beside it.

    Args:
        docs: A folder; its `paper/` holds the results.

    Raises:
        PaperError: If there are no results, or one is damaged.
        OutputError: If the disk is full or refuses.
    """
    folder = docs / FOLDER
    if not any(folder.glob("*.json")):
        raise PaperError(f"{folder} holds no results: copy there what `crystorus paper` wrote")
    text = render_page(folder)
    with disk_errors(folder):
        for path in sorted(folder.glob("*.json")):
            draw(folder, read_result(path))
        write_whole(docs / PAGE, text)
    return docs / PAGE

"""One self-contained HTML file: hull, table, structures in 3D, films of denoising."""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from pymatgen.core import Composition, Element

from crystorus.data.files import write_whole
from crystorus.hull.assessing import RankedPhase, Ranking
from crystorus.hull.errors import CampaignError
from crystorus.hull.novelty import reduced_formula_of
from crystorus.hull.outputs import table_rows
from crystorus.hull.ranking import ON_HULL
from crystorus.sample.disk import disk_errors

MAX_STRUCTURES = 400  # of candidates, the best first; a report stays below a few MB
FILMS = 8
FRAMES = 48
_VIEWER = "3Dmol-min.js"
_COLUMNS = ("name", "formula", "status", "reason", "novelty", "known_id", "start", "origin")


def write_report(
    path: Path,
    ranking: Ranking,
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    trajectories: Path,
    animate: Sequence[str] = (),
) -> None:
    """Write the report.

    Args:
        path: The file.
        ranking: What it shows.
        settings: Of the campaign.
        versions: Of the programs.
        trajectories: Folder of denoising trajectories, which may be missing.
        animate: Names of candidates whose denoising is shown beside that of the best.

    Raises:
        CampaignError: If a candidate named has no trajectory.
        OutputError: If the file cannot be written.
    """
    known, lines, known_atoms = _known(ranking)
    phases = [
        _point(p, row) for p, row in zip(ranking.phases, table_rows(ranking.phases), strict=True)
    ]
    shown = [p for p in ranking.phases if p.energy_per_atom is not None][:MAX_STRUCTURES]
    data = {
        "elements": list(ranking.hull.elements),
        "phases": phases,
        "known": known,
        "lines": lines,
        "counts": ranking.counts,
        "structures": {p.name: _structure(p.atoms) for p in shown}
        | {f"known {name}": _structure(atoms) for name, atoms in known_atoms.items()},
        "films": _films(shown, trajectories, animate),
        "radii": {s: float(covalent_radii[atomic_numbers[s]]) for s in ranking.hull.elements},
        "settings": settings,
        "versions": versions,
    }
    with disk_errors(path):
        write_whole(path, render("-".join(ranking.hull.elements), data))


def check_films(folder: Path, animate: Sequence[str]) -> None:
    """Make sure that every candidate named has a trajectory.

    Raises:
        CampaignError: Naming the first that has none.
    """
    for name in animate:
        if not (folder / f"{name}.extxyz").is_file():
            raise CampaignError(
                f"--animate {name}: {folder} holds no trajectory of it; name a candidate as the "
                "table does, of a campaign without --no-trajectories"
            )


def render(title: str, data: dict[str, Any]) -> str:
    """Return the page; nothing in it can end a script early."""
    room = resources.files("crystorus.hull")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": escape(title),
        "DATA": text.replace("<", "\\u003c"),
        "VIEWER": (room / "viewer" / _VIEWER).read_text("utf-8").replace("</script", "<\\/script"),
        "SCRIPT": (room / "report.js").read_text("utf-8"),
    }
    page = (room / "report.html").read_text("utf-8")
    return re.sub(r"{{([A-Z]+)}}", lambda found: parts[found[1]], page)


def _point(phase: RankedPhase, row: dict[str, str]) -> dict[str, Any]:
    return {
        **{key: row[key] for key in _COLUMNS},
        "held_out": phase.held_out,
        "e": _rounded(phase.e_above_hull),
        "full": _rounded(phase.e_above_full_hull),
        "form": _rounded(phase.formation_energy),
        "group": phase.space_group[0],
        "volume": _rounded(phase.volume_change, 4),
        "found": phase.found,
        "votes": _rounded(phase.provenance.share_of_votes, 3),
        "atoms": len(phase.atoms),
        "file": row["file_symmetrised"],
        "parts": Composition(phase.atoms.get_chemical_formula()).fractional_composition.as_dict(),
    }


def _known(ranking: Ranking) -> tuple[list[dict[str, Any]], list[list[int]], dict[str, Atoms]]:
    """Return the reference phases, the tie lines as their numbers, and their structures."""
    hull = ranking.hull
    points: list[dict[str, Any]] = []
    number_of, shown = dict[str, int](), dict[str, Atoms]()
    for phase in hull.phases:
        above = hull.energy_above(phase)
        number_of[phase.name] = len(points)
        points.append(
            {
                "name": phase.name,
                "formula": reduced_formula_of(phase.composition),
                "e": _rounded(above),
                "stable": above < ON_HULL,
                "form": _rounded(hull.formation_energy(phase)),
                "parts": {
                    Element(e.symbol).symbol: phase.composition.get_atomic_fraction(e)
                    for e in phase.composition
                },
            }
        )
        if phase.name in ranking.reference_atoms:
            shown[phase.name] = ranking.reference_atoms[phase.name]
    lines = [[number_of[a], number_of[b]] for a, b in hull.tie_lines]
    return points, lines, shown


def _structure(atoms: Atoms) -> dict[str, Any]:
    return {
        "cell": np.round(atoms.cell.array, 4).tolist(),
        "symbols": atoms.get_chemical_symbols(),
        "frac": np.round(atoms.get_scaled_positions(wrap=True), 4).tolist(),
    }


def _films(
    shown: Sequence[RankedPhase], folder: Path, animate: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return frames from start to crystal of the best candidates and of those named."""
    check_films(folder, animate)
    best = [p.name for p in shown if (folder / f"{p.name}.extxyz").is_file()][:FILMS]
    films = {}
    for name in dict.fromkeys([*animate, *best]):
        frames = ase.io.read(folder / f"{name}.extxyz", index=":")
        chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
        films[name] = [_structure(frames[i]) for i in chosen]
    return films


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(float(value), digits) + 0.0

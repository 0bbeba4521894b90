"""The page of any results: the table of the folder, with the cells, and every structure in 3D."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crystal_fidelity.structures import Crystal, ReadFailure, cell_parameters, density
from crystal_fidelity.symmetry import cell_of, dataset, group_of
from crystorus.hull.rank import CELL
from crystorus.hull.report import SHOWN_COLUMNS, TRAJECTORIES, read_trajectory, results_page
from crystorus.results.options import ViewOptions
from crystorus.results.reading import Result, crystals_of, read_results
from crystorus.terminal import log

_COLUMNS = (
    ("index", "#", "number"), *SHOWN_COLUMNS[:-1],
    ("electrostatic_energy", "electrostatic / eV/atom", "ev"), ("ways", "ways", "number"),
    ("formula_units", "Z", "number"),
    ("density", "density / g cm⁻³", "decimal"), ("valid", "valid", "text"),
    ("confidence", "confidence", "decimal"), ("min_distance_ratio", "closest / Σr", "decimal"),
    ("substitution", "substitution", "text"), ("known_as", "known as", "text"),
    ("same_as", "same as", "number"),
    ("cif_symmetrised_file", "file", "text"), SHOWN_COLUMNS[-1],
)  # fmt: skip
_NUMBERS = {key for key, _, form in _COLUMNS if form not in ("text", "formula", "group")}


def results_page_of(source: Path, options: ViewOptions, *, most: int) -> str:
    """Return the page of an output folder or of a file of structures.

    Args:
        source: See `read_results`.
        options: Which crystals.
        most: Structures that the page carries.

    Raises:
        RequestError: If there is no crystal.
        ReadingError: If a file cannot be read.
    """
    results = read_results(source, options)
    crystals = crystals_of(results)
    if len(crystals) > most:
        log("note", f"the page carries the first {most} of {len(crystals)} structures")
    rows = [_row(place, one, options.symprec) for place, one in enumerate(results, start=1)]
    record: Mapping[str, Any] = {}
    if (source / "run.json").is_file():
        record = json.loads((source / "run.json").read_text("utf-8"))
    level = record.get("settings", {}).get("level")
    films = {one.name: source / "trajectories" / f"{one.name}.extxyz" for one in results}
    shown = [name for name, path in films.items() if path.is_file()][:TRAJECTORIES]
    valid = sum(row.get("valid") == "True" for row in rows)
    return results_page(
        source.resolve().name,
        rows,
        _COLUMNS,
        dict(list(crystals.items())[:most]),
        notes=[f"Energies: {level}."] if level else [],
        counts={"crystals": len(rows)} | ({"valid": valid} if "valid" in rows[0] else {}),
        trajectories={name: read_trajectory(films[name]) for name in shown},
        settings=record.get("settings", {}),
        versions=record.get("versions", {}),
    )


def _row(place: int, one: Result, symprec: float) -> dict[str, Any]:
    """Return a line of the page's table: what the table says, and the conventional cell."""
    row: dict[str, Any] = ({} if one.row.get("rank") else {"index": place}) | {
        key: float(value) if key in _NUMBERS and value else value for key, value in one.row.items()
    }
    row |= {"name": one.name, "formula": row.get("formula") or "", "failed": True}
    if isinstance(one.entry, ReadFailure):
        row["reason"] = one.entry.reason
    if isinstance(one.entry, Crystal):
        crystal, data = one.entry, dataset(one.entry, symprec)
        cell = crystal if data is None else cell_of(data.std_cell)
        row |= dict(zip(CELL, cell_parameters(cell.lattice), strict=True))
        row |= {"volume_per_atom": crystal.volume / len(crystal), "density": density(crystal)}
        row |= {"space_group": group_of(data)[0], "n_atoms": len(crystal), "failed": False}
    return {key: value for key, value in row.items() if value == value}  # noqa: PLR0124 - NaN

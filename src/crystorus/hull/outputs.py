"""What a user takes away: the table, and CIFs in folders by composition."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from crystorus.data.files import write_whole
from crystorus.data.io import crystals_from_atoms
from crystorus.data.writing import cif_text, symmetrised_cif_text
from crystorus.hull.assessing import RankedPhase, Ranking
from crystorus.sample.disk import disk_errors

TABLE = "table.csv"
SUMMARY = "summary.json"
PHASES = "phases"
SYMMETRISED = "phases-symmetrised"
COLUMNS = (
    "rank", "name", "formula", "n_atoms", "e_above_hull", "e_above_full_hull",
    "formation_energy", "energy_per_atom", "space_group", "space_group_number", "volume_change",
    "novelty", "known_id", "rms", "held_out_id", "found", "start", "share_of_votes", "origin",
    "status", "reason", "file", "file_symmetrised",
)  # fmt: skip


def table_rows(phases: Sequence[RankedPhase]) -> list[dict[str, str]]:
    """Return the lines of the table: energies in eV/atom, volume change as a fraction."""
    return [_row(rank, phase) for rank, phase in enumerate(phases, start=1)]


def phase_file(phase: RankedPhase) -> str:
    """Return where a phase's CIF is, within its folder."""
    return f"{phase.formula}/{phase.name}.cif"


def write_table(folder: Path, ranking: Ranking) -> None:
    """Write the table and the figures of the campaign."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_rows(ranking.phases))
    with disk_errors(folder):
        write_whole(folder / TABLE, text.getvalue())
        write_whole(folder / SUMMARY, json.dumps(ranking.counts, indent=2) + "\n")


def write_phases(folder: Path, phases: Sequence[RankedPhase], symprec: float) -> None:
    """Write every ranked phase as CIF, as relaxed and with its symmetry."""
    for phase in phases:
        if phase.energy_per_atom is None:
            continue
        crystal = crystals_from_atoms(phase.atoms, dtype=torch.float64)
        texts = {
            PHASES: cif_text(crystal, phase.name),
            SYMMETRISED: symmetrised_cif_text(crystal, phase.name, symprec),
        }
        with disk_errors(folder):
            for kind, text in texts.items():
                target = folder / kind / phase_file(phase)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (target.exists() and target.read_text(encoding="utf-8") == text):
                    write_whole(target, text)


def _row(rank: int, phase: RankedPhase) -> dict[str, str]:
    ranked = phase.energy_per_atom is not None
    novelty = phase.novelty
    return {
        "rank": str(rank),
        "name": phase.name,
        "formula": phase.formula,
        "n_atoms": str(len(phase.atoms)),
        "e_above_hull": _number(phase.e_above_hull),
        "e_above_full_hull": _number(phase.e_above_full_hull),
        "formation_energy": _number(phase.formation_energy),
        "energy_per_atom": _number(phase.energy_per_atom),
        "space_group": phase.space_group[0],
        "space_group_number": str(phase.space_group[1] or ""),
        "volume_change": _number(phase.volume_change, 4),
        "novelty": novelty.verdict if novelty else "",
        "known_id": novelty.id if novelty else "",
        "rms": _number(novelty.rms if novelty else None, 4),
        "held_out_id": phase.held_out,
        "found": str(phase.found) if ranked else "",
        "start": phase.provenance.start,
        "share_of_votes": _number(phase.provenance.share_of_votes, 3),
        "origin": phase.provenance.origin,
        "status": phase.status,
        "reason": phase.reason,
        "file": f"{PHASES}/{phase_file(phase)}" if ranked else "",
        "file_symmetrised": f"{SYMMETRISED}/{phase_file(phase)}" if ranked else "",
    }


def _number(value: float | None, digits: int = 6) -> str:
    return "" if value is None else f"{value + 0.0:.{digits}f}"

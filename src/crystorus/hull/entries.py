"""Energies above hull of a file of pymatgen entries: no structures, no campaign, a table."""

import csv
import io
from pathlib import Path

import typer

from crystorus.data.compositions import symbol_of
from crystorus.data.files import write_whole
from crystorus.hull.enumeration import check_system
from crystorus.hull.errors import CampaignError
from crystorus.hull.novelty import reduced_formula_of
from crystorus.hull.orders import RankOrder
from crystorus.hull.outputs import TABLE
from crystorus.hull.ranking import Hull, Phase
from crystorus.hull.references import (
    Known,
    check_levels,
    check_span,
    is_entries_file,
    read_entries,
    read_sources,
)
from crystorus.sample.disk import disk_errors

_COLUMNS = ("rank", "name", "formula", "e_above_hull", "formation_energy", "energy_per_atom")
_SHOWN = 25


def rank_entries(source: Path, system: str | None, out: Path | None, order: RankOrder) -> None:
    """Rank entries against the hull of the references, or of themselves where none are named.

    Raises:
        CampaignError: If an option makes no sense here.
        ReferencesError: If there is no hull to compare with.
    """
    if out is None:
        raise CampaignError(f"--out is missing: name the folder for the table of {source}")
    if order.held_out:
        raise CampaignError("--held-out is matched by structure, entries have none: leave it out")
    entries = read_entries(source)
    found = sorted({e.symbol for entry in entries for e in entry.composition})
    elements = [symbol_of(z) for z in check_system(system or "-".join(found))]
    entries = [e for e in entries if {x.symbol for x in e.composition} <= set(elements)]
    known = _energies(order.references, elements, out) if order.references else entries
    check_levels({entry.level for entry in (*entries, *known)}, mix=order.mix_energy_levels)
    check_span((phase.composition for phase in known), elements, "the references")
    hull = Hull([_phase(one) for one in known], elements)
    rows = [(hull.energy_above(p), hull.formation_energy(p), p) for p in map(_phase, entries)]
    rows.sort(key=lambda row: (row[0], row[2].name))
    _write(out, rows)
    for above, _, phase in rows[:_SHOWN]:
        typer.echo(f"{reduced_formula_of(phase.composition)}\t{above + 0.0:+.3f} eV\t{phase.name}")
    typer.echo(f"{len(rows)} entries in {out / TABLE}")


def _energies(names: tuple[str, ...], elements: list[str], out: Path) -> list[Known]:
    without = [n for n in names if not is_entries_file(Path(n))]
    if without:
        raise CampaignError(
            f"--references {without[0]} has structures, entries can only be compared with entries: "
            "name a .json file"
        )
    sources = read_sources(names, elements, out)
    return [known for source in sources for known in source.phases]


def _phase(known: Known) -> Phase:
    assert known.energy_per_atom is not None
    return Phase(known.name, known.composition, known.energy_per_atom)


def _write(folder: Path, rows: list[tuple[float, float, Phase]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, (above, formation, phase) in enumerate(rows, start=1):
        numbers = (f"{value + 0.0:.8f}" for value in (above, formation, phase.energy_per_atom))
        writer.writerow([rank, phase.name, reduced_formula_of(phase.composition), *numbers])
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TABLE, text.getvalue())

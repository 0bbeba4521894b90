"""From relaxed structures to ranked phases: one of each, its place on the hull, its novelty."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ase import Atoms
from ase.db.row import AtomsRow
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element

from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.matching import METASTABLE
from crystal_fidelity.options import SYMPREC
from crystal_fidelity.structures import Crystal, cell_parameters
from crystorus.data.convert import crystals_from
from crystorus.data.writers import cif_text, csv_text, safe_name, symmetrised_cif_text
from crystorus.errors import CampaignError
from crystorus.hull.campaign import Campaign, started_from
from crystorus.hull.candidates import (
    DUPLICATE,
    GENERATED,
    INVALID,
    REFERENCE,
    REQUESTED,
    WAITING,
)
from crystorus.hull.matching import (
    Comparable,
    Novelty,
    StructureIndex,
    reduced_formula,
)
from crystorus.hull.references import Known, check_levels, check_span, formula_of
from crystorus.hull.relax import USABLE

ON_HULL = 5e-4  # eV/atom, what prints as 0.000: one phase relaxed twice differs by about 1e-4
TABLE, SUMMARY = "table.csv", "summary.json"
PHASES, SYMMETRISED = "phases", "phases-symmetrised"
CELL = ("a", "b", "c", "alpha", "beta", "gamma")
"""Columns of the conventional cell, Å and degrees."""
COLUMNS = (
    "rank", "name", "formula", "n_atoms", "e_above_hull", "e_above_full_hull",
    "formation_energy", "energy_per_atom", "e_above_lowest", "space_group", "space_group_number",
    *CELL, "volume_per_atom", "volume_change",
    "novelty", "known_id", "rms", "held_out_id", "found", "start", "prototype_fraction", "origin",
    "status", "reason", "file", "file_symmetrised",
)  # fmt: skip
PHONONS = ("lowest_phonon", "imaginary_phonons")
"""Columns that `--phonons` adds: THz, negative if imaginary, and how many are."""
_ABOUT_HULL = ("the hull", "known phases", "phases found", "held-out phases")
_DIGITS = {
    **dict.fromkeys((*CELL, "volume_per_atom"), 4),
    "volume_change": 4,
    "rms": 4,
    "prototype_fraction": 3,
}  # of 6 for energies
ENTRY_COLUMNS = ("rank", "name", "formula", "e_above_hull", "formation_energy", "energy_per_atom")


class Phase(PDEntry):
    """A point of the hull: a pymatgen entry made of its energy in eV/atom."""

    def __init__(self, name: str, composition: Composition, energy_per_atom: float) -> None:
        super().__init__(composition, energy_per_atom * composition.num_atoms, name)


class Hull:
    """The convex hull of some phases over a chemical system, by pymatgen's PhaseDiagram.

    Raises:
        CampaignError: If pymatgen cannot build it.
    """

    def __init__(self, phases: Sequence[Phase], elements: Sequence[str]) -> None:
        self.phases, self.elements = tuple(phases), tuple(elements)
        try:
            self.diagram = PhaseDiagram(phases, [Element(symbol) for symbol in elements])
        except (ValueError, IndexError, ArithmeticError) as error:
            raise CampaignError(
                f"no hull of {'-'.join(elements)} can be built ({error}): check the energies of "
                "the references"
            ) from error

    def energy_above(self, phase: Phase) -> float:
        """Return eV/atom above the hull; negative for a phase below it, unless it is on it.

        Args:
            phase: With an energy of the hull's level.
        """
        on_hull = self.diagram.get_hull_energy_per_atom(phase.composition)
        return phase.energy_per_atom - float(on_hull)

    def formation_energy(self, phase: Phase) -> float:
        """Return eV/atom relative to the most stable phases of the elements.

        Args:
            phase: With an energy of the hull's level.
        """
        return float(self.diagram.get_form_energy_per_atom(phase))

    @property
    def stable(self) -> tuple[str, ...]:
        """Names of the phases on the hull."""
        entries = cast("set[PDEntry]", self.diagram.stable_entries)
        return tuple(sorted(entry.name for entry in entries))

    @property
    def tie_lines(self) -> tuple[tuple[str, str], ...]:
        """Pairs of names of phases that coexist: the edges of the hull."""
        named = [entry.name for entry in self.diagram.qhull_entries]
        pairs = {
            tuple(sorted((named[a], named[b])))
            for facet in self.diagram.facets
            for i, a in enumerate(facet)
            for b in facet[i + 1 :]
        }
        return tuple(sorted((a, b) for a, b in pairs))


@dataclass(frozen=True, eq=False)
class RankedPhase:
    """A phase with all that the table says of it; numbers are None for a failure.

    Attributes:
        name: Of the candidate that stands for it.
        row: Number of its relaxed row in the database.
        formula: Reduced.
        atoms: Relaxed.
        status: What happened to it.
        reason: In words.
        start: Where its sampling run began, the template's id or "noise".
        prototype_fraction: As in the table of `crystorus sample`.
        origin: Whether the library holds it, as in the table of `crystorus sample`.
        energy_per_atom: eV/atom.
        formation_energy: eV/atom relative to the elements.
        e_above_hull: eV/atom above the hull of the references, negative below it.
        e_above_full_hull: eV/atom above the hull of references and candidates together.
        e_above_lowest: eV/atom above the most stable candidate of its composition.
        volume_change: Relative, by the relaxation.
        space_group: Symbol and number of the relaxed structure.
        conventional: Its conventional cell, symmetrised.
        novelty: Against the references; None without them.
        held_out: The held-out phase that it is, empty if none.
        found: Candidates that relaxed to it.
        lowest_phonon: Lowest frequency at Γ but the translations', in THz, negative if imaginary.
        imaginary_phonons: How many are.
    """

    name: str
    row: int
    formula: str
    atoms: Atoms
    status: str
    reason: str = ""
    start: str = ""
    prototype_fraction: float | None = None
    origin: str = ""
    energy_per_atom: float | None = None
    formation_energy: float | None = None
    e_above_hull: float | None = None
    e_above_full_hull: float | None = None
    e_above_lowest: float | None = None
    volume_change: float | None = None
    space_group: tuple[str, int] = ("", 0)
    conventional: Crystal | None = None
    novelty: Novelty | None = None
    held_out: str = ""
    found: int = 1
    lowest_phonon: float | None = None
    imaginary_phonons: int | None = None

    @property
    def file(self) -> str:
        """Where its CIF is, within its folder; a name of the database is never a path."""
        return f"{self.formula}/{safe_name(self.name)}.cif"

    @property
    def record(self) -> dict[str, str | int | float | None]:
        """Its line of the table but for the rank: eV/atom, volume change as a fraction."""
        ranked, novelty = self.energy_per_atom is not None, self.novelty or Novelty("")
        cell = self.conventional
        parameters = [None] * 6 if cell is None else cell_parameters(cell.lattice)
        return {
            "name": self.name,
            "formula": self.formula,
            "n_atoms": len(self.atoms),
            "e_above_hull": self.e_above_hull,
            "e_above_full_hull": self.e_above_full_hull,
            "formation_energy": self.formation_energy,
            "energy_per_atom": self.energy_per_atom,
            "e_above_lowest": self.e_above_lowest,
            "space_group": self.space_group[0],
            "space_group_number": self.space_group[1] or None,
            **dict(zip(CELL, parameters, strict=True)),
            "volume_per_atom": abs(self.atoms.get_volume()) / len(self.atoms) if ranked else None,
            "volume_change": self.volume_change,
            "novelty": novelty.verdict,
            "known_id": novelty.id,
            "rms": novelty.rms,
            "held_out_id": self.held_out,
            "found": self.found if ranked else None,
            "lowest_phonon": self.lowest_phonon,
            "imaginary_phonons": self.imaginary_phonons,
            "start": self.start,
            "prototype_fraction": self.prototype_fraction,
            "origin": self.origin,
            "status": self.status,
            "reason": self.reason,
            "file": f"{PHASES}/{self.file}" if ranked else "",
            "file_symmetrised": f"{SYMMETRISED}/{self.file}" if ranked else "",
        }


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a campaign found.

    Attributes:
        phases: Ranked, then failures, then what waits to be relaxed.
        hull: Of the references; None without them.
        full_hull: Of references and candidates.
        duplicates: Row numbers of candidates that relaxed to the phase of another, with its name.
        reference_atoms: Structures of the references that have one, relaxed where they were.
        counts: The campaign in figures.
    """

    phases: tuple[RankedPhase, ...]
    hull: Hull | None
    full_hull: Hull | None
    duplicates: dict[int, str]
    reference_atoms: dict[str, Atoms]
    counts: dict[str, int]


def collect_references(
    campaign: Campaign, known: Sequence[Known], elements: Sequence[str], *, mix: bool
) -> tuple[list[Phase], dict[str, Atoms]]:
    """Return the phases of the reference hull, and the structures of all that have one.

    A phase with a structure has the energy of the campaign's calculator; where energies may be
    mixed, and for a phase without a structure, it has the energy of its source.

    Args:
        campaign: Holds the relaxed references.
        known: As they were read.
        elements: Symbols of the system.
        mix: Allow several levels of energies.

    Raises:
        ReferencesError: If they do not span the system, or are of several levels.
    """
    rows = {row.name: row for row in campaign.relaxed(REFERENCE)}
    phases, levels, atoms = [], set(), {}
    for one in known:
        row: AtomsRow | None = rows.get(one.row)
        if row is not None and row.status not in USABLE:
            row = None
        # A structure that was not relaxed still tells which phase it is.
        if row is not None or one.atoms is not None:
            atoms[one.name] = one.atoms if row is None else row.toatoms()
        if one.energy_per_atom is not None and (mix or one.atoms is None):
            phases.append(Phase(one.name, one.composition, one.energy_per_atom))
            levels.add(one.level)
        elif row is not None:
            phases.append(Phase(one.name, one.composition, row.energy_per_atom))
            levels.add(row.level)
    levels |= {r.level for r in campaign.relaxed(GENERATED) if r.status in USABLE}
    check_levels(levels, mix=mix)
    where = "the references"
    if any(row.status not in USABLE for row in rows.values()):
        where += " whose relaxation succeeded"
    check_span((p.composition for p in phases), elements, where)
    return phases, atoms


def assess(
    campaign: Campaign,
    known: Sequence[Known],
    elements: Sequence[str],
    *,
    mix: bool = False,
    held_out: Sequence[Known] = (),
    symprec: float = SYMPREC,
) -> Ranking:
    """Rank the relaxed candidates of a campaign.

    Args:
        campaign: Whose candidates.
        known: Known phases that make the hull; without any, energies are compared within a
            composition alone.
        elements: Symbols of the system.
        mix: Whether energies of several levels may meet.
        held_out: Known phases that take no part in the hull and are looked for; those that are
            among the references as well, or that come out of the library itself, are not found.
        symprec: Å; tolerance of the space groups.

    Raises:
        ReferencesError: If there is no hull to compare with.
    """
    references, atoms = list[Phase](), dict[str, Atoms]()
    if known:
        references, atoms = collect_references(campaign, known, elements, mix=mix)
    hull = Hull(references, elements) if references else None
    rows = campaign.relaxed(GENERATED)
    usable = sorted(
        (row for row in rows if row.status in USABLE), key=lambda r: (r.energy_per_atom, r.name)
    )
    # One symmetry search per structure serves every comparison; the lowest row stands for a phase.
    shapes = {row.id: Comparable.of(row.toatoms()) for row in usable}
    index, unique, duplicates = StructureIndex(), list[AtomsRow](), dict[int, str]()
    for row in usable:
        if first := index.find(shapes[row.id]):
            duplicates[row.id] = first
        else:
            index.add(row.name, shapes[row.id])
            unique.append(row)
    own = {row.id: Phase(row.name, Composition(row.formula), row.energy_per_atom) for row in unique}
    full = Hull([*references, *own.values()], elements) if references else None
    lowest: dict[str, float] = {}
    for row in unique:  # by energy
        lowest.setdefault(shapes[row.id].formula, row.energy_per_atom)
    compared = {name: Comparable.of(one) for name, one in atoms.items()}
    listed, hidden = StructureIndex(), StructureIndex()
    for one in known:
        listed.add(one.name, compared.get(one.name), formula_of(one.composition))
    sought = [(k, k.atoms and Comparable.of(k.atoms)) for k in held_out]
    as_given = StructureIndex()
    for one in known if held_out else ():
        if one.atoms is not None:
            as_given.add(one.name, Comparable.of(one.atoms))
    sought = [(k, shape) for k, shape in sought if shape is None or not as_given.find(shape)]
    for one, shape in sought:
        hidden.add(one.name, shape, formula_of(one.composition))
    found = Counter(duplicates.values())
    ranked = []
    for row in unique:
        phase, shape = own[row.id], shapes[row.id]
        unranked = _unranked(row)
        copied = unranked.origin == "known"  # the library itself holds it
        shown = shape if symprec == SYMPREC else Comparable.of(row.toatoms(), symprec)
        ranked.append(
            replace(
                unranked,
                energy_per_atom=phase.energy_per_atom,
                formation_energy=hull.formation_energy(phase) if hull else None,
                e_above_hull=hull.energy_above(phase) if hull else None,
                e_above_full_hull=max(0.0, full.energy_above(phase)) if full else None,
                e_above_lowest=phase.energy_per_atom - lowest[shape.formula],
                volume_change=row.volume_change,
                space_group=shown.space_group,
                conventional=shown.conventional,
                novelty=listed.novelty(shape) if known else None,
                held_out="" if copied else hidden.novelty(shape).id,
                found=1 + found[row.name],
            )
        )
    if hull is None:
        ranked.sort(key=lambda phase: (phase.formula, phase.e_above_lowest or 0.0, phase.name))
    else:
        ranked.sort(key=lambda phase: (phase.e_above_hull or 0.0, phase.name))
    others = [row for row in rows if row.status not in USABLE]
    others.sort(key=lambda row: row.status == WAITING)  # stable: what failed, then what waits
    counts = _count(campaign, ranked) | {
        "known phases": len(references),
        "held-out phases": len(sought),
        **({"held out but known": n} if (n := len(held_out) - len(sought)) else {}),
        "held-out phases found": len({phase.held_out for phase in ranked} - {""}),
    }
    if hull is None:
        counts = {name: n for name, n in counts.items() if not name.endswith(_ABOUT_HULL)}
    return Ranking((*ranked, *map(_unranked, others)), hull, full, duplicates, atoms, counts)


def candidate_elements(campaign: Campaign) -> tuple[str, ...]:
    """Return the symbols of all valid candidates, alphabetically.

    Args:
        campaign: Holds the candidates.
    """
    rows = campaign.originals(GENERATED)
    return tuple(sorted({symbol for row in rows for symbol in row.symbols}))


def _unranked(row: AtomsRow) -> RankedPhase:
    """Return what is known of a candidate before, or without, its place on the hull."""
    atoms = row.toatoms()
    formula = reduced_formula(atoms)
    reason = row.get("reason", "")
    return RankedPhase(row.name, row.id, formula, atoms, row.status, reason, **started_from(row))


def _count(campaign: Campaign, ranked: Sequence[RankedPhase]) -> dict[str, int]:
    rows = [row for row in campaign.originals(GENERATED) if row.status != REQUESTED]
    originals = Counter(row.status for row in rows)
    templates = sum(started_from(row).get("start", "noise") != "noise" for row in rows)
    relaxed = Counter(row.status for row in campaign.relaxed(GENERATED))
    verdicts = Counter(phase.novelty.verdict for phase in ranked if phase.novelty)
    heights = [phase.e_above_hull for phase in ranked if phase.e_above_hull is not None]
    valid = len(rows) - originals[INVALID]
    return {
        "generated": len(rows),
        **({"of them from templates": templates} if templates else {}),
        "valid": valid,
        "unique before relaxation": valid - originals[DUPLICATE],
        "waiting": relaxed[WAITING],
        **{status: relaxed[status] for status in sorted(relaxed) if status != WAITING},
        "distinct phases": len(ranked),
        f"within {METASTABLE:g} eV/atom of the hull": sum(h <= METASTABLE for h in heights),
        "on or below the hull": sum(h <= ON_HULL for h in heights),
        **{verdict: verdicts[verdict] for verdict in sorted(verdicts)},
    }


def write_ranking(folder: Path, ranking: Ranking, symprec: float) -> None:
    """Write the table, the figures, and every ranked phase as CIF, as relaxed and symmetrised.

    Args:
        folder: Of the campaign.
        ranking: What was found.
        symprec: Å; tolerance of the symmetrised cells.
    """
    records = [phase.record for phase in ranking.phases]
    asked = any(phase.imaginary_phonons is not None for phase in ranking.phases)
    columns = (*COLUMNS, *PHONONS) if asked else COLUMNS
    write_table(folder, columns, ({name: one[name] for name in columns[1:]} for one in records))
    with disk_errors(folder):
        write_atomic(folder / SUMMARY, json.dumps(ranking.counts, indent=2) + "\n")
    for phase in ranking.phases:
        if phase.energy_per_atom is None:
            continue
        crystal = crystals_from(phase.atoms)
        texts = {
            PHASES: cif_text(crystal, phase.name),
            SYMMETRISED: symmetrised_cif_text(crystal, phase.name, symprec),
        }
        with disk_errors(folder):
            for kind, text in texts.items():
                target = folder / kind / phase.file
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (target.exists() and target.read_text(encoding="utf-8") == text):
                    write_atomic(target, text)


def write_table(
    folder: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str | int | float | None]]
) -> None:
    """Write rows by rank as CSV, in which no text is a formula of a spreadsheet.

    Args:
        folder: Of the campaign.
        columns: In their order.
        rows: By column, the best first.
    """
    numbered = [
        {"rank": str(rank)} | {name: _text(name, value) for name, value in row.items()}
        for rank, row in enumerate(rows, start=1)
    ]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / TABLE, csv_text(columns, numbered))


def rank_entries(
    entries: Sequence[Known], known: Sequence[Known], elements: Sequence[str], *, mix: bool
) -> list[dict[str, str]]:
    """Return the lines of the table of entries, the most stable first.

    Args:
        entries: What is ranked.
        known: Entries that make the hull.
        elements: Symbols of the system.
        mix: Whether energies of several levels may meet.

    Raises:
        ReferencesError: If there is no hull to compare with.
    """
    check_levels({entry.level for entry in (*entries, *known)}, mix=mix)
    check_span((phase.composition for phase in known), elements, "the references")

    def phase_of(one: Known) -> Phase:
        assert one.energy_per_atom is not None
        return Phase(one.name, one.composition, one.energy_per_atom)

    hull = Hull([phase_of(one) for one in known], elements)
    rows = [(hull.energy_above(p), hull.formation_energy(p), p) for p in map(phase_of, entries)]
    rows.sort(key=lambda row: (row[0], row[2].name))
    return [
        {
            "name": phase.name,
            "formula": formula_of(phase.composition),
            "e_above_hull": f"{round(above, 8) + 0.0:.8f}",
            "formation_energy": f"{round(formation, 8) + 0.0:.8f}",
            "energy_per_atom": f"{phase.energy_per_atom:.8f}",
        }
        for above, formation, phase in rows
    ]


def _text(column: str, value: str | int | float | None) -> str:
    """Return a value as text, a number without a minus before zero."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = _DIGITS.get(column, 6)
    return f"{round(value, digits) + 0.0:.{digits}f}"

"""From relaxed structures to ranked phases: one of each, its place on the hull, its novelty."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from ase import Atoms
from ase.db.row import AtomsRow
from pymatgen.core import Composition

from crystorus.data.io import crystals_from_atoms
from crystorus.data.spacegroups import symmetry
from crystorus.hull.matching import SAME, Gallery, reduced_formula
from crystorus.hull.novelty import KnownPhases, Novelty
from crystorus.hull.ranking import METASTABLE, Hull, Phase
from crystorus.hull.references import Known, Source, check_levels, check_span
from crystorus.hull.relaxation import USABLE
from crystorus.hull.state import (
    DUPLICATE,
    GENERATED,
    INVALID,
    NOISE,
    REFERENCE,
    WAITING,
    Campaign,
    Provenance,
)


@dataclass(frozen=True, eq=False)
class RankedPhase:
    """A phase with all that the table says of it; numbers are None for a failure.

    Attributes:
        name: Of the candidate that stands for it.
        row: Number of its relaxed row in the database.
        formula: Reduced.
        atoms: Relaxed.
        energy_per_atom: eV/atom.
        formation_energy: eV/atom relative to the elements.
        e_above_hull: eV/atom above the hull of the references, negative below it.
        e_above_full_hull: eV/atom above the hull of references and candidates together.
        volume_change: Relative, by the relaxation.
        space_group: Symbol and number of the relaxed structure.
        novelty: Against the references.
        held_out: The held-out phase that it is, empty if none.
        provenance: Where its walk began.
        found: Candidates that relaxed to it.
        status: What happened to it.
        reason: In words.
    """

    name: str
    row: int
    formula: str
    atoms: Atoms
    status: str
    reason: str = ""
    energy_per_atom: float | None = None
    formation_energy: float | None = None
    e_above_hull: float | None = None
    e_above_full_hull: float | None = None
    volume_change: float | None = None
    space_group: tuple[str, int] = ("", 0)
    novelty: Novelty | None = None
    held_out: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    found: int = 1


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a campaign found.

    Attributes:
        phases: Ranked, failures last.
        hull: Of the references.
        full_hull: Of references and candidates.
        twins: Row numbers of candidates that relaxed to the phase of another, with its name.
        reference_atoms: Relaxed structures of the references that have one.
        counts: The campaign in figures.
        held_out: Candidate by held-out phase that was found.
    """

    phases: tuple[RankedPhase, ...]
    hull: Hull
    full_hull: Hull
    twins: dict[int, str]
    reference_atoms: dict[str, Atoms]
    counts: dict[str, int]
    held_out: dict[str, str] = field(default_factory=dict)


def collect_references(
    campaign: Campaign, sources: Sequence[Source], elements: Sequence[str], *, mix: bool
) -> tuple[list[Phase], dict[str, Atoms]]:
    """Return the phases of the reference hull, and their structures.

    A phase with a structure has the energy of the campaign's calculator; where energies may be
    mixed, and for a phase without a structure, it has the energy of its source.

    Raises:
        ReferencesError: If they do not span the system, or are of several levels.
    """
    rows = {row.name: row for row in campaign.relaxed(REFERENCE)}
    phases, levels, atoms = [], set(), {}
    for source, known in ((s, known) for s in sources for known in s.phases):
        row: AtomsRow | None = rows.get(source.row_name(known))
        if row is not None and row.status not in USABLE:
            row = None
        if row is not None:
            atoms[known.name] = row.toatoms()
        given = known.energy_per_atom is not None and (mix or known.atoms is None)
        if given:
            assert known.energy_per_atom is not None
            phases.append(Phase(known.name, known.composition, known.energy_per_atom))
            levels.add(known.level)
        elif row is not None:
            phases.append(Phase(known.name, known.composition, row.energy_per_atom))
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
    sources: Sequence[Source],
    elements: Sequence[str],
    *,
    mix: bool = False,
    held_out: Sequence[Known] = (),
    symprec: float = 0.1,
) -> Ranking:
    """Rank the relaxed candidates of a campaign.

    Args:
        campaign: Whose candidates.
        sources: Known phases that make the hull.
        elements: Symbols of the system.
        mix: Whether energies of several levels may meet.
        held_out: Known phases that take no part in the hull and are looked for; those that are
            among the references as well, or that come out of the library itself, are not found.
        symprec: Å; tolerance of the space groups.

    Raises:
        ReferencesError: If there is no hull to compare with.
    """
    references, atoms = collect_references(campaign, sources, elements, mix=mix)
    hull = Hull(references, elements)
    rows = campaign.relaxed(GENERATED)
    unique, twins = _distinct([row for row in rows if row.status in USABLE])
    own = {row.name: _phase_of(row) for row in unique}
    full = Hull([*references, *own.values()], elements)
    known = KnownPhases(
        [(k.name, k.composition, atoms.get(k.name)) for s in sources for k in s.phases]
    )
    sought = _unknown(held_out, sources)
    hidden = KnownPhases([(k.name, k.composition, k.atoms) for k in sought])
    found = Counter(twins.values())
    ranked = [
        _rank(row, own[row.name], hull, full, known, hidden, found[row.name], symprec)
        for row in unique
    ]
    ranked.sort(key=lambda phase: (phase.e_above_hull or 0.0, phase.name))
    failures = [_unranked(row) for row in rows if row.status not in (*USABLE, WAITING)]
    held = {phase.held_out: phase.name for phase in reversed(ranked) if phase.held_out}
    counts = _count(campaign, ranked) | {
        "known phases": len(references),
        "held-out phases": len(sought),
        **({"held out but known": n} if (n := len(held_out) - len(sought)) else {}),
        "held-out phases found": len(held),
    }
    return Ranking((*ranked, *failures), hull, full, twins, atoms, counts, held)


def _unknown(held_out: Sequence[Known], sources: Sequence[Source]) -> list[Known]:
    """Return the held-out phases that are not among the references under another id."""
    references = Gallery(SAME)
    for known in (k for s in sources for k in s.phases):
        if known.atoms is not None:
            references.add(known.name, known.atoms)
    return [k for k in held_out if k.atoms is None or not references.find(k.atoms)]


def candidate_elements(campaign: Campaign) -> tuple[str, ...]:
    """Return the symbols of all valid candidates, alphabetically."""
    rows = campaign.originals(GENERATED)
    return tuple(sorted({symbol for row in rows for symbol in row.symbols if len(row.cell)}))


def _distinct(rows: Sequence[AtomsRow]) -> tuple[list[AtomsRow], dict[int, str]]:
    """Return the lowest row of every phase, and the other rows with the name of theirs."""
    gallery, unique, twins = Gallery(SAME), [], {}
    for row in sorted(rows, key=lambda r: (r.energy_per_atom, r.name)):
        twin = gallery.find(row.toatoms())
        if twin:
            twins[row.id] = twin
        else:
            gallery.add(row.name, row.toatoms())
            unique.append(row)
    return unique, twins


def _phase_of(row: AtomsRow) -> Phase:
    return Phase(row.name, Composition(row.formula), row.energy_per_atom)


def _rank(
    row: AtomsRow,
    phase: Phase,
    hull: Hull,
    full: Hull,
    known: KnownPhases,
    hidden: KnownPhases,
    n_twins: int,
    symprec: float,
) -> RankedPhase:
    unranked = _unranked(row)
    atoms = unranked.atoms
    group = symmetry(crystals_from_atoms(atoms, dtype=torch.float64), symprec)
    copied = unranked.provenance.origin == "known"  # the library itself holds it
    return replace(
        unranked,
        energy_per_atom=phase.energy_per_atom,
        formation_energy=hull.formation_energy(phase),
        e_above_hull=hull.energy_above(phase),
        e_above_full_hull=max(0.0, full.energy_above(phase)),
        volume_change=row.volume_change,
        space_group=(group.symbol, group.number),
        novelty=known.judge(atoms),
        held_out="" if copied else hidden.judge(atoms).id,
        found=1 + n_twins,
    )


def _unranked(row: AtomsRow) -> RankedPhase:
    """Return what is known of a candidate before, or without, its place on the hull."""
    atoms = row.toatoms()
    return RankedPhase(
        row.name,
        row.id,
        reduced_formula(atoms),
        atoms,
        row.status,
        row.get("reason", ""),
        provenance=Provenance.of(row),
    )


def _count(campaign: Campaign, ranked: Sequence[RankedPhase]) -> dict[str, int]:
    rows = campaign.originals(GENERATED)
    originals = Counter(row.status for row in rows)
    templates = sum(Provenance.of(row).start not in ("", NOISE) for row in rows)
    relaxed = Counter(row.status for row in campaign.relaxed(GENERATED))
    verdicts = Counter(phase.novelty.verdict for phase in ranked if phase.novelty)
    heights = [phase.e_above_hull for phase in ranked if phase.e_above_hull is not None]
    return {
        "generated": sum(originals.values()),
        **({"of them from templates": templates} if templates else {}),
        "valid": sum(originals.values()) - originals[INVALID],
        "unique before relaxation": sum(originals.values())
        - originals[INVALID]
        - originals[DUPLICATE],
        "waiting": relaxed[WAITING],
        **{status: relaxed[status] for status in sorted(relaxed) if status != WAITING},
        "distinct phases": len(ranked),
        f"within {METASTABLE:g} eV/atom of the hull": sum(h <= METASTABLE for h in heights),
        "on or below the hull": sum(h <= 1e-8 for h in heights),
        **{verdict: verdicts[verdict] for verdict in sorted(verdicts)},
    }

"""Phonons at Γ of relaxed structures, by phonopy: an imaginary one says that it is no minimum."""

from dataclasses import replace

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from crystorus.hull.options import RelaxSettings
from crystorus.hull.potentials import evaluate, load_potential, short
from crystorus.hull.rank import RankedPhase, Ranking
from crystorus.terminal import log

DISPLACEMENT = 0.03
"""Å; larger than phonopy's 0.01, as forces of a potential in single precision are rounded."""
SAME_PLACE = 1e-3
"""Å; tolerance of the symmetry that spares displacements."""
IMAGINARY = -0.1
"""THz; a frequency below is imaginary and not a translation's zero with its rounding."""


def gamma_frequencies(atoms: Atoms, potential: str) -> NDArray[np.float64]:
    """Return the frequencies at Γ of a structure's own cell.

    Args:
        atoms: At rest, periodic.
        potential: As `--potential` names it.

    Returns:
        (3 × atoms,) in THz, ascending; imaginary ones are negative. Three are translations.

    Raises:
        Exception: What potential or phonopy throw.
    """
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=list(atoms.symbols), cell=atoms.cell.array, positions=atoms.positions
    )
    phonons = Phonopy(cell, np.eye(3, dtype=int), primitive_matrix=np.eye(3), symprec=SAME_PLACE)
    phonons.generate_displacements(distance=DISPLACEMENT)
    displaced = [
        Atoms(one.symbols, cell=one.cell, positions=one.positions, pbc=True)
        for one in phonons.supercells_with_displacements or ()
    ]
    forces = []
    for found in evaluate(load_potential(potential), displaced, ("forces",)):
        if isinstance(found, Exception):
            raise found
        forces.append(found["forces"])
    phonons.forces = forces
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    return np.asarray(phonons.get_frequencies([0.0, 0.0, 0.0]))


def with_phonons(ranking: Ranking, k: int, settings: RelaxSettings) -> Ranking:
    """Return a ranking whose first `k` phases have their modes at Γ; say which are imaginary.

    Args:
        ranking: Phases with their structures, the best first.
        k: How many of them.
        settings: Name the potential.
    """

    def check(phase: RankedPhase) -> RankedPhase:
        try:
            found = gamma_frequencies(phase.atoms, settings.potential)
        except Exception as error:  # noqa: BLE001 - foreign programs may raise anything
            log("warning", f"{phase.name}: no phonons ({short(error)})")
            return phase
        optical = np.delete(found, np.argsort(np.abs(found))[:3])  # without the translations
        lowest = float(optical.min()) if len(optical) else None
        imaginary = int((optical < IMAGINARY).sum())
        if imaginary:
            log("phonons", f"{phase.name}: {imaginary} imaginary at Γ, to {lowest:.2f} THz")
        return replace(phase, lowest_phonon=lowest, imaginary_phonons=imaginary)

    ranked = [phase for phase in ranking.phases if phase.energy_per_atom is not None]
    checked = {phase.name: check(phase) for phase in ranked[:k]}
    return replace(ranking, phases=tuple(checked.get(p.name, p) for p in ranking.phases))

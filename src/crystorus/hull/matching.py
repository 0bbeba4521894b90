"""Which structures are the same: near-duplicates among candidates, and known phases found again."""

from dataclasses import dataclass, field

import torch
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystorus.data.compositions import Composition
from crystorus.data.io import crystals_from_atoms
from crystorus.data.spacegroups import dataset

NEAR = {"ltol": 0.1, "stol": 0.1, "angle_tol": 3.0, "scale": False}
"""Candidates this close before they are relaxed go to the same minimum: one of them is relaxed."""
SAME = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0, "scale": True}
"""Relaxed phases this close are one phase: pymatgen's own tolerances."""
_SYMPREC = 0.1  # Å


def to_structure(atoms: Atoms) -> Structure:
    """Return ASE atoms as a pymatgen structure."""
    frac = atoms.get_scaled_positions(wrap=True)
    return Structure(Lattice(atoms.cell.array), atoms.numbers.tolist(), frac)


def _primitive(atoms: Atoms) -> Structure:
    """Return the primitive cell within 0.1 Å; of a relaxed supercell pymatgen does not find it."""
    data = dataset(crystals_from_atoms(atoms, dtype=torch.float64), _SYMPREC)
    if data is None or len(data.prim_std_cell.numbers) == len(atoms):
        return to_structure(atoms)
    cell = data.prim_std_cell
    return Structure(Lattice(cell.basis), cell.numbers, cell.positions)


def reduced_formula(atoms: Atoms) -> str:
    """Return the formula of one unit, as file names and tables have it."""
    return Composition.of(atoms.numbers.tolist()).reduced_formula


@dataclass
class Gallery:
    """Structures to compare with, by reduced formula, in the order in which they came."""

    tolerances: dict[str, float | bool]
    _members: dict[str, list[tuple[str, Structure]]] = field(default_factory=dict)

    def find(self, atoms: Atoms) -> str:
        """Return the name of the first member that is the same, empty if none is."""
        members = self._members.get(reduced_formula(atoms), [])
        if not members:
            return ""
        matcher, structure = self._matcher(), _primitive(atoms)
        return next((name for name, other in members if matcher.fit(structure, other)), "")

    def closest(self, atoms: Atoms) -> tuple[str, float | None]:
        """Return the name of the most similar member and the rms of the match, or "" and None.

        The rms is in units of (volume per atom)^(1/3).
        """
        matcher, structure = self._matcher(), _primitive(atoms)
        best: tuple[str, float | None] = ("", None)
        for name, other in self._members.get(reduced_formula(atoms), []):
            found = matcher.get_rms_dist(structure, other)
            if found is not None and (best[1] is None or found[0] < best[1]):
                best = (name, float(found[0]))
        return best

    def holds_formula(self, formula: str) -> bool:
        """Tell whether a member has this reduced formula."""
        return formula in self._members

    def add(self, name: str, atoms: Atoms) -> None:
        """Take a structure in."""
        member = (name, _primitive(atoms))
        self._members.setdefault(reduced_formula(atoms), []).append(member)

    def _matcher(self) -> StructureMatcher:
        tolerance = self.tolerances
        return StructureMatcher(
            ltol=tolerance["ltol"],
            stol=tolerance["stol"],
            angle_tol=tolerance["angle_tol"],
            scale=bool(tolerance["scale"]),
        )

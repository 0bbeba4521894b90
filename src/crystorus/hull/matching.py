"""Which structures are the same: near-duplicates among candidates, and known phases found again."""

from dataclasses import dataclass

from ase import Atoms
from pymatgen.core import Lattice, Structure

from crystal_fidelity.matching import SAME_PHASE, MatcherSettings
from crystal_fidelity.options import SYMPREC
from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import cell_of, dataset, group_of
from crystorus.data.compositions import Composition

REDISCOVERED = "rediscovered"
NEW_POLYMORPH = "new polymorph"
KNOWN_COMPOSITION = "known composition"
NOT_LISTED = "not in the references"
NEAR = MatcherSettings(stol=0.1, ltol=0.1, angle_tol=3.0, scale=False)
"""Candidates this close before they are relaxed relax to the same minimum."""


@dataclass(frozen=True, eq=False)
class Comparable:
    """A structure with what every comparison needs, found once.

    Attributes:
        formula: Of one unit, as file names and tables have it.
        primitive: The primitive cell within a tolerance; of a relaxed supercell pymatgen misses it.
        conventional: The conventional cell within it, symmetrised; as it is without symmetry.
        space_group: Symbol and number within the same tolerance.
    """

    formula: str
    primitive: Structure
    conventional: Crystal
    space_group: tuple[str, int]

    @classmethod
    def of(cls, atoms: Atoms, symprec: float = SYMPREC) -> "Comparable":
        """Search the symmetry of one structure within `symprec` Å.

        Args:
            atoms: A structure.
            symprec: Å.
        """
        crystal = conventional = crystal_of(atoms)
        data = dataset(crystal, symprec)
        if data is not None:
            conventional = cell_of(data.std_cell)
        if data is not None and len(data.prim_std_cell.numbers) < len(atoms):
            crystal = cell_of(data.prim_std_cell)
        structure = Structure(
            Lattice(crystal.lattice), crystal.atomic_numbers.tolist(), crystal.frac_coords
        )
        return cls(reduced_formula(atoms), structure, conventional, group_of(data))


def crystal_of(atoms: Atoms) -> Crystal:
    """Return atoms as a crystal, its coordinates wrapped; nothing is refused.

    Args:
        atoms: Periodic in three directions.
    """
    return Crystal(atoms.cell.array, atoms.get_scaled_positions(wrap=True), atoms.numbers)


def reduced_formula(atoms: Atoms) -> str:
    """Return the formula of one unit, such as LiFeO2.

    Args:
        atoms: Any cell.
    """
    return Composition.of(atoms.numbers.tolist()).reduced_formula


@dataclass(frozen=True)
class Novelty:
    """What is known of a phase.

    Attributes:
        verdict: "rediscovered"; "new polymorph", unlike every reference of its composition;
            "known composition", where one of these has no structure to compare with; "not in the
            references", where there is none of its composition.
        id: The known phase that it is, empty if none.
        rms: Of the match, in units of (volume per atom)^(1/3).
    """

    verdict: str
    id: str = ""
    rms: float | None = None


class StructureIndex:
    """Structures to compare with, by reduced formula, in the order in which they came.

    Args:
        settings: How close two of them are the same.
    """

    def __init__(self, settings: MatcherSettings = SAME_PHASE) -> None:
        self._matcher = settings.matcher()
        self._members: dict[str, list[tuple[str, Structure]]] = {}
        self._without_structure: set[str] = set()

    def add(self, name: str, one: Comparable | None, formula: str = "") -> None:
        """Take a structure in, or the formula of a phase that has none.

        Args:
            name: Of the phase.
            one: Its structure, None if it has none.
            formula: Reduced; needed where there is no structure.
        """
        if one is None:
            self._without_structure.add(formula)
        else:
            self._members.setdefault(one.formula, []).append((name, one.primitive))

    def find(self, one: Comparable) -> str:
        """Return the name of the first member that is the same, empty if none is.

        Args:
            one: What is looked for.
        """
        members = self._members.get(one.formula, [])
        same = (name for name, other in members if self._matcher.fit(one.primitive, other))
        return next(same, "")

    def novelty(self, one: Comparable) -> Novelty:
        """Match one structure with all phases of its formula; the most similar is named.

        Args:
            one: What is looked for.
        """
        members = self._members.get(one.formula, [])
        found = ((name, self._matcher.get_rms_dist(one.primitive, m)) for name, m in members)
        close = [(float(rms[0]), name) for name, rms in found if rms is not None]
        if close:
            rms, name = min(close, key=lambda pair: pair[0])
            return Novelty(REDISCOVERED, name, rms)
        if one.formula in self._without_structure:
            return Novelty(KNOWN_COMPOSITION)
        return Novelty(NEW_POLYMORPH if members else NOT_LISTED)

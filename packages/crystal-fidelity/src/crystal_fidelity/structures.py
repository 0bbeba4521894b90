"""The one structure type every metric takes, and how others become it.

A file that cannot be read is a value too: `ReadFailure` keeps its place in the sequence, so
that one bad structure is named and counted instead of shifting or stopping the rest.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MAX_ATOMIC_NUMBER = 118
MAX_LENGTH = 1000.0
"""Å; longer lattice vectors are no crystal's, and searches in such cells do not end."""
GRAM_PER_CM3 = 1.66053906660
"""One u per Å³ in g/cm³."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """One periodic structure.

    Unlike `crystorus`, ROWS of `lattice` are the lattice vectors (as in ASE and pymatgen):
    cartesian = frac_coords @ lattice.
    """

    lattice: NDArray[np.float64]
    """(3, 3), Å, rows are lattice vectors."""
    frac_coords: NDArray[np.float64]
    """(atoms, 3)."""
    atomic_numbers: NDArray[np.int64]
    """(atoms,)."""
    name: str = ""
    properties: Mapping[str, float] = field(default_factory=dict)
    """Numbers that came with the structure, such as formation_energy_per_atom."""

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def volume(self) -> float:
        """Cell volume, Å³, never negative."""
        return abs(float(np.linalg.det(self.lattice)))

    @property
    def formula(self) -> tuple[tuple[int, int], ...]:
        """Reduced composition as sorted (atomic number, count) pairs."""
        numbers, counts = np.unique(self.atomic_numbers, return_counts=True)
        divisor = gcd(*counts.tolist())
        return tuple(zip(numbers.tolist(), (counts // divisor).tolist(), strict=True))


@dataclass(frozen=True)
class ReadFailure:
    """A structure that could not be read: its name and why."""

    name: str
    reason: str


Entry = Crystal | ReadFailure


def checked(
    lattice: object,
    frac_coords: object,
    atomic_numbers: object,
    name: str = "",
    properties: Mapping[str, float] | None = None,
) -> Entry:
    """Return a `Crystal`, or the `ReadFailure` that says why these numbers are not one."""
    cell = np.asarray(lattice, dtype=np.float64)
    frac = np.asarray(frac_coords, dtype=np.float64)
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    if len(numbers) == 0:
        return ReadFailure(name, "no atoms")
    if cell.shape != (3, 3) or frac.shape != (len(numbers), 3):
        return ReadFailure(name, f"lattice {cell.shape} and coordinates {frac.shape} do not fit")
    if not np.isfinite(cell).all():
        return ReadFailure(name, "lattice holds NaN or infinity")
    if not np.isfinite(frac).all():
        return ReadFailure(name, "coordinates hold NaN or infinity")
    if (longest := longest_vector(cell)) > MAX_LENGTH:
        return ReadFailure(name, f"lattice vector of {longest:.4g} Å > {MAX_LENGTH:g} Å")
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        bad = numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)][0]
        return ReadFailure(name, f"atomic number {bad} is not an element")
    return Crystal(cell, frac, numbers, name, dict(properties or {}))


def longest_vector(lattice: NDArray[np.float64]) -> float:
    """Return the length of the longest row in Å, infinity where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.sqrt((lattice * lattice).sum(axis=1).max()))


def from_atoms(
    atoms: "Atoms", name: str = "", properties: Mapping[str, float] | None = None
) -> Entry:
    """Convert ASE atoms; a cell without volume is a failure."""
    if atoms.cell.rank < 3:
        return ReadFailure(name, f"cell has {atoms.cell.rank} independent vectors, 3 are needed")
    try:
        frac = np.linalg.solve(np.asarray(atoms.cell).T, atoms.positions.T).T
    except np.linalg.LinAlgError:
        return ReadFailure(name, "cell vectors lie in one plane")
    return checked(np.asarray(atoms.cell), frac, atoms.numbers, name, properties)


def from_pymatgen(
    structure: "Structure", name: str = "", properties: Mapping[str, float] | None = None
) -> Entry:
    """Convert an ordered pymatgen structure; partial occupancy is a failure."""
    if not structure.is_ordered:
        return ReadFailure(name, "partial occupancies: the metrics need one element per site")
    numbers = [site.specie.Z for site in structure]
    return checked(structure.lattice.matrix, structure.frac_coords, numbers, name, properties)


def to_pymatgen(crystal: Crystal) -> "Structure":
    """Convert to pymatgen, sites in the same order, overlapping sites kept."""
    from pymatgen.core import Lattice, Structure

    symbols = [element_symbol(z) for z in crystal.atomic_numbers.tolist()]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def to_atoms(crystal: Crystal) -> "Atoms":
    """Convert to periodic ASE atoms."""
    from ase import Atoms

    return Atoms(
        numbers=crystal.atomic_numbers,
        cell=crystal.lattice,
        scaled_positions=crystal.frac_coords,
        pbc=True,
    )


def as_entries(structures: Iterable[object]) -> list[Entry]:
    """Accept crystals, read failures, pymatgen structures and ASE atoms, mixed as they come.

    Raises:
        TypeError: an element is none of these.
    """
    return [_as_entry(item, index) for index, item in enumerate(structures)]


def _as_entry(item: object, index: int) -> Entry:
    if isinstance(item, ReadFailure):
        return item
    if isinstance(item, Crystal):
        if longest_vector(item.lattice) <= MAX_LENGTH:
            return item
        return checked(item.lattice, item.frac_coords, item.atomic_numbers, item.name)
    from ase import Atoms
    from pymatgen.core import IStructure

    if isinstance(item, IStructure):
        return from_pymatgen(item, name=f"structure {index}")
    if isinstance(item, Atoms):
        return from_atoms(item, name=f"structure {index}")
    kind = type(item).__name__
    raise TypeError(f"structure {index} is a {kind}; give Crystal, pymatgen Structure or ase Atoms")


def readable(entries: Sequence[Entry]) -> list[Crystal]:
    """Return the crystals among the entries, failures left out."""
    return [entry for entry in entries if isinstance(entry, Crystal)]


def digest(crystal: Crystal) -> str:
    """Return a digest of the content (lattice, coordinates, elements), not of the name."""
    hasher = hashlib.sha256()
    for array, dtype in (
        (crystal.lattice, "<f8"),
        (crystal.frac_coords, "<f8"),
        (crystal.atomic_numbers, "<i8"),
    ):
        hasher.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    return hasher.hexdigest()


@cache
def element_symbol(atomic_number: int) -> str:
    """Return the chemical symbol."""
    from ase.data import chemical_symbols

    return chemical_symbols[atomic_number]


@cache
def atomic_mass(atomic_number: int) -> float:
    """Return pymatgen's atomic mass in u, the table CDVAE's densities use."""
    from pymatgen.core import Element

    return float(Element.from_Z(atomic_number).atomic_mass)


def density(crystal: Crystal) -> float:
    """Return the mass density in g/cm³; infinity for a cell without volume."""
    mass = sum(atomic_mass(z) for z in crystal.atomic_numbers.tolist())
    volume = crystal.volume
    return mass * GRAM_PER_CM3 / volume if volume > 0 else float("inf")

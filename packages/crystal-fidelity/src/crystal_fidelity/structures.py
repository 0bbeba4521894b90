"""The one structure type that readers return and metrics take, and its conversions.

A structure that cannot be read is a value too: `ReadFailure` keeps its place in the sequence, so
that one bad structure is named and counted instead of shifting or stopping the rest.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, cast

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_fidelity.errors import ReadingError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MAX_ATOMIC_NUMBER = 118
MAX_LENGTH = 1000.0
"""Å; longer lattice vectors are no crystal's, and searches in such cells do not end."""
MAX_COORDINATE = 1e4
"""Fractional coordinates beyond it lose the digits that place the atom in its cell."""
MIN_FLATNESS = 1e-9
"""Cells whose volume is a smaller fraction of |a||b||c| are singular in double precision."""
SNAP_TOLERANCE = 1e-4
"""Relative, as `frac_tolerance` of pymatgen's CifParser."""
ORDER_IT = "write ordered supercells of it with `crystorus order`"
MAX_REASON = 400
"""Characters of the reason why a structure cannot be read."""
GRAM_PER_CM3 = 1.66053906660
"""One u per Å³ in g/cm³."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """One periodic structure.

    ROWS of `lattice` are the lattice vectors, as in ASE and pymatgen (and unlike
    `crystorus.geometry.Crystals`): cartesian = frac_coords @ lattice.

    Examples:
        >>> import numpy as np
        >>> salt = Crystal(
        ...     lattice=2.82 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),  # Å
        ...     frac_coords=np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
        ...     atomic_numbers=np.array([11, 17]),
        ... )
        >>> len(salt), round(salt.volume, 2)  # atoms, Å³
        (2, 44.85)
    """

    lattice: NDArray[np.float64]
    """(3, 3), Å, rows are lattice vectors."""
    frac_coords: NDArray[np.float64]
    """(atoms, 3), fractional; the readers give values in [0, 1)."""
    atomic_numbers: NDArray[np.int64]
    """(atoms,), 1 to 118."""
    name: str = ""
    """What it is called in tables and errors."""
    info: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Everything else that came with the structure (CSV columns, extxyz keys), as text."""
    properties: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    """The finite numbers among `info`. `energy` of extxyz and ASE databases is the total energy of
    the cell in eV: divide by the number of atoms before comparing crystals."""
    warning: str = field(default="", kw_only=True)
    """What is doubtful about the reading, empty if nothing is."""
    sites: NDArray[np.int64] | None = field(default=None, kw_only=True)
    """(atoms,), the atom of the file, from 0, of which each is an image; None if they are all
    listed there, in this order."""
    fixed: NDArray[np.bool_] | None = field(default=None, kw_only=True)
    """(atoms,), whether the file fixes the atom; None where it fixes none."""

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
        divisor = math.gcd(*counts.tolist())
        return tuple(zip(numbers.tolist(), (counts // divisor).tolist(), strict=True))


@dataclass(frozen=True)
class ReadFailure:
    """A structure that could not be read: its name and why, in one line of bounded length.

    Examples:
        >>> from ase import Atoms
        >>> failure = from_atoms(Atoms("H2"), name="molecule")
        >>> failure.reason
        'it has no cell: a crystal needs its three lattice vectors'
    """

    name: str
    """What the structure would have been called."""
    reason: str
    """Why it could not be read, and what to do."""

    def __post_init__(self) -> None:
        reason = " ".join(self.reason.split())
        if len(reason) > MAX_REASON:  # what stands in the file; the remedy is at the end
            half = MAX_REASON // 2
            reason = f"{reason[:half]} … {reason[-half:]}"
        object.__setattr__(self, "reason", reason)


Entry = Crystal | ReadFailure


def checked(
    lattice: ArrayLike,
    frac_coords: ArrayLike,
    atomic_numbers: ArrayLike,
    name: str = "",
    *,
    info: Mapping[str, str] | None = None,
    properties: Mapping[str, float] | None = None,
    warning: str = "",
    sites: NDArray[np.int64] | None = None,
) -> Entry:
    """Return a `Crystal` with coordinates in [0, 1), or the failure that says why it is none.

    Args:
        lattice: (3, 3), Å, rows are lattice vectors.
        frac_coords: (atoms, 3).
        atomic_numbers: (atoms,).
        name: Name of the crystal or of the failure.
        info: See `Crystal.info`.
        properties: See `Crystal.properties`.
        warning: See `Crystal.warning`.
        sites: See `Crystal.sites`, (n,).
    """
    cell = np.asarray(lattice, dtype=np.float64)
    frac = np.asarray(frac_coords, dtype=np.float64)
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    if reason := _fault(cell, frac, numbers):
        return ReadFailure(name, reason)
    return Crystal(
        cell,
        wrap_coords(frac),
        numbers,
        name,
        info=dict(info or {}),
        properties=dict(properties or {}),
        warning=warning,
        sites=sites,
    )


def _fault(cell: NDArray[np.float64], frac: NDArray[np.float64], numbers: NDArray[np.int64]) -> str:
    if len(numbers) == 0:
        return "it has no atoms: give at least one"
    if cell.shape != (3, 3) or frac.shape != (len(numbers), 3):
        return f"lattice {cell.shape} and coordinates {frac.shape} do not fit {len(numbers)} atoms"
    a, b, c = rows = cell.tolist()
    lengths = [math.hypot(*row) for row in rows]
    if math.isnan(sum(lengths)):
        return "its cell holds NaN: correct the cell"
    if (longest := max(lengths)) > MAX_LENGTH:
        return f"lattice vector of {longest:.4g} Å > {MAX_LENGTH:g} Å"
    volume = (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        + a[1] * (b[2] * c[0] - b[0] * c[2])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    if abs(volume) <= MIN_FLATNESS * math.prod(lengths):
        return "its cell is singular, its vectors lie in one plane: give three independent vectors"
    if not (np.abs(frac) <= MAX_COORDINATE).all():
        i = int((~(np.abs(frac) <= MAX_COORDINATE).all(axis=1)).argmax())
        place = ", ".join(f"{x:g}" for x in frac[i])
        return (
            f"atom {i + 1} is at ({place}): fractional coordinates must be finite and below "
            f"{MAX_COORDINATE:g}"
        )
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        i = int(((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)).argmax())
        return f"atom {i + 1} has atomic number {numbers[i]}: elements are 1 to {MAX_ATOMIC_NUMBER}"
    return ""


def longest_vector(lattice: NDArray[np.float64]) -> float:
    """Return the length of the longest row in Å, infinity where it overflows.

    Args:
        lattice: [3, 3], rows in Å.
    """
    with np.errstate(over="ignore"):
        return float(np.sqrt((lattice * lattice).sum(axis=1).max()))


def wrap_coords(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return fractional coordinates brought into [0, 1), also after rounding to float32.

    Args:
        frac_coords: Any real numbers, of any shape.
    """
    wrapped = frac_coords - np.floor(frac_coords)
    wrapped[wrapped.astype(np.float32) >= 1] = 0.0
    return wrapped


def snap_thirds(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates where values within 1e-4 (relative) of ±1/3 or ±2/3 are exactly that.

    Args:
        frac_coords: Fractional, of any shape.

    Source: pymatgen's CifParser, `frac_tolerance`.
    """
    for third in (1 / 3, 2 / 3):
        near = np.abs(np.abs(frac_coords) / third - 1) < SNAP_TOLERANCE
        frac_coords = np.where(near, np.copysign(third, frac_coords), frac_coords)
    return frac_coords


def lattice_from_parameters(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> NDArray[np.float64]:
    """Return lattice rows in Å, a along x and b in the xy plane.

    Args:
        a: Length of the first vector, Å; likewise b and c.
        b: Second length.
        c: Third length.
        alpha: Angle between b and c, degrees.
        beta: Angle between a and c.
        gamma: Angle between a and b.

    Raises:
        ReadingError: No cell has these lengths and angles.
    """
    cosines = np.cos(np.deg2rad([alpha, beta, gamma]))
    ca, cb, cg = np.where(np.abs(cosines) < 1e-15, 0.0, cosines)  # right angles are meant exactly
    sg = np.sin(np.deg2rad(gamma))
    # V² / (abc)²: the Gram determinant of the three unit vectors.
    gram = 1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg
    values = [a, b, c, alpha, beta, gamma]
    if not (np.isfinite(values).all() and min(values) > 0 and gram > 1e-12 and sg > 1e-9):
        raise ReadingError(
            f"no cell has lengths {a:g}, {b:g}, {c:g} Å and angles {alpha:g}, {beta:g}, "
            f"{gamma:g}°: correct the cell"
        )
    return np.array(
        [
            [a, 0.0, 0.0],
            [b * cg, b * sg, 0.0],
            [c * cb, c * (ca - cb * cg) / sg, c * np.sqrt(gram) / sg],
        ]
    )


def cell_parameters(lattice: NDArray[np.float64]) -> tuple[float, ...]:
    """Return lengths a, b, c in Å and angles α, β, γ in degrees.

    Args:
        lattice: (3, 3), Å, rows are lattice vectors.
    """
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = (lattice @ lattice.T) / np.outer(lengths, lengths)
    angles = np.rad2deg(np.arccos(np.clip([cosines[1, 2], cosines[0, 2], cosines[0, 1]], -1, 1)))
    return (*lengths.tolist(), *angles.tolist())


def from_atoms(atoms: "Atoms", name: str = "") -> Entry:
    """Convert ASE atoms; without a cell of three periodic directions they are a failure.

    Args:
        atoms: ASE's.
        name: Of the crystal.

    Examples:
        >>> from ase.build import bulk
        >>> from_atoms(bulk("Cu")).formula  # (atomic number, count)
        ((29, 1),)
    """
    cell = np.asarray(atoms.cell)
    return from_cartesian(cell, atoms.positions, atoms.numbers, name, pbc=atoms.pbc)


def from_cartesian(
    lattice: ArrayLike,
    positions: ArrayLike,
    atomic_numbers: ArrayLike,
    name: str = "",
    *,
    pbc: ArrayLike = True,
    info: Mapping[str, str] | None = None,
    properties: Mapping[str, float] | None = None,
) -> Entry:
    """Return the crystal with atoms at cartesian positions, or why it is none.

    Args:
        lattice: (3, 3), Å, rows are lattice vectors.
        positions: (atoms, 3), Å.
        atomic_numbers: (atoms,).
        name: Name of the crystal or of the failure.
        pbc: Whether the structure is periodic, for all directions or for each.
        info: See `Crystal.info`.
        properties: See `Crystal.properties`.
    """
    cell = np.asarray(lattice, dtype=np.float64)
    if not cell.any():
        return ReadFailure(name, "it has no cell: a crystal needs its three lattice vectors")
    periodic = np.broadcast_to(pbc, 3)
    if not periodic.all():
        return ReadFailure(
            name,
            f"it is periodic along {int(periodic.sum())} of 3 directions: set pbc to T T T if it "
            "is a crystal",
        )
    # The cell is looked at first: a singular one cannot be solved.
    fault = _fault(cell, np.zeros((1, 3)), np.ones(1, np.int64))
    if fault:
        return ReadFailure(name, fault)
    frac = np.linalg.solve(cell.T, np.asarray(positions, dtype=np.float64).T).T
    return checked(cell, frac, atomic_numbers, name, info=info, properties=properties)


def from_pymatgen(structure: "Structure", name: str = "") -> Entry:
    """Convert a pymatgen structure; oxidation states are dropped, partial sites are a failure.

    Args:
        structure: pymatgen's.
        name: Of the crystal.
    """
    from pymatgen.core import DummySpecies

    for site in structure:
        if not site.is_ordered:
            return ReadFailure(
                name,
                f"the site {site.species_string} is partially occupied: partial occupancies are "
                f"not supported, {ORDER_IT}",
            )
        if isinstance(site.specie, DummySpecies):
            return ReadFailure(name, f"the site {site.specie} holds no element: replace it")
    if not all(structure.lattice.pbc):
        return ReadFailure(
            name, f"it is periodic along {sum(structure.lattice.pbc)} of 3 directions"
        )
    numbers = [site.specie.Z for site in structure]
    frac = np.reshape(structure.frac_coords, (-1, 3))
    return checked(structure.lattice.matrix, frac, numbers, name)


def to_pymatgen(crystal: Crystal) -> "Structure":
    """Convert to pymatgen, sites in the same order, overlapping sites kept.

    Args:
        crystal: One crystal.

    Examples:
        >>> from ase.build import bulk
        >>> to_pymatgen(from_atoms(bulk("MgO", "rocksalt", a=4.21))).reduced_formula
        'MgO'
    """
    from pymatgen.core import Lattice, Structure

    symbols = [element_symbol(z) for z in crystal.atomic_numbers.tolist()]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def to_atoms(crystal: Crystal) -> "Atoms":
    """Convert to periodic ASE atoms; those that are fixed have ASE's `FixAtoms`.

    Args:
        crystal: One crystal.

    Examples:
        >>> from ase.build import bulk
        >>> str(to_atoms(from_atoms(bulk("MgO", "rocksalt", a=4.21))).symbols)
        'MgO'
    """
    from ase import Atoms
    from ase.constraints import FixAtoms

    return Atoms(
        numbers=crystal.atomic_numbers,
        cell=crystal.lattice,
        scaled_positions=crystal.frac_coords,
        pbc=True,
        constraint=None if crystal.fixed is None else FixAtoms(mask=crystal.fixed),
    )


def as_entries(structures: Iterable[object]) -> list[Entry]:
    """Accept crystals, read failures, pymatgen structures and ASE atoms, mixed as they come.

    Args:
        structures: Of any of these kinds.

    Raises:
        TypeError: An element is none of these.
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
        return from_pymatgen(cast("Structure", item), name=f"structure {index}")
    if isinstance(item, Atoms):
        return from_atoms(item, name=f"structure {index}")
    kind = type(item).__name__
    raise TypeError(f"structure {index} is a {kind}; give Crystal, pymatgen Structure or ase Atoms")


def readable(entries: Sequence[Entry]) -> list[Crystal]:
    """Return the crystals among the entries, failures left out.

    Args:
        entries: As they were read.
    """
    return [entry for entry in entries if isinstance(entry, Crystal)]


def digest(crystal: Crystal) -> str:
    """Return the SHA-256 of the content (lattice, coordinates, elements), not of the name.

    Args:
        crystal: One crystal.
    """
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
    """Return the chemical symbol of Z = 1 to 118.

    Args:
        atomic_number: 1 to 118.
    """
    return gemmi.Element(atomic_number).name


@cache
def element_number(symbol: str) -> int:
    """Return Z of an exact chemical symbol, D and T as hydrogen, or 0 if it is none.

    Args:
        symbol: Such as "Fe".
    """
    if symbol in ("D", "T"):
        return 1
    number = gemmi.Element(symbol).atomic_number
    return number if number and element_symbol(number) == symbol else 0


@cache
def atomic_mass(atomic_number: int) -> float:
    """Return pymatgen's atomic mass in u, the table CDVAE's densities use.

    Args:
        atomic_number: 1 to 118.
    """
    from pymatgen.core import Element

    return float(Element.from_Z(atomic_number).atomic_mass)


def density(crystal: Crystal) -> float:
    """Return the mass density in g/cm³; infinity for a cell without volume.

    Args:
        crystal: One crystal.

    Examples:
        >>> from ase.build import bulk
        >>> round(density(from_atoms(bulk("Cu"))), 2)
        8.97
    """
    mass = sum(atomic_mass(z) for z in crystal.atomic_numbers.tolist())
    volume = crystal.volume
    return mass * GRAM_PER_CM3 / volume if volume > 0 else float("inf")

"""A crystal made ready to be drawn: its conventional cell, with the atoms it really has there.

Symmetry chooses the cell, it does not move the atoms: a generated crystal is shown as it came out.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from pymatgen.core import Element

from crystorus.data.arrays import niggli_reduce
from crystorus.data.compositions import Composition
from crystorus.data.io import crystals_from_atoms, join_arrays, split_arrays
from crystorus.data.spacegroups import dataset, symmetry

ON_FACE = 0.15
"""Å from a face within which an atom is drawn on the opposite face too."""

BOND_STRETCH = 1.15
"""Longest bond, in sums of covalent radii."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Portrait:
    """A crystal in the conventional cell of its space group, its atoms where they were.

    Attributes:
        formula: Reduced formula, such as LiFeO2.
        symbol: Short international symbol of the space group, such as P6_3/mmc.
        number: Its international number.
        symprec: Tolerance in Å within which it was found.
        lattice: Rows of ρ; its columns are the lattice vectors in Å, right-handed.
        frac_coords: x of every atom, in [0, 1).
        atomic_numbers: z of every atom.
    """

    formula: str
    symbol: str
    number: int
    symprec: float
    lattice: tuple[Vector, Vector, Vector]
    frac_coords: tuple[Vector, ...]
    atomic_numbers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DrawnAtoms:
    """All atoms of a picture, those repeated on faces, edges and corners included.

    Attributes:
        positions: Cartesian, Å, [atoms, 3].
        atomic_numbers: [atoms].
    """

    positions: np.ndarray
    atomic_numbers: np.ndarray


def portrait(atoms: Atoms, symprec: float = 0.1) -> Portrait:
    """Put a crystal into the conventional cell of its space group without symmetrising it.

    Args:
        atoms: A crystal, its cell of either hand, primitive or not.
        symprec: Tolerance in Å of the space group; see `data.spacegroups.symmetry`.

    Raises:
        ReadingError: If it is no usable crystal.
    """
    (given,) = split_arrays(crystals_from_atoms(atoms, dtype=torch.float64))
    reduced = niggli_reduce(given)
    crystal = join_arrays([reduced])
    data, group = dataset(crystal, symprec), symmetry(crystal, symprec)
    change = np.eye(3) if data is None else np.array(data.std_linear)
    shift = np.zeros(3) if data is None else np.array(data.std_origin_shift)
    lattice = reduced.lattice @ change
    frac, numbers = _in_cell(reduced.frac_coords, reduced.atomic_numbers, change, shift)
    if len(numbers) > round(len(reduced.atomic_numbers) * float(np.linalg.det(change))):
        frac, numbers = _once(lattice, frac, numbers, 2 * symprec)
    frac = _corner_on_atoms(lattice, frac, numbers)
    counts = {int(z): int(n) for z, n in zip(*np.unique(numbers, return_counts=True), strict=True)}
    return Portrait(
        Composition.from_counts(counts).reduced_formula,
        group.symbol,
        group.number,
        symprec,
        tuple(_vector(row) for row in lattice),  # type: ignore[arg-type]
        tuple(_vector(x) for x in frac),
        tuple(int(z) for z in numbers),
    )


def complete(drawn: Portrait) -> DrawnAtoms:
    """Repeat the atoms that are within `ON_FACE` of a face on all opposite faces.

    The positions are in a frame with c upwards and b to the right: cartesian z and the yz plane.
    """
    lattice = upright(np.array(drawn.lattice))
    frac, low = _from_low_faces(np.array(drawn.frac_coords), lattice)
    positions, numbers = [], []
    for step in itertools.product((0, 1), repeat=3):
        here = (low | ~np.array(step, bool)).all(1)
        positions.append((frac[here] + step) @ lattice.T)
        numbers.append(np.array(drawn.atomic_numbers)[here])
    return DrawnAtoms(np.concatenate(positions), np.concatenate(numbers))


def upright(lattice: np.ndarray) -> np.ndarray:
    """Turn a right-handed cell (columns) so that c is along z and b in the yz plane, y > 0."""
    c = lattice[:, 2] / np.linalg.norm(lattice[:, 2])
    right = lattice[:, 1] - (lattice[:, 1] @ c) * c
    right /= np.linalg.norm(right)
    return np.stack([np.cross(right, c), right, c]) @ lattice


def bonds(atoms: DrawnAtoms) -> list[tuple[int, int]]:
    """Return the pairs nearer than `BOND_STRETCH` times their covalent radii, metal pairs left out.

    The sum of covalent radii tells neighbours only where one of them is no metal.
    """
    radii = covalent_radii[atoms.atomic_numbers]
    metal = np.array([Element.from_Z(int(z)).is_metal for z in atoms.atomic_numbers])
    apart = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
    near = apart < BOND_STRETCH * (radii[:, None] + radii[None])
    near &= ~(metal[:, None] & metal[None])
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))]


def _from_low_faces(frac: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move atoms on a high face to the low one; tell for every axis which lie on the low face."""
    # The distance between opposite faces is the inverse length of a reciprocal vector.
    margin = ON_FACE * np.linalg.norm(np.linalg.inv(lattice), axis=1)
    frac = frac - (frac > 1 - margin)
    return frac, frac < margin


def _corner_on_atoms(lattice: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Shift the origin so that as many atoms as possible are drawn, as textbooks do.

    Space groups leave the origin open by halves and quarters of the cell, polar ones by any
    shift; of equal origins the one with more atoms of the most electropositive element is taken.
    """
    quarters = np.array(list(itertools.product((0, 0.25, 0.5, 0.75), repeat=3)))
    first = np.array([Element.from_Z(int(z)).X for z in numbers])
    first = first == np.nanmin(first) if np.isfinite(first).any() else np.isnan(first)
    best, most = frac, (-1, -1)
    for origin in np.concatenate([quarters, frac]):
        moved = (frac - origin + 1e-9) % 1.0
        copies = 2 ** _from_low_faces(moved, lattice)[1].sum(1)
        score = int(copies.sum()), int(copies[first].sum())
        if score > most:
            best, most = moved, score
    return best


def _in_cell(
    frac: np.ndarray, numbers: np.ndarray, change: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return all atoms of the cell ρ P: x' = P⁻¹ (x - p) of every lattice translation of x."""
    reach = int(np.ceil(np.abs(change).sum(1).max())) + 1
    steps = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    moved = (frac[:, None] + steps - shift) @ np.linalg.inv(change).T
    inside = ((moved > -1e-9) & (moved < 1 - 1e-9)).all(-1)
    which = np.nonzero(inside)[0]
    return moved[inside].clip(0.0, None), numbers[which]


def _once(
    lattice: np.ndarray, frac: np.ndarray, numbers: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep one of the atoms that coincide where the given cell was a supercell of this one."""
    kept: list[int] = []
    for atom in range(len(frac)):
        apart = frac[kept] - frac[atom]
        distance = np.linalg.norm((apart - np.rint(apart)) @ lattice.T, axis=1)
        if not (distance[numbers[kept] == numbers[atom]] < near).any():
            kept.append(atom)
    return frac[kept], numbers[kept]


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z

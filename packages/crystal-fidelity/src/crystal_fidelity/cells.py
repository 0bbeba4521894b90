"""Cells of single crystals: Niggli reduction and the least distance between atoms."""

import itertools
from dataclasses import replace

import gemmi
import moyopy
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.errors import ReadingError
from crystal_fidelity.structures import Crystal, wrap_coords

DENSE_ATOMS = 200
"""Crystals with more atoms are searched with a k-d tree instead of all pairs."""
CHUNK_DISTANCES = 2_000_000
"""Distances held at a time, about 16 MB an array."""
HARDLY_PHYSICAL = 0.6
"""Least distance over the sum of covalent radii below which a crystal is hardly physical: none of
the 27 136 crystals of MP-20 train is below 0.62."""
_SHELL = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=float)
_NEIGHBOURS = np.delete(_SHELL, 13, axis=0)


def niggli_reduce(crystal: Crystal) -> Crystal:
    """Return the same crystal in its right-handed Niggli-reduced cell.

    Only the basis changes: every atom keeps its cartesian position modulo the lattice, so a
    chiral crystal keeps its hand also when the cell it came in was left-handed.

    Args:
        crystal: With any cell of a volume.

    Raises:
        ReadingError: The cell cannot be reduced.
    """
    change = _niggli_change(crystal.lattice)
    # Rows L' = Tᵀ L hold the same points x' L' = x L, so x' = x T⁻ᵀ; T is unimodular.
    inverse = np.rint(np.linalg.inv(change))
    return replace(
        crystal,
        lattice=(crystal.lattice.T @ change).T,
        frac_coords=wrap_coords(crystal.frac_coords @ inverse.T),
    )


def _niggli_change(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unimodular T for which the rows Tᵀ L are right-handed and Niggli-reduced.

    The reduction cycles on rare cells that are degenerate but for the last digits; rounding
    them breaks the tie, and T is applied to the cell as it was.
    """
    reason = ""
    for decimals in (None, 6, 4):
        rounded = lattice if decimals is None else lattice.round(decimals)
        try:
            _, change = moyopy.niggli_reduce(rounded.tolist())
        except ValueError as error:
            reason = str(error)
        else:
            return np.array(change, dtype=float)
    raise ReadingError(f"its cell {lattice.tolist()} Å cannot be reduced ({reason})")


def least_distance(crystal: Crystal, *, reduced: bool = False) -> float:
    """Return the least distance in Å between two atoms, an atom and its own images included.

    Exact for every cell: the images are those of the Niggli-reduced cell, in which the shortest
    vector between two atoms is at most one cell away from the componentwise nearest one.

    Args:
        crystal: In any cell.
        reduced: Whether its cell is Niggli-reduced already.

    Raises:
        ReadingError: The cell cannot be reduced.
    """
    crystal = crystal if reduced else niggli_reduce(crystal)
    return float(least_distances(crystal.lattice[None], crystal.frac_coords[None])[0])


def min_distance_ratio(crystal: Crystal, *, reduced: bool = False) -> float:
    """Return the least distance of two atoms over the sum of their covalent radii.

    Own images count. All pairs are held at a time.

    Args:
        crystal: In any cell.
        reduced: Whether its cell is Niggli-reduced already.

    Raises:
        ReadingError: If the cell cannot be reduced.

    Source: radii of Cordero et al. 2008, doi:10.1039/b801115j, as gemmi has them.
    """
    crystal = crystal if reduced else niggli_reduce(crystal)
    radii = np.array([gemmi.Element(int(z)).covalent_r for z in crystal.atomic_numbers])
    apart = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    apart -= np.rint(apart)
    squared = np.full(apart.shape[:2], np.inf)
    # In a reduced cell the nearest image of a pair is at most one cell from the rounded one.
    for shift in _SHELL:
        found = np.square((apart + shift) @ crystal.lattice).sum(-1)
        if not shift.any():
            np.fill_diagonal(found, np.inf)
        np.minimum(squared, found, out=squared)
    return float((np.sqrt(squared) / (radii[:, None] + radii[None])).min())


def least_distances(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64], *, own_images: bool = True
) -> NDArray[np.float64]:
    """Return the least distances of crystals with equally many atoms and reduced cells.

    Memory is bounded whatever the number of crystals and atoms.

    Args:
        lattice: (crystals, 3, 3), Å, rows are the vectors of Niggli-reduced cells.
        frac_coords: (crystals, atoms, 3).
        own_images: Whether the images of an atom count as its neighbours.

    Returns:
        Distances in Å, (crystals,); infinite for one atom without its images.
    """
    least = np.linalg.norm(_NEIGHBOURS @ lattice, axis=-1).min(axis=1, initial=np.inf)
    n_atoms = frac_coords.shape[1]
    if not own_images:
        least = np.full(len(lattice), np.inf)
    elif n_atoms > DENSE_ATOMS:
        parts = zip(lattice, frac_coords, least, strict=True)
        return np.minimum(least, [_least_of_many(*part) for part in parts])
    pairs = np.triu_indices(n_atoms, 1)
    step = max(1, CHUNK_DISTANCES // (27 * max(1, len(pairs[0]))))
    for start, low in itertools.product(
        range(0, len(lattice), step), range(0, len(pairs[0]), CHUNK_DISTANCES // 27)
    ):
        part = slice(start, start + step)
        first, second = (atoms[low : low + CHUNK_DISTANCES // 27] for atoms in pairs)
        apart = frac_coords[part, first] - frac_coords[part, second]
        near = (apart - np.rint(apart)) @ lattice[part]
        shells = _SHELL @ lattice[part]
        # |d + s|² expanded: no (crystals, pairs, images, 3) array is ever made.
        squares = (
            np.square(near).sum(-1)[:, :, None]
            + np.square(shells).sum(-1)[:, None, :]
            + 2 * near @ shells.transpose(0, 2, 1)
        )
        least[part] = np.minimum(least[part], np.sqrt(squares.min((1, 2)).clip(0)))
    return least


def face_distances(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances h_k = V / |a_i × a_j| in Å between opposite faces of a cell.

    The columns of the inverse are the reciprocal vectors, as long as 1/h_k. A vector no longer
    than r has fractional coordinates |f_k| <= r / h_k.

    Args:
        lattice: (3, 3), Å, rows are the vectors.
    """
    return np.asarray(1 / np.linalg.norm(np.linalg.inv(lattice), axis=0))


def _least_of_many(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64], bound: float
) -> float:
    from scipy.spatial import cKDTree

    # Atoms in [0, 1) differ by less than 1 cell besides.
    reach = [np.arange(-k, k + 1) for k in np.ceil(bound / face_distances(lattice))]
    shifts = np.stack(np.meshgrid(*reach), axis=-1).reshape(-1, 3) @ lattice
    points = wrap_coords(frac_coords) @ lattice
    tree = cKDTree(np.concatenate([points + shift for shift in shifts]))
    return float(tree.query(points, k=2)[0][:, 1].min())

"""One crystal as plain arrays, and the checks every crystal passes before it is used.

Torch-free, so that worker processes start quickly. `lattice` already has its vectors as
columns: readers transpose, nobody after them does.
"""

import itertools
from dataclasses import dataclass

import moyopy
import numpy as np

from crystal_fidelity.errors import ReadingError

MAX_ATOMIC_NUMBER = 118
MIN_VOLUME_PER_ATOM = 0.5  # Å³; solid hydrogen at a megabar still has more than 1
MAX_COORDINATE = 1e4
_SHELL = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=float)


@dataclass(frozen=True, eq=False)
class CrystalArrays:
    """One crystal (ρ, x, z) in float64.

    Attributes:
        lattice: ρ in Å, [3, 3], columns are the lattice vectors.
        frac_coords: x, fractional, [atoms, 3].
        atomic_numbers: z, [atoms].
    """

    lattice: np.ndarray
    frac_coords: np.ndarray
    atomic_numbers: np.ndarray


def wrap_coords(frac_coords: np.ndarray) -> np.ndarray:
    """Bring fractional coordinates into [0, 1), also after rounding to float32."""
    wrapped = frac_coords - np.floor(frac_coords)
    wrapped[wrapped.astype(np.float32) >= 1] = 0.0
    return wrapped


def check(crystal: CrystalArrays) -> CrystalArrays:
    """Return the crystal if it can be used.

    Raises:
        ReadingError: If it has no atoms, unknown elements, coordinates that are not finite, or
            a cell that is singular or too small for its atoms.
    """
    n = len(crystal.atomic_numbers)
    if n == 0:
        raise ReadingError("it has no atoms: give at least one")
    if crystal.frac_coords.shape != (n, 3):
        raise ReadingError(f"{n} elements but {len(crystal.frac_coords)} positions: give as many")
    bad = (crystal.atomic_numbers < 1) | (crystal.atomic_numbers > MAX_ATOMIC_NUMBER)
    if bad.any():
        raise ReadingError(
            f"atom {int(bad.argmax()) + 1} has atomic number "
            f"{int(crystal.atomic_numbers[bad.argmax()])}: use 1 to {MAX_ATOMIC_NUMBER}"
        )
    _check_positions(crystal.frac_coords)
    _check_cell(crystal.lattice, n)
    return crystal


def _check_positions(frac_coords: np.ndarray) -> None:
    lost = ~(np.abs(frac_coords) <= MAX_COORDINATE).all(1)
    if lost.any():
        i = int(lost.argmax())
        raise ReadingError(
            f"atom {i + 1} is at {frac_coords[i].tolist()}: fractional coordinates must be "
            f"finite and below {MAX_COORDINATE:g}"
        )


def _check_cell(lattice: np.ndarray, n_atoms: int) -> None:
    if not np.isfinite(lattice).all():
        raise ReadingError(f"its cell {lattice.T.tolist()} Å is not finite: correct the cell")
    volume = abs(np.linalg.det(lattice))
    if volume < MIN_VOLUME_PER_ATOM * n_atoms:
        raise ReadingError(
            f"its cell has {volume:.3g} Å³ for {n_atoms} atoms, below {MIN_VOLUME_PER_ATOM} Å³ "
            "each: it is singular, or not in Å"
        )


def niggli_reduce(crystal: CrystalArrays) -> CrystalArrays:
    """Return the same crystal in its right-handed Niggli-reduced cell.

    Only the basis changes: every atom keeps its cartesian position modulo the lattice, so a
    chiral crystal keeps its hand also when the cell it came in was left-handed.

    Raises:
        ReadingError: If the cell cannot be reduced.
    """
    change = _niggli_change(crystal.lattice)
    inverse = np.rint(np.linalg.inv(change))
    return CrystalArrays(
        crystal.lattice @ change,
        wrap_coords(crystal.frac_coords @ inverse.T),
        crystal.atomic_numbers,
    )


def _niggli_change(lattice: np.ndarray) -> np.ndarray:
    """Return the unimodular T for which ρ T is right-handed and Niggli-reduced.

    The reduction cycles on rare cells that are degenerate but for the last digits; rounding
    them breaks the tie, and T is applied to the cell as it was.
    """
    reason = ""
    for decimals in (None, 6, 4):
        rounded = lattice if decimals is None else lattice.round(decimals)
        try:
            _, change = moyopy.niggli_reduce(rounded.T.tolist())
        except ValueError as error:
            reason = str(error)
        else:
            return np.array(change, dtype=float)
    raise ReadingError(f"its cell {lattice.T.tolist()} Å cannot be reduced ({reason})")


def least_distance(crystal: CrystalArrays) -> float:
    """Return the least distance in Å between two atoms, an atom and its own image included.

    Exact for every cell: the images are those of the Niggli-reduced cell, in which the shortest
    vector between two atoms is at most one cell away from the componentwise nearest one.
    """
    reduced = niggli_reduce(crystal)
    return float(least_distances(reduced.lattice[None], reduced.frac_coords[None])[0])


def least_distances(lattice: np.ndarray, frac_coords: np.ndarray) -> np.ndarray:
    """Return the least distances of crystals with equally many atoms and reduced cells.

    Args:
        lattice: Niggli-reduced ρ in Å, [crystals, 3, 3].
        frac_coords: x, [crystals, atoms, 3].

    Returns:
        Distances in Å, [crystals].
    """
    first, second = np.triu_indices(frac_coords.shape[1], 1)
    apart = frac_coords[:, first] - frac_coords[:, second]
    apart -= np.rint(apart)
    shells = np.einsum("cij,sj->csi", lattice, _SHELL)
    own = np.linalg.norm(np.delete(shells, 13, axis=1), axis=-1).min(1)
    if not len(first):
        return own
    near = np.einsum("cij,cpj->cpi", lattice, apart)
    # |d + s|² expanded: no [crystals, pairs, images, 3] array is ever made.
    squares = (
        np.square(near).sum(-1)[:, :, None]
        + np.square(shells).sum(-1)[:, None, :]
        + 2 * np.einsum("cpi,csi->cps", near, shells)
    )
    return np.minimum(own, np.sqrt(squares.min((1, 2)).clip(0)))

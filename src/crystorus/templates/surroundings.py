"""What surrounds the atoms of each element, as numbers that do not name the elements.

Two crystals of one prototype have nearly the same surroundings whatever elements are in them, and
computing them once per crystal makes the comparison of thousands a matter of milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 6
"""Distances kept per pair of elements."""
CUTOFF = 2.6
"""Distances are cut here, in units of (V/n)^⅓; a shell of 70 atoms of a close packing."""
# Fraction of 1 999 templates for crystals of MP-20 train left out that match (StructureMatcher,
# stol 0.5), by their difference.
_DIFFERENCES = (0.0, 0.015, 0.025, 0.035, 0.045, 0.055, 0.07, 0.09, 0.11, 0.14, 0.175, 0.25, 0.4, 2)
_MATCHING = (1.0, 0.967, 0.93, 0.85, 0.8, 0.74, 0.57, 0.36, 0.22, 0.15, 0.07, 0.04, 0.01, 0.001)
_COINCIDENT = 1e-6
_BLOCK = 4_000_000  # distances held at a time, 32 MB


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The elements of a crystal, rarest first, and the distances between them.

    Attributes:
        elements: Atomic numbers of the m elements, by count, then by atomic number.
        counts: Atoms of each of them.
        distances: [m, m, NEIGHBOURS]; entry (a, b, k) is the mean over the atoms of a of the
            distance to the k-th nearest atom of b, own images included, in units of (V/n)^⅓.
    """

    elements: np.ndarray
    counts: np.ndarray
    distances: np.ndarray


def surroundings(
    lattice: np.ndarray, frac_coords: np.ndarray, atomic_numbers: np.ndarray
) -> Surroundings:
    """Describe one crystal.

    The result does not change under rotation, reflection, translation, re-tiling, permutation
    of atoms or scaling of the whole, and changes continuously with the geometry.

    Args:
        lattice: ρ in Å, columns are lattice vectors, [3, 3], reduced.
        frac_coords: x, [n, 3].
        atomic_numbers: z, [n].
    """
    elements, counts = _slots(atomic_numbers)
    n = len(atomic_numbers)
    rows = max(1, _BLOCK // (n * len(_images(lattice, n))))
    blocks = [range(start, min(start + rows, n)) for start in range(0, n, rows)]
    nearest = [
        nearest_distances(
            distances_between(lattice, frac_coords, atoms=block), atomic_numbers, elements
        )
        for block in blocks
    ]
    return _averaged(np.concatenate(nearest, axis=1), atomic_numbers, elements, counts)


def surroundings_in(distances: np.ndarray, atomic_numbers: np.ndarray) -> Surroundings:
    """Describe one crystal whose distances are known, whatever elements are on its sites.

    Args:
        distances: As `distances_between` gives them, [n, n, images].
        atomic_numbers: z, [n].
    """
    elements, counts = _slots(atomic_numbers)
    nearest = nearest_distances(distances, atomic_numbers, elements)
    return _averaged(nearest, atomic_numbers, elements, counts)


def _slots(atomic_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    elements, counts = np.unique(atomic_numbers, return_counts=True)
    order = np.lexsort((elements, counts))
    return elements[order], counts[order]


def _averaged(
    nearest: np.ndarray, atomic_numbers: np.ndarray, elements: np.ndarray, counts: np.ndarray
) -> Surroundings:
    mean_over = (atomic_numbers == elements[:, None]) / counts[:, None]
    return Surroundings(elements, counts, np.einsum("an,bnk->abk", mean_over, nearest))


def nearest_distances(
    distances: np.ndarray, atomic_numbers: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """Return the nearest distances from every atom to each element, [m, atoms, NEIGHBOURS].

    Args:
        distances: As `distances_between` gives them, [atoms, n, images].
        atomic_numbers: z, [n].
        elements: The m elements, in the order wanted.
    """
    n = len(distances)
    result = np.empty((len(elements), n, NEIGHBOURS))
    for b, element in enumerate(elements):
        nearest = distances[:, atomic_numbers == element].reshape(n, -1)
        if nearest.shape[1] < NEIGHBOURS:
            lacking = NEIGHBOURS - nearest.shape[1]
            nearest = np.pad(nearest, ((0, 0), (0, lacking)), constant_values=np.inf)
        nearest = np.sort(np.partition(nearest, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS], axis=1)
        result[b] = np.minimum(nearest, CUTOFF)
    return result


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of distances, broadcasting over leading axes.

    Args:
        one: Distances in units of (V/n)^⅓, [..., 3 axes that are averaged over].
        other: The same, [..., 3 axes].
    """
    return np.asarray(np.sqrt(((one - other) ** 2).mean((-3, -2, -1))))


def differences(distances: np.ndarray) -> np.ndarray:
    """Return the `difference` of every pair of N surroundings, [N, N].

    Args:
        distances: [N, ...], in units of (V/n)^⅓.
    """
    rows = distances.reshape(len(distances), -1).astype(np.float64)
    squares = (rows**2).sum(1)
    apart = squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(apart, 0.0)
    return np.asarray(np.sqrt(np.maximum(apart, 0) / rows.shape[1]))


def match_probability(difference: np.ndarray) -> np.ndarray:
    """Return the probability that two crystals match whose surroundings differ so much.

    Args:
        difference: Of `difference`, 0 for equal surroundings, of any shape.
    """
    return np.interp(difference, _DIFFERENCES, _MATCHING)


def distances_between(
    lattice: np.ndarray, frac_coords: np.ndarray, *, atoms: Sequence[int] | None = None
) -> np.ndarray:
    """Return the distances from atoms to all images within `CUTOFF`, and to some beyond.

    Args:
        lattice: ρ in Å, columns are lattice vectors, [3, 3], reduced.
        frac_coords: x, [n, 3].
        atoms: From which atoms; from all of them if not given.

    Returns:
        [atoms, n, images], in units of (V/n)^⅓; infinite from an atom to itself.
    """
    n = len(frac_coords)
    chosen = frac_coords if atoms is None else frac_coords[list(atoms)]
    apart = frac_coords[None] - chosen[:, None]
    apart = (apart - np.round(apart)) @ lattice.T
    distance = np.linalg.norm(apart[:, :, None] + _images(lattice, n), axis=-1)
    return np.where(distance < _COINCIDENT, np.inf, distance) / _unit(lattice, n)


def _unit(lattice: np.ndarray, n_atoms: int) -> float:
    """Return (V/n)^⅓ in Å."""
    return float((abs(np.linalg.det(lattice)) / n_atoms) ** (1 / 3))


def _images(lattice: np.ndarray, n_atoms: int) -> np.ndarray:
    """Return the lattice vectors in Å to every cell that holds atoms within `CUTOFF`."""
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=1)
    # Half a cell more, because differences of coordinates are brought into [-1/2, 1/2]; a cell
    # twice as high as the cutoff needs one image only.
    shells = np.floor(CUTOFF * _unit(lattice, n_atoms) / heights + 0.5).astype(int)
    axes = [np.arange(-shell, shell + 1) for shell in shells]
    return np.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ lattice.T)

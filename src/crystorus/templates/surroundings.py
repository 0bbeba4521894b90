"""What surrounds the atoms of each element, as numbers that do not name the elements.

Two crystals of one prototype have nearly the same surroundings whatever elements are in them, and
computing them once per crystal makes the comparison of thousands a matter of milliseconds.
"""

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 6
"""Distances kept per pair of elements."""
REACH = 2.6
"""Distances are cut here, in units of (V/n)^⅓; a shell of 70 atoms of a close packing."""
_COINCIDENT = 1e-6


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
    return surroundings_in(distances_between(lattice, frac_coords), atomic_numbers)


def surroundings_in(distances: np.ndarray, atomic_numbers: np.ndarray) -> Surroundings:
    """Describe one crystal whose distances are known, whatever elements are on its sites.

    Args:
        distances: As `distances_between` gives them, [n, n, images].
        atomic_numbers: z, [n].
    """
    elements, counts = np.unique(atomic_numbers, return_counts=True)
    order = np.lexsort((elements, counts))
    elements, counts = elements[order], counts[order]
    mean_over = (atomic_numbers == elements[:, None]) / counts[:, None]
    nearest = nearest_distances(distances, atomic_numbers, elements)
    return Surroundings(elements, counts, np.einsum("an,bnk->abk", mean_over, nearest))


def nearest_distances(
    distances: np.ndarray, atomic_numbers: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """Return the nearest distances from every atom to each element, [m, n, NEIGHBOURS].

    Args:
        distances: As `distances_between` gives them, [n, n, images].
        atomic_numbers: z, [n].
        elements: The m elements, in the order wanted.
    """
    n = len(atomic_numbers)
    result = np.empty((len(elements), n, NEIGHBOURS))
    for b, element in enumerate(elements):
        nearest = distances[:, atomic_numbers == element].reshape(n, -1)
        if nearest.shape[1] < NEIGHBOURS:
            lacking = NEIGHBOURS - nearest.shape[1]
            nearest = np.pad(nearest, ((0, 0), (0, lacking)), constant_values=np.inf)
        nearest = np.sort(np.partition(nearest, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS], axis=1)
        result[b] = np.minimum(nearest, REACH)
    return result


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of distances, broadcasting over leading axes."""
    return np.asarray(np.sqrt(((one - other) ** 2).mean((-3, -2, -1))))


def differences(distances: np.ndarray) -> np.ndarray:
    """Return the `difference` of every pair of N surroundings, [N, N]."""
    rows = distances.reshape(len(distances), -1).astype(np.float64)
    squares = (rows**2).sum(1)
    apart = squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(apart, 0.0)
    return np.asarray(np.sqrt(np.maximum(apart, 0) / rows.shape[1]))


def distances_between(lattice: np.ndarray, frac_coords: np.ndarray) -> np.ndarray:
    """Return the distances from every atom to all images within `REACH`, and to some beyond.

    Args:
        lattice: ρ in Å, columns are lattice vectors, [3, 3], reduced.
        frac_coords: x, [n, 3].

    Returns:
        [n, n, images], in units of (V/n)^⅓; infinite from an atom to itself.
    """
    unit = (abs(np.linalg.det(lattice)) / len(frac_coords)) ** (1 / 3)
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=1)
    shells = np.ceil(REACH * unit / heights + 0.5).astype(int)
    axes = [np.arange(-shell, shell + 1) for shell in shells]
    images = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ lattice.T
    apart = frac_coords[None] - frac_coords[:, None]
    apart = (apart - np.round(apart)) @ lattice.T
    distance = np.linalg.norm(apart[:, :, None] + images, axis=-1)
    return np.where(distance < _COINCIDENT, np.inf, distance) / unit

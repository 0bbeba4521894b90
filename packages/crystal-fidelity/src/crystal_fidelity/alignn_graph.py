"""The crystal graph and line graph that ALIGNN reads.

Every atom keeps all neighbours up to the distance d₁₂ of its twelfth. The official code compares
these distances exactly, so that rounding decides whether an equal neighbour belongs to the shell
and a rigid motion changes the graph; with a tie tolerance it does not. The official code also
rounds the lattice to 1e-5 Å wherever it turns fractional into cartesian coordinates, but not
where it shifts them by whole cells; its shells are reproduced only with that. And it counts
bonds of an atom to its own images twice, but never pairs such a bond with itself, so that its
graph of a crystal depends on the cell chosen. The tie-tolerant graph has none of this: it is the
same for every description of a crystal, and not the graph the weights were trained on.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.structures import Crystal

GraphMode = Literal["official", "tie-tolerant"]
CUTOFF = 8.0
MAX_NEIGHBOURS = 12
MIN_BOND = 0.15
"""Å; the official code drops closer pairs."""
TIE_TOLERANCE = 1e-4
"""Å."""
OFFICIAL_DECIMALS = 5
MAX_CANDIDATES = 200_000_000
CHUNK = 2_000_000


@dataclass(frozen=True)
class CrystalGraph:
    """Bonds u → v with displacement r, and pairs of bonds (a → b, b → c)."""

    atomic_numbers: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    displacements: NDArray[np.float64]
    """(bonds, 3), Å, from source to target."""
    first_bonds: NDArray[np.int64]
    """(pairs,), index of a → b; backtracking pairs are included."""
    second_bonds: NDArray[np.int64]


def build_graph(crystal: Crystal, mode: GraphMode) -> CrystalGraph:
    """Build the graph of one crystal.

    Raises:
        ValueError: the cell is so flat or long that its images cannot be searched.
    """
    source, target, image = _shells(crystal, mode)
    swap = target < source
    image[swap] = -image[swap]
    source, target = np.where(swap, target, source), np.where(swap, source, target)
    if mode == "tie-tolerant":
        image = np.where((source == target)[:, None], _positive(image), image)
    bonds = np.unique(np.column_stack([source, target, image]), axis=0)
    source, target, image = bonds[:, 0], bonds[:, 1], bonds[:, 2:]
    delta = crystal.frac_coords[target] + image - crystal.frac_coords[source]
    vectors = np.dot(delta, _conversion(crystal, mode))
    sources = np.column_stack([source, target]).ravel()
    targets = np.column_stack([target, source]).ravel()
    displacements = np.stack([vectors, -vectors], axis=1).reshape(-1, 3)
    first, second = line_graph(sources, targets, len(crystal))
    if mode == "official":
        first, second = first[first != second], second[first != second]
    return CrystalGraph(crystal.atomic_numbers, sources, targets, displacements, first, second)


def _positive(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each shift or its negative, whichever has its first nonzero entry positive."""
    signs = np.sign(image)
    leading = np.where(signs[:, 0] != 0, signs[:, 0], signs[:, 1])
    leading = np.where(leading != 0, leading, signs[:, 2])
    return image * np.where(leading < 0, -1, 1)[:, None]


def _conversion(crystal: Crystal, mode: GraphMode) -> NDArray[np.float64]:
    """Return the lattice that turns fractional into cartesian coordinates."""
    lattice = crystal.lattice
    return np.around(lattice, OFFICIAL_DECIMALS) if mode == "official" else lattice


def line_graph(
    sources: NDArray[np.int64], targets: NDArray[np.int64], n_atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs of bonds (a → b, b → c), backtracking included."""
    arriving: list[list[int]] = [[] for _ in range(n_atoms)]
    leaving: list[list[int]] = [[] for _ in range(n_atoms)]
    for bond, (u, v) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        leaving[u].append(bond)
        arriving[v].append(bond)
    ends = [np.repeat(a, len(b)) for a, b in zip(arriving, leaving, strict=True)]
    starts = [np.tile(b, len(a)) for a, b in zip(arriving, leaving, strict=True)]
    first, second = np.concatenate(ends).astype(np.int64), np.concatenate(starts).astype(np.int64)
    return first, second


def _shells(
    crystal: Crystal, mode: GraphMode
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    cutoff = CUTOFF
    tolerance = 0.0 if mode == "official" else TIE_TOLERANCE
    while True:
        source, target, image, distance = _neighbours(crystal, cutoff + tolerance, mode)
        counts = np.bincount(source[distance <= cutoff], minlength=len(crystal))
        if counts.min() >= MAX_NEIGHBOURS:
            break
        longest = float(np.linalg.norm(crystal.lattice, axis=1).max())
        cutoff = longest if cutoff < longest else 2 * cutoff
    keep = np.zeros(len(source), dtype=bool)
    for atom in range(len(crystal)):
        mine = np.nonzero(source == atom)[0]
        shell = np.sort(distance[mine])[MAX_NEIGHBOURS - 1]
        keep[mine] = distance[mine] <= shell + tolerance
    return source[keep], target[keep], image[keep]


def _neighbours(
    crystal: Crystal, cutoff: float, mode: GraphMode
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return (i, j, image, distance) of all pairs with MIN_BOND < d <= cutoff.

    The order of floating-point operations is the official one, because its shells hang on it.
    """
    lattice, frac = crystal.lattice, crystal.frac_coords
    cart = np.dot(frac, _conversion(crystal, mode))
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = np.ceil((cutoff + MIN_BOND) / heights)
    low = np.floor(frac.min(axis=0)) - reach
    high = np.ceil(frac.max(axis=0)) + reach
    n_images = float(np.prod(high - low))
    if n_images * len(frac) ** 2 > MAX_CANDIDATES:
        raise ValueError(f"{n_images:.0f} images of {len(frac)} atoms within {cutoff:.1f} Å")
    images = list(product(*(np.arange(a, b) for a, b in zip(low, high, strict=True))))
    found = []
    step = max(1, CHUNK // len(frac) ** 2)
    for start in range(0, len(images), step):
        block = images[start : start + step]
        coords = np.array([np.dot(image, lattice) + cart for image in block])
        distance = np.sum((coords[:, :, None, :] - cart[None, None, :, :]) ** 2, axis=-1) ** 0.5
        where = np.nonzero((distance <= cutoff) & (distance > MIN_BOND))
        shifts = np.array(block)[where[0]].astype(np.int64).reshape(-1, 3)
        found.append((where[2], where[1], shifts, distance[where]))
    i, j, image, d = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, image, d

"""Space groups in their standard primitive cells: operations, and the sites that atoms can take.

A Wyckoff position is, in one primitive cell, an orbit of sites; a site is the affine subspace of
the torus that its stabiliser leaves fixed. With the stabiliser S of a point x, that is the
operations {R_h | t_h} that bring x back to itself up to a lattice vector n_h,

    P = mean_h R_h,   c = mean_h (t_h + n_h)

project any point onto the site: P² = P, since S is a group, and P x + c is fixed by all of S. The
rank of P is the number of free coordinates.

The 1 731 positions of the 230 groups are in `wyckoff.csv`, made by `tools/wyckoff_sites.py` from
the operations alone, in units of 1/24 (projectors) and 1/48 (centres), with the ways in which other
origins and orientations renumber them.

Source: International Tables for Crystallography A (2016), ISBN 978-0-470-97423-0, chapter 1.4;
operations from moyo, doi:10.21105/joss.07721.
"""

import csv
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

import moyopy
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.structures import Crystal

Array = NDArray[np.float64]
N_GROUPS = 230


class Site(NamedTuple):
    """A Wyckoff position of a space group.

    Attributes:
        multiplicity: Atoms in one primitive cell.
        projector: P, fractional, [3, 3].
        centre: c, fractional, [3].
        renumbered: Number of the position that it becomes in each of the `site_permutations`.
    """

    multiplicity: int
    projector: Array
    centre: Array
    renumbered: tuple[int, ...]

    @property
    def freedom(self) -> int:
        """Number of free coordinates, 0 to 3.

        It is the rank of P, which is the trace because P² = P: every eigenvalue is 0 or 1.
        """
        return round(float(np.trace(self.projector)))


@cache
def operations(number: int) -> tuple[Array, Array]:
    """Return R_g [operations, 3, 3] and t_g [operations, 3] in the standard primitive basis.

    Args:
        number: International number, 1 to 230.
    """
    found = moyopy.operations_from_number(number, primitive=True)
    return np.array(found.rotations, dtype=float), np.array(found.translations, dtype=float)


@cache
def _all_sites() -> dict[int, tuple[Site, ...]]:
    text = resources.files("crystorus.geometry").joinpath("wyckoff.csv").read_text("utf-8")
    found: dict[int, list[Site]] = {number: [] for number in range(1, N_GROUPS + 1)}
    for row in csv.DictReader(text.splitlines()):
        projector = np.array(row["projector"].split(), dtype=float).reshape(3, 3) / 24
        centre = np.array(row["centre"].split(), dtype=float) / 48
        renumbered = tuple(int(n) for n in row["renumbered"].split())
        site = Site(int(row["multiplicity"]), projector, centre, renumbered)
        found[int(row["group"])].append(site)
    return {number: tuple(sites) for number, sites in found.items()}


def sites(number: int) -> tuple[Site, ...]:
    """Return the Wyckoff positions of a space group, by multiplicity.

    Args:
        number: International number, 1 to 230.
    """
    return _all_sites()[number]


@cache
def site_permutations(number: int) -> tuple[tuple[int, ...], ...]:
    """Return how other origins and orientations renumber the Wyckoff positions of a space group.

    A map x → W x + w that carries the group into itself and keeps every cell of that symmetry, that
    is Wᵀ G W = G for a general metric G of it, is an isometry of the crystal: what it makes of a
    skeleton is the same skeleton, and is sampled with the same probabilities. These maps are the
    Euclidean normaliser of a general metric (International Tables A, 2016, chapter 3.5). Axes are
    not exchanged unless the cell allows it: a cell is no part of a skeleton, but the lengths of
    standard cells are ordered, and so is the prior.

    Args:
        number: International number.

    Returns:
        The new number of every position, once for each distinct renumbering.
    """
    return tuple(zip(*(site.renumbered for site in sites(number)), strict=True))


@cache
def orbit(number: int, site: int) -> tuple[Array, Array]:
    """Return how the atoms of an orbit follow from one free point x: x_i = A_i x + b_i.

    The first is P x + c itself; the others are its images, A_i = R_g P and b_i = R_g c + t_g, one
    operation g for each.

    Args:
        number: International number of the space group.
        site: Number of the Wyckoff position in `sites`.

    Returns:
        A [multiplicity, 3, 3] and b [multiplicity, 3], fractional.
    """
    one, (rotations, translations) = sites(number)[site], operations(number)
    # Operations with equal images of a point in general place on the site are of one coset; the
    # identity is the first of all.
    point = one.projector @ np.array([0.1234567, 0.2718282, 0.3141593]) + one.centre
    images = rotations @ point + translations
    apart = images[:, None] - images
    same = np.abs(apart - np.rint(apart)).max(-1) < 1e-6
    first = np.flatnonzero(same.argmax(1) == np.arange(len(same)))
    return rotations[first] @ one.projector, rotations[first] @ one.centre + translations[first]


class CrystalOrbit(NamedTuple):
    """The orbit of one atom of a crystal under a space group.

    Attributes:
        first: The atom, the least number of the orbit.
        images: Atom that each operation brings it to, [operations].
        shifts: t_g + n_g of each operation, for which R_g x + t_g + n_g is that atom,
            [operations, 3].
        projector: P of its site.
        centre: c of its site.
    """

    first: int
    images: NDArray[np.int64]
    shifts: Array
    projector: Array
    centre: Array


def orbits_of(crystal: Crystal, rotations: Array, translations: Array) -> Iterator[CrystalOrbit]:
    """Yield the orbits of a crystal, each image taken for the nearest atom of its element.

    Args:
        crystal: In a cell to which the operations refer.
        rotations: R_g in the basis of the cell, [operations, 3, 3].
        translations: t_g, [operations, 3].
    """
    frac_coords, atomic_numbers = crystal.frac_coords, crystal.atomic_numbers
    images = np.einsum("gij,aj->agi", rotations, frac_coords) + translations
    # [atoms, operations, atoms]: how far the image of an atom is from every other one.
    apart = images[:, :, None] - frac_coords
    distance = np.linalg.norm((apart - np.rint(apart)) @ crystal.lattice, axis=-1)
    same = atomic_numbers[:, None, None] == atomic_numbers
    target = np.where(same, distance, np.inf).argmin(-1)
    left = set(range(len(atomic_numbers)))
    while left:
        first = min(left)
        left -= set(target[first].tolist())
        shifts = translations - np.rint(images[first] - frac_coords[target[first]])
        stays = target[first] == first
        centre = shifts[stays].mean(0)
        yield CrystalOrbit(first, target[first], shifts, rotations[stays].mean(0), centre)


class AtomImages(NamedTuple):
    """The atoms of a crystal as images of a free one for each orbit: x_i = A_i x_r + b_i.

    Attributes:
        representative: r of every atom, the free atom of its orbit, [atoms].
        linear: A_i, fractional, [atoms, 3, 3].
        offset: b_i, fractional, [atoms, 3].
        rotations: Of `proper_rotations`, [n, 3, 3].
    """

    representative: NDArray[np.int64]
    linear: Array
    offset: Array
    rotations: Array


def images_in(crystal: Crystal, rotations: Array, translations: Array) -> AtomImages:
    """Return how the atoms of a crystal, in its own cell, follow from free ones.

    Args:
        crystal: It has the operations, within some tolerance.
        rotations: R_g in the basis of the cell, [operations, 3, 3].
        translations: t_g, [operations, 3].
    """
    n = len(crystal.atomic_numbers)
    representative, linear, offset = np.empty(n, np.int64), np.empty((n, 3, 3)), np.empty((n, 3))
    for one in orbits_of(crystal, rotations, translations):
        atoms, g = np.unique(one.images, return_index=True)
        representative[atoms] = one.first
        linear[atoms] = rotations[g] @ one.projector
        offset[atoms] = rotations[g] @ one.centre + one.shifts[g]
    return AtomImages(representative, linear, offset, proper_rotations(rotations))


def images_alone(n_atoms: int) -> AtomImages:
    """Return atoms that are all free, in no space group but P1.

    Args:
        n_atoms: In the cell.
    """
    eye = np.eye(3)
    return AtomImages(
        np.arange(n_atoms), np.tile(eye, (n_atoms, 1, 1)), np.zeros((n_atoms, 3)), eye[None]
    )


@cache
def point_group(number: int) -> Array:
    """Return the `proper_rotations` of a space group in its primitive basis, [n, 3, 3].

    Args:
        number: Of the space group, 1 to 230.
    """
    return proper_rotations(operations(number)[0])


def proper_rotations(rotations: Array) -> Array:
    """Return the distinct matrices of determinant 1 among ±R_g.

    All that they act on here are metrics and strains, Rᵀ G R, which cannot tell R from -R.

    Args:
        rotations: R_g in the basis of some cell, [operations, 3, 3].
    """
    signs = np.linalg.det(rotations).round()
    return np.unique(rotations * signs[:, None, None] + 0.0, axis=0)  # no -0

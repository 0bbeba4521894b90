"""Diffusion inside a space group: every crystal of the trajectory has the symmetry exactly.

A skeleton is a space group with a Wyckoff position for every orbit of atoms; no coordinate and no
cell parameter is part of it. Positions live on the product of the sites' tori: the atoms of an
orbit follow from one free point x_r as x_i = A_i x_r + b_i (`geometry.space_groups`), displacements
and noise by the linear part alone. The noise of one free point is drawn, put onto its site and
carried to the images, so that it has the size that the network was trained for; averaging
independent noise over an orbit of m atoms would shrink it by √m.

Cells live in the commutant of the point group: Q_g = ρ R_g ρ⁻¹ is orthogonal for a cell ρ with the
symmetry, and a strain E keeps it if E commutes with every Q_g. Strains are projected by
E ← mean_g Q_gᵀ E Q_g; then exp(E) ρ R_g (exp(E) ρ)⁻¹ = exp(E) Q_g exp(-E) = Q_g, so Q_g stays the
same through the whole run.

The network needs no change: equivariant, it returns symmetric displacements and strains for a
symmetric crystal.

Source: the outlook of [Klipfel24], §6, which names the lattice; here the atoms' sites as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry.lattice import (
    from_coefficients,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)
from crystorus.geometry.space_groups import AtomImages, orbit, point_group
from crystorus.geometry.torus import wrap

MANY_CELLS = 64.0
"""Edge of the box in which free points are drawn. Put onto a site such as (x, x, z), a point that
is uniform in one cell is not uniform on the site's torus; over many cells it nearly is."""


class Skeleton(NamedTuple):
    """A space group and the sites that atoms take in its standard primitive cell.

    Attributes:
        group: International number, 1 to 230.
        orbits: Atomic number and number of the Wyckoff position (`geometry.space_groups.sites`)
            of every orbit.
    """

    group: int
    orbits: tuple[tuple[int, int], ...]

    @property
    def atomic_numbers(self) -> list[int]:
        """Elements atom by atom, orbit by orbit."""
        return [z for z, site in self.orbits for _ in orbit(self.group, site)[1]]

    def images(self) -> AtomImages:
        """Return how the atoms, in the order of `atomic_numbers`, follow from free ones."""
        several = [orbit(self.group, site) for _, site in self.orbits]
        sizes = [len(offset) for _, offset in several]
        return AtomImages(
            np.repeat(np.cumsum([0, *sizes[:-1]]), sizes),
            np.concatenate([linear for linear, _ in several]),
            np.concatenate([offset for _, offset in several]),
            point_group(self.group),
        )


@dataclass(frozen=True, eq=False)
class Skeletons(Sequence[Skeleton]):
    """Skeletons of many crystals, column by column; one is made when it is asked for.

    Attributes:
        group: International number of each crystal's.
        n_orbits: How many orbits each has.
        element: Atomic number of every orbit, crystal by crystal.
        site: Number of its Wyckoff position.
    """

    group: NDArray[np.int64]
    n_orbits: NDArray[np.int64]
    element: NDArray[np.int64]
    site: NDArray[np.int64]

    @staticmethod
    def of(several: Sequence[Skeleton]) -> "Skeletons":
        """Return skeletons column by column.

        Args:
            several: One per crystal.
        """
        orbits = [pair for skeleton in several for pair in skeleton.orbits]
        return Skeletons(
            np.array([skeleton.group for skeleton in several], dtype=np.int64),
            np.array([len(skeleton.orbits) for skeleton in several], dtype=np.int64),
            *np.array(orbits, dtype=np.int64).reshape(-1, 2).T,
        )

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where the orbits of each crystal end."""
        return np.cumsum(self.n_orbits)

    def __len__(self) -> int:
        return len(self.group)

    @overload
    def __getitem__(self, index: int) -> Skeleton: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Skeleton]": ...
    def __getitem__(self, index: int | slice) -> "Skeleton | list[Skeleton]":
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        end = self.ends[index]
        own = slice(end - self.n_orbits[index], end)
        orbits = zip(self.element[own].tolist(), self.site[own].tolist(), strict=True)
        return Skeleton(int(self.group[index]), tuple(orbits))


@dataclass(frozen=True, eq=False)
class SpaceGroups:
    """Skeletons of a batch of crystals, laid out for computing.

    Attributes:
        representative: Of every atom the one of its orbit that is free, as an index into the batch.
        linear: A_i of every atom, fractional.
        offset: b_i of every atom, fractional.
        rotations: ±R_g of every crystal's point group (`geometry.space_groups.proper_rotations`),
            padded with the identity.
        weights: One over their number for every rotation, 0 for padding.
    """

    representative: Int[Tensor, " atoms"]
    linear: Float[Tensor, "atoms 3 3"]
    offset: Float[Tensor, "atoms 3"]
    rotations: Float[Tensor, "crystals operations 3 3"]
    weights: Float[Tensor, "crystals operations"]

    @staticmethod
    def of(skeletons: Sequence[Skeleton]) -> "SpaceGroups":
        """Lay out skeletons; the atoms of each are in the order of its `atomic_numbers`.

        Args:
            skeletons: One per crystal.
        """
        return SpaceGroups.join([skeleton.images() for skeleton in skeletons])

    @staticmethod
    def join(crystals: Sequence[AtomImages]) -> "SpaceGroups":
        """Lay out crystals one after another.

        Args:
            crystals: Which atoms are images of which, one per crystal.
        """
        starts = np.cumsum([0] + [len(one.offset) for one in crystals[:-1]])
        most = max(len(one.rotations) for one in crystals)
        rotations = np.tile(np.eye(3), (len(crystals), most, 1, 1))
        weights = np.zeros(rotations.shape[:2])
        for place, one in enumerate(crystals):
            rotations[place, : len(one.rotations)] = one.rotations
            weights[place, : len(one.rotations)] = 1 / len(one.rotations)
        representative = [a.representative + s for a, s in zip(crystals, starts, strict=True)]
        linear = np.concatenate([one.linear for one in crystals])
        offset = np.concatenate([one.offset for one in crystals])
        return SpaceGroups(
            torch.from_numpy(np.concatenate(representative)),
            *(torch.from_numpy(a).float() for a in (linear, offset, rotations, weights)),
        )

    def without(
        self, free: Bool[Tensor, " crystals"], crystal_of_atom: Int[Tensor, " atoms"]
    ) -> "SpaceGroups":
        """Return the same with some crystals in no space group, all of their atoms free.

        Args:
            free: Which of them.
            crystal_of_atom: Number of the crystal of every atom.
        """
        atoms, eye = free[crystal_of_atom], torch.eye(3).to(self.linear)
        alone = torch.arange(len(atoms), device=atoms.device)
        return SpaceGroups(
            torch.where(atoms, alone, self.representative),
            torch.where(atoms[:, None, None], eye, self.linear),
            self.offset.masked_fill(atoms[:, None], 0.0),
            torch.where(free[:, None, None, None], eye, self.rotations),
            self.weights,
        )

    def to(self, device: torch.device | str) -> "SpaceGroups":
        """Move to a device.

        Args:
            device: Such as cpu or cuda:1.
        """
        return SpaceGroups(
            self.representative.to(device),
            self.linear.to(device),
            self.offset.to(device),
            self.rotations.to(device),
            self.weights.to(device),
        )

    def project_atoms(self, vectors: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
        """Put the vectors of the free atoms onto their sites, and carry them to all images.

        Args:
            vectors: Fractional; those of the free atoms are read.
        """
        return torch.einsum("aij,aj->ai", self.linear.to(vectors), vectors[self.representative])

    def positions(self, free: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
        """Return x_i = A_i x_r + b_i in [0, 1) for any points x_r of the free atoms.

        Args:
            free: x_r, fractional; those of the free atoms are read.
        """
        return wrap(self.project_atoms(free) + self.offset.to(free))

    def project_strain(
        self, strain: Float[Tensor, "crystals 3 3"], lattice: Float[Tensor, "crystals 3 3"]
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return the part of a strain that keeps the symmetry of a cell.

        The projection is linear: it serves a strain E and the change of the cell exp(E) alike.

        Args:
            strain: E or exp(E), symmetric, cartesian.
            lattice: ρ in Å, which has the symmetry.
        """
        q = lattice[:, None] @ self.rotations.to(lattice) @ torch.linalg.inv(lattice)[:, None]
        return torch.einsum("cg,cgki,ckl,cglj->cij", self.weights.to(q), q, strain, q)

    def project_noise(
        self,
        atoms: Float[Tensor, "atoms 3"],
        cells: Float[Tensor, "crystals 6"],
        lattice: Float[Tensor, "crystals 3 3"],
    ) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 6"]]:
        """Return standard normal numbers of atoms and cells as noise that keeps the symmetry.

        Args:
            atoms: Of every atom; those of the free ones are read.
            cells: Coefficients of a strain.
            lattice: ρ in Å, which has the symmetry.
        """
        strain = self.project_strain(from_coefficients(cells), lattice)
        return self.project_atoms(atoms), to_coefficients(strain)

    def compatible_cells(
        self, lattice: Float[Tensor, "crystals 3 3"], *, iterations: int = 8
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return the cells with the symmetry that are nearest to given ones, of the same volume.

        The metric G = ρᵀρ of a cell with the symmetry satisfies R_gᵀ G R_g = G. Of all such
        metrics the geometric mean Ḡ of R_gᵀ G R_g over the group has the least sum of squared
        geodesic distances to them. Descent finds it from the arithmetic mean: along the mean of
        L_g = log(Ḡ^(-1/2) R_gᵀ G R_g Ḡ^(-1/2)), which is zero at the geometric mean, by a step
        2/(1 + mean_g h_g coth h_g), where h_g is half the spread of the eigenvalues of L_g; whole
        steps overshoot for needles and plates. Every iterate has the symmetry. S ρ with
        S = √(ρ⁻ᵀ Ḡ ρ⁻¹) has that metric and is not turned against ρ.

        Args:
            lattice: ρ in Å, any cells.
            iterations: Steps. After 8, cells that the prior draws are as a rule within 1e-10 of
                the nearest one, and within 1e-3 at the worst.

        Source: step length of Bini and Iannazzo 2013, doi:10.1016/j.laa.2011.08.052
        """
        rotations, weights = self.rotations.to(lattice).double(), self.weights.to(lattice).double()
        rho = lattice.double()
        images = rotations.mT @ (rho.mT @ rho)[:, None] @ rotations
        mean = torch.einsum("cg,cgij->cij", weights, images)
        for _ in range(iterations):
            root = symmetric_exp(symmetric_log(mean) / 2)
            inverse = torch.linalg.inv(root)[:, None]
            values, vectors = torch.linalg.eigh(inverse @ images @ inverse)
            logs = values.log()
            half = ((logs[..., -1] - logs[..., 0]) / 2).clamp_min(1e-6)
            step = 2 / (1 + (weights * half / half.tanh()).sum(1))
            move = torch.einsum("c,cg,cgik,cgk,cgjk->cij", step, weights, vectors, logs, vectors)
            mean = root @ symmetric_exp(move) @ root
        inverse = torch.linalg.inv(rho)
        found = symmetric_exp(symmetric_log(inverse.mT @ mean @ inverse) / 2) @ rho
        ratio = (torch.linalg.det(rho) / torch.linalg.det(found)).abs() ** (1 / 3)
        return (found * ratio[:, None, None]).to(lattice)


class SymmetricNoise(CrystalNoise):
    """Random numbers of crystals inside their space groups.

    Args:
        seeds: One seed per crystal.
        n_atoms: Number of atoms of each crystal.
        groups: The skeletons.
    """

    def __init__(
        self, seeds: Sequence[int], n_atoms: Int[Tensor, " crystals"], groups: SpaceGroups
    ) -> None:
        super().__init__(seeds, n_atoms)
        self.groups = groups
        self.lattice: Tensor | None = None
        """Cells with the symmetry, ρ in Å, once there are any: strains then keep it."""

    def normal_atoms(self) -> Float[Tensor, "atoms 3"]:
        """Draw standard normal numbers for the free atoms and carry them to the images."""
        return self.groups.project_atoms(super().normal_atoms())

    def uniform_atoms(self) -> Float[Tensor, "atoms 3"]:
        """Draw points that are uniform on the torus of every site."""
        return self.groups.positions(MANY_CELLS * super().uniform_atoms())

    def normal_cells(self) -> Float[Tensor, "crystals 6"]:
        """Draw coefficients of a strain that keeps the symmetry of the cells."""
        coefficients = super().normal_cells()
        if self.lattice is None:
            return coefficients
        strain = self.groups.project_strain(from_coefficients(coefficients), self.lattice)
        return to_coefficients(strain)

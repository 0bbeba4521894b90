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
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry.lattice import (
    from_coefficients,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)
from crystorus.geometry.space_groups import orbit, point_group
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


@dataclass(frozen=True, eq=False)
class SpaceGroups:
    """Skeletons of a batch of crystals, laid out for computing.

    Attributes:
        representative: Of every atom the one of its orbit that is free, as an index into the batch.
        linear: A_i of every atom, fractional.
        offset: b_i of every atom, fractional.
        rotations: R_g of every crystal's point group, padded with the identity.
        weights: 1/|G| for every rotation, 0 for padding.
    """

    representative: Int[Tensor, " atoms"]
    linear: Float[Tensor, "atoms 3 3"]
    offset: Float[Tensor, "atoms 3"]
    rotations: Float[Tensor, "crystals operations 3 3"]
    weights: Float[Tensor, "crystals operations"]

    @staticmethod
    def of(skeletons: Sequence[Skeleton]) -> "SpaceGroups":
        """Lay out skeletons; the atoms of each are in the order of its `atomic_numbers`."""
        representative, linear, offset, start = [], [], [], 0
        for skeleton in skeletons:
            for _, site in skeleton.orbits:
                a, b = orbit(skeleton.group, site)
                representative.append(np.full(len(b), start))
                linear.append(a)
                offset.append(b)
                start += len(b)
        groups = [point_group(skeleton.group) for skeleton in skeletons]
        return SpaceGroups.from_arrays(
            np.concatenate(representative), np.concatenate(linear), np.concatenate(offset), groups
        )

    @staticmethod
    def from_arrays(
        representative: np.ndarray,
        linear: np.ndarray,
        offset: np.ndarray,
        groups: Sequence[np.ndarray],
    ) -> "SpaceGroups":
        """Lay out arrays of atoms, and of every crystal its distinct rotations [n, 3, 3]."""
        rotations = np.tile(np.eye(3), (len(groups), max(map(len, groups)), 1, 1))
        weights = np.zeros(rotations.shape[:2])
        for place, group in enumerate(groups):
            rotations[place, : len(group)] = group
            weights[place, : len(group)] = 1 / len(group)
        real = (linear, offset, rotations, weights)
        return SpaceGroups(
            torch.from_numpy(representative), *(torch.from_numpy(a).float() for a in real)
        )

    def to(self, device: torch.device | str) -> "SpaceGroups":
        """Move to a device."""
        return SpaceGroups(
            self.representative.to(device),
            self.linear.to(device),
            self.offset.to(device),
            self.rotations.to(device),
            self.weights.to(device),
        )

    def project_atoms(self, vectors: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
        """Put the vectors of the free atoms onto their sites, and carry them to all images."""
        return torch.einsum("aij,aj->ai", self.linear.to(vectors), vectors[self.representative])

    def positions(self, free: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
        """Return x_i = A_i x_r + b_i in [0, 1) for any points x_r of the free atoms."""
        return wrap(self.project_atoms(free) + self.offset.to(free))

    def project_strain(
        self, strain: Float[Tensor, "crystals 3 3"], lattice: Float[Tensor, "crystals 3 3"]
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return the part of a symmetric strain that leaves the symmetry of a cell.

        Args:
            strain: E, symmetric, cartesian.
            lattice: ρ in Å, which has the symmetry.
        """
        q = lattice[:, None] @ self.rotations.to(lattice) @ torch.linalg.inv(lattice)[:, None]
        return torch.einsum("cg,cgki,ckl,cglj->cij", self.weights.to(q), q, strain, q)

    def compatible_cells(
        self, lattice: Float[Tensor, "crystals 3 3"], *, iterations: int = 8
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return the cells with the symmetry that are nearest to given ones, of the same volume.

        The metric G = ρᵀρ of a cell with the symmetry satisfies R_gᵀ G R_g = G. Of all such
        metrics the geometric mean of R_gᵀ G R_g over the group has the least sum of squared
        geodesic distances to them; fixed-point steps in the logarithm find it, from the arithmetic
        mean. S ρ with S = √(ρ⁻ᵀ Ḡ ρ⁻¹) has that metric and is not turned against ρ.

        Args:
            lattice: ρ in Å, any cells.
            iterations: Fixed-point steps; they converge quadratically near the mean.
        """
        rotations, weights = self.rotations.to(lattice).double(), self.weights.to(lattice).double()
        rho = lattice.double()
        images = rotations.mT @ (rho.mT @ rho)[:, None] @ rotations
        mean = torch.einsum("cg,cgij->cij", weights, images)
        for _ in range(iterations):
            root = symmetric_exp(symmetric_log(mean) / 2)
            inverse = torch.linalg.inv(root)[:, None]
            logs = symmetric_log(inverse @ images @ inverse)
            mean = root @ symmetric_exp(torch.einsum("cg,cgij->cij", weights, logs)) @ root
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
        """Draw coefficients of a strain that leaves the symmetry of the cells."""
        coefficients = super().normal_cells()
        if self.lattice is None:
            return coefficients
        strain = self.groups.project_strain(from_coefficients(coefficients), self.lattice)
        return to_coefficients(strain)

"""The default diffusion of the cell: strains of the real cell, basis-free.

ρ_t = exp(E_t) ρ_0 with E_t symmetric and Gaussian in the shape and volume parts of gl(3). The
noise acts on the left, as rotations do, so it commutes with SL₃(Z), which acts on the right: the
process is the counterpart for cells of the torus process for positions, and an equivariant
network can express its exact reverse. Every ρ_t is a cell; nothing collapses.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import (
    from_coefficients,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)


def predicted_strain(
    prediction: Prediction, lattice: Float[Tensor, "crystals 3 3"]
) -> Float[Tensor, "crystals 3 3"]:
    """Return E with ρ_t = exp(E) ρ' up to a rotation of ρ', from any kind of prediction.

    With F = ρ_t ρ'⁻¹ = exp(E) Q (the left polar decomposition of the deformation from ρ' to ρ_t),
    F Fᵀ = exp(2E).

    Args:
        prediction: Names the strain, or only the cell ρ'.
        lattice: ρ_t in Å.
    """
    if prediction.strain is not None:
        return prediction.strain
    ratio = lattice @ torch.linalg.inv(prediction.lattice)
    return 0.5 * symmetric_log(ratio @ ratio.mT)


class StrainTarget(NamedTuple):
    """What the loss compares with: E_t as drawn, the σ it was drawn with, and ρ_t in Å."""

    strain: Float[Tensor, "crystals 3 3"]
    sigma: Float[Tensor, "crystals 6"]
    lattice: Float[Tensor, "crystals 3 3"]


class StrainProcess:
    """Variance-exploding diffusion of the cell by symmetric strains.

    Args:
        shape_sigma: Standard deviation of each shape coefficient of E_t, t = 0 … T.
        volume_sigma: Standard deviation of the volume coefficient of E_t.
        statistics: The training cells, for the prior.

    Deviation: [Klipfel24] adds the noise to log ρ_0, whose value depends on the basis that was
    chosen for the lattice. Here it multiplies ρ_0.
    """

    def __init__(
        self,
        shape_sigma: Float[Tensor, " levels"],
        volume_sigma: Float[Tensor, " levels"],
        statistics: CellStatistics,
    ) -> None:
        self.sigma = torch.stack([shape_sigma.double()] * 5 + [volume_sigma.double()], -1)
        self.statistics = statistics

    def level(self, t: Int[Tensor, " crystals"], like: Tensor) -> Float[Tensor, "crystals 6"]:
        """Return the standard deviations of the six coefficients, in the dtype of `like`.

        Args:
            t: Noise levels, 0 … T.
            like: A tensor of any shape, of whose dtype and device the result is.
        """
        return self.sigma.to(t.device)[t].to(like.dtype)

    def noise(
        self,
        crystals: Crystals,
        t: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
    ) -> tuple[Float[Tensor, "crystals 3 3"], StrainTarget]:
        """Draw ρ_t = exp(E_t) ρ_0.

        Args and result are those of `CellProcess`; the target holds E_t, σ_t and ρ_t.
        """
        sigma = self.level(t, crystals.lattice)
        strain = from_coefficients(sigma * normal)
        lattice = symmetric_exp(strain) @ crystals.lattice
        return lattice, StrainTarget(strain, sigma, lattice)

    def loss(self, prediction: Prediction, target: StrainTarget) -> Float[Tensor, " crystals"]:
        """Return the mean squared error of the strain in units of its noise, per crystal.

        Args:
            prediction: What the network says of the noisy crystals.
            target: What `noise` returned with them.

        Source: [Klipfel24] Eq. 14
        Deviation: the weight of each level is one over the variance of its noise, so that every
            level counts alike; the printed weight is that of μ̃, and is squared by mistake.
        """
        guess = predicted_strain(prediction, target.lattice)
        error = to_coefficients(guess - target.strain) / target.sigma
        return error.square().mean(-1)

    def prior(self, compositions: Crystals, noise: CrystalNoise) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_T: a cell from the Gaussian of the training cells, then noised to level T.

        Args:
            compositions: Elements and numbers of atoms; the geometry is not read.
            noise: Source of the random numbers.

        Returns:
            Cells in Å.
        """
        stats, normal = self.statistics, noise.normal_cells()
        shape = stats.shape_mean.to(normal) + normal[:, :5] @ stats.shape_scale.to(normal).T
        spread = stats.volume_std.to(normal) * normal[:, 5]
        log_volume = stats.expected_log_volume(compositions) + spread
        total = log_volume + compositions.n_atoms.to(normal).log()
        # det exp(c I/√3) = exp(√3 c), so log V is √3 times the volume coefficient.
        coefficients = torch.cat([shape, total[:, None] / 3**0.5], -1)
        clean = compositions.with_geometry(
            symmetric_exp(from_coefficients(coefficients)), compositions.frac_coords
        )
        last = torch.full_like(compositions.n_atoms, len(self.sigma) - 1)
        return self.noise(clean, last, noise.normal_cells())[0]

    def reverse(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_s = exp(E_s) ρ_0 given ρ_t = exp(E_t) ρ_0: a Brownian bridge of strains.

        E_s = (σ_s²/σ_t²) E_t + √(σ_s²(σ_t² - σ_s²))/σ_t ε. If E_t has variance σ_t², the variance
        of E_s is σ_s⁴/σ_t² + σ_s² - σ_s⁴/σ_t² = σ_s²: exactly the forward law of level s.

        Args and result are those of `CellProcess`.
        """
        strain = predicted_strain(prediction, lattice)
        high, low = self.level(t, lattice), self.level(s, lattice)
        ratio = (low / high) ** 2
        keep = (1 - drift * (1 - ratio)).clamp_min(0)
        coefficients = keep * to_coefficients(strain)
        coefficients = coefficients + low * (1 - ratio).clamp_min(0).sqrt() * normal
        return symmetric_exp(from_coefficients(coefficients)) @ symmetric_exp(-strain) @ lattice

    def flow(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Move along the probability-flow ODE: E_s = (σ_s/σ_t) E_t.

        Args and result are those of `CellProcess`.

        Source: [Song21], probability-flow ODE
        """
        strain = predicted_strain(prediction, lattice)
        ratio = self.level(s, lattice) / self.level(t, lattice)
        keep = (1 - drift * (1 - ratio)).clamp_min(0)
        rest = from_coefficients(keep * to_coefficients(strain))
        return symmetric_exp(rest) @ symmetric_exp(-strain) @ lattice

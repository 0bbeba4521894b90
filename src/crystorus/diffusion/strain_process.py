"""The default diffusion of the cell: strains of the real cell, basis-free (Eqs 12 to 15).

ρ_t = exp(E_t) ρ_0 with E_t symmetric and Gaussian in the shape and volume parts of gl(3). The
noise acts on the left, as rotations do, so it commutes with SL₃(Z): the process is the
counterpart for cells of the torus process for positions, and an equivariant network can express
its exact reverse. Every ρ_t is a cell; nothing collapses.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.crystals import mean_per_crystal
from crystorus.geometry.lattice import (
    from_coefficients,
    lattice_log,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)


@dataclass(frozen=True, eq=False)
class CellStatistics:
    """What training cells look like before any diffusion: the whitening of x^ρ.

    Attributes:
        log_volume: Contribution of each element to log(V/n), Å³, indexed by Z; linear in the
            atomic fractions.
        volume_std: Standard deviation of log(V/n) around it.
        shape_mean: Mean of the five shape coefficients of reduced cells.
        shape_scale: Lower Cholesky factor of their covariance.
    """

    log_volume: Float[Tensor, "119"]
    volume_std: Float[Tensor, ""]
    shape_mean: Float[Tensor, "5"]
    shape_scale: Float[Tensor, "5 5"]

    def expected_log_volume(self, crystals: Crystals) -> Float[Tensor, " crystals"]:
        """Return the composition's expected log(V/n)."""
        table = self.log_volume.to(crystals.lattice)
        return mean_per_crystal(table[crystals.atomic_numbers], crystals)

    @staticmethod
    def neutral() -> "CellStatistics":
        """Return statistics of no data set: 18 Å³ per atom, shapes near the cube."""
        return CellStatistics(
            torch.full((119,), 2.9), torch.tensor(0.2), torch.zeros(5), 0.25 * torch.eye(5)
        )


def fit_cell_statistics(crystals: Crystals, *, ridge: float = 3.0) -> CellStatistics:
    """Fit the whitening to crystals with reduced cells.

    The volumes are a ridge regression on atomic fractions; an element that is absent gets the
    mean of all.

    Args:
        crystals: Training crystals.
        ridge: Weight of the pull towards the mean, in crystals of the pure element.
    """
    fractions = torch.zeros(len(crystals), 119, dtype=torch.float64)
    share = 1 / crystals.n_atoms.double()[crystals.crystal_of_atom]
    fractions.index_put_(
        (crystals.crystal_of_atom, crystals.atomic_numbers.long()), share, accumulate=True
    )
    target = (crystals.volume.double() / crystals.n_atoms).log()
    mean = target.mean()
    normal = fractions.T @ fractions + ridge * torch.eye(119, dtype=torch.float64)
    weights = torch.linalg.solve(normal, fractions.T @ (target - mean))
    residual = target - mean - fractions @ weights
    shape = to_coefficients(lattice_log(crystals.lattice.double()))[:, :5]
    # Layered crystals have cells 20 σ away: they must not set the scale.
    low, high = shape.quantile(0.005, 0), shape.quantile(0.995, 0)
    shape = shape.clamp(low, high)
    covariance = torch.cov(shape.T) + 1e-6 * torch.eye(5, dtype=torch.float64)
    return CellStatistics(
        (mean + weights).float(),
        (residual.abs().quantile(0.6827)).float(),
        shape.mean(0).float(),
        torch.linalg.cholesky(covariance).float(),
    )


def predicted_strain(
    prediction: Prediction, lattice: Float[Tensor, "crystals 3 3"]
) -> Float[Tensor, "crystals 3 3"]:
    """Return E with ρ_t = exp(E) ρ' up to a rotation of ρ', from any kind of prediction."""
    if prediction.strain is not None:
        return prediction.strain
    ratio = lattice @ torch.linalg.inv(prediction.lattice)
    return 0.5 * symmetric_log(ratio @ ratio.mT)


class StrainProcess:
    """Variance-exploding diffusion of the cell by symmetric strains.

    Args:
        shape_sigma: Standard deviation of each shape coefficient of E_t, t = 0 … T.
        volume_sigma: Standard deviation of the volume coefficient of E_t.
        statistics: The training cells, for the prior.

    Source: Eqs 12 to 15.
    Deviation: the noise multiplies ρ_0 instead of being added to log ρ_0, so that it does not
        depend on the choice of basis.
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
        """Return the standard deviations of the six coefficients."""
        return self.sigma.to(t.device)[t].to(like.dtype)

    def noise(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        t: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
    ) -> tuple[Float[Tensor, "crystals 3 3"], Float[Tensor, "crystals 3 3"]]:
        """Draw ρ_t = exp(E_t) ρ_0; returns ρ_t and E_t."""
        strain = from_coefficients(self.level(t, lattice) * normal)
        return symmetric_exp(strain) @ lattice, strain

    def prior(
        self,
        crystals: Crystals,
        start: Float[Tensor, "crystals 6"],
        normal: Float[Tensor, "crystals 6"],
    ) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_T: a cell from the Gaussian of the training cells, then noised to level T.

        Args:
            crystals: Compositions; geometry is not read.
            start: Standard normal numbers for the Gaussian of the data.
            normal: Standard normal numbers for the noise.
        """
        stats = self.statistics
        shape = stats.shape_mean.to(start) + start[:, :5] @ stats.shape_scale.to(start).T
        log_volume = stats.expected_log_volume(crystals) + stats.volume_std.to(start) * start[:, 5]
        total = log_volume + crystals.n_atoms.to(start).log()
        coefficients = torch.cat([shape, total[:, None] / 3**0.5], -1)
        last = torch.full_like(crystals.n_atoms, len(self.sigma) - 1)
        return self.noise(symmetric_exp(from_coefficients(coefficients)), last, normal)[0]

    def loss(
        self,
        prediction: Prediction,
        clean: Crystals,
        noisy: Crystals,
        t: Int[Tensor, " crystals"],
        strain: Float[Tensor, "crystals 3 3"],
    ) -> Float[Tensor, " crystals"]:
        """Return the mean squared error of the strain in units of its noise, per crystal.

        Args:
            prediction: What the network says of `noisy`.
            clean: The crystals before noise.
            noisy: The crystals after it.
            t: Step.
            strain: E_t as drawn by `noise`.

        Source: Eq. 14, with its weight set to one.
        """
        guess = predicted_strain(prediction, noisy.lattice)
        error = to_coefficients(guess - strain) / self.level(t, strain)
        return error.square().mean(-1)

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
        """Draw ρ_s = exp(E_s) ρ_0 given ρ_t = exp(E_t) ρ_0: a Gaussian bridge of strains.

        E_s = (σ_s²/σ_t²) E_t + √(σ_s²(σ_t² - σ_s²))/σ_t ε has exactly the forward law of level s
        when E_t has that of level t.

        Args:
            lattice: ρ_t.
            prediction: Holds E_t, the predicted strain from ρ_0 to ρ_t.
            t: Present step.
            s: Next step, smaller.
            normal: Standard normal numbers.
            drift: Factor on the drift, above 1 at anti-annealing; one number, or one per row.
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
        """Move along the probability-flow ODE: E_s = (σ_s/σ_t) E_t."""
        strain = predicted_strain(prediction, lattice)
        ratio = self.level(s, lattice) / self.level(t, lattice)
        keep = (1 - drift * (1 - ratio)).clamp_min(0)
        rest = from_coefficients(keep * to_coefficients(strain))
        return symmetric_exp(rest) @ symmetric_exp(-strain) @ lattice

"""What training cells look like before any diffusion: the Gaussian that sampling starts from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.geometry import Crystals
from crystorus.geometry.crystals import mean_per_crystal
from crystorus.geometry.lattice import lattice_log, to_coefficients


@dataclass(frozen=True, eq=False)
class CellStatistics:
    """Mean and spread of the training cells' volume and shape: the whitening of x^ρ.

    Attributes:
        log_volume: Contribution of each element to log(V/n), V in Å³, indexed by Z; linear in
            the atomic fractions.
        volume_std: Standard deviation of log(V/n) around it.
        shape_mean: Mean of the five shape coefficients of reduced cells.
        shape_scale: Lower Cholesky factor of their covariance.
    """

    log_volume: Float[Tensor, "119"]
    volume_std: Float[Tensor, ""]
    shape_mean: Float[Tensor, "5"]
    shape_scale: Float[Tensor, "5 5"]

    def expected_log_volume(self, crystals: Crystals) -> Float[Tensor, " crystals"]:
        """Return the expected log(V/n), V in Å³, of each composition.

        Args:
            crystals: Elements and numbers of atoms are read.
        """
        table = self.log_volume.to(crystals.lattice)
        return mean_per_crystal(table[crystals.atomic_numbers], crystals)

    @staticmethod
    def neutral() -> "CellStatistics":
        """Return statistics of no data set: 18 Å³ per atom, shapes near the cube."""
        return CellStatistics(
            torch.full((MAX_ATOMIC_NUMBER + 1,), 2.9),
            torch.tensor(0.2),
            torch.zeros(5),
            0.25 * torch.eye(5),
        )


def fit_cell_statistics(crystals: Crystals, *, ridge: float = 3.0) -> CellStatistics:
    """Fit the prior of cells to training crystals.

    The volumes are a ridge regression on atomic fractions f: with the mean m of log(V/n), the
    weights w minimise Σ (log(V/n) - m - f·w)² + ridge |w|², so that an element that is absent
    gets w = 0, the mean of all.

    Args:
        crystals: Training crystals in reduced cells, Å.
        ridge: Weight of the pull towards the mean, in crystals of the pure element.

    Returns:
        The statistics in float32.
    """
    elements = MAX_ATOMIC_NUMBER + 1
    fractions = torch.zeros(len(crystals), elements, dtype=torch.float64)
    atom = crystals.crystal_of_atom
    per_atom = 1 / crystals.n_atoms.double()[atom]
    fractions.index_put_((atom, crystals.atomic_numbers.long()), per_atom, accumulate=True)
    target = (crystals.volume.double() / crystals.n_atoms).log()
    mean = target.mean()
    normal = fractions.T @ fractions + ridge * torch.eye(elements, dtype=torch.float64)
    weights = torch.linalg.solve(normal, fractions.T @ (target - mean))
    residual = target - mean - fractions @ weights
    shape = to_coefficients(lattice_log(crystals.lattice.double()))[:, :5]
    # Layered crystals have cells 20 σ away: they must not set the scale.
    shape = shape.clamp(shape.quantile(0.005, 0), shape.quantile(0.995, 0))
    covariance = torch.cov(shape.T) + 1e-6 * torch.eye(5, dtype=torch.float64)
    return CellStatistics(
        (mean + weights).float(),
        # The σ of a normal law with the same central 68 %, which outliers do not move.
        residual.abs().quantile(0.6827).float(),
        shape.mean(0).float(),
        torch.linalg.cholesky(covariance).float(),
    )

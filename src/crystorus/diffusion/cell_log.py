"""The paper's diffusion of the cell: DDPM of the lattice vector x^ρ = π⁻¹ log ρ."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.config import LatticeSpace
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import (
    from_coefficients,
    lattice_log,
    parameters,
    symmetric_exp,
    to_coefficients,
)

VOLUME_SCALE = 0.25
"""Appendix B takes λ I, with λ = 0.25/√3, as the matrix of the volume. Ours is I/√3, of norm 1 like
the others (tr I² = 3), so that λ I is 0.25 times ours."""


class LogLatticeProcess:
    """Variance-preserving diffusion of the lattice vector.

    Args:
        cumulative_alpha: ᾱ_0 = 1 … ᾱ_T.
        space: "log" is the paper's; "euclidean" diffuses ρ itself, Table 4 (d).

    Deviation: the logarithm is that of the polar decomposition, which exists for every cell.
    """

    def __init__(
        self, cumulative_alpha: Float[Tensor, " levels"], *, space: LatticeSpace = "log"
    ) -> None:
        self.cumulative_alpha = cumulative_alpha.double()
        self.space: LatticeSpace = space

    def encode(self, lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals k"]:
        """Return x^ρ: five coefficients of shape and one of volume, or ρ's nine entries.

        Args:
            lattice: ρ, lattice vectors as columns, Å.
        """
        if self.space == "euclidean":
            return lattice.flatten(1)
        x = to_coefficients(lattice_log(lattice))
        return torch.cat([x[:, :5], x[:, 5:] / VOLUME_SCALE], -1)

    def decode(self, x: Float[Tensor, "crystals k"]) -> Float[Tensor, "crystals 3 3"]:
        """Return ρ = exp(π x^ρ) in Å.

        Args:
            x: x^ρ.
        """
        if self.space == "euclidean":
            return x.unflatten(1, (3, 3))
        return symmetric_exp(from_coefficients(torch.cat([x[:, :5], x[:, 5:] * VOLUME_SCALE], -1)))

    def level(self, t: Int[Tensor, " crystals"], like: Tensor) -> Float[Tensor, "crystals 1"]:
        """Return ᾱ_t of every crystal, in the dtype of `like`.

        Args:
            t: Noise levels, 0 … T.
            like: A tensor of any shape, of whose dtype and device the result is.
        """
        return self.cumulative_alpha.to(t.device)[t].to(like.dtype)[:, None]

    def noise(
        self,
        crystals: Crystals,
        t: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
    ) -> tuple[Float[Tensor, "crystals 3 3"], Crystals]:
        """Draw ρ_t = exp(π x_t), x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε.

        Args and result are those of `CellProcess`; the target is the clean crystals.
        """
        alpha = self.level(t, crystals.lattice)
        x_0, noise = self.encode(crystals.lattice), self._noise_vector(normal)
        return self.decode(alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise), crystals

    def loss(self, prediction: Prediction, target: Crystals) -> Float[Tensor, " crystals"]:
        """Return the L1 distance of normalised lattice parameters, per crystal.

        Lengths are divided by n^⅓, so that they are in Å per atom spacing; angles are radians.

        Args:
            prediction: What the network says of the noisy crystals.
            target: The clean crystals.

        Source: [Klipfel24] Eq. 15
        Deviation: compared with ρ_0, which is what Algorithm 2 takes the prediction for, and
            not with exp(π μ̃).
        """
        scale = target.n_atoms.to(target.lattice.dtype).pow(1 / 3)[:, None]
        scale = torch.cat([scale.expand(-1, 3), torch.ones_like(scale).expand(-1, 3)], -1)
        difference = parameters(prediction.lattice) - parameters(target.lattice)
        return (difference / scale).abs().mean(-1)

    def prior(self, compositions: Crystals, noise: CrystalNoise) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_T = exp(π x_T), x_T ~ N(0, I): Algorithm 2, line 2.

        Args:
            compositions: Only their number is used: every cell has about 1 Å³.
            noise: Source of the random numbers; the first draw is passed over, so that a seed
                means the same numbers to both processes.

        Returns:
            Cells in Å.
        """
        _, normal = noise.normal_cells(), noise.normal_cells()
        return self.decode(self._noise_vector(normal[: len(compositions)]))

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
        """Draw ρ_s given ρ_t and the predicted ρ_0: lines 6 and 7 of Algorithm 2.

        Args and result are those of `CellProcess`.

        Source: [Klipfel24] Eq. 4
        """
        weight_0, weight_t, variance = self.posterior(t, s, lattice)
        x_t, x_0 = self.encode(lattice), self.encode(prediction.lattice)
        mean = _accelerate(weight_0 * x_0 + weight_t * x_t, x_t, weight_t, drift, s)
        return self.decode(mean + variance.sqrt() * self._noise_vector(normal))

    def flow(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Move deterministically: x_s = √ᾱ_s x_0 + √((1 - ᾱ_s)/(1 - ᾱ_t)) (x_t - √ᾱ_t x_0).

        The noise ε that the prediction implies is kept, and x_s is where it has the size of
        level s.

        Args and result are those of `CellProcess`.

        Source: [Song21b], deterministic sampling
        """
        high, low = self.level(t, lattice), self.level(s, lattice)
        x_t, x_0 = self.encode(lattice), self.encode(prediction.lattice)
        weight_t = ((1 - low) / (1 - high)).sqrt()
        x_s = low.sqrt() * x_0 + (x_t - high.sqrt() * x_0) * weight_t
        return self.decode(_accelerate(x_s, x_t, weight_t, drift, s))

    def posterior(
        self, t: Int[Tensor, " crystals"], s: Int[Tensor, " crystals"], like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of x_0 and x_t in μ̃, and the variance β̃, of q(x_s | x_t, x_0).

        With the signal kept from s to t, α = ᾱ_t/ᾱ_s, the product of the two Gaussians
        N(x_s; √ᾱ_s x_0, 1 - ᾱ_s) and N(x_t; √α x_s, 1 - α) is one in x_s, with precision
        1/(1 - ᾱ_s) + α/(1 - α) = (1 - ᾱ_t)/((1 - ᾱ_s)(1 - α)); β̃ is its inverse.

        Args:
            t: Present level.
            s: Next level, smaller; t - 1 gives the printed formulas.
            like: Gives the dtype.

        Source: [Klipfel24] Eq. 6
        Deviation: the printed μ̃ lacks indices and has a root in the wrong place; this is the
            posterior of [Ho20], for any pair of levels.
        """
        high, low = self.level(t, like), self.level(s, like)
        step = high / low
        weight_0 = low.sqrt() * (1 - step) / (1 - high)
        weight_t = step.sqrt() * (1 - low) / (1 - high)
        return weight_0, weight_t, (1 - low) * (1 - step) / (1 - high)

    def _noise_vector(self, normal: Float[Tensor, "crystals 6"]) -> Float[Tensor, "crystals k"]:
        """Return the noise of x^ρ; that of ρ itself is the symmetric Gaussian."""
        return from_coefficients(normal).flatten(1) if self.space == "euclidean" else normal


def _accelerate(
    x_s: Tensor, x_t: Tensor, weight_t: Tensor, drift: float | Tensor, s: Int[Tensor, " crystals"]
) -> Tensor:
    """Return x_t + drift (x_s - x_t), no further than where nothing of x_t is left.

    x_s = … x_0 + w x_t moves by w - 1 in x_t; a factor above 1/(1 - w) would make the weight of
    x_t negative and leave it behind on its other side. The last step, to s = 0, is never changed.
    """
    most = 1 / (1 - weight_t)
    more = torch.minimum(torch.as_tensor(drift).to(most), most) - 1
    return x_s + more * (x_s - x_t) * (s > 0)[:, None]

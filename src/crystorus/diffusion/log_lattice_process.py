"""The paper's diffusion of the cell: a Gaussian walk of x^ρ = π⁻¹ log ρ (Eqs 12 to 15)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import (
    from_coefficients,
    lattice_log,
    parameters,
    symmetric_exp,
    to_coefficients,
)

LatticeSpace = Literal["log", "euclidean"]
VOLUME_SCALE = 0.25  # λ = 0.25/√3 of Appendix B


class LogLatticeProcess:
    """Variance-preserving diffusion of the lattice vector.

    Args:
        cumulative_alpha: ᾱ_0 = 1 … ᾱ_T.
        space: "log" is the paper's; "euclidean" diffuses ρ itself, Table 4 (d).

    Source: Eqs 12 to 15, Appendix B.
    Deviation: the logarithm is that of the polar decomposition, which exists for every cell.
    """

    def __init__(
        self, cumulative_alpha: Float[Tensor, " levels"], *, space: LatticeSpace = "log"
    ) -> None:
        self.cumulative_alpha = cumulative_alpha.double()
        self.space: LatticeSpace = space

    def encode(self, lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals k"]:
        """Return x^ρ: five coefficients of shape and one of volume, or ρ's nine entries."""
        if self.space == "euclidean":
            return lattice.flatten(1)
        x = to_coefficients(lattice_log(lattice))
        return torch.cat([x[:, :5], x[:, 5:] / VOLUME_SCALE], -1)

    def decode(self, x: Float[Tensor, "crystals k"]) -> Float[Tensor, "crystals 3 3"]:
        """Return ρ = exp(π x^ρ)."""
        if self.space == "euclidean":
            return x.unflatten(1, (3, 3))
        return symmetric_exp(from_coefficients(torch.cat([x[:, :5], x[:, 5:] * VOLUME_SCALE], -1)))

    def level(self, t: Int[Tensor, " crystals"], like: Tensor) -> Float[Tensor, "crystals 1"]:
        """Return ᾱ_t per crystal."""
        return self.cumulative_alpha.to(t.device)[t].to(like.dtype)[:, None]

    def _normal(self, normal: Tensor) -> Tensor:
        # Nine entries from the six and three more numbers are never needed: the euclidean
        # space is symmetric to start with, its noise is the symmetric Gaussian.
        return from_coefficients(normal).flatten(1) if self.space == "euclidean" else normal

    def noise(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        t: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
    ) -> tuple[Float[Tensor, "crystals 3 3"], Float[Tensor, "crystals 3 3"]]:
        """Draw ρ_t; the second value stands in for the strain and is ρ_0."""
        alpha = self.level(t, lattice)
        x = alpha.sqrt() * self.encode(lattice) + (1 - alpha).sqrt() * self._normal(normal)
        return self.decode(x), lattice

    def prior(
        self,
        crystals: Crystals,
        start: Float[Tensor, "crystals 6"],
        normal: Float[Tensor, "crystals 6"],
    ) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_T = exp(π x_T), x_T ~ N(0, 1): Algorithm 2, line 2."""
        return self.decode(self._normal(normal))

    def loss(
        self,
        prediction: Prediction,
        clean: Crystals,
        noisy: Crystals,
        t: Int[Tensor, " crystals"],
        strain: Float[Tensor, "crystals 3 3"],
    ) -> Float[Tensor, " crystals"]:
        """Return the L1 distance of normalised lattice parameters, per crystal.

        Lengths are divided by n^⅓, so that they are in Å per atom spacing; angles are radians.

        Source: Eq. 15.
        Deviation: compared with ρ_0, which is what Algorithm 2 takes the prediction for, and
            not with exp(π μ̃).
        """
        scale = clean.n_atoms.to(noisy.lattice.dtype).pow(1 / 3)[:, None]
        scale = torch.cat([scale.expand(-1, 3), torch.ones_like(scale).expand(-1, 3)], -1)
        difference = parameters(prediction.lattice) - parameters(clean.lattice)
        return (difference / scale).abs().mean(-1)

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

        Source: μ̃ of Eq. 6, for any s < t.
        Deviation: Eq. 6 and Eq. 14 are misprinted; the standard posterior of DDPM is used.
        """
        mean_0, mean_t, variance = self._posterior(t, s, lattice)
        x_t, x_0 = self.encode(lattice), self.encode(prediction.lattice)
        mean = mean_0 * x_0 + mean_t * x_t
        most = 1 / (1 - mean_t)  # a longer step would leave x_t behind on its other side
        more = torch.minimum(torch.as_tensor(drift).to(most), most) - 1
        mean = mean + more * (mean - x_t) * (s > 0)[:, None]
        return self.decode(mean + variance.sqrt() * self._normal(normal))

    def _posterior(self, t: Tensor, s: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of x_0 and x_t in μ̃, and β̃."""
        high, low = self.level(t, like), self.level(s, like)
        step = high / low
        mean_0 = low.sqrt() * (1 - step) / (1 - high)
        mean_t = step.sqrt() * (1 - low) / (1 - high)
        return mean_0, mean_t, (1 - low) * (1 - step) / (1 - high)

    def flow(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Move deterministically: x_s = √ᾱ_s x_0 + √((1 - ᾱ_s)/(1 - ᾱ_t)) (x_t - √ᾱ_t x_0)."""
        high, low = self.level(t, lattice), self.level(s, lattice)
        x_t, x_0 = self.encode(lattice), self.encode(prediction.lattice)
        noise = (x_t - high.sqrt() * x_0) * ((1 - low) / (1 - high)).sqrt()
        return self.decode(low.sqrt() * x_0 + noise)

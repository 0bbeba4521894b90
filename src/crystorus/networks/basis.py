"""Invariants of edges and angles expanded in functions a network can read (GemNet's bases).

Distances become Gaussians under a polynomial envelope, angles become zonal harmonics Y_l0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def polynomial_envelope(
    scaled: Float[Tensor, " edges"], *, exponent: int
) -> Float[Tensor, " edges"]:
    """Fall from 1 at 0 to 0 at 1 with two vanishing derivatives there.

    u(d) = 1 - (p+1)(p+2)/2 d^p + p(p+2) d^(p+1) - p(p+1)/2 d^(p+2), and 0 beyond d = 1.

    Args:
        scaled: d = r / cutoff.
        exponent: p ≥ 1.

    Source: Gasteiger et al., Directional message passing (2020), Eq. 8.
    """
    p = exponent
    value = (
        1
        - (p + 1) * (p + 2) / 2 * scaled**p
        + p * (p + 2) * scaled ** (p + 1)
        - p * (p + 1) / 2 * scaled ** (p + 2)
    )
    return torch.where(scaled < 1, value, torch.zeros_like(value))


class GaussianBasis(torch.nn.Module):
    """Gaussians on a regular grid from 0 to the cutoff, under the polynomial envelope.

    b_k(r) = c u(d) exp(-½ (d - c_k)²/Δ²) with d = r / cutoff, Δ the grid's step and
    c = (size/√π)^½, by which the mean square of the basis is u(d)². What follows is linear in b:
    c sets where training starts, not what can be learnt.
    """

    def __init__(self, size: int, *, cutoff: float, exponent: int):
        """Place `size` centres; the width is the distance between neighbouring centres.

        Args:
            size: Number of Gaussians, at least 2.
            cutoff: Å.
            exponent: p of the envelope.
        """
        super().__init__()
        self.size, self.cutoff, self.exponent = size, cutoff, exponent
        self.register_buffer("centres", torch.linspace(0, 1, size), persistent=False)

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges size"]:
        """Return the basis at every distance in Å."""
        scaled = distance / self.cutoff
        centres = self.get_buffer("centres").to(distance.dtype)
        steps = (scaled[:, None] - centres) * (self.size - 1)
        envelope = polynomial_envelope(scaled, exponent=self.exponent)
        scale = (self.size / math.sqrt(math.pi)) ** 0.5
        return scale * envelope[:, None] * torch.exp(-0.5 * steps.square())


def zonal_harmonics(cosine: Tensor, *, size: int, dim: int = -1) -> Tensor:
    """Return Y_l0(θ) = √((2l+1)/4π) P_l(cos θ) for l = 0 … size - 1, along a new axis `dim`.

    P_l by Bonnet's recursion: l P_l = (2l - 1) c P_{l-1} - (l - 1) P_{l-2}.
    """
    legendre = [torch.ones_like(cosine), cosine]
    for n in range(2, size):
        legendre.append(((2 * n - 1) * cosine * legendre[-1] - (n - 1) * legendre[-2]) / n)
    scaled = [p * math.sqrt((2 * n + 1) / (4 * math.pi)) for n, p in enumerate(legendre[:size])]
    return torch.stack(scaled, dim=dim)

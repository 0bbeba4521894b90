"""The vector fields λ of Appendix A of [Klipfel24]: how distances and angles follow the cell.

The cell acts through ρ → gρ. A field is the gradient of an invariant with respect to g at
g = I, which is (∂/∂ρ) ρᵀ; both have closed forms and both are symmetric. Symmetric matrices are
kept as their six components in the order of `SYMMETRIC_PAIRS`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SYMMETRIC_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Row and column of each of the six components of a symmetric matrix."""

ZERO_LENGTH = 1e-12
"""Lengths below this have no direction; what they multiply vanishes there."""


def distance_field(vector: Float[Tensor, "*edges 3"]) -> Float[Tensor, "*edges 6"]:
    """Return λ_r = (∂r/∂ρ) ρᵀ = r r̂ r̂ᵀ in Å.

    With r² = vᵀv and v = g ρ e, dr = vᵀ dg v / r at g = I, the scalar product of dg with v vᵀ/r.

    Args:
        vector: v = ρ e in Å.

    Source: [Klipfel24] Appendix A, ∂r_γ/∂ρ
    """
    length = vector.norm(dim=-1, keepdim=True)
    return _outer(vector) / length.clamp_min(ZERO_LENGTH)


def angle_field(
    first: Float[Tensor, "*#pairs 3"], second: Float[Tensor, "*#pairs 3"], *, dim: int = -1
) -> Tensor:
    """Return λ_θ = (∂θ/∂ρ) ρᵀ = sin θ (q̂q̂ᵀ - p̂p̂ᵀ), dimensionless, traceless.

    From cos θ = uᵀv/(|u||v|) and du = dg u, dv = dg v follows
    λ_θ = [cos θ (ûûᵀ + v̂v̂ᵀ) - ûv̂ᵀ - v̂ûᵀ]/sin θ, which loses all its digits at θ → 0 and π,
    where λ_θ goes to zero. p = û + v̂ and q = û - v̂ are orthogonal, sin θ = |p||q|/2,
    cos θ = (|p|² - |q|²)/4, and ûûᵀ + v̂v̂ᵀ = (ppᵀ + qqᵀ)/2, ûv̂ᵀ + v̂ûᵀ = (ppᵀ - qqᵀ)/2 turn the
    fraction into qqᵀ |p|/2|q| - ppᵀ |q|/2|p|, in which nothing cancels.

    Args:
        first: û, [… 3].
        second: v̂, [… 3].
        dim: Where the axis of the six components goes.

    Returns:
        [… 6] unless `dim` puts the 6 elsewhere.

    Source: [Klipfel24] Appendix A, ∂θ_γγ'/∂ρ
    """
    # One contiguous table per component: axes of length 3 and 6 would be strided loops.
    first, second = first.movedim(-1, 0), second.movedim(-1, 0)
    p, q = first + second, first - second
    square_p, square_q = p.square().sum(0), q.square().sum(0)
    ratio = (square_p.clamp_min(ZERO_LENGTH**2) / square_q.clamp_min(ZERO_LENGTH**2)).sqrt()
    along_p, along_q = 0.5 / ratio, 0.5 * ratio
    components = [q[i] * q[j] * along_q - p[i] * p[j] * along_p for i, j in SYMMETRIC_PAIRS]
    return torch.stack(components, dim=dim)


def symmetric_matrix(components: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """Unfold six components into a symmetric matrix: [… 6] → [… 3 3].

    Args:
        components: xx, yy, zz, xy, xz, yz.
    """
    order = torch.tensor([0, 3, 4, 3, 1, 5, 4, 5, 2], device=components.device)
    return components.index_select(-1, order).unflatten(-1, (3, 3))


def _outer(vector: Tensor) -> Tensor:
    """Return the six components of v vᵀ."""
    return torch.stack([vector[..., i] * vector[..., j] for i, j in SYMMETRIC_PAIRS], dim=-1)

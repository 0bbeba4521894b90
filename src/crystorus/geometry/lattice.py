"""The cell as a point of a Lie algebra (Eqs 12 and 13, Appendix B).

A cell is ρ = Q exp(S): Q a rotation, S symmetric, S = ½ log(ρᵀρ). S splits into five
coefficients of shape and one of volume; Q is the orientation, which no crystal has.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

_HALF = 1 / math.sqrt(2)


@functools.cache
def gl3_basis(
    dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "9 3 3"]:
    """Return an orthonormal basis of gl(3) = so(3) ⊕ shape ⊕ volume.

    The tensor is shared: do not write to it. Elements 0-2 span the rotations, 3-7 the
    volume-preserving symmetric strains, 8 the volume.

    Source: Eqs 12 and 13, Appendix B.
    Deviation: the printed π₆ and π₇ are not orthogonal, so that their noise would single out a
        direction in space; diag(1, -1, 0)/√2 and diag(1, 1, -2)/√6 are.
    """
    basis = torch.zeros(9, 3, 3, dtype=torch.float64)
    for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        basis[n, i, j], basis[n, j, i] = _HALF, -_HALF
        basis[n + 3, i, j], basis[n + 3, j, i] = _HALF, _HALF
    basis[6] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)) * _HALF
    basis[7] = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)) / math.sqrt(6)
    basis[8] = torch.eye(3, dtype=torch.float64) / math.sqrt(3)
    return basis.to(dtype=dtype, device=device)


def from_coefficients(
    coefficients: Float[Tensor, "crystals 6"],
) -> Float[Tensor, "crystals 3 3"]:
    """Return the symmetric matrix Σ c_k π_{3+k} of shape (5) and volume (1) coefficients."""
    basis = gl3_basis(coefficients.dtype, coefficients.device)[3:]
    return torch.einsum("bk,kij->bij", coefficients, basis)


def to_coefficients(
    symmetric: Float[Tensor, "crystals 3 3"],
) -> Float[Tensor, "crystals 6"]:
    """Return the shape (5) and volume (1) coefficients of symmetric matrices: π⁻¹."""
    basis = gl3_basis(symmetric.dtype, symmetric.device)[3:]
    return torch.einsum("bij,kij->bk", symmetric, basis)


class _SymmetricFunction(torch.autograd.Function):
    """A scalar function of a symmetric matrix, by eigenvalues.

    The derivative uses divided differences (Daleckii-Krein), which stay finite where
    eigenvalues meet; the derivative of `eigh` itself does not.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, name: str) -> Tensor:  # type: ignore[no-untyped-def]
        values, vectors = torch.linalg.eigh(matrix.double())
        if name == "exp":
            image = values.exp()
            slope = image
        else:
            image = values.log()
            slope = 1 / values
        gap = values[..., :, None] - values[..., None, :]
        rise = image[..., :, None] - image[..., None, :]
        scale = values.abs().amax(-1)[..., None, None].clamp_min(1e-300)
        close = gap.abs() < 1e-6 * scale
        middle = 0.5 * (slope[..., :, None] + slope[..., None, :])
        ratio = torch.where(close, middle, rise / torch.where(close, torch.ones_like(gap), gap))
        ctx.save_for_backward(vectors, ratio)
        result = (vectors * image[..., None, :]) @ vectors.mT
        return result.to(matrix.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        vectors, ratio = ctx.saved_tensors
        symmetric = 0.5 * (grad + grad.mT).to(vectors.dtype)
        inner = vectors.mT @ symmetric @ vectors
        return (vectors @ (ratio * inner) @ vectors.mT).to(grad.dtype), None


def symmetric_exp(symmetric: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """Return exp(S) of symmetric matrices; differentiable also where eigenvalues meet."""
    return _SymmetricFunction.apply(symmetric, "exp")


def symmetric_log(positive: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """Return log(P) of symmetric positive definite matrices."""
    return _SymmetricFunction.apply(positive, "log")


def lattice_log(lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """Return S = ½ log(ρᵀρ), the cell without its orientation.

    Exists and is unique for every non-singular ρ, left-handed ones included; the logarithm of
    ρ itself does not (defective matrices, rotations by π, negative determinants).

    Raises:
        ValueError: If a cell is singular or not finite.

    Source: Appendix B.
    Deviation: polar instead of spectral logarithm.
    """
    volume = torch.linalg.det(lattice.double()).abs()
    length = lattice.double().norm(dim=-2).prod(-1)
    if not bool((volume > 1e-12 * length).all()):
        worst = int((volume / length).nan_to_num(-1).argmin())
        raise ValueError(
            f"cell {worst} is singular or not finite (volume {float(volume[worst]):.3g} Å³): "
            "its logarithm does not exist; remove the structure or repair its cell"
        )
    # Singular values keep twice the digits of the eigenvalues of ρᵀρ.
    _, values, right = torch.linalg.svd(lattice.double())
    return ((right.mT * values.log()[..., None, :]) @ right).to(lattice.dtype)


def parameters(lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 6"]:
    """Return (a, b, c) in Å and (α, β, γ) in radians.

    Source: p(ρ) of Eq. 15.
    """
    gram = lattice.mT @ lattice
    length = torch.diagonal(gram, dim1=-2, dim2=-1).sqrt()
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [gram[:, i, j] / (length[:, i] * length[:, j]) for i, j in pairs]
    # arccos has infinite slope at ±1, where no cell with a volume is.
    limit = 1 - 1e-6
    angles = torch.stack(cosines, -1).clamp(-limit, limit).arccos()
    return torch.cat([length, angles], -1)

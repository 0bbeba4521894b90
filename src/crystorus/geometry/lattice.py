"""The cell as a point of a Lie algebra, and the short bases of its lattice.

A cell is ρ = Q exp(S): Q a rotation, S symmetric, S = ½ log(ρᵀρ). S splits into five
coefficients of shape and one of volume; Q is the orientation, which no crystal has. All bases ρ C
with C ∈ SL₃(Z) span one lattice; neighbour searches enumerate periodic images, and in a reduced
basis few images are enough.
"""

import functools
import itertools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_STEPS = 200
"""Passes after which a reduction stops; cells of ordinary skew need fewer than ten."""

TOLERANCE = 1e-12
"""Relative shortening of a squared length below which a step does not count."""


@functools.cache
def gl3_basis(
    dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "9 3 3"]:
    """Return an orthonormal basis of gl(3) = so(3) ⊕ shape ⊕ volume.

    Args:
        dtype: Of the basis.
        device: Where it is.

    Returns:
        π, shared by all callers: do not write to it. Elements 0-2 span the rotations, 3-7 the
        volume-preserving symmetric strains, 8 the volume.

    Source: [Klipfel24] Eq. 12
    Deviation: π₆ and π₇ of Appendix B are not orthogonal, so that their noise would single out a
        direction in space; diag(1, -1, 0)/√2 and diag(1, 1, -2)/√6 are.
    """
    half = 1 / math.sqrt(2)
    basis = torch.zeros(9, 3, 3, dtype=torch.float64)
    for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        basis[n, i, j], basis[n, j, i] = half, -half
        basis[n + 3, i, j], basis[n + 3, j, i] = half, half
    basis[6] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)) * half
    basis[7] = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)) / math.sqrt(6)
    basis[8] = torch.eye(3, dtype=torch.float64) / math.sqrt(3)
    return basis.to(dtype=dtype, device=device)


def from_coefficients(
    coefficients: Float[Tensor, "crystals 6"],
) -> Float[Tensor, "crystals 3 3"]:
    """Return the symmetric matrix π c = Σ c_k π_{3+k}.

    Args:
        coefficients: Five of shape, one of volume.

    Source: [Klipfel24] Eq. 13
    Deviation: without the three coefficients of so(3): a crystal has no orientation.
    """
    basis = gl3_basis(coefficients.dtype, coefficients.device)[3:]
    return torch.einsum("bk,kij->bij", coefficients, basis)


def to_coefficients(
    symmetric: Float[Tensor, "crystals 3 3"],
) -> Float[Tensor, "crystals 6"]:
    """Return the five coefficients of shape and the one of volume of symmetric matrices: π⁻¹.

    Args:
        symmetric: Symmetric matrices, of no unit.
    """
    basis = gl3_basis(symmetric.dtype, symmetric.device)[3:]
    return torch.einsum("bij,kij->bk", symmetric, basis)


class _SymmetricFunction(torch.autograd.Function):
    """A scalar function of a symmetric matrix, by eigenvalues.

    For A = U diag(λ) Uᵀ and a direction H, the derivative of f(A) is
    U (D ∘ (Uᵀ H U)) Uᵀ with the divided differences D_ij = (f(λ_i) - f(λ_j))/(λ_i - λ_j): check it
    on f = λ^n, where Σ A^k H A^(n-1-k) gives Σ λ_i^k λ_j^(n-1-k). Where λ_i → λ_j, D_ij → f'(λ_i),
    while the derivative of `eigh`, with 1/(λ_i - λ_j) in it, has no limit. The map H ↦ df is its
    own transpose, so the same formula takes gradients back.

    Source: [Higham08], theorem 3.11 (Daleckii and Krein)
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, name: str) -> Tensor:  # type: ignore[no-untyped-def]
        finite = matrix.isfinite().all(-1).all(-1)[..., None]  # `eigh` gives up a whole batch
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrix, 0).double())
        values = torch.where(finite, values, torch.nan)
        if name == "exp":
            image = values.exp()
            slope = image
        else:
            image = values.log()
            slope = 1 / values
        gap = values[..., :, None] - values[..., None, :]
        rise = image[..., :, None] - image[..., None, :]
        scale = values.abs().amax(-1)[..., None, None].clamp_min(1e-300)
        close = gap.abs() < 1e-6 * scale  # where the difference of images loses its digits
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
    """Return exp(S) of symmetric matrices; differentiable also where eigenvalues meet.

    Args:
        symmetric: S.
    """
    return _SymmetricFunction.apply(symmetric, "exp")


def symmetric_log(positive: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """Return log(P) of symmetric positive definite matrices.

    Args:
        positive: P.
    """
    return _SymmetricFunction.apply(positive, "log")


def spans_space(
    lattice: Float[Tensor, "crystals 3 3"], *, least: float = 1e-18
) -> Bool[Tensor, " crystals"]:
    """Tell which cells are finite and have a volume.

    Args:
        lattice: ρ in Å.
        least: Volume over the product of the lengths of ρ's columns that counts as one. Skewed
            bases of ordinary lattices may have little; a basis for a logarithm needs 1e-12.
    """
    cells = lattice.detach().double()
    return torch.linalg.det(cells).abs() > least * cells.norm(dim=-2).prod(-1)


def _check_spans_space(
    lattice: Float[Tensor, "crystals 3 3"], remedy: str, *, least: float = 1e-18
) -> None:
    broken = (~spans_space(lattice, least=least)).nonzero()[:, 0]
    if len(broken):
        volume = float(torch.linalg.det(lattice[broken[0]].double()).abs())
        raise ValueError(
            f"cell {int(broken[0])} is singular or not finite (volume {volume:.3g} Å³): {remedy}"
        )


def lattice_log(lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """Return S = ½ log(ρᵀρ), the cell without its orientation.

    Exists and is unique for every non-singular ρ, left-handed ones included; the logarithm of
    ρ itself does not (defective matrices, rotations by π, negative determinants).

    Args:
        lattice: ρ in Å.

    Raises:
        ValueError: If a cell is singular or not finite.

    Source: [Klipfel24] Appendix B
    Deviation: polar instead of spectral logarithm.
    """
    remedy = "its logarithm does not exist; remove the structure or repair its cell"
    _check_spans_space(lattice, remedy, least=1e-12)
    # Singular values keep twice the digits of the eigenvalues of ρᵀρ.
    _, values, right = torch.linalg.svd(lattice.double())
    return ((right.mT * values.log()[..., None, :]) @ right).to(lattice.dtype)


def parameters(lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 6"]:
    """Return the lengths and angles of cells: p(ρ) of the loss of [Klipfel24].

    Args:
        lattice: ρ in Å.

    Returns:
        (a, b, c) in Å and (α, β, γ) in radians.
    """
    gram = lattice.mT @ lattice
    length = torch.diagonal(gram, dim1=-2, dim2=-1).sqrt()
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [gram[:, i, j] / (length[:, i] * length[:, j]) for i, j in pairs]
    # arccos has infinite slope at ±1, where no cell with a volume is.
    limit = 1 - 1e-6
    angles = torch.stack(cosines, -1).clamp(-limit, limit).arccos()
    return torch.cat([length, angles], -1)


def reduce_lattice(
    lattice: Float[Tensor, "crystals 3 3"],
) -> tuple[Float[Tensor, "crystals 3 3"], Int[Tensor, "crystals 3 3"]]:
    """Return the Minkowski-reduced basis ρ C of every lattice and the change of basis C.

    The columns come out sorted by length: the first is a shortest vector of the lattice, the
    second a shortest one independent of it, and so on. C ∈ SL₃(Z), so orientation is kept.
    Greedy reduction: shorten the longest vector by the nearest point of the lattice of the
    other two until nothing gets shorter. Works in float64 inside.

    Args:
        lattice: ρ in Å, columns are lattice vectors, det ρ ≠ 0.

    Returns:
        The reduced lattice and C, with reduced = ρ C and fractional coordinates C⁻¹ x.

    Raises:
        ValueError: If a cell is singular or not finite.

    Source: [Nguyen09]
    """
    basis = lattice.detach().to(torch.float64)
    _check_spans_space(basis, "it has no reduced basis; remove the structure or repair it")
    change = torch.eye(3, dtype=torch.float64, device=lattice.device).expand_as(basis)
    length = basis.square().sum((1, 2))
    for _ in range(MAX_STEPS):
        basis, change = _sort_columns(basis, change)
        basis, change = _shorten_second(basis, change)
        basis, change = _sort_columns(basis, change)
        basis, change = _shorten_third(basis, change)
        previous, length = length, basis.square().sum((1, 2))
        if not bool((length < previous * (1 - TOLERANCE)).any()):
            break
    basis, change = _sort_columns(basis, change)
    # An odd permutation turns the handedness; -1 turns it back (three is odd).
    change = change * torch.linalg.det(change).sign()[:, None, None]
    exact = torch.round(change)
    reduced = (lattice.to(torch.float64) @ exact).to(lattice.dtype)
    return reduced, exact.to(torch.long)


def inverse_change(change: Int[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """Return C⁻¹, whole numbers as float64: it takes fractional coordinates to the new basis.

    Args:
        change: C, whole numbers with determinant ±1.
    """
    return torch.linalg.inv_ex(change.to(torch.float64)).inverse.round()


def _sort_columns(basis: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Order the columns by length, ties as they were."""
    order = basis.square().sum(1).argsort(dim=1, stable=True)[:, None].expand_as(basis)
    return basis.gather(2, order), change.gather(2, order)


def _shorten_second(basis: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from the second vector its nearest multiple of the first."""
    first, second, _ = basis.unbind(2)
    multiple = torch.round((first * second).sum(1) / first.square().sum(1))
    shorter = second - multiple[:, None] * first
    better = shorter.square().sum(1) < second.square().sum(1) * (1 - TOLERANCE)
    multiple = torch.where(better, multiple, torch.zeros_like(multiple))
    step = torch.eye(3, dtype=basis.dtype, device=basis.device).repeat(len(basis), 1, 1)
    step[:, 0, 1] = -multiple
    return basis @ step, change @ step


def _shorten_third(basis: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from the third vector the nearest point of the lattice of the other two."""
    plane, third = basis[:, :, :2], basis[:, :, 2]
    gram = plane.mT @ plane
    # Nearly parallel vectors have yet to be shortened: the ridge keeps the solution finite.
    ridge = 1e-15 * gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    gram = gram + ridge * torch.eye(2, dtype=gram.dtype, device=gram.device)
    centre = torch.round(torch.linalg.solve(gram, (plane.mT @ third[:, :, None])[:, :, 0]))
    around = torch.tensor(
        list(itertools.product((0.0, -1.0, 1.0), repeat=2)), dtype=basis.dtype, device=basis.device
    )
    points = torch.cat([torch.zeros_like(centre)[:, None], centre[:, None] + around], dim=1)
    length = (third[:, None] - points @ plane.mT).square().sum(2)
    length[:, 0] *= 1 - TOLERANCE
    chosen = points[torch.arange(len(basis), device=basis.device), length.argmin(1)]
    step = torch.eye(3, dtype=basis.dtype, device=basis.device).repeat(len(basis), 1, 1)
    step[:, :2, 2] = -chosen
    return basis @ step, change @ step

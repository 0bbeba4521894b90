"""Short bases of lattices, many at a time: every re-tiling has the same (§3.1).

Neighbour searches enumerate periodic images; in a reduced basis few images are enough.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_STEPS = 200
"""Passes after which a reduction stops; cells of ordinary skew need fewer than ten."""

TOLERANCE = 1e-12
"""Relative shortening of a squared length below which a step does not count."""


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

    Source: P. Q. Nguyen and D. Stehlé, Low-dimensional lattice basis reduction revisited (2009).
    """
    basis = lattice.detach().to(torch.float64)
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
    """Return C⁻¹, whole numbers as float64: it takes fractional coordinates to the new basis."""
    return torch.linalg.inv(change.to(torch.float64)).round()


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

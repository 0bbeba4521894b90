"""Every pair of atoms as one smooth edge: sums over all periodic images (§3.1, Appendix A).

φ_ij = Σ_τ f(|ρ(x_j - x_i + τ)|) and its vector and tensor companions are functions of the
infinite cloud ⟨M⟩ alone. They do not change under re-tiling, they never jump as a neighbour
list does, and with r̂ and r̂r̂ᵀ they are the gradients of distances in x and in ρ of Appendix A.
Short range is summed over images τ, long range over reciprocal vectors G, the Poisson dual.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystorus.geometry.reduction import inverse_change, reduce_lattice


@dataclass(frozen=True)
class LatticeSumConfig:
    """Radial resolution of the sums; counts are per angular degree l = 0, 1, 2."""

    cutoff: float = 6.0
    """Distance in Å where the real-space sums end smoothly."""
    radial: tuple[int, int, int] = (16, 10, 6)
    """Gaussians in distance."""
    reciprocal_cutoff: float = 3.0
    """|G| in 1/Å (2π convention) where the reciprocal sums end smoothly."""
    reciprocal: tuple[int, int, int] = (8, 6, 4)
    """Gaussians in |G|."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Number of features of each degree."""
        first, second, third = zip(self.radial, self.reciprocal, strict=True)
        return sum(first), sum(second), sum(third)


@dataclass(frozen=True, eq=False)
class PairFields:
    """Lattice sums between all atoms of each crystal, ready for contraction over j.

    Attributes:
        scalar: l = 0, [crystals, i, widths[0], j].
        vector: l = 1, cartesian components first: [crystals, i, 3 * widths[1], j].
        tensor: l = 2, five components first: [crystals, i, 5 * widths[2], j].
    """

    scalar: Float[Tensor, "crystals n k0 n"]
    vector: Float[Tensor, "crystals n k1 n"]
    tensor: Float[Tensor, "crystals n k2 n"]

    def to(self, dtype: torch.dtype) -> "PairFields":
        """Cast all sums."""
        return PairFields(self.scalar.to(dtype), self.vector.to(dtype), self.tensor.to(dtype))


def quadrupole(direction: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 5"]:
    """Return the five independent components of r rᵀ - |r|² I/3 in an orthonormal basis."""
    x, y, z = direction.unbind(-1)
    root2, root6 = math.sqrt(2), math.sqrt(6)
    return torch.stack(
        [
            root2 * x * y,
            root2 * x * z,
            root2 * y * z,
            (x * x - y * y) / root2,
            (x * x + y * y - 2 * z * z) / root6,
        ],
        -1,
    )


def gaussians(values: Float[Tensor, "*n"], start: float, end: float, count: int) -> Tensor:
    """Expand values in `count` Gaussians whose spacing equals their width."""
    centres = torch.linspace(start, end, count, dtype=values.dtype, device=values.device)
    width = (end - start) / max(count - 1, 1)
    return torch.exp(-0.5 * ((values[..., None] - centres) / width) ** 2)


def envelope(fraction: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return a C² switch from 1 at 0 to 0 at 1: 1 - 10 u³ + 15 u⁴ - 6 u⁵."""
    u = fraction.clamp(0, 1)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2)


def integer_boxes(
    reach: Int[Tensor, "crystals 3"],
) -> tuple[Int[Tensor, " boxes"], Int[Tensor, "boxes 3"]]:
    """List all integer vectors with |k_a| ≤ reach_a: (crystal, k) row by row, without a loop."""
    side = 2 * reach + 1
    count = side.prod(-1)
    crystal = torch.repeat_interleave(torch.arange(len(reach), device=reach.device), count)
    start = torch.cumsum(count, 0) - count
    flat = torch.arange(len(crystal), device=reach.device) - start[crystal]
    side_of = side[crystal]
    k2 = flat % side_of[:, 2]
    rest = flat // side_of[:, 2]
    k1 = rest % side_of[:, 1]
    k0 = rest // side_of[:, 1]
    return crystal, torch.stack([k0, k1, k2], -1) - reach[crystal]


@torch.no_grad()
def lattice_sums(
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "crystals n 3"],
    mask: Bool[Tensor, "crystals n"],
    config: LatticeSumConfig,
) -> PairFields:
    """Sum radial functions times r̂^l over the images of every pair of atoms.

    Args:
        lattice: ρ in Å; any basis gives the same sums, so they are taken in a reduced one.
        frac_coords: Padded positions.
        mask: True for real atoms.
        config: Cutoffs and resolution.

    Returns:
        Sums of degree 0, 1 and 2; zero for padded atoms.
    """
    lattice, change = reduce_lattice(lattice)
    inverse = inverse_change(change).to(frac_coords)
    frac_coords = torch.einsum("bxy,biy->bix", inverse, frac_coords)
    delta = frac_coords[:, None, :] - frac_coords[:, :, None]  # x_j - x_i
    near = _real_sums(lattice, delta - torch.round(delta), mask, config)
    far = _reciprocal_sums(lattice, frac_coords, mask, config)
    fields = []
    for degree, (a, b) in enumerate(zip(near, far, strict=True)):
        joined = torch.cat([a, b], -1)  # crystals i j components k
        size = joined.shape
        flat = joined.reshape(*size[:3], (2 * degree + 1) * size[-1])
        fields.append(flat.transpose(2, 3).contiguous())
    return PairFields(*fields)


def _real_sums(
    lattice: Tensor, delta: Tensor, mask: Tensor, config: LatticeSumConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over images within the cutoff: each [crystals, i, j, 2l+1, k]."""
    crystals, n = delta.shape[:2]
    pair, offset = _edges(lattice, delta, mask, config.cutoff)
    length = offset.norm(dim=-1)
    switch = envelope(length / config.cutoff)[:, None]
    # r/√(r² + a²) is r̂ without the kink at r = 0.
    soft = offset * torch.rsqrt(length.square() + 0.25)[:, None]
    angular = (torch.ones_like(length)[:, None], soft, quadrupole(soft))
    sums = []
    for degree, count in enumerate(config.radial):
        radial = gaussians(length, 0.5, config.cutoff, count) * switch
        values = (angular[degree][:, :, None] * radial[:, None, :]).flatten(1)
        total = values.new_zeros(crystals * n * n, values.shape[1]).index_add_(0, pair, values)
        sums.append(total.view(crystals, n, n, 2 * degree + 1, count))
    return tuple(sums)  # type: ignore[return-value]


def _edges(
    lattice: Tensor, delta: Tensor, mask: Tensor, cutoff: float
) -> tuple[Int[Tensor, " edges"], Float[Tensor, "edges 3"]]:
    """Find all images within the cutoff: flat pair index (crystal, i, j) and offset in Å."""
    crystals, n = delta.shape[:2]
    height = 1 / torch.linalg.inv(lattice).norm(dim=-1)
    reach = torch.floor(cutoff / height + 0.5).long()
    cart = torch.einsum("bxy,bijy->bijx", lattice, delta)
    real = mask[:, :, None] & mask[:, None, :]
    cart = cart.masked_fill(~real[..., None], 1e6)
    crystal, shift = integer_boxes(reach)
    moved = torch.einsum("cxy,cy->cx", lattice[crystal], shift.to(lattice))
    diameter = torch.where(real, cart.norm(dim=-1), 0).amax((1, 2))
    useful = moved.norm(dim=-1) <= cutoff + diameter[crystal]
    crystal, moved = crystal[useful], moved[useful]
    home = moved.square().sum(-1) == 0
    offset = cart.view(crystals, n * n, 3)[crystal] + moved[:, None]
    inside = offset.square().sum(-1) < cutoff**2
    own = torch.eye(n, dtype=torch.bool, device=delta.device).view(-1)
    inside &= ~(home[:, None] & own)
    box, pair = inside.nonzero(as_tuple=True)
    return crystal[box] * (n * n) + pair, offset[box, pair]


def _reciprocal_sums(
    lattice: Tensor, frac_coords: Tensor, mask: Tensor, config: LatticeSumConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum cos and sin of G·(r_j - r_i) within the reciprocal cutoff: as `_real_sums`."""
    wave, weight = _reciprocal_vectors(lattice, config.reciprocal_cutoff)
    g = 2 * math.pi * torch.einsum("byx,bky->bkx", torch.linalg.inv(lattice), wave)
    length = g.norm(dim=-1)
    direction = g / length.clamp_min(1e-6)[..., None]
    atoms = mask.sum(1).to(lattice).clamp_min(1)
    switch = weight * envelope(length / config.reciprocal_cutoff) / atoms.sqrt()[:, None]
    phase = 2 * math.pi * torch.einsum("bkx,bix->bik", wave, frac_coords)
    cos, sin = phase.cos() * mask[..., None], phase.sin() * mask[..., None]
    even = torch.cat([cos, sin], -1)
    odd = torch.cat([-sin, cos], -1)
    angular = (torch.ones_like(length)[..., None], direction, quadrupole(direction))
    sums = []
    for degree, count in enumerate(config.reciprocal):
        start = 0.15 * config.reciprocal_cutoff
        radial = gaussians(length, start, config.reciprocal_cutoff, count) * switch[..., None]
        factor = (angular[degree][..., :, None] * radial[..., None, :]).flatten(2)  # b k q
        doubled = torch.cat([factor, factor], 1)
        left = even if degree != 1 else odd
        # Σ_k w (cos_i cos_j + sin_i sin_j), or for l = 1 Σ_k w sin(G·(r_j - r_i)).
        weighted = torch.einsum("bik,bkq->biqk", left, doubled)
        total = torch.einsum("biqk,bjk->bijq", weighted, even)
        sums.append(total.unflatten(-1, (2 * degree + 1, count)))
    return tuple(sums)


def _reciprocal_vectors(
    lattice: Tensor, cutoff: float
) -> tuple[Float[Tensor, "crystals k 3"], Float[Tensor, "crystals k"]]:
    """List one of each ±G within the cutoff as integer vectors, padded with weight 0."""
    reach = torch.floor(cutoff * lattice.norm(dim=-2) / (2 * math.pi)).long()
    crystal, wave = integer_boxes(reach)
    k0, k1, k2 = wave.unbind(-1)
    half = (k2 > 0) | ((k2 == 0) & ((k1 > 0) | ((k1 == 0) & (k0 > 0))))
    crystal, wave = crystal[half], wave[half]
    inverse = torch.linalg.inv(lattice)
    g = 2 * math.pi * torch.einsum("kyx,ky->kx", inverse[crystal], wave.to(lattice))
    inside = g.square().sum(-1) < cutoff**2
    crystal, wave = crystal[inside], wave[inside]
    count = torch.bincount(crystal, minlength=len(lattice))
    width = max(int(count.max()), 1)
    start = torch.cumsum(count, 0) - count
    slot = torch.arange(len(crystal), device=crystal.device) - start[crystal]
    padded = lattice.new_zeros(len(lattice), width, 3)
    padded[crystal, slot] = wave.to(lattice)
    weight = lattice.new_zeros(len(lattice), width)
    weight[crystal, slot] = 1
    return padded, weight

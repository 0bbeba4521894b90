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

PHASES_AT_A_TIME = 2**20
"""Phases G·(r_j - r_i) held at a time: a few MiB, whatever the size of the cell."""


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
        joined: The sums of degree 0, 1 and 2 one after the other along the third axis.
        widths: Number of radial functions of each degree.
    """

    joined: Float[Tensor, "crystals n k n"]
    widths: tuple[int, int, int]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of sums of each degree: radial functions times 2l + 1."""
        return self.widths[0], 3 * self.widths[1], 5 * self.widths[2]

    @property
    def scalar(self) -> Float[Tensor, "crystals n k0 n"]:
        """Sums of degree 0: [crystals, i, widths[0], j]."""
        return self.joined.split(self.sizes, 2)[0]

    @property
    def vector(self) -> Float[Tensor, "crystals n k1 n"]:
        """Sums of degree 1, cartesian components first: [crystals, i, 3 * widths[1], j]."""
        return self.joined.split(self.sizes, 2)[1]

    @property
    def tensor(self) -> Float[Tensor, "crystals n k2 n"]:
        """Sums of degree 2, five components first: [crystals, i, 5 * widths[2], j]."""
        return self.joined.split(self.sizes, 2)[2]

    def to(self, dtype: torch.dtype) -> "PairFields":
        """Cast all sums."""
        return PairFields(self.joined.to(dtype), self.widths)


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
    n = mask.shape[1]
    pairs = torch.triu_indices(n, n, device=mask.device)  # i ≤ j
    near = _real_sums(lattice, frac_coords, mask, pairs, config)
    far = _reciprocal_sums(lattice, frac_coords, mask, pairs, config)
    half = [torch.cat([a, b], -1).flatten(2) for a, b in zip(near, far, strict=True)]
    # [crystals, i, j, k]: a sum of degree l at (j, i) is (-1)^l times that at (i, j).
    i, j = pairs
    where = i.new_empty(n, n)
    where[i, j] = where[j, i] = torch.arange(len(i), device=i.device)
    full = torch.cat(half, -1).index_select(1, where.flatten()).unflatten(1, (n, n))
    odd = full.split([h.shape[-1] for h in half], -1)[1]
    odd *= 1 - 2 * torch.ones_like(where).tril(-1)[:, :, None]
    return PairFields(full.transpose(2, 3).contiguous(), config.widths)


def _real_sums(
    lattice: Tensor, frac_coords: Tensor, mask: Tensor, pairs: Tensor, config: LatticeSumConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over images within the cutoff: each [crystals, pairs, 2l+1, k]."""
    pair, offset = _edges(lattice, frac_coords, mask, pairs, config.cutoff)
    length = offset.norm(dim=-1)
    switch = envelope(length / config.cutoff)[:, None]
    # r/√(r² + a²) is r̂ without the kink at r = 0.
    soft = offset * torch.rsqrt(length.square() + 0.25)[:, None]
    angular = (torch.ones_like(length)[:, None], soft, quadrupole(soft))
    sums = []
    for degree, count in enumerate(config.radial):
        radial = gaussians(length, 0.5, config.cutoff, count) * switch
        values = (angular[degree][:, :, None] * radial[:, None, :]).flatten(1)
        shape = (len(lattice) * pairs.shape[1], values.shape[1])
        total = values.new_zeros(shape).index_add_(0, pair, values)
        sums.append(total.view(len(lattice), -1, 2 * degree + 1, count))
    return tuple(sums)  # type: ignore[return-value]


def _edges(
    lattice: Tensor, frac_coords: Tensor, mask: Tensor, pairs: Tensor, cutoff: float
) -> tuple[Int[Tensor, " edges"], Float[Tensor, "edges 3"]]:
    """Find all images within the cutoff: flat index (crystal, pair) and offset in Å."""
    i, j = pairs
    height = 1 / torch.linalg.inv(lattice).norm(dim=-1)
    reach = torch.floor(cutoff / height + 0.5).long()
    delta = frac_coords[:, j] - frac_coords[:, i]
    cart = torch.einsum("bxy,bpy->bpx", lattice, delta - torch.round(delta))
    real = mask[:, i] & mask[:, j]
    cart = cart.masked_fill(~real[..., None], 1e6)
    crystal, shift = integer_boxes(reach)
    moved = torch.einsum("cxy,cy->cx", lattice[crystal], shift.to(lattice))
    diameter = torch.where(real, cart.norm(dim=-1), 0).amax(1)
    useful = moved.norm(dim=-1) <= cutoff + diameter[crystal]
    crystal, moved = crystal[useful], moved[useful]
    home = moved.square().sum(-1) == 0
    offset = cart[crystal] + moved[:, None]
    inside = offset.square().sum(-1) < cutoff**2
    inside &= ~(home[:, None] & (i == j))
    box, pair = inside.nonzero(as_tuple=True)
    return crystal[box] * len(i) + pair, offset[box, pair]


def _reciprocal_sums(
    lattice: Tensor, frac_coords: Tensor, mask: Tensor, pairs: Tensor, config: LatticeSumConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum cos and sin of G·(r_j - r_i) within the reciprocal cutoff: as `_real_sums`."""
    wave, weight = _reciprocal_vectors(lattice, config.reciprocal_cutoff)
    g = 2 * math.pi * torch.einsum("byx,bky->bkx", torch.linalg.inv(lattice), wave)
    length = g.norm(dim=-1)
    direction = g / length.clamp_min(1e-6)[..., None]
    atoms = mask.sum(1).to(lattice).clamp_min(1)
    switch = weight * envelope(length / config.reciprocal_cutoff) / atoms.sqrt()[:, None]
    angular = (torch.ones_like(length)[..., None], direction, quadrupole(direction))
    factors = []
    for degree, count in enumerate(config.reciprocal):
        start = 0.15 * config.reciprocal_cutoff
        radial = gaussians(length, start, config.reciprocal_cutoff, count) * switch[..., None]
        factors.append((angular[degree][..., :, None] * radial[..., None, :]).flatten(2))
    phase = 2 * math.pi * torch.einsum("bkx,bix->bik", wave, frac_coords)
    cos, sin = phase.cos() * mask[..., None], phase.sin() * mask[..., None]
    even, odd = _wave_sums(cos, sin, pairs, torch.cat(factors[::2], -1), factors[1])
    scalar, tensor = even.split([factors[0].shape[-1], factors[2].shape[-1]], -1)
    return tuple(
        total.unflatten(-1, (2 * degree + 1, -1))
        for degree, total in enumerate((scalar, odd, tensor))
    )


def _wave_sums(
    cos: Float[Tensor, "crystals n k"],
    sin: Float[Tensor, "crystals n k"],
    pairs: Int[Tensor, "2 pairs"],
    even: Float[Tensor, "crystals k p"],
    odd: Float[Tensor, "crystals k q"],
) -> tuple[Tensor, Tensor]:
    """Return Σ_k cos(φ_kj - φ_ki) even_k and Σ_k sin(φ_kj - φ_ki) odd_k for every pair."""
    at_a_time = max(PHASES_AT_A_TIME // max(len(cos) * cos.shape[2], 1), 1)
    parts = []
    for i, j in zip(pairs[0].split(at_a_time), pairs[1].split(at_a_time), strict=True):
        cos_i, sin_i = cos.index_select(1, i), sin.index_select(1, i)
        cos_j, sin_j = cos.index_select(1, j), sin.index_select(1, j)
        difference = (cos_i * cos_j).addcmul_(sin_i, sin_j)
        parts.append(
            (difference @ even, (cos_i.mul_(sin_j)).addcmul_(sin_i, cos_j, value=-1) @ odd)
        )
    return torch.cat([p for p, _ in parts], 1), torch.cat([q for _, q in parts], 1)


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

"""Every pair of atoms as one smooth edge: sums over all periodic images.

φ_ij = Σ_τ f(|ρ(x_j - x_i + τ)|) and its vector and tensor companions are functions of the
infinite cloud ⟨M⟩ alone. They do not change under re-tiling, they never jump as a neighbour
list does, and with r̂ and r̂r̂ᵀ they are the gradients of distances in x and in ρ of Appendix A of
[Klipfel24].

As in Ewald's method [Ewald21], short range is summed over images and long range over reciprocal
vectors. By Poisson's formula, Σ_τ f(r + ρτ) = (1/V) Σ_G f̂(|G|) e^{iG·r} with G = 2π ρ⁻ᵀ k, so
that either sum alone defines a function of the lattice. Here they are no two halves of one
potential: both have radial functions of their own, of which the network learns what it needs.
Distances below 6 Å are resolved by images; waves with |G| below 3 Å⁻¹ see a cell as a whole, and
reach across long cells of which no image is near.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystorus.config import LatticeSumConfig
from crystorus.geometry.lattice import inverse_change, reduce_lattice, spans_space

PHASES_AT_A_TIME = 2**20
"""Phases G·(r_j - r_i) held at a time: a few MiB, whatever the size of the cell."""

IMAGES_AT_A_TIME = 2**22
"""Images of pairs whose distances are held at a time: 50 MiB."""

SHORTEST, LONGEST, LONGEST_PER_ATOM = 0.1, 100.0, 1.0
"""Å between which the principal lengths of a cell are read."""

VOLUME_PER_ATOM = (0.3, 200.0)
"""Å³ between which V/n is read; to the upper limit comes `VACUUM`."""

VACUUM = 20_000.0
"""Å³ that a cell may hold besides what belongs to its atoms."""


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
        """Cast all sums.

        Args:
            dtype: float32, bfloat16 or float64.
        """
        return PairFields(self.joined.to(dtype), self.widths)


def quadrupole(direction: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 5"]:
    """Return the five independent components of r rᵀ - |r|² I/3 in an orthonormal basis.

    The basis is √2 times that of `lattice.gl3_basis`; the components are, up to one factor, the
    real spherical harmonics |r|² Y_2m.

    Args:
        direction: r, of any unit.
    """
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
    """Expand values in Gaussians whose spacing equals their width.

    Args:
        values: [...].
        start: First centre.
        end: Last centre.
        count: Number of Gaussians.

    Returns:
        [..., count].
    """
    centres = torch.linspace(start, end, count, dtype=values.dtype, device=values.device)
    width = (end - start) / max(count - 1, 1)
    return torch.exp(-0.5 * ((values[..., None] - centres) / width) ** 2)


def envelope(fraction: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return a C² switch from 1 at 0 to 0 at 1: 1 - 10 u³ + 15 u⁴ - 6 u⁵.

    Its first and second derivatives vanish at both ends, so that what is multiplied by it has no
    jump of forces where a neighbour enters.

    Args:
        fraction: u = distance / cutoff, 0 to 1.
    """
    u = fraction.clamp(0, 1)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2)


def integer_boxes(
    reach: Int[Tensor, "crystals 3"],
) -> tuple[Int[Tensor, " boxes"], Int[Tensor, "boxes 3"]]:
    """List all integer vectors k with |k_a| ≤ reach_a of every crystal.

    Args:
        reach: The largest |k_a| of each axis.

    Returns:
        The crystal of each vector, and the vectors.
    """
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

    Memory is bounded: pairs and images are taken a part at a time, and a cell that has run away
    is read as `readable_cells` says.

    Args:
        lattice: ρ in Å; any basis gives the same sums, so they are taken in a reduced one.
        frac_coords: Padded positions.
        mask: True for real atoms.
        config: Cutoffs and resolution.

    Returns:
        Sums of degree 0, 1 and 2; zero for padded atoms.
    """
    cells = spans_space(lattice)[:, None, None]
    lattice, change = reduce_lattice(torch.where(cells, lattice, torch.eye(3).to(lattice)))
    lattice = readable_cells(lattice, mask.sum(1))
    inverse = inverse_change(change).to(frac_coords)
    frac_coords = torch.einsum("bxy,biy->bix", inverse, frac_coords).nan_to_num(0.0, 0.0, 0.0)
    n = mask.shape[1]
    pairs = torch.triu_indices(n, n, device=mask.device)  # i ≤ j
    near = _real_sums(lattice, frac_coords, mask, pairs, config)
    far = _reciprocal_sums(lattice, frac_coords, mask, pairs, config)
    half = [torch.cat([a, b], -1).flatten(2) for a, b in zip(near, far, strict=True)]
    del near, far
    widths = [h.shape[-1] for h in half]
    joined = torch.cat(half, -1)
    del half
    # [crystals, i, j, k]: a sum of degree l at (j, i) is (-1)^l times that at (i, j).
    i, j = pairs
    where = i.new_empty(n, n)
    where[i, j] = where[j, i] = torch.arange(len(i), device=i.device)
    sign = 1 - 2 * torch.ones_like(where).tril(-1)
    full = joined.new_empty(len(lattice), n, joined.shape[-1], n)
    rows_at_a_time = max(IMAGES_AT_A_TIME // (len(lattice) * n), 1)
    for first in range(0, n, rows_at_a_time):
        rows = slice(first, first + rows_at_a_time)
        part = joined.index_select(1, where[rows].flatten()).unflatten(1, (-1, n))
        part.split(widths, -1)[1].mul_(sign[rows, :, None])
        full[:, rows] = part.transpose(2, 3)
    return PairFields(full, config.widths)


def readable_cells(
    lattice: Float[Tensor, "crystals 3 3"], n_atoms: Int[Tensor, " crystals"]
) -> Float[Tensor, "crystals 3 3"]:
    """Return cells whose sums are affordable; all that could be a crystal stay as they are.

    The number of images of an atom within the cutoff grows as 1/V, that of waves as V, and both
    grow without bound in needles and sheets. An untrained network makes such cells. Their
    principal lengths (singular values) and then their volumes are moved to the nearest ones
    within limits, which commutes with rotations: 0.1 Å to 100 Å and 1 Å per atom;
    0.3 Å³ per atom to 20 000 Å³ and 200 Å³ per atom.

    Args:
        lattice: ρ in Å, in a reduced basis.
        n_atoms: Number of atoms of each crystal.
    """
    count = n_atoms.to(lattice).clamp_min(1)
    longest = LONGEST + LONGEST_PER_ATOM * count
    smallest, largest = VOLUME_PER_ATOM[0] * count, VACUUM + VOLUME_PER_ATOM[1] * count
    height = 1 / torch.linalg.inv_ex(lattice)[0].norm(dim=-1)
    volume = torch.linalg.det(lattice).abs()
    usual = (height > SHORTEST).all(1) & (lattice.norm(dim=-2) < longest[:, None]).all(1)
    usual &= (volume > smallest) & (volume < largest)
    odd = (~usual).nonzero()[:, 0]
    if not len(odd):
        return lattice
    left, length, right = torch.linalg.svd(lattice[odd].double())
    length = torch.minimum(length.clamp_min(SHORTEST), longest[odd, None].double())
    volume = length.prod(1)
    wanted = torch.minimum(torch.maximum(volume, smallest[odd]), largest[odd])
    length = length * (wanted / volume).pow(1 / 3)[:, None]
    return lattice.index_copy(0, odd, ((left * length[:, None]) @ right).to(lattice))


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
    # |ρe| ≥ |e_a| h_a with h_a the height of the cell over its face a: of the nearest image, whose
    # components are below ½, no image beyond cutoff/h_a + ½ is within reach.
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
    found = []
    at_a_time = max(IMAGES_AT_A_TIME // len(i), 1)
    for c, shift in zip(crystal.split(at_a_time), moved.split(at_a_time), strict=True):
        home = shift.square().sum(-1) == 0
        offset = cart[c] + shift[:, None]
        inside = offset.square().sum(-1) < cutoff**2
        inside &= ~(home[:, None] & (i == j))  # an atom is no neighbour of itself
        box, pair = inside.nonzero(as_tuple=True)
        found.append((c[box] * len(i) + pair, offset[box, pair]))
    return torch.cat([pair for pair, _ in found]), torch.cat([offset for _, offset in found])


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

"""The k-nearest-neighbour multigraph of the `paper` preset, periodic images included.

All crystals of a batch are searched at once; ties and both directions are kept, so that the
graph of a symmetric crystal is symmetric.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry.crystals import Crystals
from crystorus.geometry.lattice import inverse_change, reduce_lattice

TIE_TOLERANCE = 1e-4
"""Neighbours farther than the k-th by less than this fraction are tied with it."""

SHORTEST_DISTANCE = 1e-6
"""Distances in Å are never taken smaller, so that coinciding atoms have finite directions."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Directed edges γ = (i, j, τ), sorted by their target i; every edge has its reverse.

    Attributes:
        target: i, the atom the edge belongs to.
        source: j, the neighbour.
        reverse: Index of the edge (j, i, -τ).
        offset: e_γ = x_j - x_i + τ, fractional.
        vector: ρ e_γ in Å.
        distance: r_γ = |ρ e_γ| in Å.
        count: Number of edges of every atom.

    Source: [Klipfel24] Appendix A
    """

    target: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    reverse: Int[Tensor, " edges"]
    offset: Float[Tensor, "edges 3"]
    vector: Float[Tensor, "edges 3"]
    distance: Float[Tensor, " edges"]
    count: Int[Tensor, " atoms"]


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Every (crystal, i, j, τ) that may be an edge, in this order, with e in the reduced basis."""

    crystal: Int[Tensor, " candidates"]
    target: Int[Tensor, " candidates"]
    source: Int[Tensor, " candidates"]
    mirror: Int[Tensor, " candidates"]
    offset: Float[Tensor, "candidates 3"]
    vector: Float[Tensor, "candidates 3"]
    distance: Float[Tensor, " candidates"]


@torch.no_grad()
def nearest_neighbours(crystals: Crystals, *, neighbours: int, cutoff: float) -> Neighbours:
    """Join every atom to its nearest neighbours within the cutoff, in both directions.

    Args:
        crystals: Any lattices with det ρ ≠ 0, however skewed.
        neighbours: k of the kNN graph.
        cutoff: Å. Longer edges are dropped: their envelope is zero.

    Returns:
        Edges in the dtype of the crystals; the search itself is done in float64.

    Raises:
        ValueError: If a cell is singular or not finite.

    Source: [Klipfel24] Table 1 (knn = 32); both directions as in [Gasteiger21]
    Deviation: neighbours tied with the k-th within 1e-4 of its distance are all kept. Cutting
        ties by storage order makes the graph of a symmetric crystal depend on the numbering of
        its atoms, and the equivariance of Eq. 10 is lost.
    """
    device, dtype = crystals.lattice.device, crystals.lattice.dtype
    if device.type == "mps":  # which has no float64
        crystals = crystals.to("cpu")
    reduced, change = reduce_lattice(crystals.lattice.to(torch.float64))
    radius = _search_radius(reduced, crystals.n_atoms, neighbours, cutoff)
    candidates = _enumerate(crystals, reduced, change, radius)
    within = _within_reach(candidates, radius)
    reach = _reach(candidates, within, radius[crystals.crystal_of_atom], neighbours)
    limit = torch.maximum(reach[candidates.target], reach[candidates.source])
    kept = (within & (candidates.distance <= limit)).nonzero()[:, 0]
    position = torch.full_like(candidates.target, -1)
    position[kept] = torch.arange(len(kept), device=kept.device)
    in_cell = change.to(torch.float64)[candidates.crystal[kept]]
    offset = torch.einsum("eij,ej->ei", in_cell, candidates.offset[kept])
    target = candidates.target[kept]
    count = torch.bincount(target, minlength=len(crystals.frac_coords))
    return Neighbours(
        target=target.to(device),
        source=candidates.source[kept].to(device),
        reverse=position[candidates.mirror[kept]].to(device),
        offset=offset.to(dtype).to(device),
        vector=candidates.vector[kept].to(dtype).to(device),
        distance=candidates.distance[kept].clamp_min(SHORTEST_DISTANCE).to(dtype).to(device),
        count=count.to(device),
    )


def _search_radius(
    reduced: Float[Tensor, "crystals 3 3"],
    n_atoms: Int[Tensor, " crystals"],
    neighbours: int,
    cutoff: float,
) -> Float[Tensor, " crystals"]:
    """Return a radius in Å that holds k neighbours of any atom, or the cutoff if it is smaller.

    A ball of radius R + μ, with μ the lattice's covering radius, holds at least vol(R)/V points
    of every translate of the lattice; μ is at most half the diagonal of a box with the basis'
    lengths. The atom itself is one of the points, so k + 1 are needed.

    An atom's own images alone fill a disc in the plane of the two shortest vectors by the same
    argument, and a line along the shortest. In flat and needle-like cells these are far smaller,
    and so is what is searched.
    """
    volume = torch.linalg.det(reduced).abs()
    lengths = reduced.square().sum(1)
    covering = 0.5 * lengths.sum(1).sqrt()
    points = (neighbours + 1) * volume / n_atoms.to(volume.dtype)
    ball = covering + (3 * points / (4 * math.pi)).pow(1 / 3)
    squares, order = lengths.sort(1)
    first, second = (reduced[torch.arange(len(order)), :, order[:, k]] for k in (0, 1))
    area = torch.linalg.cross(first, second).square().sum(1).sqrt()
    disc = 0.5 * squares[:, :2].sum(1).sqrt() + ((neighbours + 1) * area / math.pi).sqrt()
    line = math.ceil(neighbours / 2) * squares[:, 0].sqrt()
    radius = torch.minimum(torch.minimum(ball, disc), line)
    return (radius * (1 + 2 * TIE_TOLERANCE)).clamp_max(cutoff)


def _enumerate(
    crystals: Crystals,
    reduced: Float[Tensor, "crystals 3 3"],
    change: Int[Tensor, "crystals 3 3"],
    radius: Float[Tensor, " crystals"],
) -> _Candidates:
    """List all ordered pairs of atoms and all images that the radius can reach.

    |ρe| ≥ |e_k| h_k with h_k the height of the cell over face k, so that images beyond
    radius/h_k + ½ of the nearest one are out of reach.
    """
    device, n = crystals.n_atoms.device, crystals.n_atoms
    inverse = torch.linalg.inv(reduced)
    inverse_heights = inverse.square().sum(2).sqrt()
    shells = torch.floor(radius[:, None] * inverse_heights + 0.5 + 1e-9).to(torch.long)
    width = 2 * shells + 1
    images = width.prod(1)
    total = n * n * images
    crystal = torch.repeat_interleave(torch.arange(len(n), device=device), total)
    start = (torch.cumsum(total, 0) - total)[crystal]
    index = torch.arange(len(crystal), device=device) - start
    pair = torch.div(index, images[crystal], rounding_mode="floor")
    image = index - pair * images[crystal]
    i = torch.div(pair, n[crystal], rounding_mode="floor")
    j = pair - i * n[crystal]
    mirror = start + (j * n[crystal] + i + 1) * images[crystal] - 1 - image
    first_atom = (torch.cumsum(n, 0) - n)[crystal]
    tau = _decode_image(image, width[crystal]) - shells[crystal]
    frac = crystals.frac_coords.to(torch.float64)
    to_reduced = inverse_change(change)[crystals.crystal_of_atom]
    frac = torch.einsum("aij,aj->ai", to_reduced, frac)
    difference = frac[first_atom + j] - frac[first_atom + i]
    # round() is odd, so e of the mirrored candidate is exactly -e.
    offset = difference - torch.round(difference) + tau.to(torch.float64)
    vector = torch.einsum("eij,ej->ei", reduced[crystal], offset)
    distance = vector.square().sum(1).sqrt()
    return _Candidates(crystal, first_atom + i, first_atom + j, mirror, offset, vector, distance)


def _decode_image(image: Int[Tensor, " n"], width: Int[Tensor, "n 3"]) -> Int[Tensor, "n 3"]:
    """Split a running image number into its three digits in mixed radix `width`."""
    third = image % width[:, 2]
    rest = torch.div(image, width[:, 2], rounding_mode="floor")
    second = rest % width[:, 1]
    first = torch.div(rest, width[:, 1], rounding_mode="floor")
    return torch.stack([first, second, third], dim=1)


def _within_reach(candidates: _Candidates, radius: Float[Tensor, " crystals"]) -> Tensor:
    """Mask the candidates inside the search radius that are not an atom and itself."""
    middle = candidates.mirror == torch.arange(
        len(candidates.mirror), device=candidates.mirror.device
    )
    return (candidates.distance <= radius[candidates.crystal]) & ~middle


def _reach(
    candidates: _Candidates, within: Tensor, radius: Float[Tensor, " atoms"], neighbours: int
) -> Float[Tensor, " atoms"]:
    """Return each atom's distance to its k-th neighbour, ties allowed for, or the radius."""
    chosen = within.nonzero()[:, 0]
    target, distance = candidates.target[chosen], candidates.distance[chosen]
    scale = 2 * float(radius.max())
    order = (target.to(torch.float64) + distance / scale).argsort()
    count = torch.bincount(target, minlength=len(radius))
    kth = torch.cumsum(count, 0) - count + neighbours - 1
    enough = count >= neighbours
    reach = radius.clone()
    reach[enough] = distance[order[kth[enough]]] * (1 + TIE_TOLERANCE)
    return reach

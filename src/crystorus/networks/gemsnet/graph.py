"""The edges of a batch as GemNet reads them: expanded distances and angles, in chunks.

Edges are rows sorted by their target atom. The pairs of edges of an atom form a dense table, so
that the sum over triplets is one batched matrix product. All but the exchange between an edge and
its reverse is local to the target atom, and is done for a few dozen atoms at a time: what a
chunk needs stays in the processor's cache. Edge features are kept as one tensor per chunk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.networks.gemsnet.fields import angle_field, distance_field
from crystorus.networks.gemsnet.neighbours import Neighbours

CHUNK_EDGES = {"cpu": 2048}
"""Edges worked on at a time: 1 MiB per feature tensor on a CPU, whose cache it fits."""

CHUNK_EDGES_ELSEWHERE = 65_536
"""Edges worked on at a time on other devices: enough to fill one, and a bound on memory."""

EdgeValues = Sequence[Tensor]
"""Values of all edges of a batch, [edges of the chunk, …] for each of its chunks."""


def polynomial_envelope(
    scaled: Float[Tensor, " edges"], *, exponent: int
) -> Float[Tensor, " edges"]:
    """Fall from 1 at 0 to 0 at 1 with two vanishing derivatives there, as it is published.

    For p = 3 this is `geometry.lattice_sums.envelope`, whose other order of operations rounds
    otherwise: one of them for both networks would change what seeds give.

    u(d) = 1 - (p+1)(p+2)/2 d^p + p(p+2) d^(p+1) - p(p+1)/2 d^(p+2), and 0 beyond d = 1.

    Args:
        scaled: d = r / cutoff.
        exponent: p ≥ 1.

    Source: [Gasteiger20], equation 8 there
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
        """Return the basis at every distance in Å.

        Args:
            distance: Å.
        """
        scaled = distance / self.cutoff
        centres = self.get_buffer("centres").to(distance.dtype)
        steps = (scaled[:, None] - centres) * (self.size - 1)
        envelope = polynomial_envelope(scaled, exponent=self.exponent)
        scale = (self.size / math.sqrt(math.pi)) ** 0.5
        return scale * envelope[:, None] * torch.exp(-0.5 * steps.square())


def zonal_harmonics(cosine: Tensor, *, size: int, dim: int = -1) -> Tensor:
    """Return Y_l0(θ) = √((2l+1)/4π) P_l(cos θ) for l = 0 … size - 1.

    P_l by Bonnet's recursion: l P_l = (2l - 1) c P_{l-1} - (l - 1) P_{l-2}.

    Args:
        cosine: cos θ, in [-1, 1].
        size: Number of functions.
        dim: Where the new axis goes.
    """
    legendre = [torch.ones_like(cosine), cosine]
    for n in range(2, size):
        legendre.append(((2 * n - 1) * cosine * legendre[-1] - (n - 1) * legendre[-2]) / n)
    scaled = [p * math.sqrt((2 * n + 1) / (4 * math.pi)) for n, p in enumerate(legendre[:size])]
    return torch.stack(scaled, dim=dim)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some atoms, their edges and Γ₂ among them; what depends on geometry alone.

    Attributes:
        atoms: Which atoms of the batch.
        target: Target of every edge, counted from the chunk's first atom.
        source: Source of every edge, counted from the batch's first atom.
        reverse: Reverse of every edge, counted from the batch's first edge.
        width: Largest number of edges of an atom.
        slot: Place of every edge in the flattened [n_atoms, width] table.
        gaussians: The radial basis of every edge.
        direction: -e_γ / r_γ of every edge, fractional per Å.
        harmonics: Y_l0(θ_γγ'), zero for γ = γ' and where there is no edge; rows run over
            (γ, l), columns over γ'.
        distance_fields: λ_r of every edge.
        angle_fields: λ_θ of every pair (γ, γ'), zero where there is none.
    """

    atoms: slice
    target: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    reverse: Int[Tensor, " edges"]
    width: int
    slot: Int[Tensor, " edges"]
    gaussians: Float[Tensor, "edges gaussians"]
    direction: Float[Tensor, "edges 3"]
    harmonics: Float[Tensor, "atoms rows width"]
    distance_fields: Float[Tensor, "edges 6"]
    angle_fields: Float[Tensor, "atoms 6 pairs"]

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.harmonics)

    def to_table(self, values: Float[Tensor, "edges n"]) -> Float[Tensor, "atoms width n"]:
        """Lay edge values out by atom, zeros where an atom has fewer edges.

        Args:
            values: Of the chunk's edges.
        """
        table = values.new_zeros((self.n_atoms * self.width, values.shape[1]))
        return table.index_copy(0, self.slot, values).view(self.n_atoms, self.width, -1)

    def sum_per_atom(self, values: Float[Tensor, "edges n"]) -> Float[Tensor, "atoms n"]:
        """Sum edge values over the edges of every target atom.

        Args:
            values: Of the chunk's edges.
        """
        return values.new_zeros((self.n_atoms, values.shape[1])).index_add(0, self.target, values)

    def of_sources(self, values: Float[Tensor, "batch n"]) -> Float[Tensor, "edges n"]:
        """Give every edge the value of its source, from those of all atoms of the batch.

        Args:
            values: Of all atoms of the batch.
        """
        return values.index_select(0, self.source)

    def of_targets(self, values: Float[Tensor, "batch n"]) -> Float[Tensor, "edges n"]:
        """Give every edge the value of its target, from those of all atoms of the batch.

        Args:
            values: Of all atoms of the batch.
        """
        return values[self.atoms].index_select(0, self.target)


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The edges of a batch and the chunks they are worked on in."""

    neighbours: Neighbours
    chunks: tuple[Chunk, ...]

    def map(
        self, function: Callable[..., tuple[Tensor, ...]], *edge_values: EdgeValues
    ) -> tuple[list[Tensor], ...]:
        """Apply `function(*values, chunk)` to every chunk; one list for each of its results.

        Args:
            function: Takes values of a chunk's edges, and the chunk; gives tensors.
            edge_values: One tensor per chunk.
        """
        results = [
            function(*values, chunk)
            for *values, chunk in zip(*edge_values, self.chunks, strict=True)
        ]
        return tuple(list(parts) for parts in zip(*results, strict=True))

    def of_reverse(self, values: EdgeValues) -> list[Tensor]:
        """Give every edge the value of its reverse.

        Args:
            values: One tensor per chunk.
        """
        joined = torch.cat(list(values))
        return [joined.index_select(0, chunk.reverse) for chunk in self.chunks]


@torch.no_grad()
def edge_graph(neighbours: Neighbours, radial: GaussianBasis, *, num_spherical: int) -> EdgeGraph:
    """Tabulate distances and angles of all edges and pairs; no gradient flows to geometry.

    Args:
        neighbours: The edges.
        radial: Expands their distances.
        num_spherical: Number of angular functions Y_l0.
    """
    size = CHUNK_EDGES.get(neighbours.target.device.type, CHUNK_EDGES_ELSEWHERE)
    start = torch.cumsum(neighbours.count, 0) - neighbours.count
    chunk_of_atom = torch.div(start, size, rounding_mode="floor")
    n_atoms = torch.unique_consecutive(chunk_of_atom, return_counts=True)[1].tolist()
    first_atom, first_edge, chunks = 0, 0, []
    for count in neighbours.count.split(n_atoms):
        atoms = slice(first_atom, first_atom + len(count))
        edges = slice(first_edge, first_edge + int(count.sum()))
        chunks.append(_chunk(neighbours, atoms, edges, radial, num_spherical=num_spherical))
        first_atom, first_edge = atoms.stop, edges.stop
    return EdgeGraph(neighbours, tuple(chunks))


def _chunk(
    neighbours: Neighbours,
    atoms: slice,
    edges: slice,
    radial: GaussianBasis,
    *,
    num_spherical: int,
) -> Chunk:
    """Tabulate the edges of some atoms and the pairs among them."""
    count, vector = neighbours.count[atoms], neighbours.vector[edges]
    distance = neighbours.distance[edges]
    target = neighbours.target[edges] - atoms.start
    n_atoms, width = len(count), max(int(count.max()), 1)
    start = torch.cumsum(count, 0) - count
    slot = target * width + torch.arange(len(target), device=target.device) - start[target]
    unit = vector.new_zeros((n_atoms * width, 3)).index_copy(0, slot, vector / distance[:, None])
    unit = unit.view(n_atoms, width, 3)
    present = torch.arange(width, device=count.device) < count[:, None]
    distinct = ~torch.eye(width, dtype=torch.bool, device=count.device)
    pair = present[:, :, None] & present[:, None, :] & distinct
    cosine = (unit @ unit.mT).clamp(-1, 1)
    harmonics = zonal_harmonics(cosine, size=num_spherical, dim=2) * pair[:, :, None]
    fields = angle_field(unit[:, :, None], unit[:, None], dim=1) * pair[:, None]
    return Chunk(
        atoms,
        target,
        neighbours.source[edges],
        neighbours.reverse[edges],
        width,
        slot,
        radial(distance),
        -neighbours.offset[edges] / distance[:, None],
        harmonics.view(n_atoms, width * num_spherical, width),
        distance_field(vector),
        fields.view(n_atoms, 6, width * width),
    )

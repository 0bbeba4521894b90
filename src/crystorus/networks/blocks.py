"""The layers of GemNet-T (Gasteiger et al., 2021) on flat edges and dense pairs of edges.

Edges are rows sorted by their target atom. The pairs of edges of an atom form a dense table, so
that the sum over triplets is one batched matrix product. All but the exchange between an edge and
its reverse is local to the target atom, and is done for a few dozen atoms at a time: what a
chunk needs stays in the processor's cache. Edge features are kept as one tensor per chunk.

Deviation: in place of GemNet's fitted scaling factors, which the paper drops, sums over
neighbours are multiplied by the constant 1/k. A weight matrix follows each, so that the network
expresses the same functions; without any factor its first blocks hear nothing of the geometry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.networks.basis import GaussianBasis, zonal_harmonics
from crystorus.networks.dense import Dense, filtered, residuals
from crystorus.networks.nearest_neighbours import Neighbours
from crystorus.networks.vector_fields import angle_field, distance_field

CHUNK_EDGES = {"cpu": 2048}
"""Edges worked on at a time: 1 MiB per feature tensor on a CPU, whose cache it fits."""

CHUNK_EDGES_ELSEWHERE = 65_536
"""Edges worked on at a time on other devices: enough to fill one, and a bound on memory."""

EdgeValues = Sequence[Tensor]
"""Values of all edges of a batch, [edges of the chunk, …] for each of its chunks."""


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
        """Lay edge values out by atom, zeros where an atom has fewer edges."""
        table = values.new_zeros((self.n_atoms * self.width, values.shape[1]))
        return table.index_copy(0, self.slot, values).view(self.n_atoms, self.width, -1)

    def sum_per_atom(self, values: Float[Tensor, "edges n"]) -> Float[Tensor, "atoms n"]:
        """Sum edge values over the edges of every target atom."""
        return values.new_zeros((self.n_atoms, values.shape[1])).index_add(0, self.target, values)

    def of_sources(self, values: Float[Tensor, "batch n"]) -> Float[Tensor, "edges n"]:
        """Give every edge the value of its source, from those of all atoms of the batch."""
        return values.index_select(0, self.source)

    def of_targets(self, values: Float[Tensor, "batch n"]) -> Float[Tensor, "edges n"]:
        """Give every edge the value of its target, from those of all atoms of the batch."""
        return values[self.atoms].index_select(0, self.target)


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The edges of a batch and the chunks they are worked on in."""

    neighbours: Neighbours
    chunks: tuple[Chunk, ...]

    def map(
        self, function: Callable[..., tuple[Tensor, ...]], *edge_values: EdgeValues
    ) -> tuple[list[Tensor], ...]:
        """Apply `function(*values, chunk)` to every chunk; one list for each of its results."""
        results = [
            function(*values, chunk)
            for *values, chunk in zip(*edge_values, self.chunks, strict=True)
        ]
        return tuple(list(parts) for parts in zip(*results, strict=True))

    def of_reverse(self, values: EdgeValues) -> list[Tensor]:
        """Give every edge the value of its reverse."""
        joined = torch.cat(list(values))
        return [joined.index_select(0, chunk.reverse) for chunk in self.chunks]


@torch.no_grad()
def edge_graph(neighbours: Neighbours, radial: GaussianBasis, *, num_spherical: int) -> EdgeGraph:
    """Tabulate distances and angles of all edges and pairs; no gradient flows to geometry."""
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


class BilinearTriplets(torch.nn.Module):
    """GemNet's efficient bilinear layer over pairs of edges at one atom.

    y_γo = Σ_if B_oif Σ_l R_γil Σ_γ'≠γ Y_l0(θ_γγ') m_γ'f with R_γil = s Σ_n C_iln b_n(r_γ).

    Source: Gasteiger et al. (2021), efficient bilinear layer.
    """

    def __init__(
        self, *, triplet: int, rbf: int, cbf: int, num_spherical: int, out: int, scale: float
    ):
        """Build the layer.

        Args:
            triplet: Range of f.
            rbf: Range of n.
            cbf: Range of i.
            num_spherical: Range of l.
            out: Range of o.
            scale: s, the constant that stands for a fitted scaling factor.
        """
        super().__init__()
        self.cbf, self.num_spherical, self.triplet = cbf, num_spherical, triplet
        self.scale = scale
        self.circular = Dense(rbf, cbf * num_spherical, activation=False)
        self.bilinear = Dense(cbf * triplet, out, activation=False)

    def forward(
        self,
        messages: Float[Tensor, "edges triplet"],
        radial: Float[Tensor, "edges rbf"],
        chunk: Chunk,
    ) -> Float[Tensor, "edges out"]:
        """Sum over the other edges of each edge's target atom."""
        edges, size = len(messages), self.num_spherical
        table = torch.bmm(chunk.harmonics, chunk.to_table(messages))
        summed = table.view(-1, size * self.triplet).index_select(0, chunk.slot)
        circular = (self.scale * self.circular(radial)).view(edges, self.cbf, size)
        product = torch.bmm(circular, summed.view(edges, size, self.triplet))
        return self.bilinear(product.view(edges, self.cbf * self.triplet))


class AtomUpdate(torch.nn.Module):
    """h'_i from the sum over an atom's edges of m_γ times a filter of the distance."""

    def __init__(self, *, atom: int, edge: int, rbf: int, layers: int, scale: float):
        """Build the layer; `scale` is the constant that stands for a fitted scaling factor."""
        super().__init__()
        self.scale = scale
        self.radial = Dense(rbf, edge, activation=False)
        self.layers = torch.nn.Sequential(
            Dense(edge, atom, activation=True), residuals(atom, layers)
        )

    def gather(
        self, edges: Float[Tensor, "edges edge"], radial: Float[Tensor, "edges rbf"], chunk: Chunk
    ) -> Float[Tensor, "atoms edge"]:
        """Sum the filtered edge features at every atom."""
        return self.scale * chunk.sum_per_atom(filtered(edges, radial, self.radial))

    def forward(self, gathered: Float[Tensor, "atoms edge"]) -> Float[Tensor, "atoms atom"]:
        """Return new atom features."""
        return self.layers(gathered)

"""The layers of GemNet-T (Gasteiger et al., 2021) on flat edges and dense pairs of edges.

Edges are rows sorted by their target atom. The pairs of edges of an atom form a dense table, so
that the sum over triplets is one batched matrix product. All but the exchange between an edge and
its reverse is local to the target atom, and is done for a few dozen atoms at a time: what a
chunk needs stays in the processor's cache, and training may compute it again in backward instead
of keeping it.

Deviation: in place of GemNet's fitted scaling factors, which the paper drops, sums over
neighbours are multiplied by the constant 1/√k. A weight matrix follows each, so that the network
expresses the same functions; without any factor its first blocks hear nothing of the geometry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crystorus.model.basis import GaussianBasis, zonal_harmonics
from crystorus.model.nearest_neighbours import Neighbours
from crystorus.model.vector_fields import angle_field, distance_field

SILU_SCALE = 1 / 0.6
"""GemNet divides SiLU by 0.6 to keep the variance of a standard normal input."""

SQRT_HALF = math.sqrt(0.5)
"""Sums of two terms of equal variance are multiplied by 1/√2."""

CHUNK_EDGES = {"cpu": 2048}
"""Edges worked on at a time: 1 MiB per feature tensor on a CPU, whose cache it fits."""

CHUNK_EDGES_ELSEWHERE = 65_536
"""Edges worked on at a time on other devices: enough to fill one, and a bound on memory."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some atoms, their edges and Γ₂ among them; what depends on geometry alone.

    Attributes:
        target: Target of every edge, counted from the chunk's first atom.
        source: Source of every edge, counted from the batch's first atom.
        n_atoms: Number of atoms.
        width: Largest number of edges of an atom.
        slot: Place of every edge in the flattened [n_atoms, width] table.
        harmonics: Y_l0(θ_γγ'), zero for γ = γ' and where there is no edge; rows run over
            (γ, l), columns over γ'.
        distance_fields: λ_r of every edge.
        angle_fields: λ_θ of every pair (γ, γ'), zero where there is none.
    """

    target: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    n_atoms: int
    width: int
    slot: Int[Tensor, " edges"]
    harmonics: Float[Tensor, "atoms rows width"]
    distance_fields: Float[Tensor, "edges 6"]
    angle_fields: Float[Tensor, "atoms pairs 6"]

    def to_table(self, values: Float[Tensor, "edges n"]) -> Float[Tensor, "atoms width n"]:
        """Lay edge values out by atom, zeros where an atom has fewer edges."""
        table = values.new_zeros((self.n_atoms * self.width, values.shape[1]))
        return table.index_copy(0, self.slot, values).view(self.n_atoms, self.width, -1)

    def sum_per_atom(self, values: Float[Tensor, "edges n"]) -> Float[Tensor, "atoms n"]:
        """Sum edge values over the edges of every target atom."""
        return values.new_zeros((self.n_atoms, values.shape[1])).index_add(0, self.target, values)


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The edges of a batch, their radial basis, and the chunks they are worked on in."""

    neighbours: Neighbours
    gaussians: Float[Tensor, "edges gaussians"]
    chunks: tuple[Chunk, ...]

    def map(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *edge_values: Tensor,
        recompute: bool = True,
    ) -> tuple[Tensor, ...]:
        """Apply `function(*values, chunk=chunk)` to every chunk and join the results' rows.

        With `recompute`, backward computes each chunk again from its inputs, which are all that
        is kept; without, everything in between is kept.
        """
        sizes = [len(chunk.target) for chunk in self.chunks]
        rows = zip(*(values.split(sizes) for values in edge_values), strict=True)
        results = [
            (_recomputed if recompute else _kept)(partial(function, chunk=chunk), *values)
            for chunk, values in zip(self.chunks, rows, strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _recomputed(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply `function`; where gradients are wanted, keep its inputs only."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: tuple[Tensor, ...] = checkpoint(
        function, *inputs, use_reentrant=False, preserve_rng_state=False
    )
    return result


def _kept(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply `function`; where gradients are wanted, keep all that they need."""
    return function(*inputs)


@torch.no_grad()
def edge_graph(neighbours: Neighbours, radial: GaussianBasis, *, num_spherical: int) -> EdgeGraph:
    """Tabulate distances and angles of all edges and pairs; no gradient flows to geometry."""
    size = CHUNK_EDGES.get(neighbours.target.device.type, CHUNK_EDGES_ELSEWHERE)
    start = torch.cumsum(neighbours.count, 0) - neighbours.count
    chunk_of_atom = torch.div(start, size, rounding_mode="floor")
    n_atoms = torch.unique_consecutive(chunk_of_atom, return_counts=True)[1].tolist()
    n_edges = [int(count.sum()) for count in neighbours.count.split(n_atoms)]
    edges = [
        values.split(n_edges)
        for values in (neighbours.target, neighbours.source, neighbours.vector, neighbours.distance)
    ]
    first, chunks = 0, []
    for count, *values in zip(neighbours.count.split(n_atoms), *edges, strict=True):
        target, source, vector, distance = values
        chunks.append(
            _chunk(target - first, source, vector, distance, count, num_spherical=num_spherical)
        )
        first += len(count)
    return EdgeGraph(neighbours, radial(neighbours.distance), tuple(chunks))


def _chunk(
    target: Int[Tensor, " edges"],
    source: Int[Tensor, " edges"],
    vector: Float[Tensor, "edges 3"],
    distance: Float[Tensor, " edges"],
    count: Int[Tensor, " atoms"],
    *,
    num_spherical: int,
) -> Chunk:
    """Tabulate the pairs of edges of some atoms."""
    atoms, width = len(count), max(int(count.max()), 1)
    start = torch.cumsum(count, 0) - count
    slot = target * width + torch.arange(len(target), device=target.device) - start[target]
    unit = vector.new_zeros((atoms * width, 3)).index_copy(0, slot, vector / distance[:, None])
    unit = unit.view(atoms, width, 3)
    present = torch.arange(width, device=count.device) < count[:, None]
    distinct = ~torch.eye(width, dtype=torch.bool, device=count.device)
    pair = (present[:, :, None] & present[:, None, :] & distinct)[..., None]
    cosine = (unit @ unit.mT).clamp(-1, 1)
    harmonics = (zonal_harmonics(cosine, size=num_spherical) * pair).permute(0, 1, 3, 2)
    fields = angle_field(unit[:, :, None], unit[:, None]) * pair
    return Chunk(
        target,
        source,
        atoms,
        width,
        slot,
        harmonics.reshape(atoms, width * num_spherical, width),
        distance_field(vector),
        fields.view(atoms, width * width, 6),
    )


def he_orthogonal_(weight: Tensor) -> Tensor:
    """Fill a weight [out, in] with decorrelated rows of variance 1/in (GemNet's start)."""
    with torch.no_grad():
        torch.nn.init.orthogonal_(weight)
        spread, mean = torch.std_mean(weight, dim=1, keepdim=True, correction=0)
        return weight.sub_(mean).div_(spread).mul_(weight.shape[1] ** -0.5)


class Dense(torch.nn.Module):
    """y = σ(W x) without bias, σ the scaled SiLU or nothing."""

    def __init__(self, size_in: int, size_out: int, *, activation: bool):
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(he_orthogonal_(torch.empty(size_out, size_in)))

    def forward(self, x: Float[Tensor, "rows size_in"]) -> Float[Tensor, "rows size_out"]:
        """Apply the layer to every row."""
        return scaled_silu(self.linear(x)) if self.activation else self.linear(x)

    def linear(self, x: Float[Tensor, "rows size_in"]) -> Float[Tensor, "rows size_out"]:
        """Return W x."""
        return functional.linear(x, self.weight)


def scaled_silu(x: Tensor) -> Tensor:
    """Return SiLU(x) / 0.6."""
    return functional.silu(x).mul_(SILU_SCALE)


class Residual(torch.nn.Module):
    """y = (x + σ(W₂ σ(W₁ x))) / √2."""

    def __init__(self, size: int):
        super().__init__()
        self.inner = Dense(size, size, activation=True)
        self.outer = Dense(size, size, activation=True)

    def forward(self, x: Float[Tensor, "rows size"]) -> Float[Tensor, "rows size"]:
        """Apply the layer to every row."""
        return (x + self.outer(self.inner(x))).mul_(SQRT_HALF)


def residuals(size: int, count: int) -> torch.nn.Sequential:
    """Chain residual layers."""
    return torch.nn.Sequential(*(Residual(size) for _ in range(count)))


class JoinedDense(torch.nn.Module):
    """y = σ(W [h_j, h_i, m_γ]): atoms at both ends of an edge joined with edge features.

    W is kept whole; its two atom parts are applied per atom and then gathered, which is the
    same sum for a third of the products.
    """

    def __init__(self, size_atom: int, size_edge: int, size_out: int):
        super().__init__()
        self.size_atom = size_atom
        self.weight = torch.nn.Parameter(
            he_orthogonal_(torch.empty(size_out, 2 * size_atom + size_edge))
        )

    def per_atom(self, atoms: Float[Tensor, "atoms n"]) -> tuple[Tensor, Tensor]:
        """Return the atoms' shares as sources and as targets."""
        source, target, _ = self._parts()
        return functional.linear(atoms, source), functional.linear(atoms, target)

    def forward(
        self,
        edges: Float[Tensor, "edges size_edge"],
        sources: Float[Tensor, "edges size_out"],
        targets: Float[Tensor, "edges size_out"],
    ) -> Float[Tensor, "edges size_out"]:
        """Return new edge features from the edges and the shares of their two atoms."""
        return scaled_silu(functional.linear(edges, self._parts()[2]) + sources + targets)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        n = self.size_atom
        source, target, edge = self.weight.split([n, n, self.weight.shape[1] - 2 * n], dim=1)
        return source, target, edge


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
        return self.scale * chunk.sum_per_atom(edges * self.radial(radial))

    def forward(self, gathered: Float[Tensor, "atoms edge"]) -> Float[Tensor, "atoms atom"]:
        """Return new atom features."""
        return self.layers(gathered)

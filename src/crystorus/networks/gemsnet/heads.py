"""Invariant weights of edges and pairs of edges to vector fields: the outputs of Appendix A."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crystorus.networks.gemsnet.graph import Chunk, EdgeGraph, EdgeValues
from crystorus.networks.gemsnet.layers import Dense, filtered

INITIAL_FIELD_GAIN = 8.0
FIELDS = 3
"""λ holds ∂r_γ/∂ρ, ∂r_γ'/∂ρ and ∂θ_γγ'/∂ρ (Appendix A)."""


class PositionHead(torch.nn.Module):
    """y^x_i = Σ_γ∈N(i) w_γ (-e_γ / r_γ): a displacement from invariant weights of edges.

    Source: [Klipfel24] Appendix A
    """

    def __init__(self, *, edge: int, num_radial: int, rbf: int):
        super().__init__()
        self.hidden = Dense(edge, edge, activation=True)
        self.radial = Dense(num_radial, rbf, activation=False)
        self.filter = Dense(rbf, edge, activation=False)
        self.weight = Dense(edge, 1, activation=False)

    def forward(self, edges: EdgeValues, graph: EdgeGraph) -> Float[Tensor, "atoms 3"]:
        """Return y^x, fractional.

        Args:
            edges: Features of the last block, one tensor per chunk.
            graph: The edges.
        """
        (displacement,) = graph.map(self._sum, edges)
        return torch.cat(displacement)

    def _sum(self, edges: Tensor, chunk: Chunk) -> tuple[Tensor, ...]:
        """Sum the weighted directions at every atom."""
        radial = self.radial(chunk.gaussians)
        weight = self.weight(filtered(self.hidden(edges), radial, self.filter))
        return (chunk.sum_per_atom(weight * chunk.direction),)


class LatticeHead(torch.nn.Module):
    """The weights w_γγ' of one layer l, in factors.

    w^f_γγ' = Σ_k a^f_k(m_γ) b^f_k(m_γ') for each of the three fields f of λ.

    Source: [Klipfel24] Appendix A
    """

    def __init__(self, *, edge: int, hidden: int, num_radial: int, rbf: int, rank: int):
        super().__init__()
        self.rank = rank
        size = 2 * FIELDS * rank
        self.hidden = Dense(edge, hidden, activation=True)
        self.factors = Dense(hidden, size, activation=False)
        self.radial = Dense(num_radial, rbf, activation=False)
        self.filter = Dense(rbf, size, activation=False)
        # The mean over Γ₂ of incoherent fields starts near 1e-3, and ρ' has to grow from I₃ to
        # cells of several Å: the weights that make the field start larger.
        with torch.no_grad():
            self.filter.weight.mul_(INITIAL_FIELD_GAIN)

    def forward(
        self, edges: Float[Tensor, "edges edge"], chunk: Chunk
    ) -> Float[Tensor, "edges factors"]:
        """Return a¹, b¹, a², b², a³, b³ of every edge.

        Args:
            edges: Features of a chunk's edges.
            chunk: Whose edges these are.
        """
        radial = self.radial(chunk.gaussians)
        factors = filtered(self.factors(self.hidden(edges)), radial, self.filter)
        return factors.mul_(self.rank**-0.25)


def sum_of_fields(
    heads: Iterable[LatticeHead], layers: Iterable[EdgeValues], graph: EdgeGraph
) -> Float[Tensor, "atoms 6"]:
    """Return Σ_l Σ_γγ' w^l_γγ' λ_γγ' of every atom, six components of a symmetric matrix.

    λ is the same for all layers l: their factors are laid side by side as one of higher rank.

    Args:
        heads: One per layer l.
        layers: Edge features of each layer, one tensor per chunk.
        graph: The edges.

    Source: [Klipfel24] Appendix A
    """
    heads = tuple(heads)

    def sum_in_chunk(*layers_and_chunk: Any) -> tuple[Tensor, ...]:
        *edges, chunk = layers_and_chunk
        factors = [head(m, chunk) for head, m in zip(heads, edges, strict=True)]
        joined = torch.stack([f.unflatten(1, (FIELDS, 2, -1)) for f in factors], dim=3)
        return (_sum_per_atom(joined, chunk),)

    (total,) = graph.map(sum_in_chunk, *layers)
    return torch.cat(total)


def _sum_per_atom(
    factors: Float[Tensor, "edges fields 2 layers rank"], chunk: Chunk
) -> Float[Tensor, "atoms 6"]:
    """Sum w λ over the pairs of every atom.

    The fields of the distances depend on one edge of the pair only, and their sum over pairs
    γ ≠ γ' is one over edges: Σ_γ λ_γ Σ_k a_k(γ) (Σ_γ' b_k(γ') - b_k(γ)).
    """
    a, b = (side.flatten(1) for side in factors[:, :2].unbind(2))
    of_others = chunk.sum_per_atom(b).index_select(0, chunk.target) - b
    weight = (a * of_others).sum(1, keepdim=True)
    total = chunk.sum_per_atom(weight * chunk.distance_fields)
    a, b = chunk.to_table(factors[:, 2].flatten(1)).chunk(2, dim=2)
    weights = (a @ b.mT).view(len(a), 1, -1)
    return total + torch.bmm(weights, chunk.angle_fields.mT)[:, 0]

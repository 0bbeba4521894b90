"""The `paper` preset's network: GemsNet encoder and decoder (§4.1 and Appendix A of [Klipfel24]).

Deviation: in place of GemNet's fitted scaling factors, which the paper drops, sums over
neighbours are multiplied by the constant 1/k. A weight matrix follows each, so that the network
expresses the same functions; without any factor its first blocks hear nothing of the geometry.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.config import GemsNetConfig
from crystorus.geometry.crystals import Crystals, Prediction, mean_per_crystal
from crystorus.networks.gemsnet.fields import symmetric_matrix
from crystorus.networks.gemsnet.graph import (
    Chunk,
    EdgeGraph,
    EdgeValues,
    GaussianBasis,
    edge_graph,
)
from crystorus.networks.gemsnet.heads import LatticeHead, PositionHead, sum_of_fields
from crystorus.networks.gemsnet.layers import (
    SQRT_HALF,
    Dense,
    JoinedDense,
    filtered,
    residuals,
)
from crystorus.networks.gemsnet.neighbours import nearest_neighbours

TIME_BASE = 10_000.0
"""n of Eq. 8, which the paper leaves open: the usual one of positional encodings."""


class AtomEmbedding(torch.nn.Module):
    """emb(z, t): a vector for every element plus sinusoids of the diffusion step.

    emb(z, t)_2k = sin(t / n^(2k/d)) + emb_z,2k and emb(z, t)_2k+1 = cos(t / n^(2k/d)) + emb_z,2k+1.

    Args:
        size: d, features of an atom.
        time: Whether the sinusoids are added.

    Source: [Klipfel24] Eq. 8
    """

    def __init__(self, size: int, *, time: bool):
        super().__init__()
        self.element = torch.nn.Embedding(MAX_ATOMIC_NUMBER, size)
        torch.nn.init.uniform_(self.element.weight, -(3**0.5), 3**0.5)
        self.time = time

    def forward(self, crystals: Crystals, t: Int[Tensor, " crystals"]) -> Float[Tensor, "atoms n"]:
        """Return z^emb.

        Args:
            crystals: Give the elements.
            t: Diffusion step of every crystal.

        Source: [Klipfel24] Eq. 9a
        """
        embedded = self.element(crystals.atomic_numbers - 1)
        if not self.time:
            return embedded
        size = embedded.shape[1]
        even = torch.arange(0, size, 2, dtype=embedded.dtype, device=embedded.device)
        frequency = TIME_BASE ** -(even / size)
        phase = t[:, None].to(embedded.dtype) * frequency
        waves = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)
        return embedded + waves[crystals.crystal_of_atom, :size]


class BilinearTriplets(torch.nn.Module):
    """GemNet's efficient bilinear layer over pairs of edges at one atom.

    y_γo = Σ_if B_oif Σ_l R_γil Σ_γ'≠γ Y_l0(θ_γγ') m_γ'f with R_γil = s Σ_n C_iln b_n(r_γ).

    Source: [Gasteiger21], efficient bilinear layer
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
        """Sum over the other edges of each edge's target atom.

        Args:
            messages: m.
            radial: b_n(r_γ).
            chunk: Whose edges these are, with their angles.
        """
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
        """Sum the filtered edge features at every atom.

        Args:
            edges: m_γ.
            radial: b_n(r_γ).
            chunk: Whose edges these are.
        """
        return self.scale * chunk.sum_per_atom(filtered(edges, radial, self.radial))

    def forward(self, gathered: Float[Tensor, "atoms edge"]) -> Float[Tensor, "atoms atom"]:
        """Return new atom features.

        Args:
            gathered: Sums of `gather`.
        """
        return self.layers(gathered)


@dataclass(frozen=True, eq=False)
class RadialFilters:
    """Distances projected once per network, [edges, rbf] for each of their uses in the blocks."""

    triplet: EdgeValues
    circular: EdgeValues
    atom: EdgeValues


class InteractionBlock(torch.nn.Module):
    """GemNet-T's interaction: edges hear other edges, atoms hear edges, edges hear atoms."""

    def __init__(self, config: GemsNetConfig, *, update_edges: bool):
        """Build the block.

        Args:
            config: Sizes.
            update_edges: Whether edges hear atoms at the end. Pointless, and without a gradient,
                where only the atoms' features are read afterwards.
        """
        super().__init__()
        # In cells of 1 Å³, where sampling starts, all neighbours look alike and their messages
        # add up coherently: the mean is bounded there, 1/√k is not.
        c, scale = config, 1 / config.neighbours
        self.direct = Dense(c.edge, c.edge, activation=True)
        self.message = Dense(c.edge, c.edge, activation=True)
        self.message_filter = Dense(c.rbf, c.edge, activation=False)
        self.down = Dense(c.edge, c.triplet, activation=True)
        self.triplets = BilinearTriplets(
            triplet=c.triplet,
            rbf=c.rbf,
            cbf=c.cbf,
            num_spherical=c.num_spherical,
            out=c.bilinear,
            scale=scale,
        )
        self.up = Dense(c.bilinear, c.edge, activation=True)
        self.up_reverse = Dense(c.bilinear, c.edge, activation=True)
        self.before_skip = residuals(c.edge, c.before_skip)
        self.after_skip = residuals(c.edge, c.after_skip)
        self.atom_update = AtomUpdate(
            atom=c.atom, edge=c.edge, rbf=c.rbf, layers=c.atom_layers, scale=scale
        )
        self.join = JoinedDense(c.atom, c.edge, c.edge) if update_edges else None
        self.after_join = residuals(c.edge, c.concat) if update_edges else None

    def forward(
        self,
        atoms: Float[Tensor, "atoms atom"],
        edges: EdgeValues,
        radial: RadialFilters,
        graph: EdgeGraph,
    ) -> tuple[Float[Tensor, "atoms atom"], EdgeValues]:
        """Return new features of atoms and edges.

        Args:
            atoms: h.
            edges: m_γ, one tensor per chunk.
            radial: Filtered bases of the distances.
            graph: The edges.
        """
        (heard,) = graph.map(self._hear_edges, edges, radial.triplet, radial.circular)
        edges, gathered = graph.map(
            self._update_edges, edges, heard, graph.of_reverse(heard), radial.atom
        )
        atoms = (atoms + self.atom_update(torch.cat(gathered))).mul_(SQRT_HALF)
        if self.join is None:
            return atoms, edges
        sources, targets = self.join.per_atom(atoms)
        (edges,) = graph.map(partial(self._hear_atoms, sources, targets), edges)
        return atoms, edges

    def _hear_edges(
        self, edges: Tensor, triplet: Tensor, circular: Tensor, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        """Sum messages over the other edges at every edge's target."""
        message = self.down(filtered(self.message(edges), triplet, self.message_filter))
        return (self.triplets(message, circular, chunk),)

    def _update_edges(
        self, edges: Tensor, heard: Tensor, of_reverse: Tensor, radial: Tensor, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        """Return new edges, and their sums for the atoms."""
        message = self.up(heard).add_(self.up_reverse(of_reverse)).mul_(SQRT_HALF)
        update = self.before_skip(message.add_(self.direct(edges)).mul_(SQRT_HALF))
        edges = self.after_skip((edges + update).mul_(SQRT_HALF))
        return edges, self.atom_update.gather(edges, radial, chunk)

    def _hear_atoms(
        self, sources: Tensor, targets: Tensor, edges: Tensor, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        """Update edges by their two atoms."""
        assert self.join is not None
        assert self.after_join is not None
        joined = self.join(edges, chunk.of_sources(sources), chunk.of_targets(targets))
        return ((edges + self.after_join(joined)).mul_(SQRT_HALF),)


class GemsNet(torch.nn.Module):
    """GemNet-T without fitted scaling factors: invariant features of atoms and edges.

    Source: [Gasteiger21]
    """

    def __init__(self, config: GemsNetConfig, *, edge_output: bool):
        """Build the network.

        Args:
            config: Sizes.
            edge_output: Whether edge features are read, not only y^z.
        """
        super().__init__()
        self.radial = Dense(config.num_radial, 3 * config.rbf, activation=False)
        self.edge_embedding = JoinedDense(config.atom, config.num_radial, config.edge)
        last = config.blocks - 1
        self.blocks = torch.nn.ModuleList(
            InteractionBlock(config, update_edges=edge_output or b < last)
            for b in range(config.blocks)
        )

    def forward(
        self, atoms: Float[Tensor, "atoms atom"], graph: EdgeGraph
    ) -> tuple[Float[Tensor, "atoms atom"], list[EdgeValues]]:
        """Return y^z and the edge features after every block.

        Args:
            atoms: Embedded elements and noise levels.
            graph: The edges.
        """
        sources, targets = self.edge_embedding.per_atom(atoms)
        edges: EdgeValues
        edges, *filters = graph.map(partial(self._embed, sources, targets))
        radial = RadialFilters(*filters)
        layers = []
        for block in self.blocks:
            atoms, edges = block(atoms, edges, radial, graph)
            layers.append(edges)
        return atoms, layers

    def _embed(self, sources: Tensor, targets: Tensor, chunk: Chunk) -> tuple[Tensor, ...]:
        """Return the first edge features and the projected distances."""
        shares = chunk.of_sources(sources), chunk.of_targets(targets)
        edges = self.edge_embedding(chunk.gaussians, *shares)
        return edges, *self.radial(chunk.gaussians).chunk(3, dim=1)


class GemsNetDenoiser(torch.nn.Module):
    """f_θ = Decod ∘ Encod ∘ emb: noisy crystals and their step to a cell and a displacement.

    Invariant features weight equivariant vector fields, so that the denoiser is equivariant with
    `decode_from = "noisy"` (Eq. 9c). With `"cubic"` (Eq. 11) y^ρ stays equivariant and ρ' = y^ρ
    turns with the input as g y^ρ gᵀ, not as g ρ'.

    Args:
        config: Sizes and switches.
    """

    def __init__(self, config: GemsNetConfig):
        super().__init__()
        self.config = config
        self.basis = GaussianBasis(
            config.num_radial, cutoff=config.cutoff, exponent=config.envelope_exponent
        )
        self.embedding = AtomEmbedding(config.atom, time=config.time_embedding)
        self.encoder = GemsNet(config, edge_output=False) if config.encoder else None
        self.join = Dense(2 * config.atom, config.atom, activation=True) if config.encoder else None
        self.decoder = GemsNet(config, edge_output=True)
        self.position_head = PositionHead(
            edge=config.edge, num_radial=config.num_radial, rbf=config.rbf
        )
        self.lattice_heads = torch.nn.ModuleList(
            LatticeHead(
                edge=config.edge,
                hidden=config.bilinear,
                num_radial=config.num_radial,
                rbf=config.rbf,
                rank=config.field_rank,
            )
            for _ in range(config.blocks)
        )

    def forward(self, crystals: Crystals, t: Int[Tensor, " crystals"]) -> Prediction:
        """Predict (y^ρ, y^x) and apply y^ρ.

        Args:
            crystals: Noisy crystals M_t; no gradient flows to their geometry.
            t: Diffusion step of every crystal, 1 … T.

        Returns:
            ρ' in Å and y^x, fractional.

        Source: [Klipfel24] Eq. 9c
        Source: [Klipfel24] Eq. 11
        """
        graph = self._graph(crystals)
        atoms = self._encode(self.embedding(crystals, t), crystals, graph)
        _, layers = self.decoder(atoms, graph)
        action = self._lattice_action(layers, crystals, graph)
        lattice = action if self.config.decode_from == "cubic" else action @ crystals.lattice
        return Prediction(lattice, self.position_head(layers[-1], graph))

    def representation(
        self, crystals: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "crystals atom"]:
        """Return z^enc, what the encoder hands to the decoder, averaged over each crystal.

        Args:
            crystals: Noisy or finished crystals.
            t: Diffusion step of every crystal.
        """
        atoms = self._encode(self.embedding(crystals, t), crystals, self._graph(crystals))
        return mean_per_crystal(atoms, crystals)

    def _graph(self, crystals: Crystals) -> EdgeGraph:
        """Return the edges of every atom to its nearest neighbours."""
        config = self.config
        edges = nearest_neighbours(crystals, neighbours=config.neighbours, cutoff=config.cutoff)
        return edge_graph(edges, self.basis, num_spherical=config.num_spherical)

    def _encode(
        self, embedded: Float[Tensor, "atoms atom"], crystals: Crystals, graph: EdgeGraph
    ) -> Float[Tensor, "atoms atom"]:
        """Return z^enc: the encoder's features joined with their mean over the crystal.

        Source: [Klipfel24] Eq. 9b
        """
        if self.encoder is None or self.join is None:
            return embedded
        encoded, _ = self.encoder(embedded, graph)
        mean = mean_per_crystal(encoded, crystals)[crystals.crystal_of_atom]
        return self.join(torch.cat([encoded, mean], dim=1))

    def _lattice_action(
        self, layers: list[EdgeValues], crystals: Crystals, graph: EdgeGraph
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return y^ρ = I₃ + 1/|Γ₂| Σ_l Σ_γγ' w^l_γγ' λ_γγ'.

        Source: [Klipfel24] Appendix A
        """
        heads = cast(Iterable[LatticeHead], self.lattice_heads)
        per_atom = sum_of_fields(heads, layers, graph)
        count = graph.neighbours.count.to(per_atom.dtype)
        size = mean_per_crystal(count * (count - 1), crystals).clamp_min(1)
        mean = mean_per_crystal(per_atom, crystals) / size[:, None]
        identity = torch.eye(3, dtype=mean.dtype, device=mean.device)
        return identity + symmetric_matrix(mean)

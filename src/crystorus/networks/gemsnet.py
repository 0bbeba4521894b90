"""The `paper` preset's network: GemsNet encoder and decoder (§4.1, Eqs 7 to 11, Appendix A)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry.crystals import Crystals, Prediction, mean_per_crystal
from crystorus.networks.basis import GaussianBasis
from crystorus.networks.blocks import (
    AtomUpdate,
    BilinearTriplets,
    Chunk,
    EdgeGraph,
    EdgeValues,
    edge_graph,
)
from crystorus.networks.dense import SQRT_HALF, Dense, JoinedDense, filtered, residuals
from crystorus.networks.heads import LatticeHead, PositionHead, sum_of_fields
from crystorus.networks.nearest_neighbours import nearest_neighbours
from crystorus.networks.vector_fields import symmetric_matrix

ELEMENTS = 118
"""Atomic numbers run from 1 to this."""

TIME_BASE = 10_000.0
"""n of Eq. 8, which the paper leaves open: the usual one of positional encodings."""


@dataclass(frozen=True)
class GemsNetConfig:
    """Sizes and switches of the `paper` preset's network; defaults are the paper's."""

    blocks: int = 3
    """Interaction blocks of the encoder, and of the decoder."""
    atom: int = 128
    """Features of an atom."""
    edge: int = 128
    """Features of an edge."""
    triplet: int = 32
    """Features of an edge while it is summed over pairs of edges."""
    rbf: int = 16
    """Size to which distances are projected before they filter messages."""
    cbf: int = 16
    """Size to which distance and angle are projected before they filter pairs."""
    bilinear: int = 64
    """Features that come out of the sum over pairs of edges."""
    before_skip: int = 1
    """Residual layers before a block's skip connection."""
    after_skip: int = 2
    """Residual layers after a block's skip connection."""
    concat: int = 1
    """Residual layers after edges are joined with their atoms."""
    atom_layers: int = 3
    """Residual layers of an atom update."""
    num_spherical: int = 7
    """Number of angular functions Y_l0, l = 0 … 6."""
    num_radial: int = 128
    """Number of Gaussians over the distance."""
    cutoff: float = 6.0
    """Å. The envelope is zero there and beyond."""
    envelope_exponent: int = 5
    """p of the polynomial envelope."""
    neighbours: int = 32
    """k of the kNN graph (Table 1)."""
    field_rank: int = 16
    """Rank of the weights w_γγ' as a matrix over pairs of edges; the paper leaves it open."""
    steps: int = 100
    """T, the number of diffusion steps (Table 1)."""
    decode_from: Literal["cubic", "noisy"] = "cubic"
    """ρ' = y^ρ I₃ (Eq. 11) or ρ' = y^ρ ρ (Eq. 9c): ablation (a) of Table 4."""
    time_embedding: bool = True
    """Add the sinusoids of t to the element's vector (Eq. 8): ablation (b) of Table 4."""
    encoder: bool = True
    """Pass z^enc (Eq. 9b), not z^emb, to the decoder: ablation (c) of Table 4."""


class AtomEmbedding(torch.nn.Module):
    """emb(z, t): a vector for every element plus sinusoids of the diffusion step.

    emb(z, t)_2k = sin(t / n^(2k/d)) + emb_z,2k and emb(z, t)_2k+1 = cos(t / n^(2k/d)) + emb_z,2k+1.

    Source: Eqs 8 and 9a.
    """

    def __init__(self, size: int, *, time: bool):
        super().__init__()
        self.element = torch.nn.Embedding(ELEMENTS, size)
        torch.nn.init.uniform_(self.element.weight, -(3**0.5), 3**0.5)
        self.time = time

    def forward(self, crystals: Crystals, t: Int[Tensor, " crystals"]) -> Float[Tensor, "atoms n"]:
        """Return z^emb (Eq. 9a)."""
        embedded = self.element(crystals.atomic_numbers - 1)
        if not self.time:
            return embedded
        size = embedded.shape[1]
        even = torch.arange(0, size, 2, dtype=embedded.dtype, device=embedded.device)
        frequency = TIME_BASE ** -(even / size)
        phase = t[:, None].to(embedded.dtype) * frequency
        waves = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)
        return embedded + waves[crystals.crystal_of_atom, :size]


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
        """Return new features of atoms and edges."""
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
    """GemNet-T without fitted scaling factors: invariant features of atoms and edges (App. A)."""

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
        """Return y^z and the edge features after every block."""
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

    Invariant features (Eqs 8, 9a, 9b) weight equivariant vector fields, so that Eq. 10 holds with
    `decode_from = "noisy"` (Eq. 9c). With `"cubic"` (Eq. 11) y^ρ stays equivariant and ρ' = y^ρ
    turns with the input as g y^ρ gᵀ, not as g ρ'.

    Source: §4.1, Eqs 7 to 11, Appendix A.
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
            ρ' and y^x (fractional).

        Source: Eqs 7, 9 and 11.
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

        Source: Eq. 9b.
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
        """Return z^enc: the encoder's features joined with their mean over the crystal (Eq. 9b)."""
        if self.encoder is None or self.join is None:
            return embedded
        encoded, _ = self.encoder(embedded, graph)
        mean = mean_per_crystal(encoded, crystals)[crystals.crystal_of_atom]
        return self.join(torch.cat([encoded, mean], dim=1))

    def _lattice_action(
        self, layers: list[EdgeValues], crystals: Crystals, graph: EdgeGraph
    ) -> Float[Tensor, "crystals 3 3"]:
        """Return y^ρ = I₃ + 1/|Γ₂| Σ_l Σ_γγ' w^l_γγ' λ_γγ' (Appendix A)."""
        heads = cast(Iterable[LatticeHead], self.lattice_heads)
        per_atom = sum_of_fields(heads, layers, graph)
        count = graph.neighbours.count.to(per_atom.dtype)
        size = mean_per_crystal(count * (count - 1), crystals).clamp_min(1)
        mean = mean_per_crystal(per_atom, crystals) / size[:, None]
        identity = torch.eye(3, dtype=mean.dtype, device=mean.device)
        return identity + symmetric_matrix(mean)

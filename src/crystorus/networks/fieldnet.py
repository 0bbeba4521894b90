"""FieldNet: the default network f_θ, an equivariant map from crystals to vector fields.

Atoms carry scalars, vectors and quadrupoles, every pair of atoms carries a scalar state. The
geometry enters only through lattice sums, so that a forward pass is a handful of dense products:
the sum over neighbours and images of (radial × r̂^l) × (pair state), and channel mixing.

Angles need no triplets. With A_m = Σ_a w_a Y_lm(û_a) gathered over the edges a of an atom, and B_m
likewise, the addition theorem Σ_m Y_lm(û_a) Y_lm(û_b) = (2l + 1)/4π P_l(cos θ_ab) gives
Σ_m A_m B_m = (2l + 1)/4π Σ_ab w_a w'_b P_l(cos θ_ab): a scalar product of two gathered vectors
(l = 1) or quadrupoles (l = 2) is a sum over all pairs of edges, at the price of a sum over edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystorus.config import FieldNetConfig, Precision
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.crystals import to_dense
from crystorus.geometry.lattice import from_coefficients, symmetric_exp, to_coefficients
from crystorus.geometry.lattice_sums import PairFields, lattice_sums
from crystorus.geometry.torus import centre
from crystorus.networks.embedding import ElementEmbedding, sinusoids

SIMILAR_SIZE = 0.8
"""Minimum ratio n_atoms / n_max within one padded group."""

GROUP_PAIRS = {"cpu": 3000}
"""Pairs of atoms that take as long as what a pass costs besides: a few milliseconds on a CPU."""

GROUP_PAIRS_ELSEWHERE = 1_000_000
"""The same on other devices, whose time between kernels is worth more pairs."""

PAIRS_AT_A_TIME = 2**20
"""Pairs whose features are updated at a time where no gradient is wanted: 256 MiB."""

MAX_STRAIN = 3.0
"""Largest coefficient of a predicted strain in sampling, six times the widest noise."""


@dataclass(frozen=True, eq=False)
class _State:
    """Features between blocks, dense over atoms."""

    scalar: Float[Tensor, "crystals n c"]
    vector: Float[Tensor, "crystals n 3 v"]
    tensor: Float[Tensor, "crystals n 5 w"]
    pair: Float[Tensor, "crystals n n p"]


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _contract(
    gate: Tensor, joined: Tensor, sizes: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the fields over j with the gates of every pair: [crystals, i, 2l + 1, k × gate] each."""
    total = joined @ gate.to(joined.dtype)  # crystals i (components k) gate
    scalar, vector, tensor = (
        part.unflatten(2, (2 * degree + 1, -1)).flatten(3)
        for degree, part in enumerate(total.split(sizes, 2))
    )
    return scalar, vector, tensor


def size_groups(n_atoms: Sequence[int], pairs: int) -> list[int]:
    """Split crystals, largest first, where padding would outweigh a pass of its own.

    Args:
        n_atoms: Atoms of each crystal, falling.
        pairs: Pairs of atoms, padding counted, that are worth a pass.

    Returns:
        The number of crystals in each group, in order.
    """
    groups = [0]
    largest = n_atoms[0]
    for n in n_atoms:
        if groups[-1] * largest**2 >= pairs and n < SIMILAR_SIZE * largest:
            groups.append(0)
            largest = n
        groups[-1] += 1
    return groups


class _Block(nn.Module):
    """One exchange between atoms: pair update, field sums, atom update."""

    def __init__(self, config: FieldNetConfig) -> None:
        super().__init__()
        c, v, w = config.channels, config.vector_channels, config.tensor_channels
        p, g = config.pair_channels, config.gate_channels
        widths = config.sums.widths
        self.normalise = nn.LayerNorm(c)
        self.time = nn.Linear(c, 2 * c)
        self.ends = nn.Linear(c, 2 * p)
        self.pair_in = nn.Linear(p, p)
        self.pair_out = nn.Linear(p, p)
        self.gate = nn.Linear(p, g)
        self.to_scalar = nn.Linear(widths[0] * g, c)
        self.to_vector = nn.Linear(widths[1] * g, v, bias=False)
        self.to_tensor = nn.Linear(widths[2] * g, w, bias=False)
        self.mix_vector = nn.Linear(v, 2 * v, bias=False)
        self.mix_tensor = nn.Linear(w, 2 * w, bias=False)
        self.update = _mlp(3 * c + p + v + w, 2 * c, c)
        self.pool = nn.Linear(c, c)
        for parameter in self.update[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: _State, fields: PairFields, time: Tensor, weight: Tensor) -> _State:
        """Return the state after one exchange; `weight` is 1/n for atoms, 0 for padding.

        Without gradients the pair state is updated in place, some rows of pairs at a time.
        """
        scale, shift = self.time(time)[:, None].chunk(2, -1)
        h = self.normalise(state.scalar) * (1 + scale) + shift
        from_i, from_j = self.ends(h).chunk(2, -1)
        n, in_place = h.shape[1], not torch.is_grad_enabled()
        rows_at_a_time = max(PAIRS_AT_A_TIME // (len(h) * n), 1) if in_place else n
        pair, parts = state.pair, []
        for first in range(0, n, rows_at_a_time):
            rows = slice(first, first + rows_at_a_time)
            hidden = self.pair_in(state.pair[:, rows])
            hidden.add_(from_i[:, rows, None]).add_(from_j[:, None])
            hidden = nn.functional.silu(hidden, inplace=in_place)
            if in_place:
                state.pair[:, rows] += self.pair_out(hidden)
            else:
                pair = state.pair + self.pair_out(hidden)
            seen = (weight[:, None, None].to(hidden.dtype) @ hidden)[:, :, 0]
            sums = fields.joined[:, rows], fields.sizes
            parts.append((*_contract(self.gate(hidden), *sums), seen))
        about, along, across, seen = (
            part[0] if len(part) == 1 else torch.cat(part, 1) for part in zip(*parts, strict=True)
        )
        vector = state.vector + self.to_vector(along)
        tensor = state.tensor + self.to_tensor(across)
        va, vb = self.mix_vector(vector).chunk(2, -1)
        wa, wb = self.mix_tensor(tensor).chunk(2, -1)
        pooled = torch.einsum("bic,bi->bc", self.pool(h), weight)[:, None].expand_as(h)
        news = [h, pooled, self.to_scalar(about[:, :, 0]), seen, (va * vb).sum(2), (wa * wb).sum(2)]
        scalar = state.scalar + self.update(torch.cat(news, -1))
        return _State(scalar, vector, tensor, pair)


class FieldNet(nn.Module):
    """The fields of the default denoiser: displacement of every atom and strain of the cell.

    y^x_i is a sum of weights times gradients of distances in x, E a mean of weights times
    their gradients in ρ.

    Args:
        config: Sizes.
        steps: T, noise levels of the process.
        max_atoms: Atoms of the largest training crystal: in evaluation the network is told that
            larger ones have this many, since far beyond its training its cells run away. 0 sets
            no limit.

    Source: [Klipfel24] Appendix A
    Deviation: lattice sums in place of the edges of a kNN graph; docs/method.md says why.
    """

    def __init__(self, config: FieldNetConfig, *, steps: int, max_atoms: int = 0) -> None:
        super().__init__()
        self.config, self.steps, self.max_atoms = config, steps, max_atoms
        c, v, w = config.channels, config.vector_channels, config.tensor_channels
        widths = config.sums.widths
        self.embedding = ElementEmbedding(c)
        self.time = _mlp(64, c, c)
        self.size = _mlp(3, c, c)
        self.pair_start = nn.Linear(widths[0], config.pair_channels)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.normalise = nn.LayerNorm(c)
        self.weights = nn.Linear(c, 2 * v + w + 1)
        self.edge_weights = nn.Linear(config.pair_channels, widths[1] + widths[2])
        self.turn = nn.Linear(v, v, bias=False)
        for layer in (self.weights, self.edge_weights):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision = "fp32"
    ) -> "FieldNetOutput":
        """Evaluate the fields on noisy crystals.

        Args:
            crystals: Noisy crystals.
            t: Level of each crystal, 1 … `steps`.
            precision: Of the products inside the blocks; geometry and heads stay as they are.

        Returns:
            Cartesian displacement field in units of (V/n)^⅓ and strain, both unscaled.
        """
        order, groups = self._groups(crystals)
        if len(groups) == 1:
            return self._evaluate(crystals, t, precision)
        atoms = torch.arange(len(crystals.frac_coords), device=order.device)
        places = replace(crystals, atomic_numbers=atoms).select(order).atomic_numbers
        parts = [self._evaluate(crystals.select(group), t[group], precision) for group in groups]
        displacement = torch.cat([part.displacement for part in parts])
        strain = torch.cat([part.strain for part in parts])
        return FieldNetOutput(displacement[places.argsort()], strain[order.argsort()])

    def representation(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision = "fp32"
    ) -> Float[Tensor, "crystals features"]:
        """Return what the last block leaves to the heads, averaged over each crystal.

        Args:
            crystals: Noisy or finished crystals.
            t: Level of each crystal.
            precision: Of the products inside the blocks.

        Returns:
            The scalars of atoms, normalised as `_heads` reads them, then those of pairs:
            `channels` + `pair_channels` features, invariant under the symmetries of Eq. 10.
        """
        order, groups = self._groups(crystals)
        parts = [self._represent(crystals.select(group), t[group], precision) for group in groups]
        return torch.cat(parts)[order.argsort()]

    def _groups(self, crystals: Crystals) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the crystals' indices, largest first, whole and in groups of similar size."""
        pairs = GROUP_PAIRS.get(crystals.n_atoms.device.type, GROUP_PAIRS_ELSEWHERE)
        order = torch.argsort(crystals.n_atoms, descending=True, stable=True)
        return order, order.split(size_groups(crystals.n_atoms[order].tolist(), pairs))

    def _represent(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision
    ) -> Float[Tensor, "crystals features"]:
        """Average the state of crystals of similar size over atoms and over pairs."""
        state, _, weight, _ = self._trunk(crystals, t, precision)
        atoms = torch.einsum("bic,bi->bc", self.normalise(state.scalar), weight)
        pairs = torch.einsum("bijp,bi,bj->bp", state.pair.to(weight), weight, weight)
        return torch.cat([atoms, pairs], -1)

    def _evaluate(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision
    ) -> "FieldNetOutput":
        """Evaluate the fields on crystals of similar size, padded to the largest."""
        state, fields, weight, mask = self._trunk(crystals, t, precision)
        displacement, strain = self._heads(state, fields, weight)
        return FieldNetOutput(displacement[mask], strain)

    def _trunk(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision
    ) -> tuple[_State, PairFields, Tensor, Tensor]:
        """Return the state after the last block, the fields, 1/n for atoms, and who is one."""
        frac, mask = to_dense(crystals.frac_coords, crystals.n_atoms)
        numbers, _ = to_dense(crystals.atomic_numbers, crystals.n_atoms)
        fields = lattice_sums(crystals.lattice, frac, mask, self.config.sums)
        weight = mask.to(frac) / crystals.n_atoms.to(frac)[:, None]
        state, time = self._start(crystals, numbers, fields, t)
        bf16 = precision == "bf16"
        rounded = fields.to(torch.bfloat16) if bf16 else fields
        with torch.autocast(frac.device.type, torch.bfloat16, enabled=bf16):
            for block in self.blocks:
                state = block(state, rounded, time, weight)
        return state, fields, weight, mask

    def _start(
        self, crystals: Crystals, numbers: Tensor, fields: PairFields, t: Tensor
    ) -> tuple[_State, Tensor]:
        """Embed elements, noise level, atom count and volume."""
        dtype = fields.scalar.dtype
        per_atom = (crystals.volume / crystals.n_atoms).log().to(dtype)
        counted = crystals.n_atoms
        if self.max_atoms and not self.training:
            counted = counted.clamp(max=self.max_atoms)
        size = torch.stack([per_atom - 2.9, counted.to(dtype).log() - 2, counted / 10 - 1], -1)
        wave = sinusoids(t.to(dtype) / self.steps * 100, 64, 200.0)
        time = self.time(wave) + self.size(size.to(dtype))
        scalar = self.embedding(numbers) + time[:, None]
        b, n = numbers.shape
        vector = scalar.new_zeros(b, n, 3, self.config.vector_channels)
        tensor = scalar.new_zeros(b, n, 5, self.config.tensor_channels)
        pair = self.pair_start(fields.scalar.transpose(2, 3))
        return _State(scalar, vector, tensor, pair), nn.functional.silu(time)

    def _heads(
        self, state: _State, fields: PairFields, weight: Tensor
    ) -> tuple[Float[Tensor, "crystals n 3"], Float[Tensor, "crystals 3 3"]]:
        """Contract invariant weights with the vector fields λ of Appendix A of the paper."""
        v, w = self.config.vector_channels, self.config.tensor_channels
        beta, delta, gamma, trace = self.weights(self.normalise(state.scalar)).split(
            (v, v, w, 1), -1
        )
        edge_x, edge_rho = self.edge_weights(state.pair).split(self.config.sums.widths[1:], -1)
        # ∂r/∂x: Σ_j w_ij Σ_τ f(r) r̂, and the same from the atom's accumulated vectors.
        vector = fields.vector.unflatten(2, (3, -1))
        displacement = torch.einsum("bixkj,bijk->bix", vector, edge_x)
        displacement = displacement + torch.einsum("bixv,biv->bix", state.vector, beta)
        # ∂r/∂ρ: Σ_ij w_ij Σ_τ f(r) r̂r̂ᵀ; ∂θ/∂ρ in low rank: û v̂ᵀ + v̂ ûᵀ of vectors at one atom.
        tensor = fields.tensor.unflatten(2, (5, -1))
        shape = torch.einsum("bimkj,bijk,bi->bm", tensor, edge_rho, weight)
        shape = shape + torch.einsum("bimw,biw,bi->bm", state.tensor, gamma, weight)
        volume = torch.einsum("bik,bi->bk", trace, weight)
        strain = from_coefficients(torch.cat([shape, volume], -1))
        outer = torch.einsum(
            "bixv,biv,biyv,bi->bxy", state.vector, delta, self.turn(state.vector), weight
        )
        outer = outer + outer.mT
        trace_part = torch.diagonal(outer, dim1=1, dim2=2).sum(-1)[:, None, None] / 3
        eye = torch.eye(3, dtype=outer.dtype, device=outer.device)
        return displacement, strain + outer - trace_part * eye


@dataclass(frozen=True, eq=False)
class FieldNetOutput:
    """Raw vector fields, before the scales of the noise level are applied.

    Attributes:
        displacement: Cartesian, [atoms, 3].
        strain: Symmetric, [crystals, 3, 3].
    """

    displacement: Float[Tensor, "atoms 3"]
    strain: Float[Tensor, "crystals 3 3"]


class FieldDenoiser(nn.Module):
    """The default f_θ: (ρ_t, x_t, z, t) → displacement of the atoms and strain of the cell.

    The network's fields have unit size, its outputs that of the noise: what it learns has about
    one scale at all levels, as in [Karras22]. ρ' = exp(-E) ρ_t keeps the cell a cell. E acts from
    the left and is symmetric, so g ρ_t has the prediction g ρ' and ρ_t C the prediction ρ' C: with
    the invariant displacement, all of Eq. 10 holds.

    Args:
        network: Gives fields of unit size.
        displacement_rms: Root mean square of the torus target at each level t = 0 … T, fractional.
        strain_sigma: Standard deviation of the strain coefficients at each level.
    """

    displacement_rms: Tensor
    strain_sigma: Tensor

    def __init__(
        self,
        network: FieldNet,
        *,
        displacement_rms: Float[Tensor, " levels"],
        strain_sigma: Float[Tensor, "levels 6"],
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("displacement_rms", displacement_rms.float(), persistent=False)
        self.register_buffer("strain_sigma", strain_sigma.float(), persistent=False)

    def forward(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], precision: Precision = "fp32"
    ) -> Prediction:
        """Predict the cell and the displacements that lead back to the clean crystal.

        Args:
            crystals: Noisy crystals M_t; no gradient flows to their geometry.
            t: Level of each crystal, 1 … T.
            precision: Of the products inside the network's blocks.

        Returns:
            ρ' in Å, y^x, fractional, with zero mean per crystal, and the strain E.
        """
        fields = self.network(crystals, t, precision)
        dtype = crystals.lattice.dtype
        length = crystals.volume.pow(1 / 3) * self.displacement_rms[t].to(dtype)
        atom = crystals.crystal_of_atom
        inverse = torch.linalg.inv(crystals.lattice)
        cartesian = fields.displacement.to(dtype) * length[atom, None]
        displacement = torch.einsum("aij,aj->ai", inverse[atom], cartesian)
        scale = self.strain_sigma[t].to(dtype)
        coefficients = scale * to_coefficients(fields.strain.to(dtype))
        if not self.training:  # a cell unlike any crystal's must not stop the others of its batch
            coefficients = coefficients.nan_to_num(0.0, 0.0, 0.0).clamp(-MAX_STRAIN, MAX_STRAIN)
        strain = from_coefficients(coefficients)
        lattice = symmetric_exp(-strain.detach()) @ crystals.lattice
        return Prediction(lattice, centre(displacement, crystals), strain)

    def representation(
        self, crystals: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "crystals features"]:
        """Return the network's invariant features of every crystal; see `FieldNet`.

        Args:
            crystals: Noised crystals.
            t: Noise level of each, 0 … T.
        """
        return self.network.representation(crystals, t)

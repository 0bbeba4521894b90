"""ALIGNN (Choudhary and DeCost 2021) in plain PyTorch, with the official parameter names.

It needs neither the alignn package nor DGL. The feature of a crystal is the 256-d mean over atoms
that enters the last linear layer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystal_fidelity.alignn_graph import CrystalGraph

HIDDEN = 256


class RadialBasis(nn.Module):
    """exp(−γ (x − c)²) with γ = 1 / spacing (not squared), as the official code has it."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.linspace(low, high, bins))
        self.gamma = (bins - 1) / (high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n,) to (n, bins)."""
        return torch.exp(-self.gamma * (x[:, None] - self.centers) ** 2)


class Mlp(nn.Module):
    """Linear, BatchNorm, SiLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layer(x)


class EdgeGatedConv(nn.Module):
    """m = W_s x_u + W_d x_v + W_e y; x += SiLU(BN(W x + Σσ(m)·V x_u / Σσ(m))); y += SiLU(BN(m))."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.src_gate = nn.Linear(width, width)
        self.dst_gate = nn.Linear(width, width)
        self.edge_gate = nn.Linear(width, width)
        self.bn_edges = nn.BatchNorm1d(width)
        self.src_update = nn.Linear(width, width)
        self.dst_update = nn.Linear(width, width)
        self.bn_nodes = nn.BatchNorm1d(width)

    def forward(self, u: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update nodes x and edges y of the graph u → v."""
        m = self.src_gate(x)[u] + self.dst_gate(x)[v] + self.edge_gate(y)
        gate = torch.sigmoid(m)
        zeros = torch.zeros_like(x)
        weighted = zeros.index_add(0, v, gate * self.dst_update(x)[u])
        total = zeros.index_add(0, v, gate)
        new = self.src_update(x) + weighted / (total + 1e-6)
        silu = nn.functional.silu
        return x + silu(self.bn_nodes(new)), y + silu(self.bn_edges(m))


class LineGraphConv(nn.Module):
    """A convolution on the crystal graph, then one on its line graph with the updated bonds."""

    def __init__(self) -> None:
        super().__init__()
        self.node_update = EdgeGatedConv()
        self.edge_update = EdgeGatedConv()

    def forward(
        self, batch: "Batch", x: Tensor, y: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update atoms x, bonds y and bond pairs z."""
        x, m = self.node_update(batch.sources, batch.targets, x, y)
        y, z = self.edge_update(batch.first_bonds, batch.second_bonds, m, z)
        return x, y, z


class Alignn(nn.Module):
    """4 line-graph and 4 gated layers; `fc` is there so that checkpoints load strictly."""

    def __init__(self) -> None:
        super().__init__()
        self.atom_embedding = Mlp(92, HIDDEN)
        self.edge_embedding = nn.Sequential(RadialBasis(0, 8, 80), Mlp(80, 64), Mlp(64, HIDDEN))
        self.angle_embedding = nn.Sequential(RadialBasis(-1, 1, 40), Mlp(40, 64), Mlp(64, HIDDEN))
        self.alignn_layers = nn.ModuleList(LineGraphConv() for _ in range(4))
        self.gcn_layers = nn.ModuleList(EdgeGatedConv() for _ in range(4))
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, batch: "Batch") -> Tensor:
        """Return (crystals, 256) latents."""
        r = batch.displacements
        x = self.atom_embedding(batch.atom_features)
        y = self.edge_embedding(torch.linalg.vector_norm(r, dim=1))
        z = self.angle_embedding(bond_cosines(r, batch.first_bonds, batch.second_bonds))
        for layer in self.alignn_layers:
            x, y, z = layer(batch, x, y, z)
        for layer in self.gcn_layers:
            x, y = layer(batch.sources, batch.targets, x, y)
        summed = x.new_zeros(len(batch.n_atoms), HIDDEN).index_add(0, batch.crystal_of_atom, x)
        return summed / batch.n_atoms[:, None]


def bond_cosines(r: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine between b → a and b → c for bond pairs (a → b, b → c)."""
    back, on = -r[first], r[second]
    norms = torch.linalg.vector_norm(back, dim=1) * torch.linalg.vector_norm(on, dim=1)
    return ((back * on).sum(dim=1) / norms).clamp(-1, 1)


@dataclass(frozen=True)
class Batch:
    """Several graphs side by side."""

    atom_features: Tensor
    crystal_of_atom: Tensor
    n_atoms: Tensor
    sources: Tensor
    targets: Tensor
    displacements: Tensor
    first_bonds: Tensor
    second_bonds: Tensor


def collate(graphs: Sequence[CrystalGraph]) -> Batch:
    """Shift indices and join."""
    sizes = np.array([len(graph.atomic_numbers) for graph in graphs])
    bonds = np.array([len(graph.sources) for graph in graphs])
    atom_start = np.cumsum(sizes) - sizes
    bond_start = np.cumsum(bonds) - bonds
    table = atom_table()
    numbers = np.concatenate([graph.atomic_numbers for graph in graphs])

    def joined(field: str, starts: NDArray[np.int64]) -> Tensor:
        parts = [getattr(g, field) + s for g, s in zip(graphs, starts, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    displacements = np.concatenate([graph.displacements for graph in graphs])
    return Batch(
        atom_features=torch.from_numpy(table[numbers]),
        crystal_of_atom=torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        sources=joined("sources", atom_start),
        targets=joined("targets", atom_start),
        displacements=torch.from_numpy(displacements.astype(np.float32)),
        first_bonds=joined("first_bonds", bond_start),
        second_bonds=joined("second_bonds", bond_start),
    )


def atom_table() -> NDArray[np.float32]:
    """Return the (101, 92) one-hot element table of CGCNN (Xie and Grossman 2018, MIT), row Z."""
    text = (resources.files("crystal_fidelity") / "cgcnn_atoms.json").read_text(encoding="utf-8")
    table = np.zeros((101, 92), dtype=np.float32)
    for z, ones in json.loads(text).items():
        table[int(z), ones] = 1
    return table

"""Record latents of the official alignn code for the parity test.

Needs an environment of its own: dgl==1.1.3, numpy<2, alignn==2024.3.24 (installed --no-deps),
jarvis-tools, pydantic-settings, and this package's sources on PYTHONPATH.
Run: PYTHONPATH=src:tests python tools/record_alignn_oracle.py tests/data/alignn_oracle.npz
"""

import sys

import alignn
import dgl
import numpy as np
import torch
from alignn.graphs import Graph
from alignn.models.alignn import ALIGNN, ALIGNNConfig
from alignn_fixture import seeded_tensors, structures
from ase.data import chemical_symbols
from jarvis.core.atoms import Atoms


def main(out: str) -> None:
    """Write latents, bond counts, bond-pair counts and versions."""
    network = ALIGNN(ALIGNNConfig(name="alignn"))
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    tensors = {name: torch.from_numpy(v) for name, v in seeded_tensors(shapes).items()}
    network.load_state_dict(tensors, strict=True)
    network.eval()
    caught: list[torch.Tensor] = []
    network.fc.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].detach()))
    counts = []
    for crystal in structures():
        atoms = Atoms(
            lattice_mat=crystal.lattice,
            coords=crystal.frac_coords,
            elements=[chemical_symbols[z] for z in crystal.atomic_numbers],
            cartesian=False,
        )
        graphs = Graph.atom_dgl_multigraph(atoms, cutoff=8.0, max_neighbors=12, use_canonize=True)
        counts.append([graph.num_edges() for graph in graphs])
        with torch.no_grad():
            network(graphs)
    np.savez_compressed(
        out,
        latents=torch.cat([h.reshape(1, -1) for h in caught]).numpy(),
        counts=np.array(counts),
        versions=np.array(
            [
                f"dgl {dgl.__version__}",
                "alignn 2024.3.24",
                f"torch {torch.__version__}",
                alignn.__name__,
            ]
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1])

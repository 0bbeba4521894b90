"""Record latents of the official alignn code for the parity tests, with where they come from.

Needs an environment of its own: dgl==1.1.3, numpy<2, alignn==2024.3.24 (installed --no-deps),
jarvis-tools, pydantic-settings, ase, gemmi, scipy, pandas, scikit-learn, matplotlib, lmdb,
setuptools<81, and this package's sources on the path.
Prototypes, with PYTHONPATH=src:tests:
    python tools/record_alignn_oracle.py tests/data/alignn_oracle.npz
Real crystals:
    python tools/record_alignn_oracle.py tests/data/alignn_oracle_mp20.npz VAL.csv.gz 90
"""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from alignn.graphs import Graph
from alignn.models.alignn import ALIGNN, ALIGNNConfig
from alignn_fixture import seeded_state, structures
from ase.data import chemical_symbols
from jarvis.core.atoms import Atoms

from crystal_fidelity.reading import read_structures
from crystal_fidelity.structures import Crystal, digest

PACKAGES = ("alignn", "dgl", "jarvis-tools", "numpy", "torch")


def official_network() -> ALIGNN:
    """Return the official network with the seeded weights of the fixture."""
    network = ALIGNN(ALIGNNConfig(name="alignn"))
    network.load_state_dict(seeded_state(network), strict=True)
    return network.eval()


def official_graph(crystal: Crystal) -> tuple[object, object]:
    """Return the official graph and line graph."""
    atoms = Atoms(
        lattice_mat=crystal.lattice,
        coords=crystal.frac_coords,
        elements=[chemical_symbols[z] for z in crystal.atomic_numbers],
        cartesian=False,
    )
    return Graph.atom_dgl_multigraph(atoms, cutoff=8.0, max_neighbors=12, use_canonize=True)


def provenance(source: str) -> str:
    """Return what made the latents, as JSON."""
    return json.dumps(
        {
            "structures": source,
            "weights": "tests/alignn_fixture.py seeded_tensors, seed 20240324",
            "graph": "atom_dgl_multigraph, cutoff 8 Å, 12 neighbours, canonised",
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": platform.machine(),
            "made by": "tools/record_alignn_oracle.py",
        },
        ensure_ascii=False,
    )


def main(out: str, path: str | None = None, step: str = "90") -> None:
    """Write latents, bond counts, bond-pair counts, digests of the structures and provenance."""
    crystals, source = structures(), "tests/alignn_fixture.py structures"
    if path:
        crystals = [e for e in read_structures(path)[:: int(step)] if isinstance(e, Crystal)]
        source = f"every {step}th row of {Path(path).name} (MP-20, CDVAE split)"
    network = official_network()
    caught: list[torch.Tensor] = []
    network.fc.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].detach()))
    counts = []
    for crystal in crystals:
        graphs = official_graph(crystal)
        counts.append([graph.num_edges() for graph in graphs])
        with torch.no_grad():
            network(graphs)
    np.savez_compressed(
        out,
        latents=torch.cat([h.reshape(1, -1) for h in caught]).numpy(),
        counts=np.array(counts),
        names=np.array([crystal.name for crystal in crystals]),
        digests=np.array([digest(crystal) for crystal in crystals]),
        provenance=np.array(provenance(source)),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

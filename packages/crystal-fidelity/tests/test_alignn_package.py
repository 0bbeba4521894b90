"""Our ALIGNN against the `alignn` package's form without DGL, with the same random weights.

Skipped without the package (`docs/fidelity.md` says how to install it, and what was found). Its
network normalises by LayerNorm, and its builder of graphs takes twelve neighbours and no shells:
both are another model than the one whose weights are published. With BatchNorm in the place of
LayerNorm, and on the same graph, its network is ours.
"""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pure = pytest.importorskip("alignn.models.alignn_atomwise_pure")

from alignn.graphs import build_undirected_edgedata, nearest_neighbor_edges  # noqa: E402
from alignn.torch_graph_builder import TorchGraph, build_pure_torch_graph  # noqa: E402
from alignn_fixture import seeded_state, structures  # noqa: E402
from ase.data import chemical_symbols  # noqa: E402
from jarvis.core.atoms import Atoms  # noqa: E402

from crystal_fidelity.features.alignn import (  # noqa: E402
    CUTOFF,
    EXPECTED,
    MAX_NEIGHBOURS,
    Alignn,
    atom_table,
    build_graph,
    collate,
)


@pytest.fixture(scope="module")
def tensors():
    return seeded_state(Alignn())


@pytest.fixture(scope="module", params=["built", pytest.param("MP-20", marks=pytest.mark.slow)])
def crystals(request):
    if request.param == "built":
        return structures()
    from crystal_fidelity.reading import read_structures

    return read_structures(request.getfixturevalue("validation_csv"))[::90]


def package_network(tensors, norm):
    """The package's network with those tensors that it has a place for, and how many those are."""
    settings = pure.ALIGNNAtomWisePureConfig(
        name="alignn_atomwise_pure", calculate_gradient=False, **EXPECTED
    )
    network = pure.ALIGNNAtomWisePure(settings)
    if norm == "batch":
        for module in [*network.modules()]:
            for name, child in module.named_children():
                if isinstance(child, torch.nn.LayerNorm):
                    setattr(module, name, torch.nn.BatchNorm1d(*child.normalized_shape))
    state = network.state_dict()
    fitting = {name: t for name, t in tensors.items() if name in state}
    network.load_state_dict(state | fitting)
    return network.eval(), len(fitting)


def package_latents(network, crystals):
    """What enters its last layer, on our graphs."""
    caught = []
    hook = network.fc.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    for crystal in crystals:
        graph = build_graph(crystal, "official")
        bonds = TorchGraph(
            len(crystal),
            torch.from_numpy(graph.sources),
            torch.from_numpy(graph.targets),
            {"atom_features": torch.from_numpy(atom_table()[crystal.atomic_numbers])},
            {"r": torch.from_numpy(graph.displacements.astype(np.float32))},
        )
        pairs = TorchGraph(
            len(graph.sources),
            torch.from_numpy(graph.first_bonds),
            torch.from_numpy(graph.second_bonds),
        )
        with torch.no_grad():
            network((bonds, pairs, None))
    hook.remove()
    return torch.cat(caught).numpy()


def our_latents(tensors, crystals):
    network = Alignn()
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network.eval()(collate([build_graph(c, "official") for c in crystals])).numpy()


def difference(one, other):
    """Largest difference of each latent vector, relative to its largest entry."""
    return np.abs(one - other).max(axis=1) / np.abs(other).max(axis=1)


def test_its_network_is_ours_with_batch_for_layer_normalisation(tensors, crystals):
    ours = our_latents(tensors, crystals)
    network, fitting = package_network(tensors, "batch")
    same = difference(package_latents(network, crystals), ours)
    print(
        f"\nn = {len(crystals)}; BatchNorm: {fitting} of {len(tensors)} tensors, {same.max():.1e}"
    )
    assert fitting == len(tensors) == 279
    assert same.max() < 1e-5
    network, fitting = package_network(tensors, "layer")
    other = difference(package_latents(network, crystals), ours)
    print(f"LayerNorm: {fitting} tensors, median {np.median(other):.2f}, least {other.min():.2f}")
    assert len(tensors) - fitting == 3 * 29
    assert other.min() > 0.1


def jarvis_atoms(crystal):
    return Atoms(
        lattice_mat=crystal.lattice,
        coords=crystal.frac_coords,
        elements=[chemical_symbols[z] for z in crystal.atomic_numbers],
        cartesian=False,
    )


def bonds(sources, targets, displacements):
    rounded = np.round(np.asarray(displacements, dtype=float), 3) + 0.0
    ends = np.column_stack([sources, targets])
    return Counter(zip(map(tuple, ends.tolist()), map(tuple, rounded.tolist()), strict=True))


def test_its_neighbour_shells_are_ours_and_its_new_builder_has_none(crystals):
    shells, twelve, ours_n, its_n = 0, 0, [], []
    for crystal in crystals:
        graph = build_graph(crystal, "official")
        ours = bonds(graph.sources, graph.targets, graph.displacements)
        atoms = jarvis_atoms(crystal)
        edges, _ = nearest_neighbor_edges(atoms, CUTOFF, MAX_NEIGHBOURS, use_canonize=True)
        shells += ours == bonds(*build_undirected_edgedata(atoms, edges)[:3])
        new = build_pure_torch_graph(
            atoms, CUTOFF, None, MAX_NEIGHBOURS, use_matscipy_topology=False
        )[0]
        twelve += ours == bonds(new.src, new.dst, new.edata["r"])
        ours_n.append(len(graph.sources) / len(crystal))
        its_n.append(new.num_edges / len(crystal))
    n = len(crystals)
    print(f"\nn = {n}; shells equal {shells}; new builder equal {twelve}")
    print(f"bonds per atom {np.mean(ours_n):.1f} (ours), {np.mean(its_n):.1f} (new builder)")
    assert shells >= 0.8 * n  # rounding of equal distances differs between BLAS builds
    assert twelve < 0.5 * n

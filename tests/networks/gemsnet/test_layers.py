"""Neighbours against pymatgen, and the batched sums against loops over triplets."""

import math

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from scipy.special import eval_legendre

from crystorus.geometry.crystals import Crystals
from crystorus.networks.gemsnet import graph as graphs
from crystorus.networks.gemsnet.graph import GaussianBasis, edge_graph
from crystorus.networks.gemsnet.layers import Dense, JoinedDense, Residual, filtered, he_orthogonal_
from crystorus.networks.gemsnet.neighbours import nearest_neighbours
from crystorus.networks.gemsnet.network import BilinearTriplets

CUTOFF = 6.0


def random_crystals(seed: int, sizes=(3, 1, 7), volume: float = 18.0) -> Crystals:
    g = torch.Generator().manual_seed(seed)
    n = torch.tensor(sizes)
    cells = torch.eye(3).double() + 0.3 * torch.randn(len(n), 3, 3, generator=g).double()
    scale = (volume * n / torch.linalg.det(cells).abs()) ** (1 / 3)
    frac = torch.rand(int(n.sum()), 3, generator=g).double()
    z = torch.randint(1, 90, (int(n.sum()),), generator=g)
    return Crystals(cells * scale[:, None, None], frac, z, n)


def pymatgen_edges(crystal: Crystals, k: int) -> list[tuple]:
    """List (i, j, image) of the symmetrised kNN graph, ties kept, by brute force."""
    lattice = Lattice(crystal.lattice[0].T.numpy())
    structure = Structure(lattice, crystal.atomic_numbers.tolist(), crystal.frac_coords.numpy())
    i, j, image, r = structure.get_neighbor_list(CUTOFF, exclude_self=True)
    reach = np.full(len(structure), CUTOFF)
    for a in range(len(structure)):
        mine = np.sort(r[i == a])
        if len(mine) >= k:
            reach[a] = mine[k - 1] * (1 + 1e-4)
    keep = r <= np.maximum(reach[i], reach[j])
    chosen = (i[keep], j[keep], image[keep].round())
    return sorted((int(a), int(b), *map(int, t)) for a, b, t in zip(*chosen, strict=True))


def our_edges(crystal: Crystals, k: int) -> list[tuple]:
    edges = nearest_neighbours(crystal, neighbours=k, cutoff=CUTOFF)
    difference = crystal.frac_coords[edges.source] - crystal.frac_coords[edges.target]
    image = (edges.offset - difference).round().long()
    return sorted(
        (int(a), int(b), *t.tolist())
        for a, b, t in zip(edges.target, edges.source, image, strict=True)
    )


@pytest.mark.parametrize("volume", [0.2, 1.0, 18.0, 500.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_edges_are_pymatgens(seed: int, volume: float):
    for crystal in random_crystals(seed, sizes=(1, 4, 9), volume=volume).split():
        assert our_edges(crystal, 32) == pymatgen_edges(crystal, 32)


def test_edges_of_skewed_and_needle_cells_are_pymatgens():
    crystal = random_crystals(3, sizes=(4,))
    skew = torch.tensor([[1.0, 5, -7], [0, 1, 4], [0, 0, 1]]).double()
    skewed = crystal.with_geometry(
        crystal.lattice @ skew, torch.linalg.solve(skew, crystal.frac_coords.T).T % 1
    )
    needle = crystal.with_geometry(
        torch.diag(torch.tensor([1.1, 1.3, 60.0])).double()[None], crystal.frac_coords
    )
    for cell in (skewed, needle):
        assert our_edges(cell, 32) == pymatgen_edges(cell, 32)


def rocksalt() -> Crystals:
    cell = 2.1 * torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]).double()
    frac = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]]).double()
    return Crystals(cell[None], frac, torch.tensor([11, 17]), torch.tensor([2]))


def test_ties_are_kept_whole():
    """Rocksalt's shells are 6, 12, 8, 6, 24, …: the 32nd and its 24 ties are all in."""
    edges = nearest_neighbours(rocksalt(), neighbours=32, cutoff=CUTOFF)
    assert edges.count.tolist() == [32, 32]
    edges = nearest_neighbours(rocksalt(), neighbours=30, cutoff=CUTOFF)
    assert edges.count.tolist() == [32, 32]
    edges = nearest_neighbours(rocksalt(), neighbours=33, cutoff=CUTOFF)
    assert edges.count.tolist() == [56, 56]


def test_reverse_is_an_involution_with_opposite_offsets():
    edges = nearest_neighbours(random_crystals(5), neighbours=12, cutoff=CUTOFF)
    assert torch.equal(edges.reverse[edges.reverse], torch.arange(len(edges.target)))
    assert torch.equal(edges.target[edges.reverse], edges.source)
    assert torch.equal(edges.offset[edges.reverse], -edges.offset)


def test_an_isolated_atom_has_no_edges():
    crystal = Crystals(
        20 * torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([2]), torch.tensor([1])
    )
    assert len(nearest_neighbours(crystal, neighbours=32, cutoff=CUTOFF).target) == 0


@pytest.fixture(params=[2048, 40])
def graph_and_edges(request, monkeypatch):
    """Build the same edges in one chunk and in many."""
    monkeypatch.setitem(graphs.CHUNK_EDGES, "cpu", request.param)
    edges = nearest_neighbours(random_crystals(7), neighbours=10, cutoff=CUTOFF)
    basis = GaussianBasis(16, cutoff=CUTOFF, exponent=5)
    graph = edge_graph(edges, basis, num_spherical=7)
    assert len(graph.chunks) == (1 if request.param == 2048 else 3)
    return graph, edges


def triplet_loop(layer: BilinearTriplets, m, radial, edges) -> torch.Tensor:
    """Sum over explicit triplets, one by one, with scipy's Legendre polynomials."""
    circular = (radial @ layer.circular.weight.T).view(-1, layer.cbf, layer.num_spherical)
    circular = layer.scale * circular
    weight = layer.bilinear.weight.view(-1, layer.cbf, layer.triplet)
    rows = []
    for a in range(len(m)):
        total = torch.zeros(weight.shape[0], dtype=m.dtype)
        for b in range(len(m)):
            if a == b or edges.target[a] != edges.target[b]:
                continue
            u = edges.vector[a] / edges.vector[a].norm()
            v = edges.vector[b] / edges.vector[b].norm()
            cosine = float((u @ v).clamp(-1, 1))
            y = torch.tensor(
                [
                    math.sqrt((2 * n + 1) / (4 * math.pi)) * float(eval_legendre(n, cosine))
                    for n in range(layer.num_spherical)
                ],
                dtype=m.dtype,
            )
            total = total + torch.einsum("oif,i,f->o", weight, circular[a] @ y, m[b])
        rows.append(total)
    return torch.stack(rows)


def test_bilinear_layer_is_the_sum_over_triplets_in_value_and_gradient(graph_and_edges):
    graph, edges = graph_and_edges
    torch.manual_seed(0)
    layer = BilinearTriplets(triplet=5, rbf=4, cbf=3, num_spherical=7, out=6, scale=0.3).double()
    m = torch.randn(len(edges.target), 5).double().requires_grad_()
    radial = torch.randn(len(edges.target), 4).double().requires_grad_()
    sizes = [len(chunk.target) for chunk in graph.chunks]
    (ours,) = graph.map(
        lambda a, b, chunk: (layer(a, b, chunk),), m.split(sizes), radial.split(sizes)
    )
    ours = torch.cat(ours)
    expected = triplet_loop(layer, m, radial, edges)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    probe = torch.randn_like(ours)
    leaves = [m, radial, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_joined_dense_is_one_layer_on_the_concatenation():
    torch.manual_seed(1)
    layer = JoinedDense(4, 3, 5).double()
    h, m = torch.randn(6, 4).double(), torch.randn(9, 3).double()
    source, target = torch.randint(0, 6, (2, 9))
    s, t = layer.per_atom(h)
    joined = torch.cat([h[source], h[target], m], dim=1) @ layer.weight.T
    expected = torch.nn.functional.silu(joined) / 0.6
    torch.testing.assert_close(layer(m, s[source], t[target]), expected)


def test_he_orthogonal_rows_have_the_documented_variance():
    weight = he_orthogonal_(torch.empty(128, 128))
    torch.testing.assert_close(weight.square().mean(1), torch.full((128,), 1 / 128))


def test_chunks_hold_every_edge_once_in_order(graph_and_edges):
    graph, edges = graph_and_edges
    atoms = torch.arange(len(edges.count)).double()[:, None]
    targets = torch.cat([c.of_targets(atoms) for c in graph.chunks])[:, 0]
    sources = torch.cat([c.of_sources(atoms) for c in graph.chunks])[:, 0]
    assert torch.equal(targets.long(), edges.target)
    assert torch.equal(sources.long(), edges.source)
    index = torch.arange(len(edges.target)).split([len(c.target) for c in graph.chunks])
    assert torch.equal(torch.cat(graph.of_reverse(index)), edges.reverse)


def plain_residual(layer: Residual, x: torch.Tensor) -> torch.Tensor:
    silu = torch.nn.functional.silu
    inner = silu(x @ layer.inner.weight.T) / 0.6
    return (x + silu(inner @ layer.outer.weight.T) / 0.6) / math.sqrt(2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_residual_and_filter_have_the_derivatives_of_their_formulas(dtype, tolerance):
    torch.manual_seed(2)
    layer, narrow = Residual(8).to(dtype), Dense(3, 8, activation=False).to(dtype)
    x = torch.randn(50, 8, dtype=dtype, requires_grad=True)
    r = torch.randn(50, 3, dtype=dtype, requires_grad=True)
    ours = filtered(layer(x), r, narrow)
    plain = plain_residual(layer, x) * (r @ narrow.weight.T)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    leaves = [x, r, *layer.parameters(), *narrow.parameters()]
    probe = torch.randn_like(ours)
    of_ours = torch.autograd.grad((ours * probe).sum(), leaves)
    of_plain = torch.autograd.grad((plain * probe).sum(), leaves)
    for a, b in zip(of_ours, of_plain, strict=True):
        assert (a - b).abs().max() < 10 * tolerance * b.abs().max()
    # Without the constant of the inner SiLU the comparison fails, by far.
    wrong = of_plain[2] * 0.6
    assert (of_ours[2] - wrong).abs().max() > 0.1 * wrong.abs().max()


def test_layers_give_the_same_with_and_without_gradients():
    """Without gradients SiLU writes over its input; what callers hold must stay."""
    torch.manual_seed(3)
    layer, x = Dense(4, 5, activation=True), torch.randn(7, 4)
    before, kept = layer(x), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before.detach(), rtol=0, atol=0)
    assert torch.equal(x, kept)

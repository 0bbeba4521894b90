"""The paper preset's network against its formulas, written out plainly."""

import itertools
from dataclasses import replace

import pytest
import torch

from crystorus.config import GemsNetConfig
from crystorus.geometry.crystals import Crystals
from crystorus.networks.gemsnet import GemsNetDenoiser
from crystorus.networks.gemsnet import graph as graphs
from crystorus.networks.gemsnet.fields import symmetric_matrix
from crystorus.networks.gemsnet.graph import GaussianBasis, edge_graph
from crystorus.networks.gemsnet.heads import LatticeHead, PositionHead, sum_of_fields
from crystorus.networks.gemsnet.layers import Residual
from crystorus.networks.gemsnet.neighbours import nearest_neighbours
from crystorus.networks.gemsnet.network import AtomEmbedding

SMALL = GemsNetConfig(
    blocks=2, atom=16, edge=16, triplet=8, rbf=4, cbf=4, bilinear=8, num_radial=32, field_rank=3
)


def random_crystals(sizes=(5, 2, 9), seed: int = 0) -> Crystals:
    g = torch.Generator().manual_seed(seed)
    n = torch.tensor(sizes)
    cells = torch.eye(3).double() + 0.2 * torch.randn(len(n), 3, 3, generator=g).double()
    scale = (18.0 * n / torch.linalg.det(cells).abs()) ** (1 / 3)
    frac = torch.rand(int(n.sum()), 3, generator=g).double()
    z = torch.randint(1, 119, (int(n.sum()),), generator=g)
    return Crystals(cells * scale[:, None, None], frac, z, n)


def denoiser(config: GemsNetConfig = SMALL) -> GemsNetDenoiser:
    torch.manual_seed(0)
    return GemsNetDenoiser(config).double()


def test_defaults_are_the_papers():
    config = GemsNetConfig()
    assert (config.blocks, config.atom, config.edge, config.triplet) == (3, 128, 128, 32)
    assert (config.rbf, config.cbf, config.bilinear, config.num_spherical) == (16, 16, 64, 7)
    layers = (config.before_skip, config.after_skip, config.concat, config.atom_layers)
    assert layers == (1, 2, 1, 3)
    assert (config.neighbours, config.cutoff) == (32, 6.0)
    size = sum(p.numel() for p in GemsNetDenoiser(config).parameters())
    assert 2.2e6 < size < 3.0e6  # about 2.8 M in the paper


def test_embedding_is_eq_8():
    embedding = AtomEmbedding(6, time=True).double()
    crystals, t = random_crystals((2, 1)), torch.tensor([1, 73])
    ours = embedding(crystals, t)
    for atom, step in enumerate([1, 1, 73]):
        z = crystals.atomic_numbers[atom]
        for k in range(3):
            phase = torch.tensor(step / 10_000 ** (2 * k / 6), dtype=torch.float64)
            vector = embedding.element.weight[z - 1].double()
            expected = torch.stack([phase.sin() + vector[2 * k], phase.cos() + vector[2 * k + 1]])
            torch.testing.assert_close(ours[atom, 2 * k : 2 * k + 2], expected)


def test_position_head_is_the_sum_of_appendix_a():
    config = SMALL
    torch.manual_seed(1)
    head = PositionHead(edge=16, num_radial=32, rbf=4).double()
    edges = nearest_neighbours(random_crystals(), neighbours=6, cutoff=6.0)
    graph = edge_graph(edges, GaussianBasis(32, cutoff=6.0, exponent=5), num_spherical=7)
    m = torch.randn(len(edges.target), config.edge).double()
    silu = torch.nn.functional.silu
    expected = torch.zeros(16, 3).double()
    for edge, i in enumerate(edges.target.tolist()):
        hidden = silu(head.hidden.weight @ m[edge]) / 0.6
        filtered = head.filter.weight @ (head.radial.weight @ graph.chunks[0].gaussians[edge])
        w = head.weight.weight[0] @ (hidden * filtered)
        expected[i] -= w * edges.offset[edge] / edges.distance[edge]
    torch.testing.assert_close(head([m], graph), expected)


def field(invariant, lattice: torch.Tensor) -> torch.Tensor:
    """Differentiate an invariant with respect to g at g = I."""
    g = torch.eye(3, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(invariant(g @ lattice), g)[0]


def test_lattice_head_is_the_double_sum_of_appendix_a():
    """Every pair of Γ₂ of two layers by itself, with λ from automatic differentiation."""
    torch.manual_seed(2)
    heads = [LatticeHead(edge=16, hidden=8, num_radial=32, rbf=4, rank=3).double() for _ in "ab"]
    crystals = random_crystals((3,), seed=4)
    edges = nearest_neighbours(crystals, neighbours=6, cutoff=6.0)
    graph = edge_graph(edges, GaussianBasis(32, cutoff=6.0, exponent=5), num_spherical=7)
    layers = [torch.randn(len(edges.target), SMALL.edge).double() for _ in heads]
    silu, gaussians = torch.nn.functional.silu, graph.chunks[0].gaussians
    factors = []
    for head, m in zip(heads, layers, strict=True):
        product = (silu(m @ head.hidden.weight.T) / 0.6) @ head.factors.weight.T
        product = product * (gaussians @ head.radial.weight.T @ head.filter.weight.T)
        factors.append((product * 3**-0.25).view(len(m), 3, 2, 3))
    first, second = torch.cat(factors, -1).unbind(2)
    rho = crystals.lattice[0]
    expected = torch.zeros(3, 3, 3).double()
    for a, b in itertools.permutations(range(len(m)), 2):
        if edges.target[a] != edges.target[b]:
            continue
        e, f = edges.offset[a], edges.offset[b]

        def angle(cell, e=e, f=f):
            u, v = cell @ e, cell @ f
            return torch.atan2(torch.linalg.cross(u, v).norm(), u @ v)

        fields = (
            # a(γ) b(γ') weights ∂r_γ, then a(γ) b(γ') with γ and γ' exchanged weights ∂r_γ'.
            (first[a, 0] @ second[b, 0]) * field(lambda cell, e=e: (cell @ e).norm(), rho)
            + (first[b, 1] @ second[a, 1]) * field(lambda cell, f=f: (cell @ f).norm(), rho)
            + (first[a, 2] @ second[b, 2]) * field(angle, rho)
        )
        expected[edges.target[a]] += fields
    ours = sum_of_fields(heads, [[m] for m in layers], graph)
    torch.testing.assert_close(symmetric_matrix(ours), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("decode_from", ["cubic", "noisy"])
def test_both_decodings_apply_one_action(decode_from):
    """Eq. 11 gives y^ρ I₃, Eq. 9c gives y^ρ ρ, with y^ρ symmetric and the same y^x."""
    crystals, t = random_crystals(), torch.tensor([1, 50, 100])
    action = denoiser()(crystals, t)
    torch.testing.assert_close(action.lattice, action.lattice.mT)
    other = denoiser(replace(SMALL, decode_from=decode_from))(crystals, t)
    start = crystals.lattice if decode_from == "noisy" else torch.eye(3).double()
    torch.testing.assert_close(other.lattice, action.lattice @ start)
    torch.testing.assert_close(other.displacement, action.displacement)
    assert action.strain is None


def test_crystals_of_a_batch_do_not_see_each_other():
    net, crystals, t = denoiser(), random_crystals(), torch.tensor([3, 40, 90])
    together = net(crystals, t)
    alone = [net(c, s) for c, s in zip(crystals.split(), t.split(1), strict=True)]
    torch.testing.assert_close(together.lattice, torch.cat([p.lattice for p in alone]))
    torch.testing.assert_close(together.displacement, torch.cat([p.displacement for p in alone]))


def gradients(net: GemsNetDenoiser, crystals: Crystals) -> list[torch.Tensor]:
    prediction = net(crystals, torch.tensor([3, 40, 90]))
    loss = (prediction.lattice - 2).square().sum() + (prediction.displacement - 1).square().sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


def plain_residual(layer: Residual, x: torch.Tensor) -> torch.Tensor:
    return (x + layer.outer(layer.inner(x))) * 2**-0.5


def test_chunks_and_own_derivatives_leave_gradients_as_they_are(monkeypatch):
    net, crystals = denoiser(), random_crystals()
    ours = gradients(net, crystals)
    monkeypatch.setitem(graphs.CHUNK_EDGES, "cpu", 100)
    many = gradients(net, crystals)
    monkeypatch.setitem(graphs.CHUNK_EDGES, "cpu", 10**6)
    monkeypatch.setattr(Residual, "forward", plain_residual)
    plain = gradients(net, crystals)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(many, plain, rtol=1e-9, atol=1e-12)


def test_values_with_and_without_gradients_are_equal():
    net, crystals, t = denoiser().float(), random_crystals().to(dtype=torch.float32), [3, 40, 90]
    kept = net(crystals, torch.tensor(t))
    with torch.no_grad():
        free = net(crystals, torch.tensor(t))
    torch.testing.assert_close(free.displacement, kept.displacement, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(free.lattice, kept.lattice, rtol=1e-5, atol=1e-7)


def test_gradient_is_that_of_finite_differences():
    net, crystals = denoiser(), random_crystals((4, 2, 3))
    grads = gradients(net, crystals)
    torch.manual_seed(3)
    directions = [torch.randn_like(p) for p in net.parameters()]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))

    def loss(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(net.parameters(), directions, strict=True):
                p.add_(step * d)
            y = net(crystals, torch.tensor([3, 40, 90]))
            for p, d in zip(net.parameters(), directions, strict=True):
                p.sub_(step * d)
            return float((y.lattice - 2).square().sum() + (y.displacement - 1).square().sum())

    measured = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "switches",
    [{}, {"decode_from": "noisy"}, {"time_embedding": False}, {"encoder": False}],
    ids=str,
)
def test_every_parameter_receives_a_gradient(switches):
    """No dead branches, whatever Table 4 switches off."""
    net = denoiser(replace(SMALL, **switches))
    for name, grad in zip(
        dict(net.named_parameters()), gradients(net, random_crystals()), strict=True
    ):
        used = grad if "element" not in name else grad[grad.abs().sum(1) > 0]
        assert (used != 0).float().mean() > 0.99, name


def test_switches_of_table_4():
    crystals = random_crystals()
    early, late = torch.tensor([1, 1, 1]), torch.tensor([100, 100, 100])
    with_time, without = denoiser(), denoiser(replace(SMALL, time_embedding=False))
    same = without(crystals, early).displacement == without(crystals, late).displacement
    assert same.all()
    assert not torch.allclose(
        with_time(crystals, early).displacement, with_time(crystals, late).displacement
    )
    names = dict(denoiser(replace(SMALL, encoder=False)).named_parameters())
    assert not any(name.startswith(("encoder", "join")) for name in names)


def test_encoder_mean_reaches_every_atom():
    """Two copies of a molecule out of each other's reach still share the crystal's mean."""
    cell = torch.diag(torch.tensor([40.0, 10.0, 10.0])).double()[None]
    frac = torch.tensor([[0.0, 0, 0], [0.03, 0, 0], [0.5, 0, 0]]).double()
    crystal = Crystals(cell, frac, torch.tensor([6, 8, 1]), torch.tensor([3]))
    changed = replace(crystal, atomic_numbers=torch.tensor([6, 8, 9]))
    t = torch.tensor([10])
    net, blind = denoiser(), denoiser(replace(SMALL, encoder=False))
    moved = net(crystal, t).displacement - net(changed, t).displacement
    assert moved[:2].abs().max() > 1e-12
    moved = blind(crystal, t).displacement - blind(changed, t).displacement
    assert moved[:2].abs().max() == 0


def test_edges_fade_out_at_the_cutoff():
    """A pair that crosses 6 Å: the displacement goes to zero, without a step."""
    cell = 30 * torch.eye(3).double()[None]

    def pull(distance: float) -> float:
        frac = torch.tensor([[0.0, 0, 0], [distance / 30, 0, 0]]).double()
        crystal = Crystals(cell, frac, torch.tensor([6, 8]), torch.tensor([2]))
        return float(denoiser()(crystal, torch.tensor([10])).displacement.detach().abs().max())

    assert pull(3.0) > 1e-6
    assert pull(5.999) < 1e-6 * pull(3.0)
    assert pull(6.001) == 0


@pytest.mark.parametrize("volume", [0.05, 1.0, 1e4])
def test_extreme_volumes_and_coinciding_atoms_stay_finite(volume: float):
    crystals = random_crystals((20, 1))
    cell = torch.eye(3).double().repeat(2, 1, 1) * volume ** (1 / 3)
    frac = crystals.frac_coords.clone()
    frac[1] = frac[0]
    crystals = crystals.with_geometry(cell, frac)
    net = denoiser()
    prediction = net(crystals, torch.tensor([5, 5]))
    loss = prediction.lattice.sum() + prediction.displacement.sum()
    grads = torch.autograd.grad(loss, list(net.parameters()))
    assert prediction.displacement.isfinite().all()
    assert prediction.lattice.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.slow
def test_it_learns_one_batch():
    """Positions and cells of three crystals are memorised: the loss falls fivefold."""
    torch.manual_seed(0)
    net, crystals = GemsNetDenoiser(SMALL), random_crystals().to(dtype=torch.float32)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    target = 0.1 * torch.randn(16, 3)
    target -= target.mean(0)
    losses = []
    for _ in range(150):
        p = net(crystals, torch.tensor([1, 2, 3]))
        lengths = p.lattice.norm(dim=1) - torch.tensor([3.0, 4.0, 5.0])
        loss = (p.displacement - target).square().mean() + 0.01 * lengths.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]

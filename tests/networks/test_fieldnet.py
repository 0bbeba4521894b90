"""Eq. 10 for the default preset: one check per symmetry, each with a control that must fail."""

import itertools
from collections.abc import Callable

import pytest
import torch
from groups import orthogonal, unimodular
from prototypes import all_prototypes, left_handed, triclinic

from crystorus.config import FieldNetConfig
from crystorus.diffusion.noise_levels import geometric_levels
from crystorus.diffusion.torus import TorusProcess
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.crystals import mean_per_crystal
from crystorus.geometry.symmetry import permute, retile, rotate, translate
from crystorus.geometry.torus import wrap
from crystorus.networks import fieldnet
from crystorus.networks.embedding import element_descriptors
from crystorus.networks.fieldnet import FieldDenoiser, FieldNet

STEPS = 1000
TOLERANCE = 1e-9
BROKEN = 1e-4
SMALL = FieldNetConfig(
    channels=32, vector_channels=8, tensor_channels=8, pair_channels=16, gate_channels=8, blocks=2
)
CRYSTALS = all_prototypes()


def build(config: FieldNetConfig = SMALL, seed: int = 0) -> FieldDenoiser:
    """A network with random weights everywhere, the ones that start at zero too."""
    torch.manual_seed(seed)
    torus = TorusProcess(geometric_levels(0.01, 0.5, STEPS))
    sigma = geometric_levels(0.01, 0.45, STEPS)[:, None].expand(-1, 6)
    denoiser = FieldDenoiser(
        FieldNet(config, steps=STEPS), displacement_rms=torus.target_rms, strain_sigma=sigma
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return denoiser.double().eval()


@pytest.fixture(scope="module")
def denoiser() -> FieldDenoiser:
    return build()


def noisy(crystal: Crystals, seed: int = 0) -> Crystals:
    """Shake the atoms, so that no field vanishes by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    shake = 0.05 * torch.randn(crystal.frac_coords.shape, generator=generator).double()
    return crystal.with_geometry(crystal.lattice, wrap(crystal.frac_coords + shake))


T = torch.tensor([600])


def error(ours: Prediction, displacement: torch.Tensor, strain: torch.Tensor) -> float:
    """Largest deviation of either field, relative to the field's size."""
    x = (ours.displacement - displacement).abs().max() / displacement.abs().max().clamp_min(1e-3)
    rho = (ours.strain - strain).abs().max() / strain.abs().max()
    return float(torch.maximum(x, rho))


def rotation_error(f: Callable, crystal: Crystals, determinant: int = 1) -> float:
    g, base = orthogonal(1, determinant), f(crystal, T)
    return error(f(rotate(crystal, g), T), base.displacement, g @ base.strain @ g.T)


def reflection_error(f: Callable, crystal: Crystals) -> float:
    return rotation_error(f, crystal, -1)


def translation_error(f: Callable, crystal: Crystals) -> float:
    base = f(crystal, T)
    shift = torch.tensor([0.31, -0.73, 0.05], dtype=torch.float64)
    return error(f(translate(crystal, shift), T), base.displacement, base.strain)


def permutation_error(f: Callable, crystal: Crystals) -> float:
    base = f(crystal, T)
    order = torch.randperm(len(crystal.frac_coords), generator=torch.Generator().manual_seed(2))
    return error(f(permute(crystal, order), T), base.displacement[order], base.strain)


def retiling_error(f: Callable, crystal: Crystals) -> float:
    base, g = f(crystal, T), unimodular(3)
    return error(f(retile(crystal, g), T), base.displacement @ g.double().T, base.strain)


CHECKS = {
    "rotation": rotation_error,
    "reflection": reflection_error,
    "translation": translation_error,
    "permutation": permutation_error,
    "re-tiling": retiling_error,
}


@pytest.mark.parametrize("name", list(CRYSTALS))
@pytest.mark.parametrize("symmetry", list(CHECKS))
def test_default_network_is_equivariant(denoiser, symmetry, name):
    assert CHECKS[symmetry](denoiser, noisy(CRYSTALS[name])) < TOLERANCE


@pytest.mark.parametrize("name", ["fcc", "rocksalt", "perovskite", "spinel", "wurtzite"])
@pytest.mark.parametrize("symmetry", list(CHECKS))
def test_ties_of_perfect_crystals_do_not_matter(denoiser, symmetry, name):
    assert CHECKS[symmetry](denoiser, CRYSTALS[name]) < 1e-6


class Broken:
    """The denoiser with one input or output that knows what it should not."""

    def __init__(self, denoiser: FieldDenoiser, leak: str) -> None:
        self.denoiser, self.leak = denoiser, leak

    def __call__(self, crystals: Crystals, t: torch.Tensor) -> Prediction:
        p = self.denoiser(crystals, t)
        lattice, x, n = crystals.lattice, crystals.frac_coords, len(crystals.frac_coords)
        strain, displacement = p.strain, p.displacement
        if self.leak == "rotation":
            strain = strain * (1 + 0.1 * lattice[:, :1, :1])
        elif self.leak == "reflection":
            strain = strain * (1 + 0.1 * torch.linalg.det(lattice).sign()[:, None, None])
        elif self.leak == "translation":
            strain = strain * (1 + 0.1 * x[:1, :1, None])
        elif self.leak == "permutation":
            displacement = displacement * torch.linspace(0.5, 1.5, n).double()[:, None]
        else:
            strain = strain * (1 + 0.1 * lattice.norm(dim=1)[:, :1, None])
        return Prediction(p.lattice, displacement, strain)


@pytest.mark.parametrize("symmetry", list(CHECKS))
def test_every_check_can_fail(denoiser, symmetry):
    assert CHECKS[symmetry](Broken(denoiser, symmetry), noisy(triclinic())) > BROKEN


def test_neighbour_edges_of_one_image_are_the_negative_control(denoiser):
    """Minimum images in a skewed basis see another crystal than the lattice sums do."""
    crystal = noisy(CRYSTALS["rocksalt"])
    skew = retile(crystal, torch.tensor([[1, 2, 0], [0, 1, 0], [0, 3, 1]]))

    def nearest(c: Crystals) -> torch.Tensor:
        delta = c.frac_coords[1] - c.frac_coords[0]
        return (c.lattice[0] @ (delta - delta.round())).norm()

    assert abs(nearest(crystal) - nearest(skew)) > 0.1
    assert retiling_error(denoiser, crystal) < TOLERANCE


def test_real_crystals_are_treated_alike_in_every_basis(denoiser, mp20):
    from crystal_fidelity.reading import iter_structures
    from crystorus.data.convert import join

    for crystal in itertools.islice(iter_structures(mp20 / "val.csv.gz"), 8):
        for check in CHECKS.values():
            assert check(denoiser, noisy(join([crystal]))) < TOLERANCE


def test_supercells_are_crystals_of_their_own(denoiser):
    """Not a symmetry of the process: noise is a fraction of the cell (docs/method.md)."""
    from crystorus.geometry.symmetry import supercell

    crystal = noisy(CRYSTALS["rutile"])
    base, large = denoiser(crystal, T), denoiser(supercell(crystal, (2, 1, 1)), T)
    copies = large.displacement.unflatten(0, (-1, 2))
    # The copies of an atom move together, and the strain shares the crystal's symmetry …
    torch.testing.assert_close(copies[:, 0], copies[:, 1])
    # … but the size of the cell is an input, so the fields are not those of the small cell.
    assert (large.strain - base.strain).abs().max() > BROKEN


def test_groups_hold_all_crystals_and_little_padding():
    sizes = sorted([1, 2, 3, 5, 8, 8, 9, 14, 20, 20, 19, 17] * 8, reverse=True)
    groups = fieldnet.size_groups(sizes, 1000)
    assert sum(groups) == len(sizes)
    assert len(groups) > 3
    padded, first = 0, 0
    for count in groups:
        padded += count * sizes[first] ** 2
        first += count
    real = sum(n * n for n in sizes)
    assert padded < 1.5 * real < len(sizes) * 20**2
    assert fieldnet.size_groups(sizes, 10**9) == [len(sizes)]
    assert fieldnet.size_groups([7] * 5, 0) == [5]


@pytest.mark.parametrize("pairs", [1, 10**9])
def test_batching_and_padding_change_nothing(denoiser, pairs, monkeypatch):
    monkeypatch.setitem(fieldnet.GROUP_PAIRS, "cpu", pairs)
    crystals = [noisy(c) for c in CRYSTALS.values()]
    t = torch.randint(1, STEPS, (len(crystals),), generator=torch.Generator().manual_seed(0))
    together = denoiser(Crystals.concat(crystals), t)
    sizes = [len(c.frac_coords) for c in crystals]
    for n, part in enumerate(together.displacement.split(sizes)):
        alone = denoiser(crystals[n], t[n : n + 1])
        torch.testing.assert_close(alone.displacement, part, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(alone.strain, together.strain[n : n + 1])


def test_prediction_applies_the_strain(denoiser):
    crystal = noisy(triclinic())
    p = denoiser(crystal, T)
    applied = torch.linalg.matrix_exp(p.strain) @ p.lattice
    torch.testing.assert_close(applied, crystal.lattice)
    torch.testing.assert_close(p.strain, p.strain.mT)
    assert mean_per_crystal(p.displacement, crystal).abs().max() < 1e-12
    assert torch.linalg.det(denoiser(left_handed(), T).lattice)[0] < 0


def test_fields_are_smooth_in_the_positions(denoiser):
    """A neighbour that enters the cutoff, or an atom that crosses the cell's face, is no jump."""
    crystal = noisy(triclinic())
    path = torch.linspace(-0.02, 0.02, 41, dtype=torch.float64)
    values = []
    for s in path:
        frac = crystal.frac_coords.clone()
        frac[0, 0] = s
        values.append(denoiser(crystal.with_geometry(crystal.lattice, wrap(frac)), T).strain)
    values = torch.stack(values)
    first, second = values.diff(dim=0), values.diff(n=2, dim=0)
    assert second.abs().max() < 0.1 * first.abs().max()


@pytest.mark.parametrize("steps", [1, 1000])
def test_every_parameter_learns(steps):
    denoiser = build().float()
    crystals = Crystals.concat([noisy(c) for c in CRYSTALS.values()]).to(dtype=torch.float32)
    p = denoiser(crystals, torch.full((len(crystals),), steps))
    (p.displacement.square().sum() + p.strain.square().sum()).backward()
    dead = [n for n, w in denoiser.named_parameters() if w.grad is None or not w.grad.any()]
    # The pair state after the last block feeds the edge weights, everything else the heads.
    assert dead == []


def test_noise_level_matters(denoiser):
    crystal = noisy(triclinic())
    low, high = denoiser(crystal, torch.tensor([10])), denoiser(crystal, torch.tensor([900]))
    assert (low.strain / 0.01 - high.strain / 0.3).abs().max() > 1e-3


def test_descriptors_cover_the_periodic_table():
    table = element_descriptors()
    assert table.shape[0] == 119
    assert torch.isfinite(table).all()
    assert len(torch.unique(table[1:], dim=0)) == 118
    assert table[1:95].mean(0).abs().max() < 0.1


def test_a_cell_that_breaks_the_network_leaves_its_batch_alone(denoiser):
    class Sick(torch.nn.Module):
        def forward(
            self, crystals: Crystals, t: torch.Tensor, precision
        ) -> fieldnet.FieldNetOutput:
            out = denoiser.network(crystals, t)
            strain = out.strain.clone()
            strain[0] = float("nan")
            return fieldnet.FieldNetOutput(out.displacement, strain)

    batch = Crystals.concat([noisy(CRYSTALS["rocksalt"]), noisy(CRYSTALS["perovskite"])])
    t = torch.tensor([600, 600])
    healthy = denoiser(batch, t)
    sick = FieldDenoiser(
        denoiser.network,
        displacement_rms=denoiser.displacement_rms,
        strain_sigma=denoiser.strain_sigma,
    )
    sick.network = Sick()
    found = sick.double().eval()(batch, t)
    assert torch.isfinite(found.lattice).all()
    torch.testing.assert_close(found.lattice[1], healthy.lattice[1])


@pytest.mark.parametrize("training", [False, True])
def test_larger_crystals_than_in_training_are_shown_as_the_largest(training):
    """What the network is told of the size stops at the limit, in sampling only."""
    net = build().network.train(training)
    seen = []
    net.size.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    crystal = CRYSTALS["rutile"]
    t = torch.tensor([500])
    net(crystal, t)
    net.max_atoms = 4
    net(crystal, t)
    free, limited = seen
    assert torch.equal(free[:, 0], limited[:, 0])
    n = torch.tensor(6.0 if training else 4.0, dtype=torch.float64)
    torch.testing.assert_close(limited[0, 1:], torch.stack([n.log() - 2, n / 10 - 1]))
    assert torch.equal(free, limited) == training
    net.max_atoms = 6
    net(crystal, t)
    assert torch.equal(free, seen[-1])


@torch.no_grad()
@pytest.mark.parametrize("pairs", [1, 100])
def test_rows_of_pairs_taken_a_few_at_a_time_give_the_same(denoiser, pairs, monkeypatch):
    crystals = Crystals.concat([noisy(CRYSTALS["spinel"]), noisy(CRYSTALS["rutile"])])
    t = torch.tensor([600, 30])
    whole = denoiser(crystals, t)
    monkeypatch.setattr(fieldnet, "PAIRS_AT_A_TIME", pairs)
    parts = denoiser(crystals, t)
    torch.testing.assert_close(parts.displacement, whole.displacement)
    torch.testing.assert_close(parts.strain, whole.strain)


def test_values_with_and_without_gradients_are_equal(denoiser):
    """Without gradients the pair state is written over."""
    crystal = noisy(CRYSTALS["perovskite"])
    kept = denoiser(crystal, T)
    with torch.no_grad():
        free = denoiser(crystal, T)
    torch.testing.assert_close(free.displacement, kept.displacement.detach())
    torch.testing.assert_close(free.strain, kept.strain.detach())


def test_bf16_is_a_rounding_of_fp32():
    denoiser, crystal = build().float(), noisy(CRYSTALS["rutile"]).to(dtype=torch.float32)
    exact, rounded = denoiser(crystal, T).strain, denoiser(crystal, T, "bf16").strain
    size = exact.abs().max()
    assert 1e-6 * size < (exact - rounded).abs().max() < 0.1 * size

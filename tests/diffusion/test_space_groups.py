"""Crystals that keep a space group: operations, sites, noise, cells, whole trajectories."""

import moyopy
import numpy as np
import pytest
import spglib
import torch
from prototypes import quartz, rocksalt, rutile, wurtzite
from scipy.stats import kstest

from crystal_fidelity.symmetry import dataset
from crystorus.checkpoint import load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.data.convert import split
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.diffusion.sampling import trajectory
from crystorus.diffusion.space_groups import Skeleton, SpaceGroups, SymmetricNoise
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import from_coefficients, symmetric_exp, symmetric_log
from crystorus.geometry.space_groups import images_in, operations, orbit, point_group, sites
from crystorus.geometry.torus import wrap_displacement

PUBLISHED = {1: 1, 2: 9, 47: 27, 62: 4, 139: 15, 166: 9, 194: 12, 221: 14, 225: 12, 227: 9, 230: 8}
"""Wyckoff positions, International Tables for Crystallography A."""


def random_skeleton(group: int, generator: np.random.Generator, limit: int = 16) -> Skeleton:
    """One orbit of two elements each on random sites, and one in general place where it fits."""
    fitting = [k for k, s in enumerate(sites(group)) if s.multiplicity <= limit]
    chosen = generator.choice(fitting, 2) if fitting else [0, 0]
    if chosen[0] == chosen[1] and sites(group)[chosen[0]].freedom == 0:
        chosen = chosen[:1]
    return Skeleton(group, tuple((z, int(k)) for z, k in zip((3, 9), chosen, strict=False)))


def batch(skeletons):
    numbers = [torch.tensor(s.atomic_numbers) for s in skeletons]
    return torch.cat(numbers), torch.tensor([len(z) for z in numbers]), SpaceGroups.of(skeletons)


def asymmetry(crystal: Crystals, group: int) -> float:
    """Largest distance in Å between an image of an atom and the nearest equal atom."""
    rotations, translations = operations(group)
    frac, rho = crystal.frac_coords.double().numpy(), crystal.lattice[0].double().numpy()
    numbers = crystal.atomic_numbers.numpy()
    images = np.einsum("gij,aj->gai", rotations, frac) + translations[:, None]
    apart = images[:, :, None] - frac
    distance = np.linalg.norm((apart - np.rint(apart)) @ rho.T, axis=-1)
    distance[:, numbers[:, None] != numbers] = np.inf
    return float(distance.min(-1).max())


def cell_asymmetry(crystal: Crystals, group: int) -> float:
    """Largest deviation of ρ R ρ⁻¹ from an orthogonal matrix."""
    rho = crystal.lattice[0].double().numpy()
    q = rho @ point_group(group) @ np.linalg.inv(rho)
    return float(np.abs(q @ q.transpose(0, 2, 1) - np.eye(3)).max())


def test_there_are_as_many_wyckoff_positions_as_the_tables_have():
    assert sum(len(sites(group)) for group in range(1, 231)) == 1731
    assert {group: len(sites(group)) for group in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("group", [2, 15, 62, 92, 146, 166, 186, 194, 205, 227, 230])
def test_orbits_are_closed_and_a_shifted_site_is_not(group):
    rotations, translations = operations(group)
    point = np.array([0.137, 0.291, 0.411])
    for number, site in enumerate(sites(group)):
        linear, offset = orbit(group, number)
        atoms = linear @ point + offset
        assert len(atoms) == site.multiplicity
        assert np.linalg.matrix_rank(site.projector, tol=1e-6) == site.freedom
        images = np.einsum("gij,aj->gai", rotations, atoms) + translations[:, None]
        assert closed(images, atoms)
        if site.freedom < 3:
            off = atoms + np.array([0.03, 0.011, -0.017])
            images = np.einsum("gij,aj->gai", rotations, off) + translations[:, None]
            assert not closed(images, off)


def closed(images, atoms) -> bool:
    apart = images[:, :, None] - atoms
    return bool(np.abs(apart - np.rint(apart)).max(-1).min(-1).max() < 1e-6)


def test_noise_of_a_free_atom_keeps_its_size_and_images_move_with_it():
    skeletons = [Skeleton(225, ((3, 0), (9, len(sites(225)) - 1)))] * 200
    _, n_atoms, groups = batch(skeletons)
    noise = SymmetricNoise(range(len(skeletons)), n_atoms, groups).normal_atoms()
    fixed, free = noise.view(200, -1, 3)[:, 0], noise.view(200, -1, 3)[:, 1]
    assert torch.equal(fixed, torch.zeros_like(fixed))
    assert kstest(free.flatten().numpy(), "norm").pvalue > 1e-3
    # Averaging independent noise over the orbit, as one might, makes it too small.
    plain = CrystalNoise(range(len(skeletons)), n_atoms).normal_atoms().view(200, -1, 3)
    assert kstest(plain[:, 1:].mean(1).flatten().numpy(), "norm").pvalue < 1e-3


def test_free_points_are_uniform_on_the_torus_of_their_site(monkeypatch):
    diagonal = next(
        k for k, s in enumerate(sites(221)) if s.freedom == 1 and s.projector.min() > 0.3
    )
    skeletons = [Skeleton(221, ((3, diagonal),))] * 2000
    _, n_atoms, groups = batch(skeletons)

    def first():
        points = SymmetricNoise(range(2000), n_atoms, groups).uniform_atoms()
        return points.view(2000, -1, 3)[:, 0, 0].numpy()

    assert kstest(first(), "uniform").pvalue > 1e-3
    monkeypatch.setattr("crystorus.diffusion.space_groups.MANY_CELLS", 1.0)
    assert kstest(first(), "uniform").pvalue < 1e-3


def test_cells_are_projected_to_the_nearest_compatible_ones():
    generator = torch.Generator().manual_seed(0)
    groups = [2, 12, 63, 88, 148, 166, 194, 216, 230]
    skeletons = [Skeleton(group, ((3, 0),)) for group in groups]
    laid_out = SpaceGroups.of(skeletons)
    cells = 4 * torch.eye(3, dtype=torch.float64) + 0.8 * torch.randn(
        len(groups), 3, 3, generator=generator, dtype=torch.float64
    )
    found = laid_out.compatible_cells(cells)
    assert torch.allclose(torch.linalg.det(found).abs(), torch.linalg.det(cells).abs())
    for group, before, after in zip(groups, cells, found, strict=True):
        crystal = Crystals(
            after[None], torch.zeros(1, 3).double(), torch.tensor([3]), torch.tensor([1])
        )
        assert cell_asymmetry(crystal, group) < 1e-8
        if group > 2:
            other = crystal.with_geometry(before[None], crystal.frac_coords)
            assert cell_asymmetry(other, group) > 1e-2
    assert torch.allclose(laid_out.compatible_cells(found), found, atol=1e-8)
    strain = from_coefficients(
        torch.randn(len(groups), 6, generator=generator, dtype=torch.float64)
    )
    kept = laid_out.project_strain(strain, found)
    q = found[:, None] @ laid_out.rotations.double() @ torch.linalg.inv(found)[:, None]
    assert torch.allclose(q @ kept[:, None], kept[:, None] @ q, atol=1e-8)
    assert torch.allclose(laid_out.project_strain(kept, found), kept, atol=1e-8)


def test_the_compatible_cell_is_the_nearest_one_for_needles_and_plates_too():
    generator = torch.Generator().manual_seed(1)
    groups = [12, 63, 148, 166, 194, 225, 230] * 10
    laid_out = SpaceGroups.of([Skeleton(group, ((3, 0),)) for group in groups])
    cells = torch.linalg.qr(torch.randn(70, 3, 3, generator=generator).double()).Q
    lengths = torch.exp(1.2 * torch.randn(70, 3, 1, generator=generator)).double()
    cells = lengths * cells + 0.1 * torch.eye(3)

    def pull(found):
        """The mean of log(Ḡ^(-1/2) RᵀGR Ḡ^(-1/2)), without its trace: zero at the nearest cell."""
        metric, images = found.mT @ found, laid_out.rotations.double()
        images = images.mT @ (cells.mT @ cells)[:, None] @ images
        root = torch.linalg.inv(symmetric_exp(symmetric_log(metric) / 2))[:, None]
        mean = torch.einsum(
            "cg,cgij->cij", laid_out.weights.double(), symmetric_log(root @ images @ root)
        )
        trace = mean.diagonal(dim1=1, dim2=2).mean(1)
        return (mean - trace[:, None, None] * torch.eye(3)).norm(dim=(1, 2))

    assert pull(laid_out.compatible_cells(cells)).quantile(0.9) < 0.01
    assert pull(laid_out.compatible_cells(cells, iterations=40)).max() < 1e-6
    arithmetic = laid_out.compatible_cells(cells, iterations=0)
    assert pull(arithmetic).quantile(0.9) > 0.1


FREE = [
    (136, 1, "x, x, 0: oblique in a tetragonal cell"),
    (166, 1, "along the axis of a rhombohedral cell"),
    (194, 1, "along the axis of a hexagonal cell"),
    (194, 2, "in a mirror plane of a hexagonal cell"),
    (225, 2, "in a mirror plane of a face-centred cell"),
    (62, 3, "general, several formula units"),
]


@pytest.mark.parametrize(("group", "freedom", "where"), FREE, ids=[one[2] for one in FREE])
def test_noise_of_every_free_parameter_is_standard_normal(group, freedom, where):
    number = next(k for k, s in enumerate(sites(group)) if s.freedom == freedom)
    projector, (linear, _) = sites(group)[number].projector, orbit(group, number)
    _, n_atoms, groups = batch([Skeleton(group, ((3, number),))] * 2000)
    drawn = SymmetricNoise(range(2000), n_atoms, groups).normal_atoms().view(2000, len(linear), 3)
    axes, spread, _ = np.linalg.svd(projector)
    first, averaged = drawn[:, 0].numpy(), torch.randn(2000, len(linear), 3).numpy()
    averaged = np.einsum("mij,nmj->ni", np.linalg.pinv(linear), averaged) / len(linear)
    for axis, size in zip(axes.T[:freedom], spread[:freedom], strict=True):
        assert kstest(first @ axis / size, "norm").pvalue > 1e-3
        assert kstest(averaged @ axis / size, "norm").pvalue < 1e-3
    assert np.abs(first @ axes.T[freedom:].T).max(initial=0) < 1e-5
    images = np.einsum("mij,nj->nmi", linear, first)
    assert np.abs(images - drawn.numpy()).max() < 1e-5


CRYSTALS = {
    "primitive": rocksalt(),
    "rhombohedral": quartz(),
    "hexagonal": wurtzite(),
    "several formula units": rutile(),
    "conventional": Crystals(
        5.6 * torch.eye(3, dtype=torch.float64)[None],
        torch.tensor([[a, b, c] for a in (0, 0.5) for b in (0, 0.5) for c in (0, 0.5)]).double(),
        torch.tensor([11, 17, 17, 11, 17, 11, 11, 17]),
        torch.tensor([8]),
    ),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_noise_in_the_cell_of_the_data_keeps_its_space_group(name):
    known = CRYSTALS[name]
    (crystal,) = split(known)
    found = dataset(crystal, 0.05)
    rotations, shifts = found.operations.rotations, found.operations.translations
    images = images_in(crystal, np.array(rotations, dtype=float), np.array(shifts))
    groups, generator = SpaceGroups.join([images]), torch.Generator().manual_seed(2)
    atoms = 0.02 * torch.randn(known.frac_coords.shape, generator=generator).double()
    cells = 0.1 * torch.randn(1, 6, generator=generator).double()
    for project in (True, False):
        noise, strain = groups.project_noise(atoms, cells, known.lattice)
        if not project:
            noise, strain = atoms, cells
        noisy = known.with_geometry(
            symmetric_exp(from_coefficients(strain)) @ known.lattice, known.frac_coords + noise
        )
        after = dataset(split(noisy)[0], 1e-4)
        assert (after.number == found.number) == project


def test_a_step_commutes_with_the_group(shipped):
    """What the network says of a symmetric crystal has its symmetry before it is projected."""
    generator = np.random.default_rng(4)
    chosen = [2, 14, 62, 129, 148, 166, 194, 205, 216, 225]
    numbers, n_atoms, groups = batch([random_skeleton(g, generator, limit=8) for g in chosen])
    lattice = groups.compatible_cells(4.5 * torch.eye(3) + 0.5 * torch.randn(len(chosen), 3, 3))
    free = torch.rand(len(numbers), 3)
    level = torch.full_like(n_atoms, shipped.diffusion.steps // 2)

    def deviation(frac_coords):
        crystals = Crystals(lattice, frac_coords, numbers, n_atoms)
        with torch.no_grad():
            said = shipped.denoiser(crystals, level)
        kept = groups.project_atoms(said.displacement)
        ratio = lattice @ torch.linalg.inv(said.lattice)
        strain = symmetric_log(ratio.mT @ ratio) / 2
        return (
            float((kept - said.displacement).norm() / said.displacement.norm()),
            float((groups.project_strain(strain, lattice) - strain).norm() / strain.norm()),
        )

    assert max(deviation(groups.positions(free))) < 1e-3
    assert min(deviation(free)) > 0.1


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint()


@pytest.mark.parametrize("name", ["bridge", "ode", "paper"])
def test_trajectories_keep_the_space_group_and_without_it_they_do_not(shipped, name):
    generator = np.random.default_rng(1)
    chosen = [2, 14, 62, 122, 129, 148, 166, 194, 205, 216, 225]
    skeletons = [random_skeleton(group, generator, limit=8) for group in chosen]
    numbers, n_atoms, groups = batch(skeletons)
    words = (shipped.denoiser, shipped.diffusion, numbers, n_atoms)
    sampler, seeds = SamplerConfig(name, 6, 20.0), list(range(len(chosen)))
    for step in trajectory(*words, sampler, seeds, groups=groups):
        for group, crystal in zip(chosen, step.split(), strict=True):
            assert asymmetry(crystal, group) < 2e-3
            assert cell_asymmetry(crystal, group) < 1e-3
    *_, free = trajectory(*words, sampler, seeds)
    off = [
        asymmetry(c, g)
        for g, c in zip(chosen, free.split(), strict=True)
        if len(c.atomic_numbers) > 2
    ]
    assert min(off) > 1e-2


def test_an_oracle_inside_the_group_returns_its_target(shipped):
    generator = np.random.default_rng(2)
    chosen = [14, 62, 139, 166, 194, 227]
    skeletons = [random_skeleton(group, generator, limit=8) for group in chosen]
    numbers, n_atoms, groups = batch(skeletons)
    lattice = groups.compatible_cells(5 * torch.eye(3).repeat(len(chosen), 1, 1))
    free = torch.rand(len(numbers), 3, generator=torch.Generator().manual_seed(5))
    target = Crystals(lattice, groups.positions(free), numbers, n_atoms)

    def oracle(noisy, t):
        ratio = noisy.lattice @ torch.linalg.inv(target.lattice)
        move = wrap_displacement(target.frac_coords - noisy.frac_coords)
        return Prediction(torch.linalg.inv(ratio) @ noisy.lattice, move)

    *_, found = trajectory(
        oracle,
        shipped.diffusion,
        numbers,
        n_atoms,
        SamplerConfig("bridge", 50),
        range(6),
        groups=groups,
    )
    apart = wrap_displacement(found.frac_coords - target.frac_coords)
    shift = torch.stack([a.mean(0) for a in apart.split(n_atoms.tolist())])
    assert (apart - shift.repeat_interleave(n_atoms, 0)).abs().max() < 1e-3
    metrics = [rho.mT @ rho for rho in (found.lattice, target.lattice)]
    assert torch.allclose(*metrics, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_every_space_group_that_is_asked_for_is_obtained(shipped):
    generator, obtained = np.random.default_rng(3), []
    skeletons = [random_skeleton(group, generator, limit=24) for group in range(1, 231)]
    for start in range(0, 230, 23):
        some = skeletons[start : start + 23]
        numbers, n_atoms, groups = batch(some)
        crystals = shipped.sample(
            numbers,
            n_atoms,
            seeds=list(range(len(some))),
            sampler=SamplerConfig("bridge", 4),
            groups=groups,
        )
        for skeleton, crystal in zip(some, crystals.split(), strict=True):
            cell = (
                crystal.lattice[0].T.numpy(),
                crystal.frac_coords.numpy(),
                crystal.atomic_numbers.numpy(),
            )
            order = len(operations(skeleton.group)[0])
            by_spglib = spglib.get_symmetry_dataset(cell, symprec=1e-3)
            by_moyo = moyopy.MoyoDataset(moyopy.Cell(*map(np.ndarray.tolist, cell)), symprec=1e-3)
            for found, operations_found in (
                (by_spglib.number, by_spglib.rotations),
                (by_moyo.number, by_moyo.operations.rotations),
            ):
                obtained.append(found == skeleton.group or len(operations_found) >= order)
    assert len(obtained) == 460
    assert all(obtained)

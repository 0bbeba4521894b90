"""Crystals that keep a space group: operations, sites, noise, cells, whole trajectories."""

import moyopy
import numpy as np
import pytest
import spglib
import torch
from scipy.stats import kstest

from crystorus.checkpoint import load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.diffusion.sampling import trajectory
from crystorus.diffusion.space_groups import Skeleton, SpaceGroups, SymmetricNoise
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import from_coefficients
from crystorus.geometry.space_groups import operations, orbit, point_group, sites
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

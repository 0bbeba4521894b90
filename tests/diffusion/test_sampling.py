"""Algorithms 1 and 2: an oracle denoiser is brought back to its target by every sampler."""

import pytest
import torch
from oracle import Oracle, default_diffusion, paper_diffusion, targets
from prototypes import all_prototypes
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystorus.config import SamplerConfig
from crystorus.diffusion.losses import draw_normals, losses_at_noise
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.diffusion.process import Denoiser
from crystorus.diffusion.sampling import Start, refinement_start, sample, trajectory
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.torus import shortest_displacement


def to_structures(crystals: Crystals) -> list[Structure]:
    return [
        Structure(
            Lattice(c.lattice[0].T.double().numpy()),
            c.atomic_numbers.tolist(),
            c.frac_coords.double().numpy(),
        )
        for c in crystals.split()
    ]


def match_rate(found: Crystals, wanted: Crystals) -> float:
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    pairs = list(zip(to_structures(found), to_structures(wanted), strict=True))
    return sum(
        (r := matcher.get_rms_dist(a, b)) is not None and r[0] < 0.02 for a, b in pairs
    ) / len(pairs)


@pytest.mark.parametrize(
    "diffusion", [default_diffusion(), paper_diffusion()], ids=["default", "paper"]
)
@pytest.mark.parametrize("name", ["paper", "bridge", "ode"])
@pytest.mark.parametrize("anti_annealing", [0.0, 1.0])
def test_oracle_is_brought_back_to_its_target(diffusion, name, anti_annealing):
    target = targets()
    found = sample(
        Oracle(target),
        diffusion,
        target.atomic_numbers,
        target.n_atoms,
        SamplerConfig(name, 25, anti_annealing),
        seeds=range(len(target)),
    )
    assert match_rate(found, target) == 1.0
    torch.testing.assert_close(found.volume, target.volume, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "diffusion", [default_diffusion(), paper_diffusion()], ids=["default", "paper"]
)
@pytest.mark.parametrize("name", ["paper", "bridge", "ode"])
@pytest.mark.parametrize(
    ("steps", "first", "last"), [(1, 1.0, 0.0), (3, 0.5, 0.5), (10, 0.93, 0.16), (10, 0.2, 0.0)]
)
def test_oracle_brings_few_cold_steps_from_any_first_level_to_its_target(
    diffusion, name, steps, first, last
):
    target = targets()
    sampler = SamplerConfig(
        name,
        steps,
        10.0,
        first_fraction=first,
        last_fraction=last,
        temperature=0.3,
        over_relaxation=1.5,
    )
    seeds = range(len(target))
    found = sample(Oracle(target), diffusion, target.atomic_numbers, target.n_atoms, sampler, seeds)
    assert match_rate(found, target) == 1.0
    torch.testing.assert_close(found.volume, target.volume, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("last", "levels"), [(0.0, [80, 60, 40, 20]), (0.5, [80, 70, 60, 50])])
def test_levels_fall_evenly_from_its_first_level_towards_its_last(last, levels):
    target, seen = targets(), []

    class Watched(Oracle):
        def __call__(self, crystals, t):
            seen.append(t.tolist())
            return super().__call__(crystals, t)

    sampler = SamplerConfig("bridge", 4, first_fraction=0.8, last_fraction=last)
    sample(
        Watched(target), default_diffusion(), target.atomic_numbers, target.n_atoms, sampler,
        seeds=range(5),
    )  # fmt: skip
    assert seen == [[level] * 5 for level in levels]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_temperature_scales_the_noise_of_a_bridge(temperature):
    """One step of a still crystal: its spread is the bridge's times the temperature."""
    one = all_prototypes()["rocksalt"].to(dtype=torch.float32)
    crystals = Crystals.concat([one] * 400)
    diffusion, frames = default_diffusion(), []

    class Still:
        def __call__(self, crystals, t):
            zero = torch.zeros_like(crystals.frac_coords)
            return Prediction(crystals.lattice, zero, torch.zeros_like(crystals.lattice))

    level = torch.full((len(crystals),), 40)
    sample(
        Still(), diffusion, crystals.atomic_numbers, crystals.n_atoms,
        SamplerConfig("bridge", 2, temperature=temperature), range(len(crystals)),
        start=Start(crystals, level, noised=False),
        on_step=lambda done, steps, now: frames.append(now),
    )  # fmt: skip
    high, low = diffusion.torus.sigma[40], diffusion.torus.sigma[20]
    centred = (1 - 1 / float(one.n_atoms[0])) ** 0.5
    expected = temperature * float(low * (1 - (low / high) ** 2).sqrt()) * centred
    moved = shortest_displacement(crystals.frac_coords, frames[0].frac_coords, crystals)
    assert float(moved.square().mean().sqrt()) == pytest.approx(expected, rel=0.05, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2])
def test_over_relaxation_lengthens_every_move_but_the_last(steps):
    known = targets()
    shifted, frames = Oracle(known, shift=0.1), []
    level = torch.full((len(known),), 40)
    sample(
        shifted, default_diffusion(), known.atomic_numbers, known.n_atoms,
        SamplerConfig("ode", steps, over_relaxation=1.5), range(len(known)),
        start=Start(known, level, noised=False),
        on_step=lambda done, steps, now: frames.append(now),
    )  # fmt: skip
    sigma = default_diffusion().torus.sigma
    expected = 0.1 if steps == 1 else 1.5 * 0.1 * float(1 - sigma[20] / sigma[40])
    moved = shortest_displacement(known.frac_coords, frames[0].frac_coords, known)
    torch.testing.assert_close(moved, torch.full_like(moved, expected), atol=1e-5, rtol=0)


def test_a_lying_oracle_is_not():
    target = targets()

    class Liar(Oracle):
        def __call__(self, crystals, t):
            honest = super().__call__(crystals, t)
            wrong = honest.displacement + 0.2 * torch.randn_like(honest.displacement)
            return Prediction(honest.lattice, wrong, honest.strain)

    found = sample(
        Liar(target),
        default_diffusion(),
        target.atomic_numbers,
        target.n_atoms,
        SamplerConfig("bridge", 25),
        seeds=range(len(target)),
    )
    assert match_rate(found, target) < 1.0


def test_a_crystal_depends_on_its_own_seed_only():
    target, diffusion = targets(), default_diffusion()
    seeds = [11, 12, 13, 14, 15]
    sampler = SamplerConfig("bridge", 10)

    class Still:
        """Says that nothing has to move, so that the result is the noise itself."""

        def __call__(self, crystals, t):
            zero = torch.zeros_like(crystals.frac_coords)
            return Prediction(crystals.lattice, zero, torch.zeros_like(crystals.lattice))

    whole = sample(Still(), diffusion, target.atomic_numbers, target.n_atoms, sampler, seeds)
    for index, part in enumerate(target.split()):
        alone = sample(
            Still(), diffusion, part.atomic_numbers, part.n_atoms, sampler, seeds[index : index + 1]
        )
        torch.testing.assert_close(alone.frac_coords, whole.select([index]).frac_coords)
        torch.testing.assert_close(alone.lattice, whole.select([index]).lattice)
    other = sample(Still(), diffusion, target.atomic_numbers, target.n_atoms, sampler, range(5))
    assert (other.frac_coords - whole.frac_coords).abs().max() > 0.1


def test_composition_is_never_touched():
    target = targets()
    found = sample(
        Oracle(target),
        default_diffusion(),
        target.atomic_numbers,
        target.n_atoms,
        SamplerConfig("bridge", 3),
        seeds=range(5),
    )
    assert torch.equal(found.atomic_numbers, target.atomic_numbers)
    assert torch.equal(found.n_atoms, target.n_atoms)


def test_steps_are_reported_in_order():
    seen = []
    target = targets()
    sample(
        Oracle(target),
        default_diffusion(),
        target.atomic_numbers,
        target.n_atoms,
        SamplerConfig("ode", 4),
        seeds=range(5),
        on_step=lambda *a: seen.append(a[:2]),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_seeds_must_be_one_per_crystal():
    with pytest.raises(ValueError, match="2 seeds for 5 crystals"):
        CrystalNoise([1, 2], targets().n_atoms)


def test_losses_vanish_for_the_oracle_and_are_one_for_silence():
    target, diffusion = targets(), default_diffusion()
    target = Crystals.concat([target] * 60)
    t = torch.randint(1, 40, (len(target),), generator=torch.Generator().manual_seed(0))

    class Silent:
        def __call__(self, crystals, t):
            zero = torch.zeros_like(crystals.frac_coords)
            return Prediction(crystals.lattice, zero, torch.zeros_like(crystals.lattice))

    class Honest:
        """Predicts exactly what is asked for."""

        def __call__(self, crystals, t):
            displacement = diffusion.torus.target(target, crystals, t)
            return Prediction(target.lattice, displacement)

    assert isinstance(Silent(), Denoiser)
    generator = torch.Generator().manual_seed(1)
    silent = losses_at_noise(Silent(), diffusion, target, t, *draw_normals(target, generator))
    assert float(silent.torus.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(silent.cell.mean()) == pytest.approx(1.0, abs=0.1)
    honest = losses_at_noise(Honest(), diffusion, target, t, *draw_normals(target, generator))
    assert float(honest.torus.max()) < 1e-6
    assert float(honest.cell.max()) < 1e-3


def test_noise_at_the_first_step_is_small():
    target, diffusion = targets(), default_diffusion()
    ones = torch.ones(len(target), dtype=torch.long)
    atoms, cells = torch.randn_like(target.frac_coords), torch.randn(len(target), 6)
    noisy, aim = diffusion.noise(target, ones, atoms, cells)
    assert (noisy.volume / target.volume - 1).abs().max() < 0.1
    assert aim.strain.abs().max() < 0.06


def started(start: Start, sampler: SamplerConfig, oracle: Denoiser | None = None) -> Crystals:
    known = start.crystals
    return sample(
        oracle or Oracle(known),
        default_diffusion(),
        known.atomic_numbers,
        known.n_atoms,
        sampler,
        list(range(len(known))),
        start=start,
    )


@pytest.mark.parametrize("name", ["bridge", "ode", "paper"])
def test_a_start_at_level_zero_leaves_crystals_as_they_are(name):
    known = targets()
    level = torch.zeros(len(known), dtype=torch.long)
    found = started(Start(known, level), SamplerConfig(name, 5), Oracle(known, shift=0.1))
    assert torch.equal(found.lattice, known.lattice)
    assert torch.equal(found.frac_coords, known.frac_coords)


@pytest.mark.parametrize("name", ["bridge", "ode", "paper"])
def test_an_oracle_brings_a_start_at_any_level_back(name):
    known = targets()
    level = torch.tensor([10, 30, 50, 70, 100])
    assert match_rate(started(Start(known, level), SamplerConfig(name, 20)), known) == 1


def test_what_is_held_stays_and_the_rest_keeps_its_place_beside_it():
    known = targets()
    held_atoms = torch.zeros(len(known.atomic_numbers), dtype=torch.bool)
    held_atoms[[0, 2]] = True
    held_cells = torch.tensor([True, False, False, False, False])
    level = torch.full((len(known),), 40)
    # The oracle's crystal is shifted as a whole: beside the held atoms nothing has moved.
    shifted = Oracle(known, shift=0.1)
    start = Start(known, level, held_atoms=held_atoms, held_cells=held_cells, noised=False)
    found = started(start, SamplerConfig("ode", 20), shifted)
    assert torch.equal(found.frac_coords[held_atoms], known.frac_coords[held_atoms])
    assert torch.equal(found.lattice[0], known.lattice[0])
    apart = shortest_displacement(known.frac_coords, found.frac_coords, known)
    assert apart[:4].abs().max() < 1e-5
    free = started(Start(known, level, noised=False), SamplerConfig("ode", 20), shifted)
    moved = shortest_displacement(known.frac_coords, free.frac_coords, known)
    assert moved[:4].abs().min() > 0.05


def test_a_crystal_depends_on_its_own_level_only():
    known = targets()
    levels = torch.tensor([10, 30, 50, 70, 100])
    together = started(Start(known, levels), SamplerConfig("bridge", 5)).split()[2]
    one = known.select([2])
    alone = sample(
        Oracle(one),
        default_diffusion(),
        one.atomic_numbers,
        one.n_atoms,
        SamplerConfig("bridge", 5),
        [2],
        start=Start(one, levels[2:3]),
    )
    torch.testing.assert_close(together.lattice, alone.lattice)
    torch.testing.assert_close(together.frac_coords, alone.frac_coords)


def shaken(crystals: Crystals) -> Crystals:
    noise = 0.01 * torch.randn(
        crystals.frac_coords.shape, generator=torch.Generator().manual_seed(1)
    )
    return crystals.with_geometry(1.02 * crystals.lattice, crystals.frac_coords + noise)


@pytest.mark.parametrize("diffusion", [default_diffusion(), paper_diffusion()])
def test_refinement_comes_nearer_and_draws_no_random_numbers(diffusion):
    target = targets()
    start, oracle = shaken(target), Oracle(target)
    refined = refinement_start(start, diffusion.steps)
    rest, again = (
        sample(
            oracle, diffusion, target.atomic_numbers, target.n_atoms, SamplerConfig("ode", 8),
            [n + shift for n in range(len(target))], start=refined,
        )
        for shift in (0, 100)
    )  # fmt: skip
    assert torch.equal(rest.frac_coords, again.frac_coords)
    before = shortest_displacement(start.frac_coords, target.frac_coords, target).abs().max()
    after = shortest_displacement(rest.frac_coords, target.frac_coords, target).abs().max()
    assert after < 0.2 * before


def test_final_refinement_counts_its_steps_and_holds_what_is_held():
    target, diffusion, seen = targets(), default_diffusion(), []
    held = torch.zeros(len(target.frac_coords), dtype=torch.bool)
    held[0] = True
    level = torch.full((len(target),), 30)
    start = Start(shaken(target), level, held_atoms=held, held_cells=torch.ones(len(target)).bool())
    made = sample(
        Oracle(target),
        diffusion,
        target.atomic_numbers,
        target.n_atoms,
        SamplerConfig(steps=5, final_refinement_steps=3),
        list(range(len(target))),
        start=start,
        on_step=lambda step, total, crystals: seen.append((step, total)),
    )
    assert seen == [(step, 8) for step in range(1, 9)]
    assert torch.equal(made.frac_coords[0], start.crystals.frac_coords[0])
    assert torch.equal(made.lattice, start.crystals.lattice)


@pytest.mark.parametrize("diffusion", [default_diffusion(), paper_diffusion()])
@pytest.mark.parametrize("name", ["bridge", "ode"])
def test_anti_annealing_accelerates_atoms_and_cells(diffusion, name):
    known = targets()
    level = torch.full((len(known),), 40)
    slow, fast = (
        next(
            trajectory(
                Oracle(known), diffusion, known.atomic_numbers, known.n_atoms,
                SamplerConfig(name, 4, anti_annealing, temperature=0.0), range(len(known)),
                start=Start(shaken(known), level, noised=False),
            )
        )
        for anti_annealing in (0.0, 1.0)
    )  # fmt: skip
    assert (fast.lattice - slow.lattice).flatten(1).abs().amax(1).min() > 1e-3
    left = [shortest_displacement(c.frac_coords, known.frac_coords, known) for c in (slow, fast)]
    assert left[1].square().mean() < 0.95 * left[0].square().mean()


def test_a_trajectory_ends_in_the_sample():
    known, sampler = targets(), SamplerConfig("bridge", 5)
    settings = (default_diffusion(), known.atomic_numbers, known.n_atoms, sampler, range(5))
    *_, last = frames = list(trajectory(Oracle(known), *settings))
    assert len(frames) == 5
    assert torch.equal(last.frac_coords, sample(Oracle(known), *settings).frac_coords)
    assert not last.lattice.requires_grad

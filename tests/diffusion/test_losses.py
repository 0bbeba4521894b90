"""The denoising error: what it is made of, and that it tells crystals apart."""

import pytest
import torch
from oracle import Oracle, default_diffusion, paper_diffusion, targets

from crystorus.diffusion.losses import denoising_error
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Prediction


class Silent:
    """Predicts that nothing was noised."""

    def __call__(self, crystals, t):
        return Prediction(
            crystals.lattice,
            torch.zeros_like(crystals.frac_coords),
            torch.zeros_like(crystals.lattice),
        )


def seeds_of(crystals):
    return list(range(len(crystals)))


def test_who_predicts_nothing_loses_one_unit_on_each_part():
    crystals = targets()
    error = denoising_error(
        Silent(), default_diffusion(), crystals, seeds_of(crystals), levels=(0.3,), draws=400
    )
    torch.testing.assert_close(error, torch.full((len(crystals),), 2.0), atol=0.1, rtol=0)


def test_the_crystal_that_the_network_knows_has_the_least_error():
    crystals, diffusion = targets(), default_diffusion()
    oracle = Oracle(crystals)
    right = denoising_error(oracle, diffusion, crystals, seeds_of(crystals))
    moved = crystals.with_geometry(
        1.2 * crystals.lattice, crystals.frac_coords + 0.1 * torch.rand_like(crystals.frac_coords)
    )
    wrong = denoising_error(oracle, diffusion, moved, seeds_of(crystals))
    assert (right < 0.3).all()
    assert (wrong > 2 * right).all()


@pytest.mark.parametrize("diffusion", [default_diffusion(), paper_diffusion()])
def test_it_is_the_mean_of_both_losses_over_opposite_draws(diffusion):
    crystals, seeds = targets(), seeds_of(targets())
    found = denoising_error(Silent(), diffusion, crystals, seeds, levels=(0.2, 0.5), draws=2)
    noise, expected = CrystalNoise(seeds, crystals.n_atoms), torch.zeros(len(crystals))
    for level in (0.2, 0.5):
        t = torch.full((len(crystals),), round(level * diffusion.steps))
        for _ in range(2):
            atoms, cells = noise.normal_atoms(), noise.normal_cells()
            for sign in (1, -1):
                noisy, aim = diffusion.noise(crystals, t, sign * atoms, sign * cells)
                guess = Silent()(noisy, t)
                expected += diffusion.cell.loss(guess, aim)
                expected += diffusion.torus.loss(guess.displacement, crystals, noisy, t)
    torch.testing.assert_close(found, expected / 8)


def test_a_crystals_error_depends_on_its_own_seed_alone():
    crystals, diffusion = targets(), default_diffusion()
    seeds = [7 * n for n in seeds_of(crystals)]
    together = denoising_error(Silent(), diffusion, crystals, seeds)
    for n, seed in enumerate(seeds):
        alone = denoising_error(Silent(), diffusion, crystals.select([n]), [seed])
        torch.testing.assert_close(alone[0], together[n])
    other = denoising_error(Silent(), diffusion, crystals, [seed + 1 for seed in seeds])
    assert not torch.isclose(other, together).any()


@pytest.mark.parametrize(("levels", "draws"), [((), 1), ((0.0,), 1), ((1.1,), 1), ((0.3,), 0)])
def test_levels_that_are_none_are_refused(levels, draws):
    crystals = targets()
    with pytest.raises(ValueError, match="give fractions above 0 to 1"):
        denoising_error(
            Silent(), default_diffusion(), crystals, seeds_of(crystals), levels=levels, draws=draws
        )

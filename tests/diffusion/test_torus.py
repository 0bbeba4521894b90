"""The torus process: forward law, target, prior, and a reverse step that undoes the forward one."""

import math

import numpy as np
import pytest
import torch
from prototypes import all_prototypes
from scipy.stats import kstest, norm

from crystorus.diffusion.noise_levels import cumulative_alpha, geometric_levels, linear_betas
from crystorus.diffusion.torus import TorusProcess, image_mean, image_mean_rms
from crystorus.geometry import Crystals
from crystorus.geometry.torus import wrap_displacement

N = 20000


def many_atoms(count: int = N) -> Crystals:
    """`count` crystals of one atom at the origin of the unit cube."""
    return Crystals(
        torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        torch.zeros(count, 3, dtype=torch.float64),
        torch.ones(count, dtype=torch.long),
        torch.ones(count, dtype=torch.long),
    )


def process(**settings) -> TorusProcess:
    return TorusProcess(geometric_levels(0.01, 0.5, 100), centred=False, **settings)


def normal(seed: int, count: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64)


def wrapped_cdf(sigma: float):
    """Distribution function of the wrapped normal on [-½, ½), from scipy."""

    def cdf(x):
        k = np.arange(-6, 7)
        x = np.asarray(x)[..., None]
        return (norm.cdf((x + k) / sigma) - norm.cdf((-0.5 + k) / sigma)).sum(-1)

    return cdf


@pytest.mark.parametrize("t", [5, 60, 100])
def test_forward_law_is_the_wrapped_normal(t):
    p, crystals = process(), many_atoms()
    x = p.noise(crystals, torch.full((N,), t), normal(1))
    values = wrap_displacement(x)[:, 0].numpy()
    assert kstest(values, wrapped_cdf(float(p.sigma[t]))).pvalue > 1e-3
    assert kstest(values, wrapped_cdf(1.3 * float(p.sigma[t]))).pvalue < 1e-3 or t == 100


def bridged(p: TorusProcess, t: int, s: int, sampler: str = "reverse") -> np.ndarray:
    """x_s drawn from x_t with the exact x_0 and its image drawn from their posterior."""
    crystals = many_atoms()
    levels = torch.full((N,), t), torch.full((N,), s)
    noisy = crystals.with_geometry(crystals.lattice, p.noise(crystals, levels[0], normal(2)))
    images = torch.arange(-4, 5, dtype=torch.float64)
    path = wrap_displacement(-noisy.frac_coords)[..., None] + images
    weights = torch.softmax(-0.5 * (path / p.sigma[t]) ** 2, -1)
    generator = torch.Generator().manual_seed(3)
    choice = torch.multinomial(weights.flatten(0, 1), 1, generator=generator)
    path = path.flatten(0, 1).gather(1, choice).view(N, 3)
    if sampler == "jump":
        x = p.jump(noisy, path, *levels, normal(4))
    else:
        x = p.reverse(noisy, path, *levels, normal(4))
    return wrap_displacement(x)[:, 0].numpy()


@pytest.mark.parametrize(("t", "s"), [(100, 99), (100, 50), (60, 30), (20, 1)])
def test_bridge_has_the_forward_law_of_the_lower_level(t, s):
    p = process()
    assert kstest(bridged(p, t, s), wrapped_cdf(float(p.sigma[s]))).pvalue > 1e-3


def test_algorithm_2_as_printed_has_not():
    p = process()
    assert kstest(bridged(p, 60, 50, "jump"), wrapped_cdf(float(p.sigma[50]))).pvalue < 1e-6


def first_harmonic(sigma: float) -> float:
    return math.exp(-2 * math.pi**2 * sigma**2)


def test_prior_is_uniform_at_the_last_level():
    p, crystals = process(), many_atoms(200_000)
    x = p.noise(crystals, torch.full((len(crystals),), 100), normal(5, len(crystals)))
    measured = torch.cos(2 * math.pi * x).mean(0)
    assert first_harmonic(float(p.sigma[-1])) < 0.01
    assert (measured - first_harmonic(0.5)).abs().max() < 4 * math.sqrt(0.5 / len(crystals))


def test_prior_of_table_1_is_not_uniform():
    alpha = cumulative_alpha(linear_betas(1e-6, 2e-3, 100))
    assert first_harmonic(float((1 - alpha[-1]).sqrt())) == pytest.approx(0.15, abs=0.01)


def test_image_mean_is_sigma_squared_times_the_score():
    sigma = torch.tensor(0.2, dtype=torch.float64)
    x = torch.linspace(-0.49, 0.49, 41, dtype=torch.float64).requires_grad_()
    k = torch.arange(-8, 9, dtype=torch.float64)
    log_density = torch.logsumexp(-0.5 * ((x[:, None] + k) / sigma) ** 2, 1).sum()
    (score,) = torch.autograd.grad(log_density, x)
    ours = image_mean(-x.detach(), sigma.expand_as(x))
    torch.testing.assert_close(ours, sigma**2 * score)


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.15, 0.3, 0.5])
def test_image_mean_rms_agrees_with_sampling(sigma):
    level = torch.tensor([sigma], dtype=torch.float64)
    x = sigma * normal(6, 100_000)
    sampled = image_mean(-x, level.expand_as(x)).square().mean().sqrt()
    assert float(image_mean_rms(level)) == pytest.approx(float(sampled), rel=0.02)


@pytest.mark.parametrize("target", ["posterior_mean", "shortest"])
def test_small_noise_makes_the_target_the_noise(target):
    p = TorusProcess(geometric_levels(0.01, 0.5, 100), target=target)
    crystals = all_prototypes()["rutile"]
    t = torch.tensor([1])
    noise = torch.randn(crystals.frac_coords.shape, dtype=torch.float64)
    noisy = crystals.with_geometry(crystals.lattice, p.noise(crystals, t, noise))
    expected = -0.01 * (noise - noise.mean(0))
    torch.testing.assert_close(p.target(crystals, noisy, t), expected)


def test_unwrapped_target_crosses_the_cell():
    # Table 4 (e): the long way round, where the torus would take the short one.
    crystals = many_atoms(1)
    noisy = crystals.with_geometry(crystals.lattice, torch.full((1, 3), 0.9).double())
    t = torch.tensor([50])
    assert process(target="unwrapped").target(crystals, noisy, t)[0, 0] == pytest.approx(-0.9)
    assert process(target="shortest").target(crystals, noisy, t)[0, 0] == pytest.approx(0.1)


def test_noise_and_target_have_zero_mean():
    p = TorusProcess(geometric_levels(0.01, 0.5, 100))
    crystals = all_prototypes()["spinel"]
    t = torch.tensor([40])
    noise = torch.randn(crystals.frac_coords.shape, dtype=torch.float64)
    noisy = crystals.with_geometry(crystals.lattice, p.noise(crystals, t, noise))
    moved = wrap_displacement(noisy.frac_coords - crystals.frac_coords)
    assert p.target(crystals, noisy, t).mean(0).abs().max() < 1e-12
    assert moved.mean(0).abs().max() < 1e-12

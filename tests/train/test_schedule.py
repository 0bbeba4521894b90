"""Noise levels, learning rate and seeds against their closed forms."""

import pytest
import torch
from scipy.stats import chisquare, kstest

from crystorus.train.schedule import draw_steps, rate_factor, step_generator


def draws(share, steps=50, count=50_000):
    generator = torch.Generator().manual_seed(0)
    return draw_steps(count, steps, high_noise_fraction=share, generator=generator)


def test_a_fifth_in_the_noisiest_fifth_is_uniform():
    counts = torch.bincount(draws(0.2), minlength=51)
    assert counts[0] == 0
    assert len(counts) == 51
    assert chisquare(counts[1:]).pvalue > 0.01


@pytest.mark.parametrize("share", [0.0, 0.12, 0.6, 1.0])
def test_the_noisiest_fifth_gets_its_share_and_each_part_is_uniform(share):
    t = draws(share)
    high = t > 40
    assert abs(high.double().mean() - share) < 0.01
    for part, least, most in ((t[high], 41, 50), (t[~high], 1, 40)):
        if len(part):
            counts = torch.bincount(part - least, minlength=most - least + 1)
            assert chisquare(counts).pvalue > 0.001


def test_seeds_of_steps_and_processes_give_independent_noise():
    first = [float(torch.rand(1, generator=step_generator(0, k, 0))) for k in range(2000)]
    assert kstest(first, "uniform").pvalue > 0.01
    keys = [(s, k, r) for s in range(3) for k in range(20) for r in range(3)]
    assert len({step_generator(*key).initial_seed() for key in keys}) == len(keys)
    assert step_generator(1, 2, 3).initial_seed() == step_generator(1, 2, 3).initial_seed()


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [(0, 0.0, 0.1), (4, 0.1, 0.5), (9, 0.2, 1.0), (50, 0.5, 1.0), (60, 0.75, 1.0),
     (80, 0.875, 0.5), (99, 1.0, 0.0), (120, 1.2, 0.0)],
)  # fmt: skip
def test_the_rate_rises_stays_and_falls(step, progress, expected):
    factor = rate_factor(step, progress, warmup_steps=10, decay=0.25)
    assert factor == pytest.approx(expected)


def test_without_warmup_and_decay_the_rate_is_constant():
    assert {rate_factor(k, k / 9, warmup_steps=0, decay=0.0) for k in range(12)} == {1.0}

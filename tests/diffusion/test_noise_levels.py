"""Noise levels: Table 1 and the default's."""

import itertools

import pytest
import torch

from crystorus.diffusion.noise_levels import (
    cumulative_alpha,
    geometric_levels,
    linear_betas,
    sampling_times,
)


def test_table_1_gives_the_levels_the_paper_has():
    cell = cumulative_alpha(linear_betas(1e-5, 1e-1, 100))
    torus = cumulative_alpha(linear_betas(1e-6, 2e-3, 100))
    assert cell[0] == 1
    assert float(cell[-1]) == pytest.approx(0.0056, abs=2e-4)
    assert float((1 - torus[-1]).sqrt()) == pytest.approx(0.31, abs=5e-3)


def test_cumulative_alpha_is_the_product():
    betas = torch.rand(7, dtype=torch.float64) * 0.3
    product = 1.0
    for beta, alpha in zip(betas, cumulative_alpha(betas)[1:], strict=True):
        product *= 1 - float(beta)
        assert float(alpha) == pytest.approx(product)


def test_geometric_levels_grow_by_one_factor():
    levels = geometric_levels(0.01, 0.5, 50)
    ratio = levels[2:] / levels[1:-1]
    assert levels[0] == 0
    assert float(levels[1]) == pytest.approx(0.01)
    assert float(levels[-1]) == pytest.approx(0.5)
    assert float(ratio.std()) < 1e-12


@pytest.mark.parametrize("bounds", [(0.5, 0.01, 10), (0.0, 0.5, 10), (0.1, 0.5, 0)])
def test_levels_that_do_not_grow_are_refused(bounds):
    with pytest.raises(ValueError, match="noise levels must grow"):
        geometric_levels(*bounds)


@pytest.mark.parametrize(("steps", "total"), [(1, 100), (7, 100), (100, 100), (33, 1000)])
def test_sampling_times_fall_strictly_from_T_to_0(steps, total):
    times = sampling_times(steps, total)
    assert times[0] == total
    assert times[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(times))
    assert len(times) == steps + 1


@pytest.mark.parametrize("steps", [0, 101])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 100"):
        sampling_times(steps, 100)

"""Bases against scipy and closed forms."""

import math

import numpy as np
import torch
from scipy.special import eval_legendre

from crystorus.networks.gemsnet.graph import GaussianBasis, polynomial_envelope, zonal_harmonics


def test_zonal_harmonics_are_scipys():
    theta = np.linspace(0, math.pi, 101)
    ours = zonal_harmonics(torch.from_numpy(np.cos(theta)), size=7).numpy()
    for degree in range(7):
        scale = math.sqrt((2 * degree + 1) / (4 * math.pi))
        expected = scale * eval_legendre(degree, np.cos(theta))
        np.testing.assert_allclose(ours[:, degree], expected, atol=1e-13)


def test_envelope_ends_with_two_vanishing_derivatives():
    d = torch.tensor([1.0 - 1e-12], dtype=torch.float64, requires_grad=True)
    value = polynomial_envelope(d, exponent=5)
    (slope,) = torch.autograd.grad(value.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    assert abs(value.item()) < 1e-12
    assert abs(slope.item()) < 1e-9
    assert abs(curvature.item()) < 1e-7


def test_envelope_is_one_at_zero_and_nothing_beyond():
    values = polynomial_envelope(torch.tensor([0.0, 0.5, 1.0, 3.0]), exponent=5)
    assert values[0] == 1
    assert 0 < values[1] < 1
    assert values[2] == 0
    assert values[3] == 0


def test_envelope_is_the_published_polynomial():
    """1 - 21 d^5 + 35 d^6 - 15 d^7 for p = 5."""
    d = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    expected = 1 - 21 * d**5 + 35 * d**6 - 15 * d**7
    torch.testing.assert_close(polynomial_envelope(d, exponent=5), expected)


def test_gaussians_peak_at_their_centres_with_the_documented_mean_square():
    basis = GaussianBasis(128, cutoff=6.0, exponent=5)
    r = torch.linspace(0.5, 5.5, 400, dtype=torch.float64)
    values = basis(r)
    nearest = (r / 6.0 * 127).round().long()
    assert torch.equal(values.argmax(1), nearest)
    envelope = polynomial_envelope(r / 6.0, exponent=5)
    torch.testing.assert_close(values.square().mean(1), envelope.square(), rtol=2e-3, atol=0)

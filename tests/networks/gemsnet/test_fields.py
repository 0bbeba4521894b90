"""The closed forms of λ (Appendix A) against automatic differentiation."""

import pytest
import torch

from crystorus.networks.gemsnet.fields import angle_field, distance_field, symmetric_matrix


def gradient_at_identity(invariant, lattice: torch.Tensor) -> torch.Tensor:
    """Differentiate an invariant of the cell g ρ with respect to g at g = I."""
    g = torch.eye(3, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(invariant(g @ lattice), g)[0]


def distance(e: torch.Tensor):
    return lambda cell: (cell @ e).norm()


def angle(e: torch.Tensor, f: torch.Tensor):
    def value(cell: torch.Tensor) -> torch.Tensor:
        u, v = cell @ e, cell @ f
        return torch.atan2(torch.linalg.cross(u, v).norm(), u @ v)

    return value


@pytest.fixture(params=range(8))
def sample(request) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(request.param)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return 4 * torch.eye(3, dtype=torch.float64) + rand(3, 3), rand(3), rand(3)


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_distance_field_is_the_gradient(sample):
    lattice, e, _ = sample
    expected = gradient_at_identity(distance(e), lattice)
    torch.testing.assert_close(symmetric_matrix(distance_field(lattice @ e)), expected)


def test_angle_field_is_the_gradient(sample):
    lattice, e, f = sample
    expected = gradient_at_identity(angle(e, f), lattice)
    ours = symmetric_matrix(angle_field(unit(lattice @ e), unit(lattice @ f)))
    torch.testing.assert_close(ours, expected)


def test_fields_are_the_papers_derivatives_times_the_cell(sample):
    """∂r/∂ρ and ∂θ/∂ρ of the paper, brought to the frame of space: (∂/∂ρ) ρᵀ."""
    lattice, e, f = sample
    rho = lattice.clone().requires_grad_()
    (dr,) = torch.autograd.grad(distance(e)(rho), rho)
    (dtheta,) = torch.autograd.grad(angle(e, f)(rho), rho)
    torch.testing.assert_close(symmetric_matrix(distance_field(lattice @ e)), dr @ lattice.T)
    ours = symmetric_matrix(angle_field(unit(lattice @ e), unit(lattice @ f)))
    torch.testing.assert_close(ours, dtheta @ lattice.T)


def test_angle_field_is_the_quotient_form_of_the_notes(sample):
    """[cos θ (uuᵀ + vvᵀ) - uvᵀ - vuᵀ] / sin θ, symmetric and traceless."""
    lattice, e, f = sample
    u, v = unit(lattice @ e), unit(lattice @ f)
    cosine = u @ v
    both = torch.outer(u, u) + torch.outer(v, v)
    cross = torch.outer(u, v) + torch.outer(v, u)
    expected = (cosine * both - cross) / (1 - cosine**2).sqrt()
    ours = symmetric_matrix(angle_field(u, v))
    torch.testing.assert_close(ours, expected)
    assert abs(float(ours.trace())) < 1e-12


@pytest.mark.parametrize("small", [0.0, 1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("sign", [1, -1])
def test_angle_field_vanishes_smoothly_where_edges_are_collinear(small: float, sign: int):
    u = torch.tensor([1.0, 0.0, 0.0])
    v = sign * torch.tensor([1.0, small, 0.0])
    field = angle_field(u, v / v.norm())
    assert torch.isfinite(field).all()
    assert float(field.abs().max()) == pytest.approx(small, rel=1e-3, abs=1e-7)


def test_fields_turn_with_the_crystal(sample):
    lattice, e, f = sample
    q = torch.linalg.qr(lattice)[0]
    u, v = unit(lattice @ e), unit(lattice @ f)
    turned = symmetric_matrix(angle_field(q @ u, q @ v))
    torch.testing.assert_close(turned, q @ symmetric_matrix(angle_field(u, v)) @ q.T)

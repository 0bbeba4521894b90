"""The cell and its Lie algebra, exp and log, and the shortest bases of its lattice."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototypes import all_prototypes, left_handed
from pymatgen.core import Lattice
from scipy.linalg import expm, logm

from crystorus.geometry.lattice import (
    from_coefficients,
    gl3_basis,
    lattice_log,
    parameters,
    reduce_lattice,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)

DEFECTIVE = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 3.0]]]).double()


def random_cells(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)


def round_trip_error(lattice: torch.Tensor) -> float:
    """Largest error of ρᵀρ after log and exp, relative to the largest entry."""
    back = symmetric_exp(lattice_log(lattice))
    gram = lattice.mT @ lattice
    error = (back.mT @ back - gram).abs().amax((1, 2)) / gram.abs().amax((1, 2))
    return float(error.max())


def test_basis_is_orthonormal_and_splits_gl3():
    basis = gl3_basis()
    torch.testing.assert_close(
        torch.einsum("aij,bij->ab", basis, basis), torch.eye(9, dtype=torch.float64)
    )
    assert torch.equal(basis[:3], -basis[:3].mT)
    assert torch.equal(basis[3:], basis[3:].mT)
    assert basis[3:8].diagonal(dim1=1, dim2=2).sum(-1).abs().max() < 1e-15


def test_printed_basis_of_the_paper_is_not_orthonormal():
    pi6, pi7 = torch.diag(torch.tensor([1.0, -1, 0])), torch.diag(torch.tensor([0, 1.0, -1]))
    assert (pi6 * pi7).sum() == -1


def test_coefficients_round_trip():
    c = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(to_coefficients(from_coefficients(c)), c)


def test_exp_and_log_agree_with_scipy():
    symmetric = from_coefficients(torch.randn(20, 6, dtype=torch.float64))
    for s, e in zip(symmetric, symmetric_exp(symmetric), strict=True):
        np.testing.assert_allclose(e.numpy(), expm(s.numpy()), rtol=1e-12, atol=1e-12)
    positive = symmetric_exp(symmetric)
    for p, x in zip(positive, symmetric_log(positive), strict=True):
        np.testing.assert_allclose(x.numpy(), logm(p.numpy()).real, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*all_prototypes(), "defective", "left_handed"])
def test_round_trip_on_prototypes(name):
    crystals = {**all_prototypes(), "left_handed": left_handed()}
    lattice = DEFECTIVE if name == "defective" else crystals[name].lattice
    assert round_trip_error(lattice) < 1e-10


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_round_trip_on_random_and_extreme_cells(seed, power):
    cells = random_cells(4, seed)
    cells[:, :, 0] *= 10.0**power
    if torch.linalg.cond(cells).max() < 1e5:
        assert round_trip_error(cells) < 1e-10


def test_spectral_logarithm_fails_where_ours_does_not():
    # The negative control of Appendix B: V log(λ) V⁻¹ of a defective cell.
    values, vectors = torch.linalg.eig(DEFECTIVE[0])
    spectral = vectors @ torch.diag(values.log()) @ torch.linalg.pinv(vectors)
    back = torch.linalg.matrix_exp(spectral).real
    assert (back - DEFECTIVE[0]).abs().max() > 1e-3
    assert round_trip_error(DEFECTIVE) < 1e-12


def test_round_trip_on_every_training_cell(mp20):
    import csv
    import gzip
    import re

    csv.field_size_limit(2**24)
    pattern = re.compile(r"_cell_(?:length|angle)_\w+\s+([\d.]+)")
    with gzip.open(mp20 / "train.csv.gz", "rt") as file:
        rows = [pattern.findall(row["cif"])[:6] for row in csv.DictReader(file)]
    cells = [Lattice.from_parameters(*map(float, row)).matrix.T for row in rows]
    lattice = torch.tensor(np.array(cells))
    assert len(lattice) > 27000
    assert round_trip_error(lattice) <= 1e-10


def test_log_does_not_see_the_orientation():
    cells = random_cells(30)
    rotation = torch.linalg.qr(random_cells(1, 5)[0])[0]
    torch.testing.assert_close(lattice_log(rotation @ cells), lattice_log(cells))


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.full((3, 3), math.nan)])
def test_singular_cells_are_refused(bad):
    cells = torch.stack([torch.eye(3, dtype=torch.float64), bad.double()])
    with pytest.raises(ValueError, match="cell 1 is singular or not finite"):
        lattice_log(cells)


@pytest.mark.parametrize("function", [symmetric_exp, symmetric_log])
@pytest.mark.parametrize("eigenvalues", [(1.0, 2.0, 3.0), (2.0, 2.0, 3.0), (2.0, 2.0, 2.0)])
def test_gradients_hold_where_eigenvalues_meet(function, eigenvalues):
    rotation = torch.linalg.qr(random_cells(1, 9)[0])[0]
    matrix = (rotation * torch.tensor(eigenvalues)) @ rotation.T
    matrix = (0.5 * (matrix + matrix.T))[None].requires_grad_()

    def symmetrised(m):
        return function(0.5 * (m + m.mT))

    assert torch.autograd.gradcheck(symmetrised, (matrix,), atol=1e-6)


def test_eigh_gradient_is_the_negative_control():
    matrix = (2 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    values, vectors = torch.linalg.eigh(matrix)
    ((vectors * values.exp()) @ vectors.T)[0, 1].backward()
    assert not torch.isfinite(matrix.grad).all()


def test_parameters_agree_with_pymatgen():
    cells = random_cells(20)
    for cell, ours in zip(cells, parameters(cells), strict=True):
        theirs = Lattice(cell.T.numpy())
        expected = [*theirs.abc, *np.radians(theirs.angles)]
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9)


def random_unimodular(generator: torch.Generator, steps: int) -> torch.Tensor:
    """Multiply random elementary matrices."""
    change = torch.eye(3, dtype=torch.float64)
    for _ in range(steps):
        i, j = torch.randperm(3, generator=generator)[:2].tolist()
        step = torch.eye(3, dtype=torch.float64)
        step[i, j] = int(torch.randint(-2, 3, (1,), generator=generator))
        change = change @ step
    return change


def lattices(seed: int, count: int) -> torch.Tensor:
    """Random, needle-like, left-handed and cubic cells in skewed bases."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.randn(count, 3, 3, generator=g, dtype=torch.float64)
    cells = cells + torch.eye(3, dtype=torch.float64)
    cells[::4, :, 0] *= 30
    cells[1::4] = 4 * torch.eye(3, dtype=torch.float64)
    skew = torch.stack([random_unimodular(g, 6) for _ in range(count)])
    return cells @ skew


def shortest_by_search(cell: torch.Tensor, reach: int = 4) -> float:
    """Try all short combinations of an already short basis."""
    points = torch.tensor(
        [p for p in itertools.product(range(-reach, reach + 1), repeat=3) if any(p)],
        dtype=cell.dtype,
    )
    return float((points @ cell.T).norm(dim=1).min())


def test_change_is_in_sl3z_and_reproduces_the_reduced_basis():
    cells = lattices(0, 64)
    reduced, change = reduce_lattice(cells)
    assert change.dtype == torch.long
    assert torch.equal(torch.linalg.det(change.double()).round(), torch.ones(64).double())
    torch.testing.assert_close(cells @ change.double(), reduced, rtol=1e-9, atol=1e-9)


def test_lengths_are_those_of_pymatgens_niggli_cell():
    """A Niggli cell is Buerger-reduced: its edges are the three successive minima."""
    reduced, _ = reduce_lattice(lattices(1, 24))
    for cell in reduced:
        niggli = Lattice(cell.T.numpy()).get_niggli_reduced_lattice(tol=1e-9)
        lengths = cell.norm(dim=0)
        assert float(torch.linalg.det(cell).abs()) == pytest.approx(niggli.volume, rel=1e-8)
        assert lengths.tolist() == pytest.approx(sorted(niggli.abc), rel=1e-6)


def test_lll_is_never_shorter():
    cells = lattices(2, 24)
    reduced, _ = reduce_lattice(cells)
    for cell, short in zip(cells, reduced, strict=True):
        lll = Lattice(cell.T.numpy()).get_lll_reduced_lattice()
        assert float(short.norm(dim=0).sum()) <= sum(lll.abc) * (1 + 1e-9)


def test_first_vector_is_the_shortest_of_the_lattice():
    reduced, _ = reduce_lattice(lattices(3, 40))
    for cell in reduced:
        assert float(cell[:, 0].norm()) == pytest.approx(shortest_by_search(cell), rel=1e-9)


def test_unreduced_cells_fail_the_same_search():
    """Negative control: the search tells a skewed basis from a reduced one."""
    cells = lattices(3, 40)
    longer = [float(c.norm(dim=0).min()) > shortest_by_search(c, 8) * 1.01 for c in cells]
    assert sum(longer) > 10


def test_handedness_and_dtype_are_kept():
    cells = lattices(4, 16).float()
    reduced, _ = reduce_lattice(cells)
    assert reduced.dtype == torch.float32
    assert torch.equal(torch.linalg.det(reduced).sign(), torch.linalg.det(cells).sign())


@pytest.mark.parametrize("skew", [1e2, 1e4, 1e6])
def test_extreme_skew(skew: float):
    cell = 5 * torch.eye(3, dtype=torch.float64)
    cell[0, 1], cell[1, 2], cell[0, 2] = 5 * skew, 5 * skew, 5 * skew
    reduced, _ = reduce_lattice(cell[None])
    torch.testing.assert_close(reduced[0].norm(dim=0), torch.full((3,), 5.0, dtype=torch.float64))


def test_a_matrix_that_is_not_finite_leaves_its_batch_alone():
    good = torch.tensor([[0.1, 0.2, 0.0], [0.2, -0.3, 0.1], [0.0, 0.1, 0.4]])
    for wrong in (math.nan, math.inf):
        both = symmetric_exp(torch.stack([good, good.clone().fill_(wrong)]))
        assert torch.equal(both[0], symmetric_exp(good))
        assert both[1].isnan().all()

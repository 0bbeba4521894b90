"""Lattice reduction against brute force and pymatgen."""

import itertools

import pytest
import torch
from pymatgen.core import Lattice

from crystorus.geometry.lattice import reduce_lattice


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

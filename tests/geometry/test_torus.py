"""The torus: wrapping, shortest paths and centring."""

import itertools

import pytest
import torch
from prototypes import all_prototypes, batch

from crystorus.geometry import Crystals, symmetry
from crystorus.geometry.crystals import mean_per_crystal
from crystorus.geometry.torus import centre, shortest_displacement, wrap


def test_wrap_lands_in_the_unit_cell_even_in_float32():
    values = torch.tensor([[-1e-9, 1.0, 2.5], [-3.25, 0.999999999, 0.0]])
    wrapped = wrap(values)
    assert ((wrapped >= 0) & (wrapped < 1)).all()
    torch.testing.assert_close(wrapped[1, 0], torch.tensor(0.75))


def test_shortest_displacement_is_the_shortest_of_many_images():
    crystals = batch()
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(crystals.frac_coords.shape, generator=generator, dtype=torch.float64)
    ours = shortest_displacement(start, crystals.frac_coords, crystals)
    shifts = torch.tensor(list(itertools.product(range(-3, 4), repeat=3))).double()
    images = (crystals.frac_coords - start)[:, None] + shifts
    lattice = crystals.lattice[crystals.crystal_of_atom]
    length = torch.einsum("aij,akj->aki", lattice, images).norm(dim=-1)
    ours_length = torch.einsum("aij,aj->ai", lattice, ours).norm(dim=-1)
    reduced = [n for n, c in enumerate(all_prototypes()) if c not in ("skewed",)]
    keep = torch.isin(crystals.crystal_of_atom, torch.tensor(reduced))
    torch.testing.assert_close(ours_length[keep], length.amin(1)[keep])


def test_shortest_displacement_does_not_depend_on_orientation():
    crystal = all_prototypes()["wurtzite"]
    start = torch.rand(crystal.frac_coords.shape, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    a = shortest_displacement(start, crystal.frac_coords, crystal)
    b = shortest_displacement(start, crystal.frac_coords, symmetry.rotate(crystal, rotation))
    torch.testing.assert_close(a, b)


def test_centre_removes_each_crystals_mean():
    crystals = batch()
    noise = torch.randn(crystals.frac_coords.shape, dtype=torch.float64) + 3
    assert mean_per_crystal(centre(noise, crystals), crystals).abs().max() < 1e-12


def test_selecting_splitting_and_joining_agree():
    crystals = batch()
    parts = crystals.split()
    order = list(range(len(parts)))[::-1]
    joined = Crystals.concat([parts[i] for i in order])
    chosen = crystals.select(order)
    for name in ("lattice", "frac_coords", "atomic_numbers", "n_atoms"):
        assert torch.equal(getattr(joined, name), getattr(chosen, name))


def test_retiling_by_a_singular_matrix_is_refused():
    with pytest.raises(ValueError, match="determinant"):
        symmetry.retile(batch(), torch.diag(torch.tensor([2, 1, 1])))


def test_symmetries_keep_the_cloud():
    """Distances of the infinite crystal, from pymatgen, are the same after each action."""
    from pymatgen.core import Lattice, Structure

    def shells(c):
        s = Structure(
            Lattice(c.lattice[0].T.numpy()), c.atomic_numbers.tolist(), c.frac_coords.numpy()
        )
        return sorted(round(x, 6) for x in s.get_neighbor_list(4.0)[3] if x > 1e-8)

    crystal = all_prototypes()["rutile"]
    change = torch.tensor([[1, 2, 0], [0, 1, 0], [1, 0, 1]])
    expected = shells(crystal)
    assert shells(symmetry.retile(crystal, change)) == expected
    assert shells(symmetry.translate(crystal, torch.tensor([0.1, 0.7, 0.4]))) == expected
    assert len(shells(symmetry.supercell(crystal, (2, 1, 1)))) == 2 * len(expected)

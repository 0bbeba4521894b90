"""Niggli cells and least distances against brute force, pymatgen and scipy."""

import resource

import numpy as np
import pytest
from prototypes import everything, moved, random_crystal, rock_salt, simple_cubic

from crystal_fidelity.cells import (
    DENSE_ATOMS,
    face_distances,
    least_distance,
    least_distances,
    niggli_reduce,
)
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.structures import Crystal, to_pymatgen

SKEWED = Crystal(
    np.array([[3.0, 0, 0], [300.0, 3, 0], [400.0, 500.0, 3.0]]),
    np.array([[0.0, 0, 0], [0.1, 0.7, 0.3]]),
    np.array([14, 14]),
)
NEEDLE = Crystal(np.diag([0.6, 0.6, 400.0]), np.array([[0, 0, 0], [0, 0, 0.004]]), [14, 8])
CRYSTALS = [*everything(), *(moved(c, 1) for c in everything()), *map(random_crystal, range(8))]


def brute_force(crystal, reach):
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), -1).reshape(-1, 3)
    x = crystal.frac_coords
    lengths = np.linalg.norm(
        (x[:, None, None] - x[None, :, None] + steps) @ crystal.lattice, axis=-1
    )
    return float(lengths[lengths > 1e-9].min())


@pytest.mark.parametrize("crystal", [*CRYSTALS, NEEDLE], ids=lambda c: c.name)
def test_least_distance_is_exact(crystal):
    assert least_distance(crystal) == pytest.approx(brute_force(crystal, 5), abs=1e-6)


def test_least_distance_in_a_cell_written_with_long_vectors():
    reduced = niggli_reduce(SKEWED)
    assert np.linalg.norm(reduced.lattice, axis=1).max() < 30
    assert least_distance(SKEWED) == pytest.approx(brute_force(reduced, 5), abs=1e-6)


def test_an_atom_and_its_own_image_count_and_coincident_atoms_are_at_zero():
    assert least_distance(simple_cubic(2.9)) == pytest.approx(2.9)
    salt = rock_salt()
    collapsed = Crystal(salt.lattice, np.zeros((2, 3)), salt.atomic_numbers)
    assert least_distance(collapsed) == pytest.approx(0, abs=1e-6)


def test_faces_of_a_skewed_cell_are_as_far_apart_as_its_volume_over_their_area():
    rows = np.array([[3.0, 0.1, 0.2], [5.0, 4.0, 0.3], [-7.0, 2.0, 6.0]])
    areas = [np.linalg.norm(np.cross(rows[i - 2], rows[i - 1])) for i in range(3)]
    np.testing.assert_allclose(face_distances(rows), abs(np.linalg.det(rows)) / areas)


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: c.name)
def test_niggli_reduction_keeps_every_atom_and_the_hand(crystal):
    mirrored = Crystal(crystal.lattice[[1, 0, 2]], crystal.frac_coords[:, [1, 0, 2]],
                       crystal.atomic_numbers)  # fmt: skip
    for old in (crystal, mirrored):
        new = niggli_reduce(old)
        assert np.linalg.det(new.lattice) > 0
        theirs = to_pymatgen(old).lattice.get_niggli_reduced_lattice()
        np.testing.assert_allclose(
            sorted(np.linalg.norm(new.lattice, axis=1)), sorted(theirs.abc), atol=1e-5
        )
        moved_by = new.frac_coords @ new.lattice - old.frac_coords @ old.lattice
        cells = np.linalg.solve(old.lattice.T, moved_by.T)
        assert np.abs(cells - np.rint(cells)).max() < 1e-8


def test_a_singular_cell_is_named():
    flat = Crystal(np.diag([3.0, 3.0, 0.0]), np.zeros((1, 3)), np.array([11]))
    with pytest.raises(ReadingError, match="cannot be reduced"):
        niggli_reduce(flat)


@pytest.mark.parametrize("n_atoms", [DENSE_ATOMS, DENSE_ATOMS + 1, 900])
def test_large_cells_take_little_memory_and_equal_all_pairs(n_atoms):
    rng = np.random.default_rng(n_atoms)
    crystals = [random_crystal(seed, n_atoms) for seed in range(3)]
    reduced = [niggli_reduce(c) for c in crystals]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = least_distances(
        np.stack([c.lattice for c in reduced]), np.stack([c.frac_coords for c in reduced])
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    for crystal, value in zip(reduced, found, strict=True):
        rows = rng.choice(n_atoms, 60)  # every pair of some atoms cannot be nearer
        part = Crystal(crystal.lattice, crystal.frac_coords[rows], crystal.atomic_numbers[rows])
        assert value <= brute_force(part, 1) + 1e-6
    expected = min(
        brute_force(Crystal(c.lattice, c.frac_coords[list(pair)], c.atomic_numbers[:2]), 2)
        for c in reduced[:1]
        for pair in [nearest_pair(c)]
    )
    assert found[0] == pytest.approx(expected, abs=1e-6)


def nearest_pair(crystal):
    apart = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    lengths = np.linalg.norm((apart - np.rint(apart)) @ crystal.lattice, axis=-1)
    np.fill_diagonal(lengths, np.inf)
    return np.unravel_index(lengths.argmin(), lengths.shape)

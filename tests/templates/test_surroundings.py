"""Surroundings name a prototype, whatever the elements, the basis and the scale."""

import numpy as np
import pytest
import torch
from groups import orthogonal, unimodular
from prototypes import all_prototypes, fcc, rocksalt, zincblende

from crystorus.crystal_model import in_reduced_cell
from crystorus.geometry import Crystals
from crystorus.geometry.lattice import inverse_change
from crystorus.templates.surroundings import (
    CUTOFF,
    NEIGHBOURS,
    difference,
    differences,
    surroundings,
)


def of(crystal: Crystals):
    crystal = in_reduced_cell(crystal)
    return surroundings(
        crystal.lattice[0].numpy(), crystal.frac_coords.numpy(), crystal.atomic_numbers.numpy()
    )


def test_the_shells_of_a_cubic_close_packing():
    # 12 nearest neighbours at a/√2, with V/n = a³/4.
    expected = 4 ** (1 / 3) / 2**0.5
    np.testing.assert_allclose(of(fcc()).distances[0, 0], np.full(NEIGHBOURS, expected), atol=1e-9)


def test_rocksalt_has_unlike_neighbours_first():
    found = of(rocksalt())
    unit = (5.64**3 / 8) ** (1 / 3)
    np.testing.assert_allclose(found.distances[0, 1], 5.64 / 2 / unit, atol=1e-9)
    np.testing.assert_allclose(found.distances[0, 0], 5.64 / 2**0.5 / unit, atol=1e-9)


@pytest.mark.parametrize("name", sorted(all_prototypes()))
def test_invariant_under_every_symmetry_and_scale(name):
    crystal = all_prototypes()[name]
    before = of(crystal).distances
    generator = torch.Generator().manual_seed(5)
    change = unimodular(3)
    inverse = inverse_change(change[None]).double()[0]
    order = torch.randperm(len(crystal.frac_coords), generator=generator)
    frac = crystal.frac_coords + torch.rand(3, generator=generator, dtype=torch.float64)
    moved = Crystals(
        1.7 * orthogonal(4, -1) @ crystal.lattice @ change.double(),
        (frac @ inverse.T)[order] % 1,
        crystal.atomic_numbers[order],
        crystal.n_atoms,
    )
    np.testing.assert_allclose(of(moved).distances, before, atol=1e-7)


def test_other_elements_same_surroundings_other_prototype_others():
    salt, blende = rocksalt(), zincblende()
    oxide = Crystals(salt.lattice * 0.75, salt.frac_coords, torch.tensor([12, 8]), salt.n_atoms)
    swapped = of(oxide).distances[::-1, ::-1]  # oxygen comes before magnesium, not after
    assert difference(of(salt).distances, swapped) < 1e-9
    assert difference(of(salt).distances, of(blende).distances) > 0.1


def test_distances_beyond_reach_are_cut():
    lone = Crystals(
        torch.diag(torch.tensor([2.0, 2.0, 60.0], dtype=torch.float64))[None],
        torch.zeros(1, 3, dtype=torch.float64),
        torch.tensor([6]),
        torch.tensor([1]),
    )
    assert of(lone).distances.max() <= CUTOFF


def test_all_pairs_at_once_are_as_one_by_one():
    distances = np.random.default_rng(4).uniform(0.7, 2.6, (9, 3, 3, NEIGHBOURS))
    distances[5] = distances[2]
    distances[6] = distances[2] + 1e-4
    pairs = [[difference(one, other) for other in distances] for one in distances]
    np.testing.assert_allclose(differences(distances), pairs, atol=1e-7)

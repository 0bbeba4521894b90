from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prototypes import diamond, everything, moved, random_crystal, rock_salt, simple_cubic

from crystal_fidelity.structures import Crystal, ReadFailure, to_pymatgen
from crystal_fidelity.validity import closest_contacts, structural_validity


def by_definition(crystal, reach, self_images):
    """Every image of every atom within `reach` cells."""
    shortest = np.inf
    for shift in product(range(-reach, reach + 1), repeat=3):
        for i, j in product(range(len(crystal)), repeat=2):
            if i == j and (not any(shift) or not self_images):
                continue
            delta = crystal.frac_coords[i] - crystal.frac_coords[j] + np.array(shift)
            shortest = min(shortest, np.linalg.norm(delta @ crystal.lattice))
    return shortest


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_closest_contact_is_the_definition(seed, self_images):
    crystal = random_crystal(seed, n_atoms=3)
    contacts = "with-self-images" if self_images else "pairs-only"
    (found,) = closest_contacts([crystal], contacts=contacts)
    assert found == pytest.approx(by_definition(crystal, 4, self_images), rel=1e-9)


@given(st.integers(0, 10_000), st.integers(-6, 6), st.integers(-6, 6))
@settings(max_examples=25, deadline=None)
def test_closest_contact_does_not_depend_on_the_cell_chosen(seed, k, m):
    crystal = random_crystal(seed, n_atoms=3)
    tiling = np.array([[1, k, 0], [0, 1, m], [0, 0, 1]])
    skewed = Crystal(
        tiling @ crystal.lattice,
        crystal.frac_coords @ np.linalg.inv(tiling),
        crystal.atomic_numbers,
    )
    for contacts in ("with-self-images", "pairs-only"):
        plain, other = closest_contacts([crystal, skewed], contacts=contacts)
        assert other == pytest.approx(plain, rel=1e-7)


def test_prototypes_have_their_textbook_bond_lengths():
    contacts = closest_contacts([rock_salt(5.64), diamond(3.57), simple_cubic(3.36)])
    assert contacts == pytest.approx([2.82, 3.57 * np.sqrt(3) / 4, 3.36])


@pytest.mark.parametrize("crystal", everything(), ids=lambda c: c.name)
def test_pairs_only_is_pymatgens_distance_matrix(crystal):
    matrix = to_pymatgen(crystal).distance_matrix
    off = matrix[~np.eye(len(matrix), dtype=bool)].min()
    assert closest_contacts([crystal], contacts="pairs-only")[0] == pytest.approx(off, abs=1e-9)


def test_self_image_that_the_usual_check_misses():
    tiny = simple_cubic(0.49)
    assert not structural_validity([tiny]).valid[0]
    assert "0.490 Å < 0.5" in structural_validity([tiny]).reasons[0]
    assert structural_validity([tiny], contacts="pairs-only").valid[0]


def test_threshold_is_on_the_right_side():
    result = structural_validity([simple_cubic(0.499), simple_cubic(0.501)])
    assert result.valid.tolist() == [False, True]


def test_collisions_flat_cells_and_unreadable_ones_are_counted_with_reasons():
    crystal = rock_salt()
    coincident = Crystal(crystal.lattice, np.zeros((2, 3)), crystal.atomic_numbers)
    flat = Crystal(np.diag([3.0, 3.0, 0.0]), np.zeros((1, 3)), np.array([11]))
    thin = Crystal(np.diag([3.0, 3.0, 0.01]), np.zeros((1, 3)), np.array([11]))
    result = structural_validity([crystal, coincident, flat, thin, ReadFailure("x", "torn")])
    assert result.valid.tolist() == [True, False, False, False, False]
    assert result.rate == 0.2
    words = ["", "contact", "volume", "volume", "unreadable: torn"]
    assert all(w in r for w, r in zip(words, result.reasons, strict=True))


@pytest.mark.parametrize(("scale", "shift"), [(np.nan, 0.0), (1e300, 0.0), (1.0, np.nan)])
def test_numbers_that_are_not_finite_are_not_valid(scale, shift):
    crystal = rock_salt()
    broken = Crystal(crystal.lattice * scale, crystal.frac_coords + shift, crystal.atomic_numbers)
    assert structural_validity([crystal, broken]).valid.tolist() == [True, False]


def test_left_handed_cells_are_judged_alike():
    crystal = rock_salt()
    mirrored = Crystal(-crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    assert structural_validity([mirrored]).min_distance[0] == pytest.approx(2.82)


def test_empty_set_is_an_error():
    with pytest.raises(ValueError, match="0 structures"):
        structural_validity([])


def test_motion_does_not_change_the_verdict():
    crystals = everything()
    np.testing.assert_allclose(
        closest_contacts([moved(c, 3) for c in crystals]), closest_contacts(crystals), rtol=1e-9
    )


@pytest.mark.slow
def test_real_data_agree_with_pymatgen(validation_csv):
    from crystal_fidelity.reading import read_structures

    crystals = read_structures(validation_csv)[::90]
    ours = closest_contacts(crystals)
    for crystal, found in zip(crystals, ours, strict=True):
        neighbours = to_pymatgen(crystal).get_neighbor_list(found + 0.5)[3]
        assert found == pytest.approx(neighbours.min(), abs=1e-7)

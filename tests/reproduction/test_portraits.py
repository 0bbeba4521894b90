"""Pictures show the whole cell and the crystal as it is: counted against textbook cells."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.spacegroup import crystal as ase_crystal
from groups import orthogonal, unimodular
from prototypes import SPACE_GROUPS, all_prototypes, left_handed, quartz, rocksalt

from crystorus.data.io import crystals_to_atoms
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import retile, rotate, supercell, translate
from crystorus.reproduction.portraits import bonds, complete, portrait, upright

CRYSTALS = all_prototypes()
SHIFT = torch.tensor([0.31, 0.77, 0.123], dtype=torch.float64)


def atoms_of(crystals: Crystals) -> Atoms:
    return crystals_to_atoms(crystals)[0]


DRAWN = {  # atoms of a textbook picture: corners 8, faces 6, edges 12, inside
    "fcc": 8 + 6,
    "bcc": 8 + 1,
    "rocksalt": 8 + 6 + 12 + 1,
    "cscl": 8 + 1,
    "zincblende": 8 + 6 + 4,
    "rutile": 8 + 1 + 4 + 2,
    "hcp": 8 + 1,
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_conventional_cells_are_completed_on_faces_edges_and_corners(name):
    drawn = complete(portrait(atoms_of(CRYSTALS[name])))
    assert len(drawn.atomic_numbers) == DRAWN[name]


@pytest.mark.parametrize("name", list(CRYSTALS))
def test_the_picture_does_not_depend_on_how_a_crystal_is_given(name):
    given = CRYSTALS[name]
    base = portrait(atoms_of(given))
    moved = rotate(translate(retile(given, unimodular(3)), SHIFT), orthogonal(1, 1))
    for same in (moved, supercell(given, (1, 2, 1))):
        other = portrait(atoms_of(same))
        assert (other.formula, other.number) == (base.formula, base.number)
        assert len(other.atomic_numbers) == len(base.atomic_numbers)
        assert len(complete(other).atomic_numbers) == len(complete(base).atomic_numbers)


@pytest.mark.parametrize("name", list(CRYSTALS))
def test_space_group_and_volume_per_atom_are_the_crystals(name):
    drawn = portrait(atoms_of(CRYSTALS[name]))
    assert drawn.number == SPACE_GROUPS[name]
    given = atoms_of(CRYSTALS[name])
    volume = np.linalg.det(np.array(drawn.lattice)) / len(drawn.atomic_numbers)
    assert volume == pytest.approx(given.get_volume() / len(given), rel=1e-6)


def test_conventional_spinel_is_the_one_ase_builds():
    built = ase_crystal(
        ("Mg", "Al", "O"), [(0.125,) * 3, (0.5,) * 3, (0.2624,) * 3], spacegroup=227, setting=2,
        cellpar=[8.08] * 3 + [90] * 3,
    )  # fmt: skip
    drawn = portrait(atoms_of(CRYSTALS["spinel"]))
    ours = Atoms(
        drawn.atomic_numbers, cell=np.array(drawn.lattice).T, scaled_positions=drawn.frac_coords,
        pbc=True,
    )  # fmt: skip
    assert len(ours) == len(built) == 56
    assert np.allclose(spectrum(ours), spectrum(built), atol=1e-6)


def spectrum(atoms: Atoms) -> np.ndarray:
    distances = get_distances(atoms.positions, cell=atoms.cell, pbc=True)[1]
    products = np.outer(atoms.numbers, atoms.numbers)
    return np.sort((distances * products).ravel())


def test_atoms_are_not_moved_to_special_positions():
    shaken = atoms_of(rocksalt())
    shaken.positions[1] += [0.05, 0.0, 0.0]
    drawn = portrait(shaken, symprec=0.2)
    assert drawn.number == 225
    ours = Atoms(
        drawn.atomic_numbers, cell=np.array(drawn.lattice).T, scaled_positions=drawn.frac_coords,
        pbc=True,
    )  # fmt: skip
    apart = ours.get_all_distances(mic=True)[ours.numbers == 11][:, ours.numbers == 17]
    nearest = np.sort(apart[0])[:3]  # six, of which opposite ones are one pair of atoms here
    assert np.ptp(nearest) == pytest.approx(0.05, abs=0.01)  # zero if it had been symmetrised


def test_atoms_that_collide_are_shown():
    given = atoms_of(rocksalt())
    given += Atoms("Cl", positions=given.positions[1:] + np.array([0.0, 0.0, 0.15]))
    drawn = portrait(given)
    assert drawn.formula == "NaCl2"
    assert drawn.atomic_numbers.count(17) == 2 * drawn.atomic_numbers.count(11)


def test_a_left_handed_cell_is_drawn_as_the_same_crystal():
    right, left = portrait(atoms_of(quartz())), portrait(atoms_of(left_handed()))
    assert left.symbol == right.symbol == "P3_121"
    assert np.linalg.det(np.array(left.lattice)) > 0
    mirrored = portrait(atoms_of(rotate(quartz(), orthogonal(2, -1))))
    assert mirrored.symbol == "P3_221"  # the other hand is told apart


def test_a_cell_is_turned_upright_without_changing_it():
    lattice = CRYSTALS["triclinic"].lattice[0].numpy()
    turned = upright(orthogonal(4, 1).numpy() @ lattice)
    assert np.allclose(turned.T @ turned, lattice.T @ lattice)
    assert np.linalg.det(turned) > 0
    assert np.allclose(turned[:2, 2], 0)
    assert turned[2, 2] > 0
    assert turned[0, 1] == pytest.approx(0)
    assert turned[1, 1] > 0


def test_bonds_are_neighbours_by_covalent_radii_and_none_between_metals():
    drawn = complete(portrait(atoms_of(CRYSTALS["perovskite"])))
    for i, j in bonds(drawn):
        pair = drawn.atomic_numbers[[i, j]]
        assert 8 in pair  # Sr-Ti are as near as Sr-O by the sum of their radii
        distance = np.linalg.norm(drawn.positions[i] - drawn.positions[j])
        assert distance < 1.15 * covalent_radii[pair].sum()
    titanium = [pair for pair in bonds(drawn) if 22 in drawn.atomic_numbers[list(pair)]]
    assert len(titanium) == 24  # 8 corners with 3 oxygens each in the picture
    assert bonds(complete(portrait(atoms_of(CRYSTALS["fcc"])))) == []
    assert len(bonds(complete(portrait(atoms_of(rocksalt()))))) == 54

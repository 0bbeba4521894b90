"""Conversions against ASE and pymatgen, distances and reduced cells against brute force."""

import numpy as np
import pytest
import torch
from ase import Atoms
from prototypes import all_prototypes, batch, needle
from pymatgen.core import Lattice, Structure

from crystal_fidelity.cells import least_distance, niggli_reduce
from crystal_fidelity.structures import density
from crystorus.data.convert import (
    crystals_from,
    crystals_to_atoms,
    crystals_to_structures,
    join,
    split,
)
from crystorus.errors import ReadingError
from crystorus.geometry import Crystals

NAMES = sorted(all_prototypes())
RANDOM_CELL = [[3.0, 0.1, 0.2], [0.5, 4.0, 0.3], [0.7, 0.9, 5.0]]


@pytest.fixture(params=NAMES)
def named(request):
    return request.param, all_prototypes()[request.param]


def close(a: Crystals, b: Crystals, tolerance: float = 1e-9) -> None:
    assert torch.equal(a.atomic_numbers, b.atomic_numbers)
    assert torch.equal(a.n_atoms, b.n_atoms)
    assert torch.allclose(a.lattice, b.lattice, atol=tolerance, rtol=0)
    apart = a.frac_coords - b.frac_coords
    assert (apart - apart.round()).abs().max() < tolerance


def test_atoms_and_structures_keep_cartesian_positions(named):
    _, crystal = named
    expected = crystal.cart_coords.numpy()
    (atoms,) = crystals_to_atoms(crystal)
    (structure,) = crystals_to_structures(crystal)
    assert np.allclose(atoms.positions, expected, atol=1e-12)
    assert np.allclose(structure.cart_coords, expected, atol=1e-12)
    assert atoms.pbc.all()
    close(crystals_from(atoms, dtype=torch.float64), crystal)
    close(crystals_from(structure, dtype=torch.float64), crystal)


def test_rows_of_ase_are_columns_here():
    atoms = Atoms("LiO", cell=RANDOM_CELL, scaled_positions=[[0, 0, 0], [0.1, 0.2, 0.3]], pbc=True)
    crystal = crystals_from(atoms, dtype=torch.float64)
    assert torch.equal(crystal.lattice[0], torch.tensor(RANDOM_CELL, dtype=torch.float64).T)
    assert np.allclose(crystal.cart_coords.numpy(), atoms.positions)
    # Forgetting to transpose moves the atoms: the check above can fail.
    wrong = crystal.with_geometry(crystal.lattice.mT, crystal.frac_coords)
    assert not np.allclose(wrong.cart_coords.numpy(), atoms.positions, atol=0.1)


def test_several_structures_become_one_batch():
    crystals = batch()
    close(crystals_from(crystals_to_atoms(crystals), dtype=torch.float64), crystals)


def test_coordinates_stay_below_one_in_float32():
    atoms = Atoms("Li", cell=4 * np.eye(3), scaled_positions=[[1 - 1e-9, -1e-12, 0.5]], pbc=True)
    frac = crystals_from(atoms).frac_coords
    assert frac.dtype == torch.float32
    assert ((frac >= 0) & (frac < 1)).all()


def test_a_batch_is_split_into_named_crystals_of_rows_and_joined_again():
    crystals = batch()
    parts = split(crystals, [f"c{i}" for i in range(len(crystals))])
    assert [part.name for part in parts[:2]] == ["c0", "c1"]
    rows = crystals.lattice.mT.numpy()
    assert all(np.array_equal(part.lattice, cell) for part, cell in zip(parts, rows, strict=True))
    joined = join(parts)
    for name in ("lattice", "frac_coords", "atomic_numbers", "n_atoms"):
        assert torch.equal(getattr(joined, name), getattr(crystals, name))
    assert len(join([])) == 0
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        split(crystals, ["one"])


def test_oxidation_states_are_dropped():
    structure = Structure(Lattice.cubic(4.2), ["Mg2+", "O2-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert crystals_from(structure).atomic_numbers.tolist() == [12, 8]


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms("Li", positions=[[0, 0, 0]]), "no cell"),
        (Atoms("Li", cell=[4, 4, 4], positions=[[0, 0, 0]], pbc=[1, 1, 0]), "along 2 of 3"),
        (Atoms("Li", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "singular"),
        (Atoms("Li", cell=4 * np.eye(3), positions=[[np.nan, 0, 0]], pbc=True), "finite"),
        (Atoms("Li", cell=np.full((3, 3), np.nan), pbc=True), "NaN"),
        (Atoms(cell=[4, 4, 4], pbc=True), "no atoms"),
        (Atoms("X", cell=4 * np.eye(3), pbc=True), "atomic number 0"),
    ],
)
def test_unusable_atoms_are_refused_by_name(atoms, words):
    good = Atoms("Li", cell=[4, 4, 4], pbc=True)
    with pytest.raises(ReadingError, match=words) as caught:
        crystals_from([good, atoms])
    assert str(caught.value).startswith("structure 2: ")


def test_partial_occupancy_of_a_structure_is_refused():
    structure = Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ReadingError, match="partial occupancies"):
        crystals_from(structure)


# Distance, density, reduction


def distance_by_brute_force(crystal: Crystals, reach: int) -> float:
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), -1).reshape(-1, 3)
    rows, x = crystal.lattice[0].numpy().T, crystal.frac_coords.numpy()
    lengths = np.linalg.norm((x[:, None, None] - x[None, :, None] + steps) @ rows, axis=-1)
    return float(lengths[lengths > 1e-9].min())


def test_least_distance_is_exact_in_every_cell(named):
    name, crystal = named
    reach = 12 if name == "skewed" else 3
    assert least_distance(split(crystal)[0]) == pytest.approx(
        distance_by_brute_force(crystal, reach), abs=1e-9
    )


def test_least_distance_counts_an_atom_and_its_own_image():
    (atoms,) = crystals_to_atoms(needle())
    lone = crystals_from(atoms[:1], dtype=torch.float64)
    assert least_distance(split(lone)[0]) == pytest.approx(2.9)


def test_density_is_pymatgens():
    crystals = batch()
    expected = [float(s.density) for s in crystals_to_structures(crystals)]
    assert [density(one) for one in split(crystals)] == pytest.approx(expected, rel=1e-3)


def test_niggli_reduction_keeps_the_crystal_and_its_hand(named):
    _, crystal = named
    reduced = join([niggli_reduce(split(crystal)[0])])
    assert torch.linalg.det(reduced.lattice[0]) > 0
    (old,), (new,) = crystals_to_structures(crystal), crystals_to_structures(reduced)
    niggli = old.lattice.get_niggli_reduced_lattice()
    assert np.allclose(sorted(new.lattice.abc), sorted(niggli.abc), atol=1e-6)
    # Same points in space, atom by atom: every new position is an old one plus a lattice vector.
    apart = np.linalg.solve(old.lattice.matrix.T, (new.cart_coords - old.cart_coords).T).T
    assert np.abs(apart - apart.round()).max() < 1e-8

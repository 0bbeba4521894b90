"""Lattice systems against spglib through pymatgen, on exact, shaken and random cells."""

import json

import numpy as np
import pytest
from ase import Atoms
from prototypes import SPACE_GROUPS, all_prototypes
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystorus.data.io import crystals_to_atoms
from crystorus.reproduction.lattice_systems import (
    LATTICE_SYSTEMS,
    LatticeStudy,
    Symmetries,
    agreement,
    distance,
    draw_lattice_systems,
    holohedry,
    lattice_system,
    study_lattices,
)
from crystorus.reproduction.records import from_json, to_json

CRYSTALS = all_prototypes()


def by_spglib(lattice: np.ndarray, symprec: float) -> str:
    """Lattice system of a cell with one atom, as spglib finds it."""
    alone = Structure(Lattice(lattice.T), ["H"], [[0, 0, 0]])
    return SpacegroupAnalyzer(alone, symprec=symprec, angle_tolerance=-1).get_lattice_type()


def by_the_tables(number: int) -> str:
    """International Tables for Crystallography A, table 2.1.1.1."""
    if number in (146, 148, 155, 160, 161, 166, 167):
        return "rhombohedral"
    names = [n for n in LATTICE_SYSTEMS if n != "rhombohedral"]
    return names[np.searchsorted([3, 16, 75, 143, 195], number, side="right")]


def test_every_space_group_has_its_lattice_system():
    for number in range(1, 231):
        assert lattice_system(number) == by_the_tables(number), number


@pytest.mark.parametrize("name", list(CRYSTALS))
def test_cells_of_prototypes_have_the_system_spglib_finds(name):
    lattice = CRYSTALS[name].lattice[0].numpy()
    assert lattice_system(holohedry(lattice, 0.01)) == by_spglib(lattice, 0.01)


IDEAL = {
    "triclinic": (3.1, 4.3, 5.7, 71, 82, 97),
    "monoclinic": (3.1, 4.3, 5.7, 90, 103, 90),
    "orthorhombic": (3.1, 4.3, 5.7, 90, 90, 90),
    "tetragonal": (3.1, 3.1, 5.7, 90, 90, 90),
    "rhombohedral": (4.3, 4.3, 4.3, 71, 71, 71),
    "hexagonal": (3.1, 3.1, 5.7, 90, 90, 120),
    "cubic": (4.3, 4.3, 4.3, 90, 90, 90),
}


@pytest.mark.parametrize("system", LATTICE_SYSTEMS)
def test_a_strained_cell_keeps_its_system_within_the_tolerance_and_loses_it_below(system):
    rows = Lattice.from_parameters(*IDEAL[system]).matrix
    strain = np.random.default_rng(3).normal(size=(3, 3))
    strained = (np.eye(3) + 0.002 * (strain + strain.T)) @ rows.T  # misses by some 0.03 Å
    assert lattice_system(holohedry(rows.T, 0.001)) == system
    assert lattice_system(holohedry(strained, 0.2)) == by_spglib(strained, 0.2) == system
    assert lattice_system(holohedry(strained, 0.001)) == "triclinic"


def test_random_cells_are_judged_as_spglib_judges_them():
    random = np.random.default_rng(0)
    cells = 4 * np.eye(3) + random.normal(0, 0.2, (60, 3, 3))
    ours = [lattice_system(holohedry(cell, 0.2)) for cell in cells]
    theirs = [by_spglib(cell, 0.2) for cell in cells]
    assert len(set(theirs)) > 2
    assert np.mean([a == b for a, b in zip(ours, theirs, strict=True)]) > 0.9


def study() -> LatticeStudy:
    atoms = {name: crystals_to_atoms(c)[0] for name, c in CRYSTALS.items()}
    strained = [strain(a) for a in atoms.values()]
    cells = {"prior": np.stack([np.eye(3) * 4, np.diag([3.0, 4.0, 5.0])])}
    sets = {"real": list(atoms.values()), "strained": strained}
    return study_lattices(sets, cells=cells, tolerances=(0.001, 0.2))


def strain(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    shear = np.array([[1.004, 0.003, 0.002], [0.003, 0.997, -0.004], [0.002, -0.004, 1.002]])
    moved.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    return moved


@pytest.fixture(scope="module")
def measured() -> LatticeStudy:
    return study()


def test_a_study_finds_groups_cells_and_what_a_tolerance_hides(measured):
    real = measured.of("real", 0.001)
    assert real.groups == tuple(SPACE_GROUPS.values())
    assert real.group_counts()[225] == 3
    hexagonal = 5 / 15  # hcp, wurtzite, and trigonal groups on primitive lattices
    assert real.crystal_shares()["hexagonal"] == pytest.approx(hexagonal)
    assert set(measured.of("strained", 0.001).cell_shares().values()) == {0.0, 1.0}
    prior = measured.of("prior", 0.2)
    assert prior.cell_shares()["cubic"] == prior.cell_shares()["orthorhombic"] == 0.5
    assert prior.groups == ()
    with pytest.raises(KeyError, match=r"no real at 0\.5 Å"):
        measured.of("real", 0.5)


def test_distance_and_agreement_against_their_definitions(measured):
    real, strained = measured.of("real", 0.001), measured.of("strained", 0.001)
    cubic = 8 / 15  # of the cells; zincblende and skewed ones among them
    shares = real.cell_shares()
    assert shares["cubic"] == pytest.approx(cubic)
    assert distance(shares, shares) == 0
    assert distance(shares, strained.cell_shares()) == pytest.approx(1 - shares["triclinic"])
    same, chance = agreement(real.groups, real.groups)
    assert same == 1
    assert chance == pytest.approx(sum(p**2 for p in real.crystal_shares().values()))
    assert agreement(real.groups, strained.groups)[0] == pytest.approx(1 / 15)
    with pytest.raises(ValueError, match="2 and 1 crystals"):
        agreement((1, 2), (1,))


def test_a_study_survives_json_and_draws_its_shares(measured):
    again = from_json(LatticeStudy, json.loads(json.dumps(to_json(measured))))
    assert again == measured
    cells = draw_lattice_systems(again).axes[0]
    heights = [[bar.get_height() for bar in group] for group in cells.containers if len(group) == 7]
    for one, bars in zip(("real", "strained", "prior"), heights, strict=True):
        assert bars == pytest.approx(list(measured.of(one, 0.001).cell_shares().values()))


def test_colliding_atoms_are_not_taken_for_each_other():
    given = crystals_to_atoms(CRYSTALS["perovskite"])[0]
    given += Atoms("O", positions=given.positions[:1] + np.array([0.02, 0.09, 0.24]))
    apart = float(np.linalg.norm([0.02, 0.09, 0.24]))
    (wide, narrow) = study_lattices({"a": [given]}, tolerances=(0.5, apart / 3)).sets
    assert wide.groups == narrow.groups
    assert wide.groups[0] < 195  # cubic, were the two atoms one
    assert lattice_system(wide.holohedries[0]) == "cubic"


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="'generated' is empty"):
        study_lattices({"generated": []})


def test_shares_of_nothing_are_zero():
    assert set(Symmetries("a", 0.1, (), ()).cell_shares().values()) == {0.0}


def test_what_is_no_crystal_is_triclinic_in_its_place():
    given = crystals_to_atoms(CRYSTALS["perovskite"])[0]
    (one,) = study_lattices({"a": [given, None, given]}, tolerances=(0.1,)).sets
    assert one.groups == (221, 1, 221)
    assert [lattice_system(n) for n in one.holohedries] == ["cubic", "triclinic", "cubic"]
    assert agreement(one.groups, (221, 221, 221))[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "lattice",
    [
        [[2.7915, 0.8259, -0.3234], [0.928, 2.9369, -1.443], [1.0075, 1.4782, 14.8343]],
        [[8.6032, 2.6946, -0.1195], [3.207, 4.7952, 0.3141], [-0.7377, 0.5877, 1.9728]],
    ],
)
def test_skewed_cells_of_the_prior_end_within_wide_tolerances(lattice):
    """They took all memory: hence spglib."""
    assert holohedry(np.array(lattice), 0.5) == 12

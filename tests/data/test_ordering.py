"""Ordered supercells of crystals with partial occupancies."""

import csv
from pathlib import Path

import numpy as np
import pytest
from commandline import CliRunner
from explained import columns_explained
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.core import Lattice, Structure
from pymatgen.transformations.standard_transformations import OrderDisorderedStructureTransformation

from crystal_fidelity.cells import min_distance_ratio
from crystal_fidelity.structures import to_pymatgen
from crystal_fidelity.symmetry import space_group
from crystorus.data.ordering import order_sites, read_disordered
from crystorus.errors import RequestError

ROCKSALT = Lattice(4.15 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]))


def rocksalt(metals, oxygen=1.0):
    return Structure(ROCKSALT, [metals, {"O": oxygen}], [[0, 0, 0], [0.5, 0.5, 0.5]])


def fcc(**share):
    return Structure(ROCKSALT, [share], [[0, 0, 0]])


@pytest.mark.parametrize(
    ("share", "atoms", "groups"),
    [
        (0.5, 2, ["P4/mmm", "R-3m"]),  # L1_0 and L1_1
        (1 / 3, 3, ["I4/mmm", "Immm", "P-3m1"]),
        (0.25, 4, ["C2/m", "Cmmm", "I4/mmm", "P4/mmm", "Pm-3m", "Pmmm", "R-3m"]),
    ],
)
def test_binary_orders_of_fcc_are_those_of_hart_and_forcade(share, atoms, groups):
    """Two, three and seven of the derivative structures of their Table III."""
    averaged = fcc(Cu=1 - share, Au=share)
    found = order_sites(averaged, n=50, max_atoms=atoms)
    assert sorted(space_group(one.crystal).symbol for one in found) == groups
    assert {one.energy_per_atom for one in found} == {None}  # nothing balances an alloy


def test_the_lowest_energy_of_disordered_lifeo2_is_its_gamma_phase():
    found = order_sites(rocksalt({"Li": 0.5, "Fe": 0.5}), n=5, max_atoms=8)
    assert space_group(found[0].crystal).symbol == "I4_1/amd"
    energies = [one.energy_per_atom for one in found]
    assert energies == sorted(energies)
    assert len({round(energy, 3) for energy in energies}) == 5


def test_energies_are_those_of_point_charges():
    averaged = rocksalt({"Li": 0.25, "Mg": 0.5}, oxygen=0.625)  # sites are empty on both lattices
    charges = {"Li": 1.0, "Mg": 2.0, "O": -2.0}
    for one in order_sites(averaged, n=6, max_atoms=12, charges=charges):
        structure = to_pymatgen(one.crystal)
        assert structure.composition.formula == "Li2 Mg4 O5"
        structure.add_oxidation_state_by_element(charges)
        energy = EwaldSummation(structure).total_energy / len(structure)
        assert one.energy_per_atom == pytest.approx(energy, abs=2e-4)


def test_no_way_is_left_out_that_pymatgen_finds():
    averaged = rocksalt({"Li": 0.5, "Fe": 0.5})
    averaged.add_oxidation_state_by_element({"Li": 1, "Fe": 3, "O": -2})
    transform = OrderDisorderedStructureTransformation(algo=2)
    lowest = {}
    for shape in ([2, 1, 1], [[2, 0, 0], [0, 2, 0], [0, 0, 1]], [4, 1, 1]):
        for one in transform.apply_transformation(averaged * shape, return_ranked_list=30):
            energy = one["energy"] / len(one["structure"])
            lowest[len(one["structure"])] = min(energy, lowest.get(len(one["structure"]), 0.0))
    for atoms, energy in lowest.items():
        ours = min(o.energy_per_atom for o in order_sites(averaged, n=99, max_atoms=atoms))
        assert ours <= energy + 1e-3


def test_equivalent_ways_are_counted():
    """One of the four corners of the cube, in the cell of the cube's four atoms."""
    found = order_sites(fcc(Cu=0.75, Au=0.25), n=50, max_atoms=4)
    cubic = next(one for one in found if space_group(one.crystal).symbol == "Pm-3m")
    assert cubic.ways == 4


def test_atoms_are_not_put_on_both_halves_of_a_split_site():
    lattice = Lattice.cubic(4.0)
    split = [{"Li": 0.5}, {"Li": 0.5}, "Cl"]
    averaged = Structure(lattice, split, [[0.05, 0, 0], [-0.05, 0, 0], [0.5, 0.5, 0.5]])
    found = order_sites(averaged, n=20, max_atoms=4)
    assert {len(one.crystal) for one in found} == {2, 4}
    assert min(min_distance_ratio(one.crystal) for one in found) > 0.6


@pytest.mark.parametrize(
    ("averaged", "options", "says"),
    [
        (rocksalt("Mg"), {}, "nothing to order"),
        (fcc(Cu=0.9, Au=0.1), {"max_atoms": 5}, "no supercell of at most 5 atoms"),
        (fcc(Cu=0.9, Au=0.1), {"max_atoms": 9, "tolerance": 0.005}, "raise --max-atoms"),
        (rocksalt({"Li": 0.5, "Fe": 0.5}), {"charges": {"Li": 1}}, "--charge of"),
        (
            Structure(
                Lattice.cubic(9.0), [{"Cu": 0.5, "Au": 0.5}] * 27,
                [[i / 3, j / 3, k / 3 + 0.02 * i * j] for i in range(3) for j in range(3)
                 for k in range(3)],
            ),
            {"max_atoms": 60},
            "above 1000000",
        ),
    ],
)  # fmt: skip
def test_what_has_no_complete_list_is_refused(averaged, options, says):
    with pytest.raises(RequestError, match=says):
        order_sites(averaged, **options)


def test_a_rounded_occupancy_takes_a_smaller_cell():
    (one,) = order_sites(fcc(Cu=0.48, Au=0.52), n=1, max_atoms=2, tolerance=0.03)
    assert to_pymatgen(one.crystal).composition.formula == "Cu1 Au1"


def test_the_command_writes_what_relax_and_view_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rocksalt({"Li": 0.5, "Fe": 0.5}).to(filename="mixed.cif", symprec=0.01)
    done = CliRunner().invoke(None, ["order", "mixed.cif", "--n", "3", "--max-atoms", "8"])
    assert done.exit_code == 0, done.output
    with Path("out/ordered-mixed/table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["mixed-01", "mixed-02", "mixed-03"]
    assert rows[0]["space_group"] == "I4_1/amd"
    assert len(read_disordered(tmp_path / "out/ordered-mixed/mixed-01.cif")) == 8
    viewed = CliRunner().invoke(None, ["view", "out/ordered-mixed", "--no-browser"])
    assert viewed.exit_code == 0
    refused = CliRunner().invoke(None, ["sample", "--like", "mixed.cif"])
    assert refused.exit_code == 1
    assert "crystorus order" in refused.output


def test_the_columns_are_explained_and_equal_energies_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rocksalt({"Li": 0.5, "Fe": 0.5}).to(filename="mixed.cif", symprec=0.01)
    words = ["order", "mixed.cif", "--n", "3", "--max-atoms", "8"]
    assert "their order says nothing" not in CliRunner().invoke(None, words).stderr
    alike = [word for state in ("Li=2", "Fe=2", "O=-2") for word in ("--charge", state)]
    same = CliRunner().invoke(None, [*words, *alike])
    assert "3 of them have the energy of another" in same.stderr
    assert columns_explained("order") == same.stdout.splitlines()[0].split("\t")

"""Conversions against ASE and pymatgen, files against their own readers."""

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from prototypes import SPACE_GROUPS, all_prototypes, batch, left_handed, needle, quartz, rocksalt
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystorus.data.arrays import ReadingError
from crystorus.data.io import (
    crystals_from_atoms,
    crystals_from_cif,
    crystals_from_structures,
    crystals_to_atoms,
    crystals_to_structures,
    density,
    least_distance,
    niggli_reduce,
    read_crystals,
)
from crystorus.data.spacegroups import symmetry
from crystorus.data.writing import cif_text, symmetrised_cif_text, write_extxyz
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import rotate

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
    close(crystals_from_atoms(atoms, dtype=torch.float64), crystal)
    close(crystals_from_structures(structure, dtype=torch.float64), crystal)


def test_rows_of_ase_are_columns_here():
    atoms = Atoms("LiO", cell=RANDOM_CELL, scaled_positions=[[0, 0, 0], [0.1, 0.2, 0.3]], pbc=True)
    crystal = crystals_from_atoms(atoms, dtype=torch.float64)
    assert torch.equal(crystal.lattice[0], torch.tensor(RANDOM_CELL, dtype=torch.float64).T)
    assert np.allclose(crystal.cart_coords.numpy(), atoms.positions)
    # Forgetting to transpose moves the atoms: the check above can fail.
    wrong = crystal.with_geometry(crystal.lattice.mT, crystal.frac_coords)
    assert not np.allclose(wrong.cart_coords.numpy(), atoms.positions, atol=0.1)


def test_several_structures_become_one_batch():
    crystals = batch()
    close(crystals_from_atoms(crystals_to_atoms(crystals), dtype=torch.float64), crystals)


def test_coordinates_stay_below_one_in_float32():
    atoms = Atoms("Li", cell=4 * np.eye(3), scaled_positions=[[1 - 1e-9, -1e-12, 0.5]], pbc=True)
    frac = crystals_from_atoms(atoms).frac_coords
    assert frac.dtype == torch.float32
    assert ((frac >= 0) & (frac < 1)).all()


def test_oxidation_states_are_dropped():
    structure = Structure(Lattice.cubic(4.2), ["Mg2+", "O2-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert crystals_from_structures(structure).atomic_numbers.tolist() == [12, 8]


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms("Li", positions=[[0, 0, 0]]), "no cell"),
        (Atoms("Li", cell=[4, 4, 4], positions=[[0, 0, 0]], pbc=[1, 1, 0]), "along 2 of 3"),
        (Atoms("Li", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "singular"),
        (Atoms("Li", cell=4 * np.eye(3), positions=[[np.nan, 0, 0]], pbc=True), "finite"),
        (Atoms("Li", cell=np.full((3, 3), np.nan), pbc=True), "singular|finite"),
        (Atoms(cell=[4, 4, 4], pbc=True), "no atoms"),
        (Atoms("X", cell=4 * np.eye(3), pbc=True), "atomic number 0"),
        (Atoms("Li", cell=[0.5, 0.5, 0.5], pbc=True), "below 0.5 Å³"),
    ],
)
def test_unusable_atoms_are_refused_by_name(atoms, words):
    good = Atoms("Li", cell=[4, 4, 4], pbc=True)
    with pytest.raises(ReadingError, match=words) as caught:
        crystals_from_atoms([good, atoms])
    assert str(caught.value).startswith("structure 2: ")


def test_partial_occupancy_of_a_structure_is_refused():
    structure = Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ReadingError, match="partial occupancies"):
        crystals_from_structures(structure)


# Symmetry, distance, density


def test_space_groups_are_those_of_the_prototypes_and_of_pymatgen(named):
    name, crystal = named
    found = symmetry(crystal, 1e-3)
    analyzer = SpacegroupAnalyzer(crystals_to_structures(crystal)[0], symprec=1e-3)
    assert found.number == SPACE_GROUPS[name] == analyzer.get_space_group_number()
    assert found.symbol == analyzer.get_space_group_symbol()
    (standard,) = crystals_to_structures(found.standardized)
    assert StructureMatcher(stol=1e-3).fit(standard, crystals_to_structures(crystal)[0])


def test_the_tolerance_decides_the_space_group():
    crystal = rocksalt()
    shaken = crystal.with_geometry(
        crystal.lattice * torch.tensor([1.0, 1.0, 1.004]), crystal.frac_coords
    )
    assert symmetry(shaken, 0.1).number == 225
    assert symmetry(shaken, 1e-4).number != 225


def test_symmetry_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="give one"):
        symmetry(batch())


def distance_by_brute_force(crystal: Crystals, reach: int) -> float:
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), -1).reshape(-1, 3)
    rows, x = crystal.lattice[0].numpy().T, crystal.frac_coords.numpy()
    lengths = np.linalg.norm((x[:, None, None] - x[None, :, None] + steps) @ rows, axis=-1)
    return float(lengths[lengths > 1e-9].min())


def test_least_distance_is_exact_in_every_cell(named):
    name, crystal = named
    reach = 12 if name == "skewed" else 3
    assert float(least_distance(crystal)[0]) == pytest.approx(
        distance_by_brute_force(crystal, reach), abs=1e-9
    )


def test_least_distance_counts_an_atom_and_its_own_image():
    (atoms,) = crystals_to_atoms(needle())
    lone = crystals_from_atoms(atoms[:1], dtype=torch.float64)
    assert float(least_distance(lone)[0]) == pytest.approx(2.9)


def test_least_distance_of_a_collapsed_cell_is_not_a_number():
    crystal = rocksalt()
    flat = crystal.with_geometry(crystal.lattice * 0, crystal.frac_coords)
    assert torch.isnan(least_distance(Crystals.concat([flat, crystal]))).tolist() == [True, False]


def test_density_is_pymatgens():
    crystals = batch()
    expected = [float(s.density) for s in crystals_to_structures(crystals)]
    assert density(crystals).tolist() == pytest.approx(expected, rel=1e-3)


def test_niggli_reduction_keeps_the_crystal_and_its_hand(named):
    _, crystal = named
    reduced = niggli_reduce(crystal)
    assert torch.linalg.det(reduced.lattice[0]) > 0
    (old,), (new,) = crystals_to_structures(crystal), crystals_to_structures(reduced)
    niggli = old.lattice.get_niggli_reduced_lattice()
    assert np.allclose(sorted(new.lattice.abc), sorted(niggli.abc), atol=1e-6)
    # Same points in space, atom by atom: every new position is an old one plus a lattice vector.
    apart = np.linalg.solve(old.lattice.matrix.T, (new.cart_coords - old.cart_coords).T).T
    assert np.abs(apart - apart.round()).max() < 1e-8


# Files


def test_cif_reads_back_as_the_same_crystal_in_pymatgen_and_here(named):
    name, crystal = named
    text = cif_text(crystal, name)
    (original,) = crystals_to_structures(crystal)
    (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
    matcher = StructureMatcher(stol=1e-3, primitive_cell=False)
    assert matcher.fit(original, theirs)
    ours = crystals_from_cif(text, dtype=torch.float64)
    assert matcher.fit(original, crystals_to_structures(ours)[0])
    assert symmetry(ours, 1e-3).number == SPACE_GROUPS[name]
    assert ours.atomic_numbers.tolist() == crystal.atomic_numbers.tolist()


def test_cif_of_a_left_handed_cell_is_not_the_mirror_image():
    # P3_121 and P3_221 are mirror images: 152 stays 152.
    assert symmetry(crystals_from_cif(cif_text(left_handed(), "q"))).number == 152
    mirror = rotate(quartz(), torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    assert symmetry(mirror, 1e-3).number == 154


def test_symmetrised_cif_lists_one_atom_of_every_orbit(named):
    name, crystal = named
    text = symmetrised_cif_text(crystal, name, 1e-3)
    (original,) = crystals_to_structures(crystal)
    (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
    ours = crystals_from_cif(text, dtype=torch.float64)
    matcher = StructureMatcher(stol=1e-3)
    assert matcher.fit(original, theirs)
    assert matcher.fit(original, crystals_to_structures(ours)[0])
    assert symmetry(ours, 1e-3).number == SPACE_GROUPS[name]
    assert "symprec = 0.001" in text
    orbits = len(
        set(SpacegroupAnalyzer(original, 1e-3).get_symmetry_dataset().crystallographic_orbits)
    )
    assert text.count("\n", text.index("_atom_site_occupancy")) - 1 == orbits


def test_extxyz_keeps_order_info_and_geometry(tmp_path):
    path, crystals = tmp_path / "all.extxyz", batch()
    parts = crystals.split()
    infos = [{"index": i, "formula": f"F{i}", "valid": i % 2 == 0} for i in range(len(parts))]
    write_extxyz(path, Crystals.concat(parts[:4]), infos[:4])
    write_extxyz(path, Crystals.concat(parts[4:]), infos[4:], append=True)
    frames = ase.io.read(path, index=":")
    assert [f.info["index"] for f in frames] == list(range(len(parts)))
    assert frames[3].info["formula"] == "F3"
    back = [c for _, c in read_crystals(path, dtype=torch.float64)]
    close(Crystals.concat(back), crystals, 1e-6)
    with pytest.raises(ValueError, match="1 infos for 4"):
        write_extxyz(path, Crystals.concat(parts[:4]), infos[:1])


def test_poscar_folder_and_database_are_read(tmp_path):
    parts = {n: all_prototypes()[n] for n in ("quartz", "spinel", "triclinic")}
    folder = tmp_path / "cifs"
    folder.mkdir()
    with ase.db.connect(tmp_path / "some.db") as database:
        for name, crystal in parts.items():
            (atoms,) = crystals_to_atoms(crystal)
            ase.io.write(tmp_path / f"{name}.vasp", atoms, format="vasp", sort=True)
            (folder / f"{name}.cif").write_text(cif_text(crystal, name))
            database.write(atoms, key_value_pairs={"label": name})
    matcher = StructureMatcher(stol=1e-3, primitive_cell=False)
    originals = [crystals_to_structures(c)[0] for c in parts.values()]
    sources = [read_crystals(folder), read_crystals(tmp_path / "some.db")]
    for source in sources:
        found = [crystals_to_structures(c)[0] for _, c in source]
        assert len(found) == 3
        assert all(matcher.fit(a, b) for a, b in zip(originals, found, strict=True))
    for name, original in zip(parts, originals, strict=True):
        ((found_name, crystal),) = read_crystals(tmp_path / f"{name}.vasp")
        assert found_name == name
        assert matcher.fit(original, crystals_to_structures(crystal)[0])


def test_the_blocks_of_one_cif_file_are_read_one_by_one(tmp_path):
    texts = [cif_text(quartz(), "one"), cif_text(needle(), "two")]
    texts.append(cif_text(rocksalt(), "bad").replace(" 1\n", " 0.5\n"))
    (tmp_path / "all.cif").write_text("\n".join(texts))
    found = dict(read_crystals(tmp_path / "all.cif"))
    assert list(found) == ["all-one", "all-two", "all-bad"]
    assert found["all-one"].n_atoms.tolist() == [9]
    assert found["all-two"].n_atoms.tolist() == [5]
    assert "occupancy 0.5" in str(found["all-bad"])


def test_one_broken_frame_does_not_stop_the_others(tmp_path):
    path = tmp_path / "frames.extxyz"
    good = '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"\nLi 0 0 0\n'
    path.write_text(
        good
        + good.replace("Li 0", "Li zero")
        + good.replace("Lattice", "Lettuce")
        + good.replace("Li 0", "Li nan")
        + good.replace("Properties", 'name="special" Properties')
        + good.replace("1\n", "3\n", 1)
    )
    found = dict(read_crystals(path))
    assert [isinstance(c, Crystals) for c in found.values()] == [
        True, False, False, False, True, False,
    ]  # fmt: skip
    assert list(found)[4] == "special"
    reasons = [str(c) for c in found.values() if isinstance(c, ReadingError)]
    for reason, words in zip(reasons, ("not a frame", "", "finite", "1 of 3 atoms"), strict=True):
        assert words in reason


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.extxyz", "", "is empty"),
        ("a.extxyz", "hello\n", "line 1: 'hello' is not a number of atoms"),
        ("a.extxyz", "-2\n" * 9, "line 1: -2 atoms are announced"),
        ("a.vasp", "nothing\n", "not a POSCAR"),
        ("a.db", "this is no database, and long enough to tell" * 40, "not an ASE database"),
        ("a.pdf", "x", "no known format"),
        ("a.csv", "", "is empty"),
    ],
)
def test_files_that_are_broken_as_a_whole_say_so(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ReadingError, match=words) as caught:
        list(read_crystals(path))
    assert name in str(caught.value)


def test_a_missing_file_and_an_empty_folder_say_so(tmp_path):
    with pytest.raises(ReadingError, match="does not exist"):
        list(read_crystals(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ReadingError, match=r"folder\.csv has no \.cif files"):
        list(read_crystals(tmp_path / "folder.csv"))
    with pytest.raises(ReadingError, match=r"no \.cif files"):
        list(read_crystals(tmp_path))


def test_a_collapsed_cell_has_no_space_group_and_is_not_searched_for_ever():
    """Two atoms 0.34 Å apart, for which moyo 0.21 comes to no end within 0.17 Å."""
    from prototypes import crystal, cscl

    rows = [[-0.104423, 0.313533, -0.061325], [-0.314762, 0.073642, 0.265710],
            [1.430483, 0.635617, 1.477308]]  # fmt: skip
    flat = crystal(rows, "O O", [[0.132710, 0.804687, 0.668656], [0.621635, 0.320373, 0.142531]])
    assert symmetry(flat, 0.17).number == 1
    # A crystal that is as symmetric as they come, and the same below the distance of 0.5 Å.
    assert symmetry(cscl()).number == 221
    assert symmetry(cscl().with_geometry(cscl().lattice / 10, cscl().frac_coords)).number == 1

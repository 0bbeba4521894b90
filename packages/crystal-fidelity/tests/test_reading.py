import csv
import gzip

import ase.io
import numpy as np
import pytest
from ase.db import connect
from prototypes import everything, format_cif, moved, perovskite, rock_salt, rutile, wurtzite
from pymatgen.core import Lattice, Structure

from crystal_fidelity.cif import parse_cif
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.reading import iter_structures, read_structures
from crystal_fidelity.structures import (
    Crystal,
    ReadFailure,
    as_entries,
    density,
    digest,
    to_atoms,
    to_pymatgen,
)


def same(crystal, other):
    assert isinstance(crystal, Crystal), crystal
    assert sorted(crystal.atomic_numbers) == sorted(other.atomic_numbers)
    assert crystal.volume == pytest.approx(other.volume, rel=1e-6)
    assert density(crystal) == pytest.approx(density(other), rel=1e-6)


def write_csv(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as stream:
        writer = csv.DictWriter(stream, ["material_id", "formation_energy_per_atom", "cif"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["set.csv", "set.csv.gz"])
def test_csv_keeps_order_names_numbers_and_the_place_of_a_bad_row(tmp_path, name):
    good = everything()
    rows = [
        {"material_id": c.name, "formation_energy_per_atom": i - 2.5, "cif": format_cif(c)}
        for i, c in enumerate(good)
    ]
    rows.insert(2, {"material_id": "broken", "formation_energy_per_atom": "", "cif": "data_x\n"})
    write_csv(tmp_path / name, rows)
    entries = read_structures(tmp_path / name)
    assert [e.name for e in entries] == [r["material_id"] for r in rows]
    assert isinstance(entries[2], ReadFailure)
    assert "_atom_site_fract_x" in entries[2].reason
    for entry, crystal in zip(entries[:2] + entries[3:], good, strict=True):
        same(entry, crystal)
    assert entries[1].properties["formation_energy_per_atom"] == -1.5


@pytest.mark.parametrize("suffix", ["extxyz", "xyz"])
def test_extxyz_equals_what_ase_wrote(tmp_path, suffix):
    atoms = [to_atoms(c) for c in everything()]
    for a in atoms:
        a.info["formation_energy_per_atom"] = -1.25
    path = tmp_path / f"set.{suffix}"
    ase.io.write(path, atoms, format="extxyz")
    entries = read_structures(path)
    for entry, a in zip(entries, atoms, strict=True):
        np.testing.assert_allclose(entry.lattice, a.cell[:], atol=1e-7)
        np.testing.assert_allclose(entry.frac_coords @ entry.lattice, a.positions, atol=1e-6)
        assert entry.properties["formation_energy_per_atom"] == -1.25


def test_a_bad_frame_is_named_and_the_next_is_read(tmp_path):
    path = tmp_path / "set.extxyz"
    ase.io.write(path, [to_atoms(c) for c in everything()[:3]], format="extxyz")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(lines[3].split()[1], "oops")
    path.write_text("\n".join(lines) + "\n")
    entries = read_structures(path)
    assert [type(e) for e in entries] == [ReadFailure, Crystal, Crystal]
    assert entries[0].name == "set-0"


def test_a_truncated_extxyz_says_so(tmp_path):
    path = tmp_path / "set.extxyz"
    ase.io.write(path, [to_atoms(c) for c in everything()], format="extxyz")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n")
    entries = read_structures(path)
    assert len(entries) == 6
    assert "atoms: the file is cut" in entries[-1].reason


@pytest.mark.parametrize(
    ("lattice", "coords", "message"),
    [
        ("5 0 0 0 5 0 0 0 5", "nan 0 0", "must be finite"),
        ("5 0 0 0 5 0 nan 0 5", "0 0 0", "NaN"),
        ("5 0 0 0 5 0 0 0 0", "0 0 0", "singular"),
    ],
)
def test_nan_and_flat_cells_are_failures(tmp_path, lattice, coords, message):
    path = tmp_path / "one.extxyz"
    path.write_text(
        f'1\nLattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"\nNa {coords}\n'
    )
    (entry,) = read_structures(path)
    assert isinstance(entry, ReadFailure)
    import re

    assert re.search(message, entry.reason)


def test_folder_of_cif_and_database(tmp_path):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for crystal in everything():
        (folder / f"{crystal.name}.cif").write_text(format_cif(crystal))
    (folder / "junk.cif").write_bytes(b"\x00\xff nothing")
    entries = {e.name: e for e in read_structures(folder)}
    assert isinstance(entries.pop("junk"), ReadFailure)
    for crystal in everything():
        same(entries[crystal.name], crystal)
    with connect(tmp_path / "set.db") as database:
        for crystal in everything():
            database.write(to_atoms(crystal), material_id=crystal.name, energy_per_atom=-3.0)
    for entry, crystal in zip(read_structures(tmp_path / "set.db"), everything(), strict=True):
        same(entry, crystal)
        assert entry.properties["energy_per_atom"] == -3.0


@pytest.mark.parametrize("crystal", everything(), ids=lambda c: c.name)
def test_cif_agrees_with_pymatgen_both_ways(crystal):
    ours = parse_cif(to_pymatgen(crystal).to(fmt="cif"), "x")
    same(ours, crystal)
    theirs = Structure.from_str(format_cif(crystal), fmt="cif")
    back = parse_cif(format_cif(crystal))
    metric = theirs.lattice.matrix @ theirs.lattice.matrix.T
    np.testing.assert_allclose(back.lattice @ back.lattice.T, metric, atol=1e-8)
    apart = theirs.lattice.get_all_distances(back.frac_coords, theirs.frac_coords)
    np.testing.assert_allclose(apart.min(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("group", "lattice", "species", "coords"),
    [
        ("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        ("P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
        (
            "P6_3mc",
            Lattice.hexagonal(3.25, 5.2),
            ["Zn", "O"],
            [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.38]],
        ),
    ],
)
def test_symmetric_cif_expands_as_pymatgen_expands_it(group, lattice, species, coords):
    structure = Structure.from_spacegroup(group, lattice, species, coords)
    text = structure.to(fmt="cif", symprec=0.01)
    theirs = Structure.from_str(text, fmt="cif")
    ours = parse_cif(text)
    same(ours, Crystal(theirs.lattice.matrix, theirs.frac_coords, np.array(theirs.atomic_numbers)))
    matrix = to_pymatgen(ours).lattice.get_all_distances(ours.frac_coords, theirs.frac_coords)
    assert np.all(matrix.min(axis=1) < 1e-3)
    assert np.all(matrix.min(axis=0) < 1e-3)


def test_space_group_name_without_operations_is_expanded():
    text = (
        "data_x\n_symmetry_space_group_name_H-M 'F m -3 m'\n_cell_length_a 5.64\n"
        "_cell_length_b 5.64\n_cell_length_c 5.64\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
        "_cell_angle_gamma 90\nloop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n"
        "_atom_site_fract_z\nNa1 0 0 0\nCl1 0.5 0.5 0.5\n"
    )
    assert len(parse_cif(text)) == 8


def test_overlapping_sites_survive_reading():
    crystal = rock_salt()
    doubled = Crystal(
        crystal.lattice,
        np.vstack([crystal.frac_coords, crystal.frac_coords[:1] + 1e-6]),
        np.append(crystal.atomic_numbers, 11),
        "collision",
    )
    assert len(parse_cif(format_cif(doubled))) == 3


def test_coordinates_near_thirds_are_snapped_as_in_pymatgen():
    crystal = Crystal(np.eye(3) * 4, np.array([[0.33333, 0.66667, 0.3330]]), np.array([29]))
    text = format_cif(crystal)
    with pytest.warns(UserWarning, match="rounded"):
        theirs = Structure.from_str(text, fmt="cif").frac_coords
    ours = parse_cif(text).frac_coords
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert ours[0, 0] == 1 / 3
    assert ours[0, 2] == pytest.approx(0.3330, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("_cell_length_a 5", "_cell_length_a ?"), "_cell_length_a is missing"),
        (("_cell_angle_alpha 90", "_cell_angle_alpha 179"), "no cell has lengths"),
        (("Na Na0", "Zz Zz0"), "'Zz' names no element"),
        (("0.25 0.5 0.75", "0.25 . 0.75"), "not a finite number"),
    ],
)
def test_broken_cif_says_what_is_broken(change, message):
    text = (
        "data_x\n_cell_length_a 5\n_cell_length_b 5\n_cell_length_c 5\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 80\n_cell_angle_gamma 90\nloop_\n_atom_site_type_symbol\n"
        "_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
        "Na Na0 0.25 0.5 0.75\n"
    )
    assert isinstance(parse_cif(text), Crystal)
    assert change[0] in text
    failure = parse_cif(text.replace(*change), "bad one")
    assert isinstance(failure, ReadFailure)
    assert failure.name == "bad one"
    assert message in failure.reason


def test_partial_occupancy_is_refused_in_cif_and_in_pymatgen():
    disordered = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    assert "occupanc" in as_entries([disordered])[0].reason
    assert "occupancy" in parse_cif(disordered.to(fmt="cif")).reason


def test_two_processes_read_what_one_reads(tmp_path):
    crystals = [moved(c, seed) for seed in range(60) for c in everything()]
    rows = [
        {"material_id": f"s{i}", "formation_energy_per_atom": "", "cif": format_cif(c)}
        for i, c in enumerate(crystals)
    ]
    write_csv(tmp_path / "set.csv", rows)
    one = [(e.name, digest(e)) for e in iter_structures(tmp_path / "set.csv")]
    two = [(e.name, digest(e)) for e in iter_structures(tmp_path / "set.csv", workers=2)]
    assert len(one) == 360
    assert one == two


def test_missing_empty_and_foreign_files_are_explained(tmp_path):
    with pytest.raises(ReadingError, match="does not exist"):
        read_structures(tmp_path / "none.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ReadingError, match="no known format: give CIF"):
        read_structures(tmp_path / "a.txt")
    (tmp_path / "b.csv").write_text("id,structure\n1,2\n")
    with pytest.raises(ReadingError, match="no cif column but 'id', 'structure'"):
        read_structures(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("material_id,cif\n")
    with pytest.raises(ReadingError, match="no structure"):
        read_structures(tmp_path / "c.csv")


def test_conversions_round_trip_and_digest_follows_content_only():
    crystal = wurtzite()
    there = as_entries([to_pymatgen(crystal), to_atoms(crystal)])
    for entry in there:
        np.testing.assert_allclose(entry.frac_coords % 1, crystal.frac_coords % 1, atol=1e-12)
    renamed = Crystal(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, "other")
    assert digest(renamed) == digest(crystal)
    nudged = Crystal(crystal.lattice, crystal.frac_coords + 1e-12, crystal.atomic_numbers)
    assert digest(nudged) != digest(crystal)


def test_as_entries_refuses_other_types():
    with pytest.raises(TypeError, match="structure 1 is a str"):
        as_entries([perovskite(), "NaCl"])


@pytest.mark.parametrize("crystal", everything(), ids=lambda c: c.name)
def test_density_and_formula_are_pymatgens(crystal):
    structure = to_pymatgen(crystal)
    assert density(crystal) == pytest.approx(float(structure.density), rel=1e-6)
    reduced = structure.composition.reduced_composition
    assert {z: n for z, n in crystal.formula} == {e.Z: int(n) for e, n in reduced.items()}


def test_formula_ignores_the_number_of_cells():
    crystal = rutile()
    double = Crystal(
        crystal.lattice * np.array([[2.0], [1.0], [1.0]]),
        np.vstack(
            [crystal.frac_coords * [0.5, 1, 1], crystal.frac_coords * [0.5, 1, 1] + [0.5, 0, 0]]
        ),
        np.tile(crystal.atomic_numbers, 2),
    )
    assert double.formula == crystal.formula

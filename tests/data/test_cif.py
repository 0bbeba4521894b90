"""CIF parsing against pymatgen's parser and its known values."""

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser

from crystorus.data.arrays import CrystalArrays, ReadingError
from crystorus.data.cif import lattice_from_parameters, parse_cif, parse_cif_blocks, snap

CELL = "\n".join(
    f"_cell_{k} {v}"
    for k, v in {
        "length_a": 4.913, "length_b": 4.913, "length_c": 5.405,
        "angle_alpha": 90, "angle_beta": "90.0(1)", "angle_gamma": 120,
    }.items()
)  # fmt: skip
QUARTZ = f"""data_quartz
{CELL}
_space_group_IT_number 152
_symmetry_space_group_name_H-M 'P 31 2 1'
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Si4+ Si1 0.4697(2) 0.0 0.3333 1
O2- O1 0.4135 0.2669 0.7858 1.0
"""
OPERATIONS = """loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
'-y, x-y, z+1/3'
'-x+y, -x, z+2/3'
'y, x, -z'
'x-y, -y, -z+2/3'
'-x, -x+y, -z+1/3'
"""


def structure(arrays: CrystalArrays) -> Structure:
    return Structure(Lattice(arrays.lattice.T), arrays.atomic_numbers, arrays.frac_coords)


@pytest.mark.parametrize(
    "text",
    [
        QUARTZ,
        QUARTZ + OPERATIONS,
        QUARTZ.replace("'P 31 2 1'", "?"),
        QUARTZ.replace("_space_group_IT_number 152", ""),
        QUARTZ.replace("\n", "\r\n"),
        QUARTZ.replace("_atom_site_type_symbol\n", "").replace("Si4+ ", "").replace("O2- ", ""),
        QUARTZ.replace("_atom_site_occupancy\n", "").replace(" 1\n", "\n").replace(" 1.0\n", "\n"),
        QUARTZ.replace("Si4+", "SI"),
    ],
    ids=["both", "operations", "number", "name", "crlf", "labels", "no-occupancy", "upper-case"],
)
def test_symmetry_is_expanded_however_it_is_given(text):
    crystal = parse_cif(text)
    (theirs,) = CifParser.from_str(QUARTZ).parse_structures(primitive=False)
    assert sorted(crystal.atomic_numbers) == [8] * 6 + [14] * 3
    assert StructureMatcher(stol=1e-3, primitive_cell=False).fit(structure(crystal), theirs)


def test_special_positions_keep_one_atom_of_every_orbit():
    text = QUARTZ.replace("152", "225").replace("'P 31 2 1'", "'F m -3 m'").replace("4.913", "5.64")
    text = text.replace("5.405", "5.64").replace(" 120", " 90").replace("0.4697(2)", "0")
    text = text.replace("0.3333", "0").replace("0.4135 0.2669 0.7858", ".5 .5 .5")
    assert sorted(parse_cif(text).atomic_numbers) == [8] * 4 + [14] * 4


def test_thirds_are_snapped_as_pymatgen_snaps_them():
    (theirs,) = CifParser.from_str(QUARTZ).parse_structures(primitive=False)
    ours = parse_cif(QUARTZ)
    assert 1 / 3 in ours.frac_coords
    assert 1 / 3 in theirs.frac_coords
    values = np.array([0.33333, 0.6667, -0.33334, 0.3332, 0.66, 0.0])
    expected = [1 / 3, 2 / 3, -1 / 3, 0.3332, 0.66, 0.0]
    assert snap(values).tolist() == expected


@pytest.mark.parametrize(
    "parameters",
    [(3, 4, 5, 90, 90, 90), (3, 4, 5, 60, 70, 80), (3, 4, 5, 110, 95, 130), (2, 2, 30, 20, 25, 30)],
)
def test_the_cell_has_the_lengths_and_angles_asked_for(parameters):
    lattice = Lattice(lattice_from_parameters(*parameters).T)
    assert np.allclose(lattice.parameters, parameters, atol=1e-9)
    assert np.linalg.det(lattice.matrix) > 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.7858 1.0", "0.7858 0.5", "O1 has occupancy 0.5: partial occupancies"),
        ("_cell_length_b 4.913\n", "", "no cell .*_cell_length_b is missing"),
        ("_cell_length_b 4.913", "_cell_length_b ?", "no cell has lengths"),
        ("_cell_length_b 4.913", "_cell_length_b -4.9", "no cell has lengths"),
        ("_cell_angle_gamma 120", "_cell_angle_gamma 180", "no cell has lengths"),
        ("_cell_length_b 4.913", "_cell_length_b 0.01", "below 0.5 Å³"),
        ("0.4135 ", "nan ", "must be finite"),
        ("0.4135 ", "? ", "must be finite"),
        ("0.4135 ", "1e30 ", "must be finite"),
        ("O2- O1", "Qq Qq1", "'Qq' names no element"),
        ("_atom_site_fract_x", "_atom_site_cartn_x", "no _atom_site_fract_x"),
        ("152", "999", "space groups are 1 to 230"),
        ("data_quartz", "nonsense", "not a valid CIF"),
        ("0.7858 1.0\n", "\n", "not a valid CIF"),
    ],
)  # fmt: skip
def test_unusable_cifs_say_why(old, new, words):
    text = QUARTZ.replace("'P 31 2 1'", "?") if old == "152" else QUARTZ
    assert text.count(old) >= 1
    with pytest.raises(ReadingError, match=words) as caught:
        parse_cif(text.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_bad_operation_is_named():
    with pytest.raises(ReadingError, match="not a list of operations"):
        parse_cif(QUARTZ + OPERATIONS.replace("'y, x, -z'", "'y, q, -z'"))


@pytest.mark.parametrize("text", ["", "data_x\n", "\x00\x01\x02"])
def test_text_without_a_structure_is_refused(text):
    with pytest.raises(ReadingError):
        parse_cif(text)


def test_one_bad_block_does_not_stop_the_others():
    bad = QUARTZ.replace("data_quartz", "data_bad").replace("0.7858 1.0", "0.7858 0.5")
    found = parse_cif_blocks(QUARTZ + bad + QUARTZ.replace("data_quartz", "data_third"))
    assert [name for name, _ in found] == ["quartz", "bad", "third"]
    assert [isinstance(c, CrystalArrays) for _, c in found] == [True, False, True]


def test_mp20_parses_as_pymatgen_parses_it(mp20):
    import csv
    import gzip

    with gzip.open(mp20 / "val.csv.gz", "rt", newline="") as stream:
        texts = [row["cif"] for row in csv.DictReader(stream)][::180]
    for text in texts:
        ours = parse_cif(text)
        (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
        assert theirs.atomic_numbers == tuple(ours.atomic_numbers)
        assert np.allclose(structure(ours).distance_matrix, theirs.distance_matrix, atol=1e-6)

"""What CIF files of databases, refinement programs and generators say, and what is read."""

import numpy as np
import pytest
from prototypes import format_cif, rock_salt
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser

from crystal_fidelity.cif import parse_cif, parse_cif_blocks
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.operations import settings
from crystal_fidelity.structures import (
    Crystal,
    ReadFailure,
    density,
    element_symbol,
    lattice_from_parameters,
    snap_thirds,
    to_pymatgen,
)


def cif(cell, symmetry, sites, columns="type_symbol fract_x fract_y fract_z"):
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    text = ["data_x", *(f"_cell_{n} {v}" for n, v in zip(names, cell, strict=True))]
    text += [symmetry.strip(), "loop_", *(f"_atom_site_{c}" for c in columns.split())]
    return "\n".join([*text, *sites]) + "\n"


def good(text):
    entry = parse_cif(text, "x")
    assert isinstance(entry, Crystal), entry
    return entry


def reason(text):
    entry = parse_cif(text, "x")
    assert isinstance(entry, ReadFailure), len(entry)
    assert "\n" not in entry.reason
    return entry.reason


HM = "_symmetry_space_group_name_H-M"
BISMUTH = (4.7459, 4.7459, 4.7459, 57.24, 57.24, 57.24)
CORUNDUM = (4.76, 4.76, 12.99, 90, 90, 120)
CUBE = (5.64, 5.64, 5.64, 90, 90, 90)
CARBON = (3.567, 3.567, 3.567, 90, 90, 90)
SALT = ["Na 0 0 0", "Cl 0.5 0.5 0.5"]
FCC = ("0 0 0", "0 .5 .5", ".5 0 .5", ".5 .5 0")
EVERY_ATOM = [
    *(f"Na {x}" for x in FCC),
    *(f"Cl {x}" for x in (".5 .5 .5", ".5 0 0", "0 .5 0", "0 0 .5")),
]


def salt(symmetry=f"{HM} 'F m -3 m'", sites=SALT, **more):
    return cif(CUBE, symmetry, sites, **more)


# Symmetry


@pytest.mark.parametrize(
    "symmetry",
    [f"{HM} 'R -3 m'", f"{HM} 'R -3 m :R'", f"{HM} 'R -3 m R'", f"{HM} R-3m:r",
     "_symmetry_Int_Tables_number 166", "_space_group_name_Hall '-P 3* 2'",
     f"{HM} 'R -3 m (rhombohedral axes)'",
     "_space_group_IT_number 166\n_space_group_IT_coordinate_system_code r"],
)  # fmt: skip
def test_a_rhombohedral_cell_decides_for_rhombohedral_axes(symmetry):
    crystal = good(cif(BISMUTH, symmetry, ["Bi 0.2341 0.2341 0.2341"]))
    assert len(crystal) == 2
    assert density(crystal) == pytest.approx(9.805, abs=0.01)


@pytest.mark.parametrize("name", ["R -3 c", "R -3 c H", "R -3 c :H", "H-3c", "R -3 2/c"])
def test_a_hexagonal_cell_decides_for_hexagonal_axes(name):
    text = cif(CORUNDUM, f"{HM} '{name}'", ["Al 0 0 0.3522", "O 0.3063 0 0.25"])
    assert len(good(text)) == 30
    assert density(good(text)) == pytest.approx(3.985, abs=0.01)


@pytest.mark.parametrize("symmetry", [f"{HM} 'R -3 m :H'", f"{HM} 'P 4/m m m'",
                                      "_space_group_name_Hall '-R 3 2\"'"])  # fmt: skip
def test_a_cell_without_the_symmetry_of_its_group_is_refused(symmetry):
    assert "has not the symmetry of its" in reason(cif(BISMUTH, symmetry, ["Bi 0.2 0.2 0.2"]))


@pytest.mark.parametrize(
    "symmetry",
    [f"{HM} 'F d -3 m :2'", f"{HM} Fd-3m:2", f"{HM} 'F d -3 m Z'", f"{HM} 'F d 3 m :2'",
     "_space_group_name_H-M_alt 'F 41/d -3 2/m (origin choice 2)'",
     f"{HM} 'F d -3 m'\n_space_group_name_Hall '-F 4vw 2vw 3'",
     "_space_group_name_Hall '-F 4vw 2vw 3'",
     f"{HM} 'F d -3 m'\n_space_group_IT_coordinate_system_code 2",
     f"{HM} 'F d -3 m Z'\n_symmetry_Int_Tables_number 227"],
)  # fmt: skip
def test_the_second_origin_is_understood_however_it_is_named(symmetry):
    crystal = good(cif(CARBON, symmetry, ["C 0.125 0.125 0.125"]))
    assert (len(crystal), crystal.warning) == (8, "")
    first = symmetry.replace(":2", ":1").replace(" Z", " S").replace("choice 2", "choice 1")
    if first != symmetry:
        assert len(good(cif(CARBON, first, ["C 0.125 0.125 0.125"]))) == 16


@pytest.mark.parametrize("place", ["0 0 0", "0.125 0.125 0.125"])
def test_an_origin_that_is_not_given_is_chosen_with_a_warning(place):
    """Both make diamond: the reading with the higher site symmetry is taken."""
    crystal = good(cif(CARBON, f"{HM} 'F d -3 m'", [f"C {place}"]))
    assert len(crystal) == 8
    assert "may be F d -3 m :1 and F d -3 m :2" in crystal.warning


def test_the_formula_decides_the_origin_without_a_warning():
    spinel = ["Mg 0.125 0.125 0.125", "Al 0.5 0.5 0.5", "O 0.2624 0.2624 0.2624"]
    named = f"{HM} 'F d -3 m'\n_chemical_formula_sum 'Mg Al2 O4'\n_cell_formula_units_Z 8"
    crystal = good(cif((8.08, 8.08, 8.08, 90, 90, 90), named, spinel))
    assert crystal.warning == ""
    assert dict(crystal.formula) == {8: 4, 12: 1, 13: 2}


def test_where_elements_might_be_exchanged_their_radii_decide():
    """MgCu2 and Mg2Cu fill the same sites of the two origins; Mg 2.5 Å apart would be too near."""
    laves = cif((7.048,) * 3 + (90,) * 3, f"{HM} 'F d -3 m'", ["Mg .125 .125 .125", "Cu .5 .5 .5"])
    crystal = good(laves)
    assert dict(crystal.formula) == {12: 1, 29: 2}
    assert density(crystal) == pytest.approx(5.745, abs=1e-3)
    assert "may be F d -3 m :1" in crystal.warning


@pytest.mark.parametrize(
    ("symmetry", "words"),
    [(f"{HM} 'Fd3m_diamond'", "'Fd3m_diamond' is not known"),
     ("_space_group_IT_number 999", "give 1 to 230"),
     ("_space_group_IT_number 0", "give 1 to 230"),
     (f"{HM} 'F m -3 m'\n_space_group_IT_number 216", "contradict"),
     ("_space_group_name_Hall '-F 4 2 3'\n_space_group_IT_number 216", "contradict"),
     ("_space_group_name_Hall junk", "Hall symbol 'junk' is not known"),
     (f"{HM} 'F m -3 m :2'", "contradict"),
     ("loop_\n_space_group_symop_operation_xyz\nx,y,z\n-x,q,z", "'-x,q,z' is no symmetry"),
     ("loop_\n_space_group_symop_operation_xyz\nx,y,z\n2x,y,z", "does not keep volumes"),
     ("loop_\n_space_group_symop_operation_xyz\nx,y,z\ny,z,x", "no group: the list is cut"),
     ("loop_\n_space_group_symop_new_xyz\nx,y,z\n-x,-y,-z", "is not understood"),
     ("_space_group_magn.name_BNS \"P 4_2'/m n m'\"", "P 4_2'/m n m'\" alone: list its operations"),
     ("_parent_space_group.IT_number 136", "'136' alone: list its operations"),
     ("_space_group_name_Schoenflies Oh^5", "'Oh^5' alone: list its operations"),
     ("_cell_modulation_dimension 1", "modulated")],
)  # fmt: skip
def test_unknown_and_contradictory_symmetry_is_refused_in_one_line(symmetry, words):
    assert words in reason(salt(symmetry))


def test_the_trivial_group_may_have_any_name():
    for name in ("_space_group_magn.number_BNS 1.1", "_space_group_name_Schoenflies C1^1"):
        assert dict(good(salt(name)).formula) == {11: 1, 17: 1}


@pytest.mark.parametrize(
    ("symbol", "number"),
    [("P2(1)", 4), ("P 2 (3)", 3), ("P2(1)/c", 14), ("P 2(1) 2(1) 2(1)", 19), ("P6(3)/mmc", 194),
     ("I 4(1)/a m d :2", 141), ("P4(75)", 75), ("P6(3)/m (176)", 176), ("F m -3 m (225)", 225)],
)  # fmt: skip
def test_screw_axes_in_brackets_are_no_numbers_of_groups(symbol, number):
    assert {row.number for row in settings((symbol,))} == {number}


@pytest.mark.parametrize("number", ["'225'", "225.0", "Fm-3m", '"225"'])
def test_numbers_may_be_quoted_and_a_symbol_may_stand_in_their_place(number):
    assert len(good(salt(f"_space_group_IT_number {number}"))) == 8


@pytest.mark.parametrize(
    ("cell", "symbol", "atoms"),
    [((5, 6, 7, 90, 90, 92), "P 21/b", 4), ((5, 6, 7, 90, 92, 90), "P 21/c", 4),
     ((5, 6, 7, 92, 90, 90), "P 21/c", 4), ((5, 6, 7, 90, 90, 97), "P 21", 2),
     ((5, 6, 7, 90, 90, 90), "P b n m", 8), ((5, 6, 7, 90, 90, 90), "C m c e", 16)],
)  # fmt: skip
def test_short_monoclinic_symbols_follow_the_angle_that_is_not_right(cell, symbol, atoms):
    assert len(good(cif(cell, f"{HM} '{symbol}'", ["Fe 0.11 0.23 0.37"]))) == atoms


def test_a_number_that_leaves_the_monoclinic_setting_open_is_refused():
    text = cif((5, 6, 7, 90, 90, 97), "_space_group_IT_number 14", ["Fe 0.11 0.23 0.37"])
    assert "may be P 1 1 21/a" in reason(text)


RUTILE_OPERATIONS = """'x,y,z'\n'-y+1/2,x+1/2,z+1/2'\n'-x,-y,z'\n'y+1/2,-x+1/2,z+1/2'
'x+1/2,-y+1/2,-z+1/2'\n'-y,-x,-z'\n'-x+1/2,y+1/2,-z+1/2'\n'y,x,-z'\n'-x,-y,-z'
'y+1/2,-x+1/2,-z+1/2'\n'x,y,-z'\n'-y+1/2,x+1/2,-z+1/2'\n'-x+1/2,y+1/2,z+1/2'\n'y,x,z'
'x+1/2,-y+1/2,z+1/2'\n'-y,-x,z'"""


@pytest.mark.parametrize(
    "tag",
    ["_space_group_symop_operation_xyz", "_SPACE_GROUP_SYMOP_OPERATION_XYZ",
     "_space_group_symop.operation_xyz", "_symmetry_equiv_pos_as_xyz",
     "_symmetry_equiv.pos_as_xyz", "_space_group_symop_magn_operation.xyz",
     "_space_group_symop.magn_operation_xyz"],
)  # fmt: skip
def test_operations_are_read_under_every_name_and_time_reversal_is_left_out(tag):
    listed = RUTILE_OPERATIONS
    if "magn" in tag:
        listed = listed.replace("'\n", ",-1'\n") + "\nloop_\n_space_group_symop_magn_centering.xyz"
        listed += "\nx,y,z,+1"
    text = cif((4.8734, 4.8734, 3.3099, 90, 90, 90), f"loop_\n{tag}\n{listed}",
               ["Mn 0 0 0", "F 0.305 0.305 0"])  # fmt: skip
    assert len(good(text)) == 6
    assert density(good(text)) == pytest.approx(3.926, abs=0.01)


def test_magnetic_centring_translations_multiply_the_atoms():
    text = salt("loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\nloop_\n"
                "_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx,y+1/2,z+1/2,-1\n"
                "x+1/2,y,z+1/2,-1\nx+1/2,y+1/2,z,+1")  # fmt: skip
    assert len(good(text)) == 8


def test_translations_with_decimals_and_other_denominators_are_exact():
    for third in ("1/3", "0.3333", ".333"):
        operations = f"x,y,z\nx,y,z+{third}\nx,y,z+2/3"
        text = salt(f"loop_\n_space_group_symop_operation_xyz\n{operations}", ["Na 0.1 0.2 0"])
        assert np.allclose(sorted(good(text).frac_coords[:, 2]), [0, 1 / 3, 2 / 3], atol=1e-12)
    fifths = "\n".join(f"x,y,{n}/5+z" for n in range(5))
    assert len(good(salt(f"loop_\n_space_group_symop_operation_xyz\n{fifths}", ["Na 0 0 0"]))) == 5


def test_one_operation_beside_the_symbol_of_another_group_must_list_all_atoms():
    only = f"{HM} 'F m -3 m'\nloop_\n_symmetry_equiv_pos_as_xyz\nx,y,z"
    assert "its only operation is x,y,z" in reason(salt(only))
    assert len(good(salt(only, EVERY_ATOM))) == 8
    known = only + "\n_chemical_formula_sum 'Na4 Cl4'"
    assert len(good(salt(known))) == 8


# Special positions


MOLYBDENITE = (3.16, 3.16, 12.30, 90, 90, 120)


@pytest.mark.parametrize(
    "place",
    ["0.33 0.67", "0.333 0.667", "0.3333 0.6667", "0.333 0.666", "0.33300 0.66700",
     "-0.333 -0.667", "-0.6667 -0.3333", "1.3333 0.6667", "0.33333333 0.66666667"],
)  # fmt: skip
def test_rounded_sites_are_put_on_their_special_positions(place):
    text = cif(MOLYBDENITE, f"{HM} 'P 63/m m c'", [f"Mo {place} 0.25", f"S {place} 0.621"])
    crystal = good(text)
    assert (len(crystal), crystal.warning) == (6, "")
    assert density(crystal) == pytest.approx(4.998, abs=0.01)
    thirds = crystal.frac_coords[:, :2] * 3
    assert np.abs(thirds - np.rint(thirds)).max() < 1e-9


def test_all_atoms_listed_beside_the_operations_are_read_once():
    crystal = good(salt(sites=EVERY_ATOM))
    assert len(crystal) == 8
    assert density(crystal) == pytest.approx(2.164, abs=0.01)
    for number, line in enumerate(EVERY_ATOM):
        symbol, *place = line.split()
        (atom,) = np.flatnonzero(crystal.sites == number)
        assert np.allclose(crystal.frac_coords[atom], [float(x) for x in place])
        assert element_symbol(crystal.atomic_numbers[atom]) == symbol


def test_every_atom_tells_of_which_atom_of_the_file_it_is_an_image():
    crystal = good(salt(sites=["Cl 0.5 0.5 0.5", "Na 0 0 0"]))
    assert crystal.sites.tolist() == [0] * 4 + [1] * 4
    assert set(crystal.atomic_numbers[crystal.sites == 0]) == {17}
    assert good(salt("", sites=EVERY_ATOM)).sites is None


def test_atoms_on_one_another_stay_two():
    crystal = rock_salt()
    doubled = Crystal(
        crystal.lattice,
        np.vstack([crystal.frac_coords, crystal.frac_coords[:1] + 1e-6]),
        np.append(crystal.atomic_numbers, 11),
    )
    assert len(good(format_cif(doubled))) == 3
    assert len(good(salt(sites=[*SALT, "Na 0 0 0"]))) == 12
    assert len(good(cif(CUBE, f"{HM} 'P -1'", ["Na 0.1 0.2 0.3", "Na 0.1 0.2 0.302"]))) == 4


# Elements, occupancies, numbers


@pytest.mark.parametrize(
    ("column", "names", "numbers"),
    [("type_symbol", ["Na1+", "O2-", "D", "T"], [11, 8, 1, 1]),
     ("type_symbol", ["FE3", "CL", "O", "SI"], [26, 17, 8, 14]),
     ("type_symbol", ["fe", "o", "na", "cl"], [26, 8, 11, 17]),
     ("type_symbol", ["Og", "Nh", "Cn", "Lr"], [118, 113, 112, 103]),
     ("label", ["Na1", "O1A", "D2", "Fe(1)"], [11, 8, 1, 26])],
)  # fmt: skip
def test_symbols_and_labels_that_name_elements(column, names, numbers):
    sites = [f"{name} 0.{i}1 0.{i}2 0.{i}3" for i, name in enumerate(names, 1)]
    crystal = good(cif(CUBE, "", sites, columns=f"{column} fract_x fract_y fract_z"))
    assert crystal.atomic_numbers.tolist() == numbers


@pytest.mark.parametrize(
    ("column", "name"),
    [("label", "Wat3"), ("label", "H2O"), ("label", "OH1"), ("label", "M1"), ("label", "Ow2"),
     ("label", "T1"), ("label", "Va1"), ("label", "'Na1/K1'"), ("label", "Vac"),
     ("type_symbol", "NH4+"),
     ("type_symbol", "'Nb,Zr'"), ("type_symbol", "'0.8Nb + 0.2Zr'"), ("type_symbol", "OH"),
     ("type_symbol", "Va"), ("type_symbol", "vacancy"), ("type_symbol", "X"),
     ("type_symbol", "Uue"), ("type_symbol", "Nb/Zr")],
)  # fmt: skip
def test_names_of_water_molecules_vacancies_and_mixtures_are_no_elements(column, name):
    for other in ("Cl1", "O1"):
        sites = [f"{name} 0 0 0", f"{other} 0.5 0.5 0.5"]
        text = cif(CUBE, "", sites, columns=f"{column} fract_x fract_y fract_z")
        assert "names no element" in reason(text)


def test_the_label_names_the_element_where_the_type_is_unknown():
    columns = "label type_symbol fract_x fract_y fract_z"
    text = salt(sites=["Na1 ? 0 0 0", "Cl1 Cl 0.5 0.5 0.5"], columns=columns)
    assert sorted(set(good(text).atomic_numbers.tolist())) == [11, 17]


@pytest.mark.parametrize(
    ("occupancy", "words"),
    [("0.5", "Na1 has occupancy 0.5"), ("'0.5'", "has occupancy 0.5"), ("1/2", "no number"),
     ("'0,5'", "no number"), ("<1", "no number"), ("partial", "no number"),
     ("0.5(2)", "occupancy 0.5"), ("0.99", "occupancy 0.99"), ("2", "occupancy 2")],
)  # fmt: skip
def test_sites_that_are_not_fully_there_are_refused(occupancy, words):
    columns = "label type_symbol fract_x fract_y fract_z occupancy"
    sites = [f"Na1 Na 0 0 0 {occupancy}", "Cl1 Cl 0.5 0.5 0.5 1"]
    assert words in reason(salt(sites=sites, columns=columns))


@pytest.mark.parametrize("occupancy", ["1", "1.0", "'1'", "?", ".", "0.999", "1.001", "1.00(2)"])
def test_full_sites_may_be_written_in_many_ways(occupancy):
    columns = "type_symbol fract_x fract_y fract_z occupancy"
    sites = [f"Na 0 0 0 {occupancy}", "Cl 0.5 0.5 0.5 1"]
    assert len(good(salt(sites=sites, columns=columns))) == 8


def test_disorder_groups_attached_hydrogen_and_dummy_sites():
    disorder = "type_symbol fract_x fract_y fract_z disorder_group"
    assert "2 disorder groups" in reason(
        salt(sites=["Na 0 0 0 1", "Cl 0.5 0.5 0.5 2"], columns=disorder)
    )
    attached = "label fract_x fract_y fract_z attached_hydrogens"
    assert "2 hydrogen atoms attached to O1" in reason(
        salt(sites=["O1 0 0 0 2", "Cl1 0.5 0.5 0.5 0"], columns=attached)
    )
    dummy = "type_symbol fract_x fract_y fract_z calc_flag"
    sites = ["Na 0 0 0 d", "Cl 0.5 0.5 0.5 .", "X 0.1 0.1 0.1 dum"]
    assert len(good(salt(sites=sites, columns=dummy))) == 8


def test_numbers_may_be_quoted_and_carry_uncertainties():
    text = salt(sites=["Na '0' '0' '0'", "Cl 0.5(1) .5 5.0E-1"]).replace("_a 5.64", "_a '5.640(2)'")
    assert len(good(text)) == 8


# Formula


@pytest.mark.parametrize(
    ("formula", "words"),
    [("Na H Cl", "atoms are missing (H)"), ("Na2 Cl", "says otherwise"),
     ("Na", "says otherwise"), ("Na0.8 K0.2 Cl", "atoms are missing (K)"),
     ("Na0.7 Cl", "says otherwise"), ("Na (O H)", "atoms are missing (H, O)"),
     ("(Na0.5 (K0.5 Li0.5)0.5) Cl", "atoms are missing (Li, K)"),
     ("Na Cl . 2H2 O", "atoms are missing (H, O)"), ("NaCl * 2(H2 O)", "atoms are missing"),
     ("2(Na +), S O4 2-", "atoms are missing (O, S)")],
)  # fmt: skip
def test_a_formula_that_contradicts_the_atoms_is_refused(formula, words):
    for tag in (
        "_chemical_formula_sum",
        "_chemical_formula_moiety",
        "_chemical_formula_structural",
    ):
        assert words in reason(salt(f"{HM} 'F m -3 m'\n{tag} '{formula}'"))


@pytest.mark.parametrize("formula", ["Na Cl", "Na4 Cl4", "Cl1Na1", "Na 1+, Cl 1-", "?", "salt",
                                     "2(Na Cl)", "(Na,K) Cl", "(Na Cl)n", "[Na (Cl)1]",
                                     "2(Na +), 2(Cl -)", "(((", "Na . Cl"])  # fmt: skip
def test_formulas_that_agree_or_cannot_be_parsed_say_nothing(formula):
    for tag in ("_chemical_formula_sum", "_chemical_formula_moiety"):
        assert good(salt(f"{HM} 'F m -3 m'\n{tag} '{formula}'")).warning == ""


def test_a_slightly_different_formula_is_a_warning():
    crystal = good(salt(f"{HM} 'F m -3 m'\n_chemical_formula_sum 'Na0.95 Cl'"))
    assert "Na0.95 Cl" in crystal.warning


# Numbers, blocks, broken text


@pytest.mark.parametrize(
    "parameters",
    [(3, 4, 5, 90, 90, 90), (3, 4, 5, 60, 70, 80), (3, 4, 5, 110, 95, 130), (2, 2, 30, 20, 25, 30)],
)
def test_the_cell_has_the_lengths_and_angles_asked_for(parameters):
    lattice = Lattice(lattice_from_parameters(*parameters))
    assert np.allclose(lattice.parameters, parameters, atol=1e-9)
    assert np.linalg.det(lattice.matrix) > 0


@pytest.mark.parametrize("wrong", [(0, 4, 5, 90, 90, 90), (3, 4, 5, 90, 90, 180),
                                   (3, 4, 5, 179, 80, 90), (3, 4, np.nan, 90, 90, 90)])  # fmt: skip
def test_impossible_cells_are_refused(wrong):
    with pytest.raises(ReadingError, match="no cell has lengths"):
        lattice_from_parameters(*wrong)


def test_thirds_are_snapped_as_pymatgen_snaps_them():
    values = np.array([0.33333, 0.6667, -0.33334, 0.3332, 0.66, 0.0])
    assert snap_thirds(values).tolist() == [1 / 3, 2 / 3, -1 / 3, 0.3332, 0.66, 0.0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("_cell_length_b 5.64\n", "", "no cell (_cell_length_b is missing)"),
     ("_cell_length_b 5.64", "_cell_length_b ?", "no cell (_cell_length_b is missing)"),
     ("_cell_length_b 5.64", "_cell_length_b five", "'five', not a number"),
     ("_cell_length_b 5.64", "_cell_length_b -4", "no cell has lengths"),
     ("Na 0 0 0", "Na nan 0 0", "not a finite number"), ("Na 0 0 0", "Na ? 0 0", "not a finite"),
     ("Na 0 0 0", "Na 1e30 0 0", "must be finite and below"),
     ("_atom_site_fract_x", "_atom_site_cartn_x", "no _atom_site_fract_x"),
     ("data_x", "nonsense", "not a valid CIF"), ("0.5 0.5 0.5\n", "0.5\n", "not a valid CIF"),
     ("_cell_length_b 5.64", "_cell_length_b 5000", "5000 Å > 1000 Å")],
)  # fmt: skip
def test_broken_files_say_what_is_broken(old, new, words):
    text = salt("")
    assert old in text
    assert words in reason(text.replace(old, new))


@pytest.mark.parametrize("text", ["", "data_x\n", "\x00\x01\x02", "loop_"])
def test_text_without_a_structure_is_one_failure(text):
    assert [type(e) for e in parse_cif_blocks(text, "x")] == [ReadFailure]


def test_blocks_are_read_one_by_one_and_the_first_alone_if_asked():
    bad = salt(sites=["Qq 0 0 0"]).replace("data_x", "data_bad")
    text = salt() + bad + salt().replace("data_x", "data_third")
    found = parse_cif_blocks("\ufeff" + text, "all")
    assert [e.name for e in found] == ["all-x", "all-bad", "all-third"]
    assert [isinstance(e, Crystal) for e in found] == [True, False, True]
    assert parse_cif(text, "one").name == "one"


def test_pymatgen_reads_the_same_quartz_from_the_same_text():
    text = cif((4.913, 4.913, 5.405, 90, "90.0(1)", 120), f"{HM} 'P 31 2 1'",
               ["Si4+ Si1 0.4697(2) 0.0 0.3333", "O2- O1 0.4135 0.2669 0.7858"],
               columns="type_symbol label fract_x fract_y fract_z")  # fmt: skip
    (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
    for variant in (text, text.replace("\n", "\r\n"), text.replace("Si4+", "SI").replace("2-", "")):
        ours = good(variant)
        assert len(ours) == 9
        assert StructureMatcher(stol=1e-3, primitive_cell=False).fit(to_pymatgen(ours), theirs)


def test_a_disordered_structure_written_by_pymatgen_is_refused():
    disordered = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    assert "occupancy 0.5" in reason(disordered.to(fmt="cif"))

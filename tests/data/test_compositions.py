import math
import re
import subprocess
import sys
from importlib.metadata import version
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition as Reference
from pymatgen.core import Element

from crystorus.data.compositions import (
    Composition,
    FormulaError,
    count_system,
    enumerate_system,
    expand,
    parse_formula,
    parse_units,
    symbol_of,
)

symbols = st.integers(1, 118).map(symbol_of)
counts = st.one_of(st.just(""), st.integers(1, 30).map(str))
atom = st.tuples(symbols, counts).map("".join)
formulas = st.recursive(
    st.lists(atom, min_size=1, max_size=4).map("".join),
    lambda inner: st.tuples(inner, inner, counts).map(lambda t: f"{t[0]}({t[1]}){t[2]}"),
    max_leaves=4,
)
cells = st.dictionaries(st.integers(1, 118), st.integers(1, 20), min_size=1, max_size=5)


@settings(deadline=None)
@given(formulas)
def test_a_formula_holds_the_atoms_pymatgen_counts(text):
    expected = {Element(s).Z: round(n) for s, n in Reference(text).get_el_amt_dict().items()}
    assert dict(parse_formula(text).counts) == expected


# pymatgen 2025.1 puts helium, which it gives no electronegativity, before hydrogen.
@pytest.mark.skipif(version("pymatgen") < "2026", reason="pymatgen ordered noble gases otherwise")
@settings(deadline=None)
@given(cells)
def test_elements_are_ordered_as_pymatgen_orders_them(wanted):
    reference = Reference({Element.from_Z(z): n for z, n in wanted.items()})
    composition = Composition.from_counts(wanted)
    spaced = " ".join(f"{symbol_of(z)}{n}" for z, n in composition.counts)
    assert spaced == reference.formula
    hill = reference.hill_formula.replace(" ", "")
    if not ("H" in composition.elements and "C" not in composition.elements):
        assert composition.hill_formula == hill


@settings(deadline=None)
@given(cells)
def test_formulas_read_back_and_units_multiply_back(wanted):
    composition = Composition.from_counts(wanted)
    assert parse_formula(composition.formula) == composition
    assert parse_formula(composition.hill_formula) == composition
    assert composition.reduced * composition.formula_units == composition
    assert math.gcd(*(n for _, n in composition.reduced.counts)) == 1
    assert len(composition.atomic_numbers) == composition.n_atoms == sum(wanted.values())
    assert Composition.of(reversed(composition.atomic_numbers)) == composition


def test_blanks_and_subscripts_are_read():
    assert parse_formula("Li Fe O₂") == parse_formula("LiFeO2")
    assert parse_formula("Ca(OH)2").formula == "CaH2O2"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("CuSO4·5H2O", "CuSO4(H2O)5"),
        ("CuSO4 • 5 H2O", "CuSO4(H2O)5"),
        ("CuSO4.5H2O", "CuSO4(H2O)5"),
        ("CuSO4*15H2O", "CuSO4(H2O)15"),
        ("(NH4)2SO4.H2O", "(NH4)2SO4(H2O)"),
        ("2MgO", None),
        ("MgO·Al2O3·2SiO2", "MgAl2Si2O8"),
        ("[Cu(NH3)4]SO4", "Cu(NH3)4SO4"),
        ("K4[Fe(CN)6]·3H₂O", "K4Fe(CN)6(H2O)3"),
        ("{Fe[CN]6}2", "Fe2C12N12"),
        ("D2O", "H2O"),
        ("LiT", "LiH"),
        ("Li1.0O", "LiO"),
    ],
)
def test_hydrates_complexes_and_isotopes_are_read(text, plain):
    if plain is None:
        with pytest.raises(FormulaError):
            parse_formula(text)
    else:
        assert parse_formula(text) == parse_formula(plain)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,2,4", (1, 2, 4)),
        ("1-4", (1, 2, 3, 4)),
        (" 2 – 3 , 8 ", (2, 3, 8)),
        ("2,1-3", (2, 1, 3)),
    ],
)
def test_formula_units_are_numbers_and_ranges(text, numbers):
    assert parse_units(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "1-", "-3", "1.5", "a", "1,,2", "1-99999"])
def test_formula_units_that_are_none_are_named(text):
    with pytest.raises(FormulaError, match=r"formula units: give whole numbers from 1"):
        parse_units(text)
    with pytest.raises(FormulaError, match="write 1-4"):
        parse_units("4-1")


def test_reading_a_formula_imports_neither_torch_nor_pymatgen():
    code = (
        "import sys, crystorus.data.compositions as c; c.parse_formula('LiFeO2');"
        "assert not {'torch', 'pymatgen', 'ase'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("Li2O)", 5, "closes nothing"),
        ("Ca(OH2", 3, "never closed"),
        ("Ca(OH]2", 6, "write ')'"),
        ("Li()2", 3, "empty"),
        ("Xx2O", 1, "no element is called 'Xx'"),
        ("LiFe0", 5, "is not 1 to"),
        ("LiFe-2", 5, "'-' is a charge"),
        ("Li0.5O", 3, "'0.5' is no count, use whole numbers above zero: did you mean LiO2?"),
        ("La0.67Sr0.33MnO3", 3, "'0.67' is no count"),
        ("CaSO4·0.5H2O", 7, "did you mean Ca2H2S2O9?"),
        ("2LiO", 1, "needs an element"),
        ("LiFe+", 5, "no charges"),
        ("Fe3+", 3, "'3+' is a charge, a cell as a whole has no charges: did you mean Fe?"),
        ("Fe³⁺", 3, "did you mean Fe?"),
        ("Na+Cl-", 3, "did you mean NaCl?"),
        ("NH4+", 3, "no charges"),
        ("SO4^2-", 4, "'^2-' is a charge, a cell as a whole has no charges: did you mean SO4?"),
        ("[SO4]2-", 6, "did you mean [SO4]?"),
        ("PO4(3-)", 5, "'3-' is a charge"),
        ("Li-Fe-O", 3, "no formula: say sample --system Li-Fe-O or hull Li-Fe-O"),
        ("CuSO4·", 6, "nothing follows the dot"),
        ("·H2O", 1, "has no place"),
        ("lifeo2", 1, "no symbol: did you mean LiFeO2?"),
        ("nacl", 1, "did you mean NaCl?"),
        ("NACL", 2, "did you mean NaCl?"),
        ("co2", 1, "did you mean Co2 or CO2?"),
        ("Li#", 3, "has no place"),
        ("Li99999999999999999999", 3, "is not 1 to"),
    ],
)
def test_errors_name_the_character_at_fault(text, place, words):
    with pytest.raises(FormulaError, match=re.escape(words)) as caught:
        parse_formula(text)
    assert f"character {place}:" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_formula_is_named_as_such(text):
    with pytest.raises(FormulaError, match="empty"):
        parse_formula(text)


@pytest.mark.parametrize(("word", "meant"), [("fe", "Fe"), ("iron", "Fe"), ("oxigen", "O")])
def test_a_misspelt_element_gets_a_suggestion(word, meant):
    with pytest.raises(FormulaError, match=rf"did you mean Li\({meant}\)\?"):
        parse_formula(f"Li({word})")


def test_expand_multiplies_the_formula_as_written():
    cells_ = expand("LiFeO2", (1, 2, 4, 2))
    assert [c.formula for c in cells_] == ["LiFeO2", "Li2Fe2O4", "Li4Fe4O8"]
    assert [c.formula_units for c in cells_] == [1, 2, 4]
    assert {c.reduced_formula for c in cells_} == {"LiFeO2"}


@pytest.mark.parametrize("units", [(0,), (1, -2)])
def test_formula_units_below_one_are_refused(units):
    with pytest.raises(FormulaError, match="use 1 or more"):
        expand("LiFeO2", units)


def test_a_cell_over_the_limit_is_refused_with_both_numbers():
    with pytest.raises(FormulaError, match=r"Li8Fe8O16 has 32 atoms .* limit of 20"):
        expand("LiFeO2", (1, 8), max_atoms=20)
    assert parse_formula("LiFeO2", max_atoms=4).n_atoms == 4


@pytest.mark.parametrize(("system", "limit"), [("Fe", 7), ("Li-O", 6), ("Li-Fe-O", 6)])
def test_a_system_is_every_count_vector_once(system, limit):
    elements = [Element(s).Z for s in system.split("-")]
    vectors = product(range(limit + 1), repeat=len(elements))
    expected = {
        Composition.from_counts({z: n for z, n in zip(elements, v, strict=True) if n})
        for v in vectors
        if 1 <= sum(v) <= limit
    }
    found = list(enumerate_system(system, limit))
    assert len(found) == len(set(found)) == count_system(system, limit)
    assert set(found) == expected


def test_a_system_has_its_endpoints_and_binaries():
    found = {c.formula for c in enumerate_system("Li-Fe-O", 20)}
    assert {"Li", "O20", "Li2O", "Fe8O12", "LiFeO2"} <= found
    assert count_system("Li-Fe-O", 20) == math.comb(23, 3) - 1 == 1770 == len(found)


def test_many_elements_are_counted_without_listing_them():
    system = "-".join(symbol_of(z) for z in range(3, 23))
    assert count_system(system, 20) == math.comb(40, 20) - 1
    assert next(iter(enumerate_system(system, 20))).n_atoms == 1


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("Li-Fe-Li", "names Li more than once"),
        ("H-D", "names H more than once"),
        ("Li-Qq-O", "character 4: no element is called 'Qq'"),
        ("Li--O", "missing"),
        ("", "empty"),
        ("lithium-O", "did you mean Li"),
        ("Copper-O", "did you mean Cu-O"),
        ("LiFeO2", "'LiFeO2' is no chemical system: did you mean Li-Fe-O"),
        ("Li,Fe,O", "did you mean Li-Fe-O"),
    ],
)
def test_bad_systems_are_named_before_anything_is_yielded(system, words):
    with pytest.raises(FormulaError, match=words):
        enumerate_system(system, 20)
    with pytest.raises(FormulaError, match=words):
        count_system(system, 20)


def test_a_limit_below_one_is_refused():
    with pytest.raises(FormulaError, match="1 or more"):
        enumerate_system("Li-O", 0)

"""The table of elemental descriptors against the libraries it was made from."""

import csv
import math
import warnings
from importlib import resources
from importlib.metadata import version

import pytest
from ase.data import covalent_radii
from pymatgen.core import Element

TEXT = resources.files("crystorus.networks").joinpath("elements.csv").read_text()
ROWS = list(csv.DictReader(line for line in TEXT.splitlines() if not line.startswith("#")))


def test_every_element_has_every_descriptor():
    assert [int(r["Z"]) for r in ROWS] == list(range(1, 119))
    assert all(math.isfinite(float(v)) for r in ROWS for c, v in r.items() if c != "symbol")


@pytest.mark.parametrize("row", ROWS, ids=[r["symbol"] for r in ROWS])
def test_the_table_says_what_pymatgen_and_ase_say(row):
    if row["symbol"] == "Mn" and version("pymatgen") < "2026":
        pytest.skip("pymatgen 2025.1 has another ionic radius")
    element = Element.from_Z(int(row["Z"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = {
            "period": element.row,
            "group": element.group,
            "electronegativity": element.X,
            "atomic_radius": element.atomic_radius,
            "ionic_radius": element.average_ionic_radius or None,
            "mendeleev_number": element.mendeleev_no,
            "atomic_mass": element.atomic_mass,
            "ionization_energy": element.ionization_energy if element.Z <= 103 else None,
            "covalent_radius": covalent_radii[element.Z] if element.Z <= 96 else None,
        }
    assert row["symbol"] == element.symbol
    assert float(row[f"block_{element.block}"]) == 1
    assert sum(float(row[f"block_{b}"]) for b in "spdf") == 1
    for column, value in known.items():
        if value is not None and not math.isnan(value):
            assert float(row[column]) == pytest.approx(float(value), rel=1e-5), column


@pytest.mark.parametrize(
    ("symbol", "valence"),
    [("H", (1, 0, 0, 0)), ("He", (2, 0, 0, 0)), ("O", (2, 4, 0, 0)), ("Fe", (2, 0, 6, 0)),
     ("Ga", (2, 1, 10, 0)), ("Gd", (2, 0, 1, 7)), ("U", (2, 0, 1, 3)), ("Og", (2, 6, 10, 14))],
)  # fmt: skip
def test_valence_electrons_are_those_outside_the_noble_gas_core(symbol, valence):
    row = next(r for r in ROWS if r["symbol"] == symbol)
    assert tuple(int(row[f"valence_{o}"]) for o in "spdf") == valence


def test_missing_values_come_from_the_column():
    rows = {r["symbol"]: r for r in ROWS}
    assert rows["Ne"]["electronegativity"] == rows["Kr"]["electronegativity"]
    assert rows["Og"]["electronegativity"] == rows["Rn"]["electronegativity"]
    assert rows["Og"]["electronegativity"] != rows["Cs"]["electronegativity"]
    assert rows["H"]["ionic_radius"] == rows["Li"]["ionic_radius"]

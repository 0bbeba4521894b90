import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from alloys import crystorus, one_sentence, table
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.optimize import linprog

from crystorus.errors import CampaignError
from crystorus.hull.rank import Hull, Phase, write_table

ENTRIES = Path(__file__).parents[3] / "shared/data/hull/Li-Fe-P-O_entries.json.gz"


def energy_above_by_linear_programme(phases, elements, one):
    """min Σ w e with Σ w x = x₀, w ≥ 0: the hull without any geometry."""
    fractions = np.array([[p.composition.get_atomic_fraction(s) for s in elements] for p in phases])
    target = [one.composition.get_atomic_fraction(s) for s in elements]
    energies = [p.energy_per_atom for p in phases]
    found = linprog(energies, A_eq=fractions.T, b_eq=target, bounds=(0, None), method="highs")
    return one.energy_per_atom - found.fun


def random_phases(elements, n, seed):
    random = np.random.default_rng(seed)
    phases = [Phase(s, Composition(s), float(random.normal(-3, 1))) for s in elements]
    for i in range(n):
        counts = random.integers(0, 5, len(elements))
        if counts.any():
            composition = Composition(dict(zip(elements, counts.tolist(), strict=True)))
            phases.append(Phase(f"p{i}", composition, float(random.normal(-3.5, 1))))
    return phases


@pytest.mark.parametrize("system", ["Li-O", "Li-Fe-O", "Li-Fe-P-O", "Li-Fe-P-O-S"])
def test_energies_above_hull_are_those_of_a_linear_programme(system):
    elements = system.split("-")
    phases, others = random_phases(elements, 40, 0), random_phases(elements, 20, 1)
    hull = Hull(phases, elements)
    signs = set()
    for one in (*phases, *others):
        expected = energy_above_by_linear_programme(phases, elements, one)
        assert hull.energy_above(one) == pytest.approx(expected, abs=1e-6)
        signs.add(np.sign(round(expected, 6)))
    assert signs == {-1, 0, 1}  # below, on and above the hull have all been seen


def test_formation_energies_are_relative_to_the_lowest_elements():
    phases = [
        Phase("Li", Composition("Li"), -1.0),
        Phase("Li, excited", Composition("Li"), -0.4),
        Phase("O", Composition("O2"), -4.0),
        Phase("oxide", Composition("Li4O2"), -5.0),
    ]
    hull = Hull(phases, ["Li", "O"])
    assert hull.formation_energy(phases[3]) == pytest.approx(-5.0 + (2 * 1.0 + 4.0) / 3)
    assert set(hull.stable) == {"Li", "O", "oxide"}
    assert set(hull.tie_lines) == {("Li", "oxide"), ("O", "oxide")}


def test_a_hull_without_an_element_is_refused():
    with pytest.raises(CampaignError, match="no hull of Li-O"):
        Hull([Phase("Li", Composition("Li"), -1.0)], ["Li", "O"])


def test_the_real_entries_are_ranked_as_pymatgen_does(tmp_path):
    """Li-Fe-P-O, 859 entries of real DFT, through the command and its file."""
    if not ENTRIES.is_file():
        pytest.skip(f"needs {ENTRIES}")
    done = crystorus("rank", ENTRIES, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "warning" not in done.stderr  # all 747 of GGA+U are corrected
    with gzip.open(ENTRIES, "rt") as stream:
        entries = [ComputedEntry.from_dict(one) for one in json.load(stream)]
    diagram = PhaseDiagram(entries)
    expected = {e.entry_id: diagram.get_e_above_hull(e) for e in entries}
    rows = table(tmp_path)
    assert len(rows) == len(expected) == 859
    found = {row["name"]: float(row["e_above_hull"]) for row in rows}
    worst = max(abs(found[name] - value) for name, value in expected.items())
    assert worst < 1e-6
    heights = [float(row["e_above_hull"]) for row in rows]
    assert heights == sorted(heights)
    assert heights[-1] > 0.1


CASES = Path(__file__).parents[3] / "shared/cases"
IRON = {"fe": 0.0, "o2": 0.0, "hem": 0.0, "wus": 0.0, "mag": 0.1}


def entries(path, *several):
    """Write ComputedEntry's: id, composition, energy and more fields of each."""
    listed = [
        {"@module": "pymatgen.entries.computed_entries", "@class": "ComputedEntry",
         "entry_id": name, "composition": composition, "energy": energy, "correction": 0.0} | more
        for name, composition, energy, more in several
    ]  # fmt: skip
    path.write_text(json.dumps(listed))
    return path


def ranked(path, out, *more):
    done = crystorus("rank", path, "--out", out, *more)
    assert done.exit_code == 0, done.output
    return {r["name"]: (float(r["e_above_hull"]), float(r["formation_energy"])) for r in table(out)}


@pytest.mark.parametrize("decorated", [False, True])
def test_oxidation_states_say_nothing_about_energy(tmp_path, decorated):
    mixed = {"Fe2+": 1, "Fe3+": 2, "O2-": 4} if decorated else {"Fe": 3, "O": 4}
    simple = {"Fe3+": 2, "O2-": 3} if decorated else {"Fe": 2, "O": 3}
    element = {"Fe0+": 1} if decorated else {"Fe": 1}
    path = entries(
        tmp_path / "e.json", ("fe", element, -8.0, {}), ("o2", {"O": 2}, -10.0, {}),
        ("hem", simple, -34.0, {}), ("mag", mixed, -47.5, {}), ("wus", {"Fe": 1, "O": 1}, -14.2, {}),  # noqa: E501
    )  # fmt: skip
    found = ranked(path, tmp_path / "out")
    assert {name: above for name, (above, _) in found.items()} == pytest.approx(IRON, abs=1e-8)
    assert [found[name][1] for name in ("hem", "wus", "mag")] == pytest.approx([-0.6, -0.6, -0.5])


def test_deuterium_is_hydrogen(tmp_path):
    path = entries(tmp_path / "e.json", ("d2", {"D": 2}, -6.6, {}), ("o2", {"O": 2}, -10.0, {}),
                   ("d2o", {"D": 2, "O": 1}, -15.0, {}))  # fmt: skip
    assert ranked(path, tmp_path / "out")["d2o"] == pytest.approx((0.0, -1.13333333))
    path = entries(tmp_path / "e.json", ("q", {"Q": 2}, -6.6, {}))
    one_sentence(crystorus("rank", path, "--out", tmp_path / "out"), "entry 1", "called 'Q'")


def run_type(name):
    return {"parameters": {"run_type": name}}


SALT = (("na", {"Na": 1}, -1.3, run_type("GGA")), ("cl2", {"Cl": 2}, -3.6, run_type("GGA")))
SHIFT = {"@class": "CompositionEnergyAdjustment", "adj_per_atom": -0.614, "n_atoms": 1, "cls": {}}


@pytest.mark.parametrize(
    ("more", "formation"),
    [
        ({}, -1.85),
        ({"correction": -0.614}, -2.157),
        ({"correction": -0.614, "energy_adjustments": [SHIFT]}, -2.157),
        ({"correction": 0.0, "energy_adjustments": [SHIFT]}, -2.157),
        ({"correction": None, "energy_adjustments": [SHIFT]}, -2.157),
        ({"energy_adjustments": [{"@class": "ManualEnergyAdjustment", "value": -0.614}]}, -2.157),
        ({"energy_adjustments": [{"@class": "TemperatureEnergyAdjustment", "adj_per_deg": -0.001,
                                  "temp": 307.0, "n_atoms": 2}]}, -2.157),
    ],
)  # fmt: skip
def test_corrections_are_read_as_pymatgen_reads_them(tmp_path, more, formation):
    salt = ("nacl", {"Na": 1, "Cl": 1}, -6.8, run_type("GGA") | more)
    path = entries(tmp_path / "e.json", *SALT, salt)
    assert ranked(path, tmp_path / "out")["nacl"][1] == pytest.approx(formation)


def test_an_adjustment_that_is_not_understood_is_not_ignored(tmp_path):
    more = {"energy_adjustments": [{"@class": "Other", "shift": 1.0}]}
    path = entries(tmp_path / "e.json", *SALT, ("nacl", {"Na": 1, "Cl": 1}, -6.8, more))
    one_sentence(crystorus("rank", path, "--out", tmp_path), "entry 3", "unknown energy adjustment")


def test_functionals_meet_only_when_asked(tmp_path):
    path = entries(
        tmp_path / "e.json", *SALT, ("nacl", {"Na": 1, "Cl": 1}, -6.8, run_type("GGA")),
        ("na-r", {"Na": 1}, -3.55, run_type("R2SCAN")),
    )  # fmt: skip
    refused = crystorus("rank", path, "--out", tmp_path / "out")
    one_sentence(refused, "energies of 2 levels", "R2SCAN", "GGA", "--mix-energy-levels")
    assert ranked(path, tmp_path / "out", "--mix-energy-levels")["nacl"][1] > -1.85
    one = [(*phase[:3], run_type(name)) for phase, name in zip(
        (*SALT, ("nacl", {"Na": 1, "Cl": 1}, -6.8)), ("R2SCAN", "r2SCAN", "r2scan"), strict=True
    )]  # fmt: skip
    assert ranked(entries(tmp_path / "r.json", *one), tmp_path / "one")["nacl"][1] == -1.85


def test_gga_and_gga_u_without_corrections_are_warned_of(tmp_path):
    oxide = ("feo", {"Fe": 1, "O": 1}, -12.0, run_type("GGA+U"))
    phases = (("fe", {"Fe": 1}, -8.0, run_type("GGA")), ("o2", {"O": 2}, -10.0, run_type("GGA")))
    path = entries(tmp_path / "e.json", *phases, oxide)
    done = crystorus("rank", path, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "e.json mixes 2 GGA, 1 GGA+U, and 1 GGA+U energies have no correction" in done.stderr
    path = entries(tmp_path / "e.json", *phases, (*oxide[:3], oxide[3] | {"correction": -2.7}))
    assert "warning" not in crystorus("rank", path, "--out", tmp_path / "out").stderr


def test_no_text_of_a_table_is_a_formula_of_a_spreadsheet(tmp_path):
    write_table(tmp_path, ("rank", "name", "number"), [{"name": "=cmd()", "number": "-1.5"}])
    assert table(tmp_path) == [{"rank": "1", "name": "'=cmd()", "number": "-1.5"}]


@pytest.mark.parametrize("name", ["all-decorated", "compounds-decorated", "one-decorated", "plain"])
def test_the_recorded_entries_with_oxidation_states(tmp_path, name):
    if not CASES.is_dir():
        pytest.skip(f"needs {CASES}")
    folder = CASES / "09-entries-with-oxidation-states"
    found = ranked(folder / f"{name}.json", tmp_path)
    assert {name: above for name, (above, _) in found.items()} == pytest.approx(IRON, abs=1e-8)
    found = ranked(folder / "candidates-decorated.json", tmp_path, "--mix-energy-levels",
                   "--references", folder / "references.json")  # fmt: skip
    expected = {"hem": -0.12, "wus": 0.0, "mag": 0.0142857}  # by pymatgen's PhaseDiagram too
    assert {n: above for n, (above, _) in found.items()} == pytest.approx(expected, abs=1e-6)


def test_the_recorded_entries_of_several_functionals(tmp_path):
    if not CASES.is_dir():
        pytest.skip(f"needs {CASES}")
    folder = CASES / "10-mixed-run-types"
    for name, formation in (("gga", -1.85), ("corrected", -2.157), ("adjustments-only", -2.157)):
        found = ranked(folder / f"{name}.json", tmp_path)["nacl-GGA"]
        assert found == pytest.approx((0.0, formation))
    mixed = crystorus("rank", folder / "gga-and-r2scan.json", "--out", tmp_path)
    one_sentence(mixed, "energies of 2 levels", "R2SCAN")

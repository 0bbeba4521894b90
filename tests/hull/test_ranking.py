import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from commandline import CliRunner
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.optimize import linprog

from crystorus import cli
from crystorus.hull.errors import CampaignError
from crystorus.hull.ranking import Hull, Phase

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
    done = CliRunner().invoke(cli.app, ["rank", str(ENTRIES), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    with gzip.open(ENTRIES, "rt") as stream:
        entries = [ComputedEntry.from_dict(one) for one in json.load(stream)]
    diagram = PhaseDiagram(entries)
    expected = {e.entry_id: diagram.get_e_above_hull(e) for e in entries}
    with (tmp_path / "table.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == len(expected) == 859
    found = {row["name"]: float(row["e_above_hull"]) for row in rows}
    worst = max(abs(found[name] - value) for name, value in expected.items())
    assert worst < 1e-6
    heights = [float(row["e_above_hull"]) for row in rows]
    assert heights == sorted(heights)
    assert heights[-1] > 0.1

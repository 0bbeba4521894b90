"""Phonons at Γ against a Hessian by differences, without symmetry, and what the command says."""

import ase.io
import numpy as np
import pytest
from alloys import EMT_PATH, crystorus, table, write_alloys
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from crystorus.hull.phonons import gamma_frequencies

pytest.importorskip("phonopy")
FCC = bulk("Cu", a=3.59, cubic=True)
ROW = bulk("Cu", "sc", a=2.4).repeat((2, 1, 1))
"""Simple cubic copper, which shears into something denser."""


def by_differences(atoms: Atoms, step: float = 0.01) -> np.ndarray:
    """Return THz, imaginary ones negative, from forces at ± one step of every coordinate."""
    rows = []
    for n in range(len(atoms)):
        for axis in range(3):
            sides = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[n, axis] += sign * step
                moved.calc = EMT()
                sides.append(moved.get_forces().ravel())
            rows.append((sides[1] - sides[0]) / (2 * step))
    masses = np.repeat(atoms.get_masses(), 3)
    squared = np.linalg.eigvalsh(np.array(rows) / np.sqrt(np.outer(masses, masses)))
    angular = np.sign(squared) * np.sqrt(np.abs(squared)) * units.s  # per second
    return angular / (2 * np.pi) / 1e12


@pytest.mark.parametrize(("atoms", "imaginary"), [(FCC, 0), (ROW, 2)])
def test_frequencies_are_those_of_a_hessian_by_differences(atoms, imaginary):
    found = gamma_frequencies(atoms, "ase.calculators.emt:EMT")
    assert found == pytest.approx(by_differences(atoms), abs=0.05)
    assert (found < -0.1).sum() == imaginary
    assert np.sort(np.abs(found))[2] < 1e-3  # translations


@pytest.mark.parametrize(("atoms", "imaginary"), [(FCC, 0), (ROW, 2)])
def test_the_table_tells_which_phases_are_no_minima(tmp_path, atoms, imaginary):
    """One step of relaxation leaves the row of copper a saddle point, at which forces vanish."""
    ase.io.write(tmp_path / "a.extxyz", atoms, format="extxyz")
    references = write_alloys(tmp_path / "alloys.extxyz")
    potential = ("--potential", EMT_PATH, "--workers", 0)
    done = crystorus("relax", tmp_path / "a.extxyz", "--out", tmp_path / "run", *potential,
                     "--fixed-cell")  # fmt: skip
    assert done.exit_code == 0, done.output
    words = ("rank", tmp_path / "run", "--system", "Cu-Au", "--references", references, *potential)
    assert crystorus(*words).exit_code == 0
    assert "lowest_phonon" not in table(tmp_path / "run")[0]
    done = crystorus(*words, "--phonons", 1)
    assert done.exit_code == 0, done.output
    (row,) = table(tmp_path / "run")
    assert int(row["imaginary_phonons"]) == imaginary
    assert (float(row["lowest_phonon"]) < 0) == bool(imaginary)
    assert ("2 imaginary at Γ" in done.stderr) == bool(imaginary)
    assert "imaginary modes" in (tmp_path / "run" / "report.html").read_text()
    assert crystorus(*words, "--phonons", -1).exit_code == 1

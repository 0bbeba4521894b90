"""Drawings of crystals."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from crystal_fidelity.plots import draw_crystal


def drawn(atoms, **options):
    axes = Figure().add_subplot()
    draw_crystal(axes, atoms, **options)
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    bonds = [line for line in axes.lines if line.get_color() == "#777"]
    return circles, bonds


@pytest.mark.parametrize("shift", [0, 1e-9, -1e-9, 3, 0.01, -0.01])
def test_atoms_on_faces_are_drawn_on_all_of_them(shift):
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    salt.set_scaled_positions(salt.get_scaled_positions(wrap=False) + shift)
    circles, bonds = drawn(salt)
    assert len(circles) == 27
    assert len(bonds) == 54
    assert drawn(salt, bonds=False)[1] == []


def test_the_view_has_c_up_and_atoms_in_front_hide_those_behind():
    pair = Atoms(
        "HHe", scaled_positions=[(0.5, 0.1, 0.2), (0.5, 0.9, 0.8)], cell=[4, 4, 9], pbc=True
    )
    circles, _ = drawn(pair, tilt=(0, 0))
    low, high = circles
    assert high.center[1] - low.center[1] == pytest.approx(0.6 * 9)
    assert low.center[0] == pytest.approx(high.center[0])
    assert low.get_zorder() > high.get_zorder()


def test_a_turned_crystal_is_drawn_alike():
    one = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
    other = one.copy()
    other.rotate(40, (1, 2, 3), rotate_cell=True)
    centres = [np.array([c.center for c in drawn(atoms)[0]]) for atoms in (one, other)]
    assert centres[0] == pytest.approx(centres[1], abs=1e-9)

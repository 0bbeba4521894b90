"""Draw the pictures of the README: crystals beside those of textbooks, a film, a hull.

Everything shown is generated with the shipped weights and a seed, or built from textbook
parameters. The hull is that of the tutorial: run `python tools/tutorials.py ternary_hull` before.

python tools/pictures.py
"""

import io
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from ase.build import bulk
from ase.spacegroup import crystal
from matplotlib.animation import FuncAnimation, PillowWriter

import crystorus
from crystal_fidelity import match_rate
from crystal_fidelity.plots import draw_crystal
from crystal_fidelity.structures import from_atoms, to_atoms
from crystal_fidelity.symmetry import space_group

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs/figures"
REAL = {
    ("MgAl2O4", 2, "spinel"): crystal(
        ("Mg", "Al", "O"), [(1 / 8,) * 3, (1 / 2,) * 3, (0.2624,) * 3],
        spacegroup=227, setting=2, cellpar=[8.083] * 3 + [90] * 3,
    ),
    ("SrTiO3", 1, "perovskite"): crystal(
        ("Ti", "Sr", "O"), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0, 0)],
        spacegroup=221, cellpar=[3.905] * 3 + [90] * 3,
    ),
    ("TiO2", 2, "rutile"): crystal(
        ("Ti", "O"), [(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    ),
    ("CaF2", 1, "fluorite"): bulk("CaF2", "fluorite", a=5.463, cubic=True),
    ("ZnO", 2, "wurtzite"): bulk("ZnO", "wurtzite", a=3.25, c=5.2),
}  # fmt: skip
"""Textbook crystals by formula, formula units and name."""


def conventional(atoms):
    """Return the conventional cell, its heaviest atom in the corner, and the space group."""
    group = space_group(from_atoms(atoms))
    cell = to_atoms(group.standardized)
    cell.translate(-cell.positions[cell.numbers.argmax()])
    return cell, group.symbol


def draw_beside() -> None:
    """Draw the likeliest of eight generated crystals below the real one."""
    figure, grid = plt.subplots(2, len(REAL), figsize=(9, 4.2), layout="constrained")
    for column, ((formula, units, name), real) in zip(grid.T, REAL.items(), strict=True):
        made = crystorus.generate(formula, z=units, seed=0)
        for axes, (atoms, symbol) in zip(
            column, (conventional(real), conventional(made.to_ase()[0])), strict=True
        ):
            draw_crystal(axes, atoms)
            axes.text(0.5, -0.04, symbol, transform=axes.transAxes, ha="center", fontsize=8)
        column[0].set_title(f"{formula}, {name}", fontsize=9)
    for axes, text in zip(grid[:, 0], ("textbook", "generated"), strict=True):
        axes.text(-0.12, 0.5, text, rotation=90, va="center", transform=axes.transAxes)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    # A tenth of a point is fine enough, and halves the file.
    text = re.sub(r"(\d+\.\d)\d+", r"\1", drawing.getvalue())
    (FIGURES / "beside.svg").write_text(text)


def draw_film() -> None:
    """Draw every fourth step of a trajectory that ends in rutile, the end a while longer."""
    made = crystorus.generate("TiO2", z=2, n=6, seed=0, space_group="none", keep_trajectory=True)
    rutile = REAL["TiO2", 2, "rutile"]
    hit = next(n for n, a in enumerate(made.to_ase()) if match_rate([a], [rutile]).rate == 1)
    steps = made.trajectory_to_ase()[hit]
    figure, axes = plt.subplots(figsize=(3, 3), layout="constrained")

    def draw(number: int) -> None:
        axes.clear()
        draw_crystal(axes, steps[number], bonds=number == len(steps) - 1)
        axes.set(xlim=(-5, 5), ylim=(-5, 5))
        axes.set_title(f"TiO₂, step {number + 1} of {len(steps)}", fontsize=9)

    shown = [*range(0, len(steps) - 1, 4), *[len(steps) - 1] * 12]
    FuncAnimation(figure, draw, shown).save(FIGURES / "film.gif", PillowWriter(fps=8), dpi=75)


if __name__ == "__main__":
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "crystorus", "svg.fonttype": "none"})
    draw_beside()
    draw_film()
    shutil.copy(ROOT / "build/tutorials/ternary_hull/hull.svg", FIGURES / "hull.svg")

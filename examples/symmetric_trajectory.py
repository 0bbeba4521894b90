"""One crystal sampled inside its space group, and the same without: four frames of each.

python examples/symmetric_trajectory.py MgF2 docs/figures/symmetric-trajectory.png
"""

import sys

import ase
import matplotlib
import matplotlib.pyplot as plt
from ase.geometry import minkowski_reduce
from ase.visualize.plot import plot_atoms

import crystorus
from crystal_fidelity.structures import from_atoms
from crystal_fidelity.symmetry import space_group

UNITS, STEPS = 2, 24
FRAMES = (0.0, 0.4, 0.65, 1.0)
"""Of the trajectory, from noise to crystal."""
COLOURS = ("#7a8fb5", "#d1495b", "#4c9f70", "#e3b23c")


def draw(axes: plt.Axes, atoms: ase.Atoms, step: int) -> None:
    """Draw 2 × 2 shortest cells, seen nearly along the shortest of their edges."""
    cell, _ = minkowski_reduce(atoms.cell)
    order = sorted(range(3), key=lambda n: -(cell[n] @ cell[n]))
    reduced = ase.Atoms(atoms.symbols, atoms.positions, cell=cell[order], pbc=True)
    reduced.rotate(reduced.cell[2], "z", rotate_cell=True)
    reduced.rotate(reduced.cell[0] * [1, 1, 0], "x", rotate_cell=True)
    reduced.wrap()
    several = reduced.repeat((2, 2, 1))
    elements = sorted(set(several.symbols))
    colours = [COLOURS[elements.index(symbol) % len(COLOURS)] for symbol in several.symbols]
    plot_atoms(several, axes, colors=colours, radii=0.4, rotation="-14x,10y,0z")
    axes.set_title(f"step {step}, {atoms.get_volume() / len(atoms):.1f} Å³/atom", fontsize=9)
    axes.set_axis_off()


def main(formula: str = "MgF2", path: str = "symmetric-trajectory.png") -> None:
    """Draw both trajectories, which have the same seed."""
    matplotlib.use("agg")
    figure, grid = plt.subplots(2, len(FRAMES), figsize=(9, 5), layout="constrained")
    for row, group in zip(grid, ("known", "none"), strict=True):
        made = crystorus.generate(
            formula, z=UNITS, space_group=group, steps=STEPS, seed=0, keep_trajectory=True
        )
        steps = made.trajectory_to_ase()[0]
        for axes, place in zip(row, (round(f * (len(steps) - 1)) for f in FRAMES), strict=True):
            draw(axes, steps[place], place + 1)
        found = space_group(from_atoms(steps[-1]), 0.01).symbol
        row[0].text(
            -0.05,
            0.5,
            f"--space-group {group}",
            rotation=90,
            va="center",
            transform=row[0].transAxes,
        )
        print(f"--space-group {group}: {formula} in {found}")
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])

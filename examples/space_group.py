# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Inside a space group
#
# A random start has no symmetry, most crystals have one. Crystorus therefore samples inside a
# space group: every crystal of a trajectory, the first and the last, has it exactly. Here we see
# what that means, on magnesium fluoride.

# %%
import matplotlib.pyplot as plt

import crystorus
from crystal_fidelity.plots import draw_crystal
from crystal_fidelity.structures import from_atoms
from crystal_fidelity.symmetry import space_group

trajectories = {
    name: crystorus.generate(
        "MgF2", z=2, space_group=group, steps=24, seed=0, keep_trajectory=True
    ).trajectory_to_ase()[0]
    for name, group in {"as known crystals suggest": "known", "no symmetry": "none"}.items()
}
for name, steps in trajectories.items():
    group = space_group(from_atoms(steps[-1]), 0.01)
    print(f"{name}: {len(steps)} steps, the last is {group.symbol}, number {group.number}")

# %%
figure, grid = plt.subplots(2, 4, figsize=(10, 5.5), layout="constrained")
for row, (name, steps) in zip(grid, trajectories.items(), strict=True):
    for axes, fraction in zip(row, (0, 0.4, 0.65, 1), strict=True):
        place = round(fraction * (len(steps) - 1))
        draw_crystal(axes, steps[place])
        axes.set_title(
            f"{name}: step {place + 1}" if fraction == 0 else f"step {place + 1}", fontsize=9
        )
plt.show()

# %% [markdown]
# Above, noise moves the fluorine atoms along their diagonals only, and the cell stays tetragonal:
# what is free is two lengths and one coordinate, instead of six numbers for the cell and eighteen
# for the atoms. It ends as rutile.
#
# ## Asking for a group
#
# `space_group` takes numbers, symbols, crystal systems, or several with commas. The cell is
# primitive, so a group must have sites for that many atoms.

# %%
for asked, units in {"225": 1, "Fm-3m": 1, "trigonal": 1, "P4_2/mnm,Pnnm": 2}.items():
    made = crystorus.generate("CaF2", z=units, n=2, space_group=asked, quality="fast", seed=1)
    groups = [space_group(from_atoms(atoms), 0.01).symbol for atoms in made.to_ase()]
    print(f"{asked:15} gives {', '.join(groups)}")

# %% [markdown]
# A group that has no sites for the composition is refused with the reason:

# %%
from crystorus.errors import RequestError

try:
    crystorus.generate("NaCl", space_group="227")
except RequestError as error:
    print(error)

# %% [markdown]
# How the symmetry is kept, and where the groups come from: [Crystals that keep a space
# group](../symmetry.md).

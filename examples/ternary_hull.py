# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A ternary hull
#
# Which phases of copper, silver and gold are stable? We sample crystals over the whole system,
# relax them with a potential and rank them above the convex hull of known phases. The potential
# is ASE's EMT, which was made for these metals and costs nothing; for anything else take CHGNet
# (the default) or [your own](../how-to/potential.md).
#
# The known phases are the three elements and two ordered alloys, built from textbook lattice
# parameters.

# %%
import csv
import subprocess
import sys

import ase.io
from ase import Atoms
from ase.build import bulk

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
known = {
    "Cu": bulk("Cu"),
    "Ag": bulk("Ag"),
    "Au": bulk("Au"),
    "Cu3Au": Atoms("AuCu3", scaled_positions=FCC, cell=[3.75] * 3, pbc=True),
    "CuAu": Atoms("CuAu", scaled_positions=[FCC[0], [0.5] * 3], cell=[2.8, 2.8, 3.67], pbc=True),
}
for name, atoms in known.items():
    atoms.info["material_id"] = name
ase.io.write("known.extxyz", list(known.values()))

# %% [markdown]
# A campaign is one command. It may be stopped at any time; the same command goes on.

# %%
command = (
    "hull Cu-Ag-Au --max-atoms 4 --n 1 --budget 20 --quality fast --references known.extxyz "
    "--potential ase.calculators.emt:EMT --out hull"
)
done = subprocess.run(
    [sys.executable, "-m", "crystorus", *command.split()],
    capture_output=True,
    text=True,
    check=False,
)
print("crystorus", command)
print(done.stdout[-2000:] or done.stderr[-2000:])

# %% [markdown]
# The folder has the hull as a drawing, here below: filled dots are phases on the hull, the others
# are coloured by their height above it.
#
# ![The hull of Cu, Ag and Au](hull.svg)

# %%
with open("hull/table.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
print("meV/atom above the known hull")
for row in rows[:8]:
    print(
        f"{1000 * float(row['e_above_hull']):8.1f}  {row['formula']:8} {row['space_group']:10} "
        f"{row['novelty']} {row['known_id']}"
    )

# %% [markdown]
# *Rediscovered* phases are those that we named; *not in the references* are compositions of which
# we named none. A negative number says that the phase lies below the hull of the known ones:
# either new, or missing among the references. Here it is the potential that speaks, so the last
# word is DFT.
#
# `hull/report.html` has a table to sort, all structures in 3D, and the denoising of the best
# ones.

# %%
import shutil

_ = shutil.copy("hull/hull.svg", "hull.svg")  # for this page

# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The polymorphs of a composition
#
# Titanium dioxide has several crystals: rutile, anatase, brookite and more under pressure. We ask
# for crystals of TiO₂ from noise, with two and four formula units per primitive cell, in the
# space groups that known crystals with the same counts of elements suggest, another one for each
# sample.

# %%
import ase
import matplotlib.pyplot as plt
from ase.spacegroup import crystal

import crystorus
from crystal_fidelity import match_rate
from crystal_fidelity.matching import unique
from crystal_fidelity.plots import draw_crystal
from crystal_fidelity.structures import density, from_atoms, to_atoms
from crystal_fidelity.symmetry import space_group

made = crystorus.generate("TiO2", z=[2, 4], n=12, quality="fast", seed=0)
print(made)

# %% [markdown]
# Some of them are the same crystal found twice. `unique` keeps the first of each kind (pymatgen's
# StructureMatcher), and we list what is left with the space group that it has within 0.1 Å.

# %%
atoms = made.to_ase()
kinds = [one for one, first in zip(atoms, unique(atoms), strict=True) if first]
print(f"{len(atoms)} crystals, {len(kinds)} kinds")
print("formula units  space group  Å³ per formula unit  g/cm³")
for one in kinds:
    group = space_group(from_atoms(one))
    units = one.symbols.count("Ti")
    print(
        f"{units:13}  {group.symbol:11}  {one.get_volume() / units:20.1f}  "
        f"{density(from_atoms(one)):.2f}"
    )

# %% [markdown]
# Which of them are the crystals that nature makes? We build rutile and anatase from their
# textbook parameters and compare.

# %%
known = {
    "rutile": crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    ),
    "anatase": crystal(
        ["Ti", "O"], [(0, 0, 0), (0, 0, 0.208)],
        spacegroup=141, cellpar=[3.785, 3.785, 9.514, 90, 90, 90],
    ),
}  # fmt: skip
found: dict[str, ase.Atoms] = {}
for name, reference in known.items():
    for one in kinds:
        result = match_rate([one], [reference])
        if result.rate == 1:
            found.setdefault(name, one)
            print(f"{name}: made, root mean square distance {result.mean_rms:.3f} (V/n)^(1/3)")
            break
    else:
        print(f"{name}: not among these")

# %% [markdown]
# Above as in the textbook, below as generated, each in its conventional cell:

# %%
figure, grid = plt.subplots(2, 2, figsize=(6, 6), layout="constrained")
for column, (name, reference) in zip(grid.T, known.items(), strict=True):
    draw_crystal(column[0], reference)
    column[0].set_title(name)
    if name in found:
        draw_crystal(column[1], to_atoms(space_group(from_atoms(found[name])).standardized))
    column[1].set_axis_off()
plt.show()

# %% [markdown]
# The model knows no energy: which polymorph is the stable one is decided by relaxing them with a
# potential, as in the tutorial on [a ternary hull](ternary_hull.md). More samples find more
# polymorphs, and `candidates=8` the likeliest crystal of each request.

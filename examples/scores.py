# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Score another model's crystals
#
# `crystal-fidelity` compares any two sets of structures. As references we take perovskites and
# rutiles, with parameters as in textbooks. One model is Crystorus. The other one is a stand-in
# that anybody can write: the true cell with random coordinates. If a metric cannot tell the two
# apart, it is of no use.

# %%
import numpy as np
from ase import Atoms
from ase.spacegroup import crystal

import crystorus
from crystal_fidelity import density_emd, match_rate, structural_validity

# fmt: off
PEROVSKITES = {"SrTiO3": 3.905, "BaTiO3": 4.00, "BaZrO3": 4.19, "BaSnO3": 4.12, "SrHfO3": 4.07,
               "SrVO3": 3.84, "KNbO3": 4.02, "KMgF3": 3.989, "KZnF3": 4.05, "KCoF3": 4.07,
               "RbMnF3": 4.24, "CsCaF3": 4.52, "CsPbCl3": 5.605}  # a in Å
RUTILES = {"TiO2": (4.594, 2.959, 0.305), "SnO2": (4.737, 3.186, 0.307),
           "GeO2": (4.395, 2.860, 0.306), "MnO2": (4.398, 2.873, 0.302),
           "RuO2": (4.492, 3.107, 0.306), "PbO2": (4.955, 3.383, 0.307),
           "MgF2": (4.621, 3.052, 0.303), "ZnF2": (4.703, 3.134, 0.303),
           "NiF2": (4.651, 3.084, 0.302), "FeF2": (4.697, 3.309, 0.300)}  # a, c in Å and u
# fmt: on
OCTAHEDRON = [(0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
references = [
    Atoms(
        formula,
        scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5), *OCTAHEDRON],
        cell=[a] * 3,
        pbc=True,
    )
    for formula, a in PEROVSKITES.items()
]
references += [
    crystal(
        (formula[:2], formula[2]), [(0, 0, 0), (u, u, 0)], spacegroup=136,
        cellpar=[a, a, c, 90, 90, 90],
    )
    for formula, (a, c, u) in RUTILES.items()
]  # fmt: skip
formulas = [*PEROVSKITES, *RUTILES]

perovskites = crystorus.generate(list(PEROVSKITES), z=1, quality="fast", seed=0)
rutiles = crystorus.generate(list(RUTILES), z=2, quality="fast", seed=0)
ours = perovskites.to_ase() + rutiles.to_ase()
generator = np.random.default_rng(0)
shuffled = [
    Atoms(one.numbers, scaled_positions=generator.random((len(one), 3)), cell=one.cell, pbc=True)
    for one in references
]

# %% [markdown]
# Functions take lists of `ase.Atoms`, pymatgen structures, or what `read_structures` reads from a
# file. Structures are paired by their place in the list.

# %%
print("model     valid   match rate    RMSE    density EMD, g/cm³")
for name, crystals in {"crystorus": ours, "shuffled": shuffled}.items():
    matched = match_rate(crystals, references)
    emd = density_emd(crystals, references)
    print(
        f"{name:9} {structural_validity(crystals).rate:5.0%}   {matched.rate:10.0%}   "
        f"{matched.mean_rms:5.3f}    {emd.value:.3f}"
    )

# %% [markdown]
# Three things to see. The stand-in has the right densities by construction: a density distance of
# zero says nothing about structures. It matches now and then, since the tolerances are wide; with
# two atoms per cell it would match nearly always. So the rate of random coordinates belongs
# beside every match rate (`baseline=True`). And these compounds are known to every model of
# crystals: what they show is that the measure works, not how good a model is. For that, take
# compositions that it has not seen ([results](../results.md)).

# %%
result = match_rate(ours, references, baseline=True)
missed = [f for f, hit in zip(formulas, result.matched, strict=True) if not hit]
print("missed by crystorus:", ", ".join(missed) or "none")
print(f"random coordinates match {result.baseline.rate:.0%}")

# %% [markdown]
# The same from files, with more metrics, errors and a page to look at:
#
# ```
# crystal-fidelity compare made.extxyz real.extxyz --metrics validity,density,match --html a.html
# ```

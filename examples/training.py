# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train on 200 structures
#
# A small network learns to make crystals of simple structure types in a minute of processor time.
# It shows the way from structures to a checkpoint; the network is forty times smaller than the
# one that ships, and knows nothing else.
#
# The data are made here: six structure types, elements put in at random, cells such that
# neighbours touch.

# %%
import itertools
import random
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

HALF = 0.5
TYPES = {  # atoms A and B, where they are, and the shortest distance A-B in units of a
    "rocksalt": ("AB", [(0, 0, 0), (HALF, HALF, HALF)], "fcc", 0.5),
    "zincblende": ("AB", [(0, 0, 0), (0.25, 0.25, 0.25)], "fcc", 3**0.5 / 4),
    "caesium chloride": ("AB", [(0, 0, 0), (HALF, HALF, HALF)], "cubic", 3**0.5 / 2),
    "fluorite": ("ABB", [(0, 0, 0), (0.25, 0.25, 0.25), (0.75, 0.75, 0.75)], "fcc", 3**0.5 / 4),
    "ReO3": ("ABBB", [(0, 0, 0), (HALF, 0, 0), (0, HALF, 0), (0, 0, HALF)], "cubic", 0.5),
    "Cu3Au": (
        "ABBB", [(0, 0, 0), (0, HALF, HALF), (HALF, 0, HALF), (HALF, HALF, 0)], "cubic", 0.5**0.5
    ),
}  # fmt: skip
CELLS = {
    "cubic": np.eye(3),
    "fcc": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
}


def make(kind: str, a: str, b: str) -> Atoms:
    """Return one crystal."""
    letters, places, cell, distance = TYPES[kind]
    touching = sum(covalent_radii[atomic_numbers[symbol]] for symbol in (a, b))
    edge = touching / distance
    symbols = [{"A": a, "B": b}[letter] for letter in letters]
    return Atoms(symbols, scaled_positions=places, cell=edge * CELLS[cell], pbc=True)


first, second = ["Li", "Na", "K", "Mg", "Ca", "Zn", "Ti"], ["O", "S", "F", "Cl", "N", "Cu"]
pairs = list(itertools.product(first, second))
crystals = [make(kind, a, b) for kind in TYPES for a, b in pairs]
random.Random(0).shuffle(crystals)
ase.io.write("train.extxyz", crystals[:200])
ase.io.write("held-out.extxyz", crystals[200:])
print(len(crystals[:200]), "to train on,", len(crystals[200:]), "held out")

# %% [markdown]
# A configuration is a TOML file; `configs/smoke.toml` of the repository is a small one. What
# matters for so few crystals: a small network, and a learning rate that falls to zero over the
# whole run.

# %%
Path("small.toml").write_text("""
preset = "default"
[data]
train = "train.extxyz"
validation = "held-out.extxyz"
[diffusion]
steps = 100
[network]
channels = 32
vector_channels = 12
tensor_channels = 8
pair_channels = 16
gate_channels = 8
blocks = 2
[training]
epochs = 400
cpu_minutes = 1.0
batch_size = 32
batch_pairs = 2000
learning_rate = 4e-3
ema_decay = 0.99
validate_every = 20
validation_crystals = 50
sample_every = 0
log_every = 50
accelerator = "cpu"
[sampling]
steps = 30
""", encoding="utf-8")  # fmt: skip


def crystorus(*words: str) -> str:
    """Run a command."""
    done = subprocess.run(
        [sys.executable, "-m", "crystorus", *words], capture_output=True, text=True, check=False
    )
    return done.stdout + (done.stderr if done.returncode else "")


print(crystorus("train", "small.toml", "run")[-1500:])

# %% [markdown]
# The losses are in units of what a network that predicts nothing gets (1.0):

# %%
import csv

import matplotlib.pyplot as plt

with open("run/metrics.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, colour in (("cell", "#2d6a8f"), ("torus", "#c8553d")):
    for part, line in (("train", "-"), ("val", "o--")):
        points = [(int(r["step"]), float(r[key])) for r in rows if r[key := f"{part}/{name}"]]
        axes.plot(*zip(*points, strict=True), line, color=colour, label=f"{name}, {part}")
axes.set_xlabel("optimiser step")
axes.set_ylabel("loss")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Now the checkpoint makes crystals of the held-out compositions, and we score them as in the
# tutorial on [scores](scores.md).

# %%
import crystorus as cr
from crystal_fidelity import match_rate

model = cr.load("run/best")
held_out = crystals[200:]
formulas = [atoms.get_chemical_formula() for atoms in held_out]
made = cr.generate(formulas, model=model).to_ase()
result = match_rate(made, held_out)
print(
    f"{result.rate:.0%} of {len(held_out)} match, root mean square distance {result.mean_rms:.3f}"
)

# %% [markdown]
# Six types share three patterns here, three of them AB and two AB₃: since the composition is all
# that the model is told, it cannot match more than about half. The way is the same with your own
# data: name your files in `[data]`, take `configs/default.toml` and begin at the shipped weights,
# which takes minutes; from random weights it takes tens of thousands of crystals and hours. More:
# [Train on your own data](../how-to/training.md).

# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The diffusion in 60 lines
#
# Suppose that there were one crystal in the world: rutile. Then the denoiser that a network
# learns by training could be written down, and the whole method fits in 60 lines of numpy. The
# network has many crystals to keep apart, nothing else changes.
#
# A crystal is a cell $\rho$, whose columns are the lattice vectors, and fractional coordinates
# $x$ on a torus.

# %%
import ase
import matplotlib.pyplot as plt
import numpy as np
from ase.spacegroup import crystal
from matplotlib.animation import FuncAnimation, PillowWriter
from scipy.linalg import expm, logm

from crystal_fidelity.plots import draw_crystal

rutile = crystal(
    ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)],
    spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
)  # fmt: skip
rho_0, x_0 = rutile.cell.array.T, rutile.get_scaled_positions()
rng = np.random.default_rng(0)

# %% [markdown]
# **Noise.** Atoms diffuse on the torus, $x_t = x_0 + \sigma_t \varepsilon \bmod 1$, the cell is
# strained, $\rho_t = \exp(E_t)\,\rho_0$ with a symmetric random matrix $E_t$. The levels
# $\sigma_t$ go from 0.01 to 0.5 cells, where an atom may be anywhere, and for the strain from
# 0.01 to 0.3.

# %%
T = 60
sigma = np.geomspace(0.01, 0.5, T)  # of atoms
tau = np.geomspace(0.01, 0.3, T)  # of the strain


def symmetric_noise() -> np.ndarray:
    """Draw a symmetric matrix, isotropic under rotations."""
    noise = rng.normal(size=(3, 3))
    return (noise + noise.T) / 2


def noised(t: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cell and coordinates at level t."""
    return expm(tau[t] * symmetric_noise()) @ rho_0, (
        x_0 + sigma[t] * rng.normal(size=x_0.shape)
    ) % 1


# %% [markdown]
# **The denoiser.** It is asked for the strain that was applied, and for the mean displacement
# back, $y = \mathbb{E}[x_0 + k - x_t \mid x_t]$: on a torus the noise may have come from any
# image $k$ of an atom, each with a Gaussian weight. Where the noise is large all images count
# alike, and the displacement is zero. With one crystal in the world both are known:

# %%
K = np.arange(-3, 4)


def denoise(rho: np.ndarray, x: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Return strain and displacements, what a network would have learnt."""
    stretch = rho @ np.linalg.inv(rho_0)
    strain = logm(stretch @ stretch.T).real / 2  # the part of it that is no rotation
    ways = (x_0 - x)[..., None] + K  # (atoms, 3, images)
    weights = np.exp(-(ways**2) / (2 * sigma[t] ** 2))
    return strain, (ways * weights).sum(-1) / weights.sum(-1)


# %% [markdown]
# **The sampler.** From level $t$ to $s$ it draws from the law of the forward process between the
# present crystal and the predicted one, a *bridge*: a fraction $1 - \sigma_s^2/\sigma_t^2$ of the
# way back, and fresh noise of the size that level $s$ has beside what is kept,

# %%


def step(rho: np.ndarray, x: np.ndarray, t: int, s: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Go from level t to s, to the end where s is None."""
    strain, displacement = denoise(rho, x, t)
    keep = (0, 0) if s is None else ((tau[s] / tau[t]) ** 2, (sigma[s] / sigma[t]) ** 2)
    size = (0, 0) if s is None else np.array([tau[s], sigma[s]]) * np.sqrt(1 - np.array(keep))
    rho = expm(keep[0] * strain + size[0] * symmetric_noise()) @ expm(-strain) @ rho
    return rho, (x + (1 - keep[1]) * displacement + size[1] * rng.normal(size=x.shape)) % 1


def sample() -> list[ase.Atoms]:
    """Return a trajectory from the prior to a crystal."""
    rho, x = expm(tau[-1] * symmetric_noise()) @ rho_0, rng.random(x_0.shape)
    trajectory = [(rho, x)]
    for t in range(T - 1, -1, -1):
        rho, x = step(rho, x, t, t - 1 if t else None)
        trajectory.append((rho, x))
    return [
        ase.Atoms(rutile.numbers, scaled_positions=x, cell=rho.T, pbc=True) for rho, x in trajectory
    ]


frames = sample()
off = (frames[-1].get_scaled_positions() - x_0 + 0.5) % 1 - 0.5
print(f"{len(frames)} frames; at the end atoms are off by {np.abs(off).max():.1e} of the cell,")
print(f"the cell has {frames[-1].cell.lengths().round(3)} Å, rutile {rutile.cell.lengths()} Å")

# %% [markdown]
# Its film:

# %%
figure, axes = plt.subplots(figsize=(3, 3), layout="constrained")


def draw(number: int) -> None:
    """Draw one frame."""
    axes.clear()
    draw_crystal(axes, frames[number], bonds=False)
    axes.set(xlim=(-4, 4), ylim=(-4, 4))
    axes.set_title(f"step {number}", fontsize=9)


shown = [*range(0, len(frames), 2), *[len(frames) - 1] * 8]
FuncAnimation(figure, draw, shown).save("film.gif", PillowWriter(fps=8), dpi=80)
plt.close(figure)

# %% [markdown]
# ![From noise to rutile](film.gif)
#
# ## With the network
#
# Now every crystal of the training data is in the world, and the network has to find out from the
# atoms around which one it may be. The same levels of noise, the same bridge, the shipped
# weights, without any symmetry imposed:

# %%
import crystorus
from crystal_fidelity import match_rate

made = crystorus.generate("TiO2", z=2, n=6, seed=0, space_group="none", keep_trajectory=True)
hits = [match_rate([one], [rutile]).rate == 1 for one in made.to_ase()]
print(f"{sum(hits)} of {len(hits)} crystals are rutile")

figure, grid = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
steps = made.trajectory_to_ase()[hits.index(True) if any(hits) else 0]
for axes, place in zip(grid, np.linspace(0, len(steps) - 1, 5).astype(int), strict=True):
    draw_crystal(axes, steps[place])
    axes.set_title(f"step {place}", fontsize=9)
plt.show()

# %% [markdown]
# What the network is, why it cannot depend on the choice of the cell, and where each equation is
# in the code: [the method](../method.md).

"""Algorithm 1 (training) and Algorithm 2 (sampling) with its corrected variants.

Nothing here knows a network: a denoiser is anything that maps (crystals, t) to a `Prediction`.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.diffusion.log_lattice_process import LogLatticeProcess
from crystorus.diffusion.noise import CrystalNoise
from crystorus.diffusion.schedule import sampling_times
from crystorus.diffusion.strain_process import StrainProcess
from crystorus.diffusion.torus_process import TorusProcess
from crystorus.geometry import Crystals, Prediction

SamplerName = Literal["paper", "bridge", "ode"]


@runtime_checkable
class Denoiser(Protocol):
    """f_θ: noisy crystals and their step t = 1 … T to a prediction of the clean ones (Eq. 7)."""

    def __call__(self, crystals: Crystals, t: Int[Tensor, " crystals"], /) -> Prediction:
        """Predict the clean cell and the displacements towards the clean positions."""
        ...


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The forward process on a whole crystal: torus and cell side by side."""

    torus: TorusProcess
    cell: StrainProcess | LogLatticeProcess

    @property
    def steps(self) -> int:
        """Number of noise levels T."""
        return self.torus.steps


@dataclass(frozen=True)
class SamplerConfig:
    """How to walk back from noise."""

    name: SamplerName = "bridge"
    """"paper" is Algorithm 2, "bridge" draws from the exact posterior, "ode" is deterministic."""
    steps: int = 100
    """Network evaluations."""
    anti_annealing: float = 0.0
    """The drift is multiplied by 1 + anti_annealing · (1 - t/T)."""


@dataclass(frozen=True, eq=False)
class Losses:
    """L^ρ and L^x of every crystal of a batch (Eqs 15 and 20)."""

    cell: Float[Tensor, " crystals"]
    torus: Float[Tensor, " crystals"]


def add_noise(
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    normal_atoms: Float[Tensor, "atoms 3"],
    normal_cells: Float[Tensor, "crystals 6"],
) -> tuple[Crystals, Float[Tensor, "crystals 3 3"]]:
    """Draw M_t ~ q(M_t | M_0): lines 3 and 4 of Algorithm 1. Returns M_t and the strain drawn."""
    lattice, strain = diffusion.cell.noise(crystals.lattice, t, normal_cells)
    frac_coords = diffusion.torus.noise(crystals, t, normal_atoms)
    return crystals.with_geometry(lattice, frac_coords), strain


def training_losses(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    generator: torch.Generator,
) -> Losses:
    """Evaluate both losses on one batch: Algorithm 1, lines 3 to 6.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        crystals: Clean crystals.
        t: Step of each crystal, 1 … T.
        generator: Source of the noise, on the CPU.
    """
    device, dtype = crystals.lattice.device, crystals.lattice.dtype
    atoms = torch.randn(crystals.frac_coords.shape, generator=generator).to(device, dtype)
    cells = torch.randn(len(crystals), 6, generator=generator).to(device, dtype)
    noisy, strain = add_noise(diffusion, crystals, t, atoms, cells)
    prediction = denoiser(noisy, t)
    cell = diffusion.cell.loss(prediction, crystals, noisy, t, strain)
    return Losses(cell, diffusion.torus.loss(prediction.displacement, crystals, noisy, t))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    diffusion: Diffusion,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    seeds: Sequence[int],
    *,
    on_step: Callable[[int, int, Crystals], None] | None = None,
) -> Crystals:
    """Turn compositions into crystals: Algorithm 2 or one of its variants.

    Args:
        denoiser: The trained network.
        diffusion: The process it was trained on.
        atomic_numbers: z; the composition of the result is this, atom by atom.
        n_atoms: Number of atoms of each crystal.
        sampler: Which walk, and in how many steps.
        seeds: One per crystal; a crystal depends on its own seed only.
        on_step: Called with (steps done, steps, present crystals) after each step.

    Raises:
        ValueError: If the sampler has more steps than the process has levels.
    """
    noise = CrystalNoise(seeds, n_atoms)
    empty = Crystals(
        torch.zeros(len(n_atoms), 3, 3, device=n_atoms.device),
        noise.uniform_atoms(),
        atomic_numbers,
        n_atoms,
    )
    cell = diffusion.cell.prior(empty, noise.normal_cells(), noise.normal_cells())
    crystals = empty.with_geometry(cell, diffusion.torus.prior(empty.frac_coords))
    times = sampling_times(sampler.steps, diffusion.steps)
    for done, (now, then) in enumerate(itertools.pairwise(times), start=1):
        crystals = _step(denoiser, diffusion, crystals, now, then, sampler, noise)
        if on_step is not None:
            on_step(done, sampler.steps, crystals)
    return crystals


def _step(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    now: int,
    then: int,
    sampler: SamplerConfig,
    noise: CrystalNoise,
) -> Crystals:
    """Take one step from level `now` to level `then`."""
    t = torch.full_like(crystals.n_atoms, now)
    s = torch.full_like(crystals.n_atoms, then)
    prediction = denoiser(crystals, t)
    drift = 1 + sampler.anti_annealing * (1 - now / diffusion.steps)
    x, displacement, lattice = crystals, prediction.displacement, crystals.lattice
    if sampler.name == "ode":
        frac = diffusion.torus.flow(x, displacement, t, s, drift=drift)
        cell = diffusion.cell.flow(lattice, prediction, t, s, drift=drift)
        return crystals.with_geometry(cell, frac)
    atoms, cells = noise.normal_atoms(), noise.normal_cells()
    if sampler.name == "paper":
        frac = diffusion.torus.jump(x, displacement, t, s, atoms)
    else:
        frac = diffusion.torus.reverse(x, displacement, t, s, atoms, drift=drift)
    cell = diffusion.cell.reverse(lattice, prediction, t, s, cells, drift=drift)
    return crystals.with_geometry(cell, frac)

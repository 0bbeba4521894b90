"""Algorithm 1: both losses of noised crystals, for training and as a measure of finished ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.diffusion.process import Denoiser, Diffusion
from crystorus.geometry import Crystals

LEVELS = (0.3, 0.4, 0.5)
"""Fractions of T at which finished crystals are noised: below them nearly any crystal is a fixed
point, above them the network cannot tell any two apart (docs/choosing.md)."""
DRAWS = 2
"""Draws of noise per level, each used with both signs."""


@dataclass(frozen=True, eq=False)
class Losses:
    """L^ρ and L^x of every crystal of a batch (Eq. 14, or 15; Eqs 18 and 19)."""

    cell: Float[Tensor, " crystals"]
    torus: Float[Tensor, " crystals"]


def draw_normals(
    crystals: Crystals, generator: torch.Generator
) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 6"]]:
    """Return standard normal numbers for atoms and cells, the same for any device.

    Args:
        crystals: Give the shapes, the device and the dtype.
        generator: On the CPU.
    """
    device, dtype = crystals.lattice.device, crystals.lattice.dtype
    atoms = torch.randn(crystals.frac_coords.shape, generator=generator).to(device, dtype)
    cells = torch.randn(len(crystals), 6, generator=generator).to(device, dtype)
    return atoms, cells


def losses_at_noise(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    normal_atoms: Float[Tensor, "atoms 3"],
    normal_cells: Float[Tensor, "crystals 6"],
) -> Losses:
    """Evaluate both losses of one batch with given noise: Algorithm 1, lines 4 to 6.

    Args:
        denoiser: The network f_θ.
        diffusion: The forward process.
        crystals: Clean crystals.
        t: Level of each crystal, 1 … T.
        normal_atoms: Standard normal numbers, as of `draw_normals`.
        normal_cells: Standard normal numbers.

    Source: [Klipfel24] Algorithm 1
    """
    noisy, target = diffusion.noise(crystals, t, normal_atoms, normal_cells)
    prediction = denoiser(noisy, t)
    cell = diffusion.cell.loss(prediction, target)
    return Losses(cell, diffusion.torus.loss(prediction.displacement, crystals, noisy, t))


@torch.no_grad()
def denoising_error(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    seeds: Sequence[int],
    *,
    levels: Sequence[float] = LEVELS,
    draws: int = DRAWS,
) -> Float[Tensor, " crystals"]:
    """Return the sum of both losses of finished crystals, averaged over levels and noise.

    Both losses of the default preset count errors in units of the noise, and its levels are
    geometric, so that this is, up to weights, a part of the sum over t of the variational bound
    on -log p of the crystal. Between crystals of one composition it tells those that the training
    crystals resemble from those that they do not. A crystal's noise depends on its own seed
    alone: candidates of one composition that share a seed meet the same noise.

    Args:
        denoiser: The trained network f_θ.
        diffusion: The process it was trained on.
        crystals: Finished crystals.
        seeds: One per crystal.
        levels: Fractions of T, above 0 to 1.
        draws: Draws of noise per level; each costs two evaluations.

    Returns:
        Losses in units of the noise; 2 is a network that predicts nothing. Not finite where the
        crystal is not.

    Raises:
        ValueError: If a level is no fraction of T, or there is no level or draw.

    Source: [Klipfel24] Eq. 5
    Deviation: the six cell coefficients and a coordinate have the same weight; levels outside
        `LEVELS` are left out.
    """
    if not levels or draws < 1 or not all(0 < level <= 1 for level in levels):
        raise ValueError(
            f"levels {tuple(levels)} with {draws} draws: give fractions above 0 to 1, and 1 draw "
            "or more"
        )
    noise = CrystalNoise(seeds, crystals.n_atoms)
    total = torch.zeros_like(crystals.volume)
    for level in levels:
        t = torch.full_like(crystals.n_atoms, max(round(level * diffusion.steps), 1))
        for _ in range(draws):
            atoms, cells = noise.normal_atoms(), noise.normal_cells()
            # Noise of both signs: what is odd in it, most of the variance, drops out.
            for sign in (1, -1):
                losses = losses_at_noise(
                    denoiser, diffusion, crystals, t, sign * atoms, sign * cells
                )
                total += losses.cell + losses.torus
    return total / (2 * draws * len(levels))

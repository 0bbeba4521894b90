"""How likely a finished crystal is to a trained network: its losses when the crystal is noised.

Both losses count errors in units of the noise, and the levels are geometric, so that their mean
over levels is a term of the variational bound on -log p of the crystal; the errors of the six
cell coefficients and of a coordinate are given the same weight here. Between crystals of one
composition it tells those that the training crystals resemble from those that they do not.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crystorus.diffusion.algorithms import Denoiser, Diffusion, losses_at_noise
from crystorus.diffusion.noise import CrystalNoise
from crystorus.geometry import Crystals

LEVELS = (0.3, 0.4, 0.5)
"""Shares of T at which crystals are noised: below them nearly any crystal is a fixed point, above
them the network cannot tell any two apart (docs/choosing.md)."""
DRAWS = 2
"""Draws of noise per level, each used with both signs."""


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
    """Return the sum of both losses of every crystal, averaged over levels and noise.

    A crystal's noise depends on its own seed alone: candidates of one composition that share a
    seed meet the same noise, which leaves less chance in their comparison.

    Args:
        denoiser: The trained network.
        diffusion: The process it was trained on.
        crystals: Finished crystals.
        seeds: One per crystal.
        levels: Shares of T, above 0 to 1.
        draws: Draws of noise per level; each costs two evaluations.

    Returns:
        Losses in units of the noise (Eqs 15 and 20); 2 is a network that predicts nothing. Not
        finite where the crystal is not.

    Raises:
        ValueError: If a level is no share of T, or there is no level or draw.
    """
    if not levels or draws < 1 or not all(0 < level <= 1 for level in levels):
        raise ValueError(
            f"levels {tuple(levels)} with {draws} draws: give shares above 0 to 1, and 1 draw or "
            "more"
        )
    noise = CrystalNoise(seeds, crystals.n_atoms)
    total = torch.zeros_like(crystals.volume)
    for level in levels:
        t = torch.full_like(crystals.n_atoms, max(round(level * diffusion.steps), 1))
        for _ in range(draws):
            atoms, cells = noise.normal_atoms(), noise.normal_cells()
            for sign in (1, -1):
                losses = losses_at_noise(
                    denoiser, diffusion, crystals, t, sign * atoms, sign * cells
                )
                total += losses.cell + losses.torus
    return total / (2 * draws * len(levels))

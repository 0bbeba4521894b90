"""How good samples are while a network is trained: validity, match rate, RMSE."""

import math
from collections.abc import Sequence

import torch

from crystal_fidelity.matching import FIELD
from crystorus.config import SamplerConfig
from crystorus.data.convert import crystals_to_structures
from crystorus.diffusion.process import Denoiser, Diffusion
from crystorus.diffusion.sampling import trajectory
from crystorus.geometry import Crystals
from crystorus.sample.choosing import valid_crystals

LARGEST_CELL = 1000.0
"""Å³ per atom beyond which a cell is given up: caesium has 115 Å³, and what the sums over the
reciprocal lattice cost grows with the volume, which an untrained network lets explode."""
_BATCH = 32


def rms_distance(made: Crystals, known: Crystals) -> float | None:
    """Return the distance of a crystal from the known one, None if it is another or not valid.

    Args:
        made: A batch of one.
        known: What it is compared with, a batch of one.

    Returns:
        The root mean square displacement of matched atoms divided by (volume / atom)^(1/3), as
        match rates count it.
    """
    if not valid_crystals(made)[0]:
        return None
    found = FIELD.matcher().get_rms_dist(*crystals_to_structures(Crystals.concat([made, known])))
    return None if found is None else float(found[0])


def compare(made: Sequence[Crystals | None], references: Sequence[Crystals]) -> dict[str, float]:
    """Compare crystals with references, pair by pair; None stands for one that came to nothing.

    Args:
        made: One per reference, a batch of one each.
        references: A batch of one each.

    Returns:
        "valid", the fraction that is valid; "match_rate", the fraction of all that matches its
        reference; "match_rmse", the mean distance of those, NaN if there are none.
    """
    pairs = [(m, r) for m, r in zip(made, references, strict=True) if m is not None]
    valid = sum(bool(valid_crystals(crystal)[0]) for crystal, _ in pairs)
    distances = [d for pair in pairs if (d := rms_distance(*pair)) is not None]
    rmse = sum(distances) / len(distances) if distances else math.nan
    count = len(made)
    return {"valid": valid / count, "match_rate": len(distances) / count, "match_rmse": rmse}


def sample_quality(
    denoiser: Denoiser,
    diffusion: Diffusion,
    sampler: SamplerConfig,
    references: Crystals,
    *,
    device: torch.device,
) -> dict[str, float]:
    """Sample the compositions of some crystals once each and compare; always the same seeds.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        sampler: How to sample.
        references: The crystals whose compositions are sampled.
        device: Where the network is.

    Returns:
        As `compare`.
    """

    def make(numbers: range) -> list[Crystals | None]:
        part = references.select(list(numbers)).to(device)
        atoms = (part.atomic_numbers, part.n_atoms)
        for crystals in trajectory(denoiser, diffusion, *atoms, sampler, list(numbers)):
            if bool((crystals.volume.abs() <= LARGEST_CELL * crystals.n_atoms).all()):
                continue
            # A crystal does not depend on its batch: halves find the ones to give up.
            middle = len(numbers) // 2
            if not middle:
                return [None]
            return [*make(numbers[:middle]), *make(numbers[middle:])]
        return [*crystals.to("cpu").split()]

    starts = range(0, len(references), _BATCH)
    batches = [make(range(first, min(first + _BATCH, len(references)))) for first in starts]
    return compare([crystal for batch in batches for crystal in batch], references.split())

"""How good samples are while a network is trained: validity, match rate, RMSE."""

from dataclasses import dataclass

import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystorus.data.io import crystals_to_structures, least_distance
from crystorus.diffusion.algorithms import Denoiser, Diffusion, SamplerConfig, sample
from crystorus.geometry import Crystals

LEAST_DISTANCE = 0.5
LEAST_VOLUME = 0.1
_BATCH = 32


@dataclass(frozen=True)
class Quality:
    """Figures of one sample of crystals against the crystals whose compositions it has.

    Attributes:
        valid: Share with no atoms nearer than 0.5 Å, own images included, and a cell of 0.1 Å³
            or more.
        match_rate: Share that StructureMatcher finds equal to the reference, of all crystals.
        rmse: Mean of the matches' normalised distances; NaN if there are none.
    """

    valid: float
    match_rate: float
    rmse: float


def compare(made: Crystals, references: Crystals) -> Quality:
    """Compare crystals with references, pair by pair."""
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    distances, valid = [], 0
    for crystal, reference in zip(made.split(), references.split(), strict=True):
        if not _is_valid(crystal):
            continue
        valid += 1
        pair = crystals_to_structures(Crystals.concat([crystal, reference]))
        found = matcher.get_rms_dist(*pair)
        if found is not None:
            distances.append(float(found[0]))
    rmse = sum(distances) / len(distances) if distances else float("nan")
    return Quality(valid / len(made), len(distances) / len(made), rmse)


def _is_valid(crystal: Crystals) -> bool:
    if not (torch.isfinite(crystal.lattice).all() and torch.isfinite(crystal.frac_coords).all()):
        return False
    large = bool(crystal.volume >= LEAST_VOLUME)
    return large and bool(least_distance(crystal) >= LEAST_DISTANCE)


def sample_quality(
    denoiser: Denoiser,
    diffusion: Diffusion,
    sampler: SamplerConfig,
    references: Crystals,
    *,
    device: torch.device,
) -> Quality:
    """Sample the compositions of some crystals once each and compare; always the same seeds."""
    made = []
    for first in range(0, len(references), _BATCH):
        seeds = range(first, min(first + _BATCH, len(references)))
        part = references.select(list(seeds)).to(device)
        drawn = sample(denoiser, diffusion, part.atomic_numbers, part.n_atoms, sampler, seeds)
        made.append(drawn.to("cpu"))
    return compare(Crystals.concat(made), references)

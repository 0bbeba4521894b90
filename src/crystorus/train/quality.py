"""How good samples are while a network is trained: validity, match rate, RMSE."""

import math
from dataclasses import dataclass

import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystorus.data.convert import crystals_to_structures
from crystorus.diffusion.algorithms import Denoiser, Diffusion, SamplerConfig, sample
from crystorus.geometry import Crystals
from crystorus.sample.choosing import valid_crystals

LARGEST_CELL = 1000.0
"""Å³ per atom beyond which a cell is given up: caesium has 115 Å³, and what the sums over the
reciprocal lattice cost grows with the volume, which an untrained network lets explode."""
MATCHER = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10.0)
"""The field's tolerances."""
_BATCH = 32


@dataclass(frozen=True)
class Quality:
    """Figures of one sample of crystals against the crystals whose compositions it has.

    Attributes:
        valid: Fraction that is valid by the field's definition (`crystal_fidelity.validity`).
        match_rate: Fraction that StructureMatcher finds equal to the reference, of all crystals.
        rmse: Mean of the matches' normalised distances; NaN if there are none.
    """

    valid: float
    match_rate: float
    rmse: float


class _DivergedError(Exception):
    """A cell that left all bounds."""


def rms_distance(made: Crystals, known: Crystals) -> float | None:
    """Return the distance of a crystal from the known one, None if it is another or not valid.

    Args:
        made: A crystal, a batch of one.
        known: What it is compared with, a batch of one.

    Returns:
        The root mean square displacement of matched atoms divided by (volume / atom)^(1/3), as
        match rates count it.
    """
    if not valid_crystals(made)[0]:
        return None
    found = MATCHER.get_rms_dist(*crystals_to_structures(Crystals.concat([made, known])))
    return None if found is None else float(found[0])


def compare(made: list[Crystals | None], references: list[Crystals]) -> Quality:
    """Compare crystals with references, pair by pair; None stands for one that came to nothing."""
    pairs = [(m, r) for m, r in zip(made, references, strict=True) if m is not None]
    valid = sum(bool(valid_crystals(crystal)[0]) for crystal, _ in pairs)
    found = [rms_distance(crystal, reference) for crystal, reference in pairs]
    distances = [distance for distance in found if distance is not None]
    rmse = sum(distances) / len(distances) if distances else math.nan
    return Quality(valid / len(made), len(distances) / len(made), rmse)


def sample_quality(
    denoiser: Denoiser,
    diffusion: Diffusion,
    sampler: SamplerConfig,
    references: Crystals,
    *,
    device: torch.device,
) -> Quality:
    """Sample the compositions of some crystals once each and compare; always the same seeds.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        sampler: How to sample.
        references: The crystals whose compositions are sampled.
        device: Where the network is.
    """

    def make(numbers: range) -> list[Crystals | None]:
        part = references.select(list(numbers)).to(device)
        try:
            made = sample(
                denoiser,
                diffusion,
                part.atomic_numbers,
                part.n_atoms,
                sampler,
                list(numbers),
                on_step=_give_up_diverged,
            )
            return [*made.to("cpu").split()]
        except _DivergedError:
            if len(numbers) == 1:
                return [None]
        # A crystal does not depend on its batch: halves find the ones to give up.
        middle = len(numbers) // 2
        return [*make(numbers[:middle]), *make(numbers[middle:])]

    made: list[Crystals | None] = []
    for first in range(0, len(references), _BATCH):
        made += make(range(first, min(first + _BATCH, len(references))))
    return compare(made, list(references.split()))


def _give_up_diverged(done: int, steps: int, crystals: Crystals) -> None:
    per_atom = crystals.volume.abs() / crystals.n_atoms
    if not bool((per_atom <= LARGEST_CELL).all()):
        raise _DivergedError

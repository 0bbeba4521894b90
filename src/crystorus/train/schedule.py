"""What varies along a run: the learning rate, the noise levels drawn, the seed of each step."""

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor

NOISIEST = 0.2
"""`high_noise_fraction` of the draws fall in this part of t, next to T."""


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the source of the noise of one step of one process, the same whenever it is run."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_steps(
    count: int, steps: int, *, high_noise_fraction: float, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Draw t in 1 … T: uniform within the noisiest fifth and within the rest.

    Args:
        count: How many.
        steps: T.
        high_noise_fraction: Share of the draws in the noisiest fifth; 0.2 is uniform.
        generator: Source of randomness.

    Source: Algorithm 1, line 2.
    Deviation: the noisiest levels, where there is little to learn, can be drawn less often.
    """
    u = torch.rand(count, generator=generator)
    noisiest = torch.rand(count, generator=generator) < high_noise_fraction
    u = torch.where(noisiest, 1 - NOISIEST + NOISIEST * u, (1 - NOISIEST) * u)
    return (u * steps).long().clamp(0, steps - 1) + 1


def rate_factor(step: int, progress: float, *, warmup_steps: int, decay: float) -> float:
    """Return the learning rate as a fraction of its peak.

    Args:
        step: Optimizer steps taken so far.
        progress: Share of the run that is over.
        warmup_steps: Steps over which the rate rises linearly.
        decay: Share of the run, at its end, over which it falls linearly to zero.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = min(1.0, max(0.0, 1 - progress) / decay) if decay else 1.0
    return rise * fall

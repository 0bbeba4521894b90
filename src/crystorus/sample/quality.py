"""Three ways to sample, from quick to careful, on the measured curve of quality against steps."""

from dataclasses import replace
from typing import Literal, get_args

from crystorus.config import Preset, SamplerConfig
from crystorus.sample.errors import RequestError

Quality = Literal["fast", "default", "best"]

FAST = SamplerConfig("bridge", 12, 100.0, last_fraction=0.27, temperature=0.3, over_relaxation=1.7)
"""Jumps to what the network predicts, atoms beyond it, with little noise, and none of the twelve
at the quiet levels: the crystal is further from its place than those levels expect."""

BEST = SamplerConfig("bridge", 120, 20.0)
"""The exact posterior in many steps, drifting faster towards the end."""


def sampler_at(quality: str, own: SamplerConfig, preset: Preset, levels: int) -> SamplerConfig:
    """Return the walk from noise of a quality level.

    "default" is the checkpoint's own. "fast" and "best" were chosen for the default preset
    (docs/performance.md); for `paper` they are its own sampler in a tenth of its steps and in
    as many as there are levels.

    Args:
        quality: "fast", "default" or "best".
        own: The checkpoint's sampler.
        preset: The checkpoint's preset.
        levels: T of the checkpoint; no walk has more steps.

    Raises:
        RequestError: If there is no such level.
    """
    if quality not in get_args(Quality):
        raise RequestError(f"quality {quality!r}: choose one of {', '.join(get_args(Quality))}")
    if quality == "default":
        return own
    if preset == "paper":
        return replace(own, steps=max(own.steps // 10, 1) if quality == "fast" else levels)
    walk = FAST if quality == "fast" else BEST
    return replace(walk, steps=min(walk.steps, levels), precision=own.precision)

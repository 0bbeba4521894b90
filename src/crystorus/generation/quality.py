"""Three ways to sample, from quick to careful, on the measured curve of quality against steps."""

from dataclasses import replace
from typing import Literal, get_args

from crystorus.config import Preset
from crystorus.diffusion.algorithms import SamplerConfig
from crystorus.generation.errors import RequestError

Quality = Literal["fast", "default", "best"]

FAST = SamplerConfig("bridge", 10, 10.0, first=0.87, temperature=0.4)
"""Few steps, so none is spent where the network knows nothing or on noise it takes back again."""

BEST = SamplerConfig("bridge", 100, 10.0)


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

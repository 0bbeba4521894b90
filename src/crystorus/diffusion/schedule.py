"""Noise levels as tables over t = 0 … T, t = T the noisiest (Eqs 3 and 16, Table 1)."""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_betas(first: float, last: float, steps: int) -> Float[Tensor, " steps"]:
    """Return β_1 … β_T, evenly spaced (Table 1)."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cumulative_alpha(betas: Float[Tensor, " steps"]) -> Float[Tensor, " levels"]:
    """Return ᾱ_0 … ᾱ_T with ᾱ_0 = 1 and ᾱ_t = Π (1 - β_s)."""
    return torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])


def geometric_levels(lowest: float, highest: float, steps: int) -> Float[Tensor, " levels"]:
    """Return σ_0 = 0 and σ_1 … σ_T growing geometrically from `lowest` to `highest`.

    Raises:
        ValueError: If the levels do not grow or there is no step.
    """
    if not 0 < lowest < highest or steps < 1:
        raise ValueError(
            f"noise levels must grow over at least one step, got {lowest} to {highest} "
            f"in {steps} steps: give 0 < lowest < highest"
        )
    ratio = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([ratio.new_zeros(1), lowest * (highest / lowest) ** ratio])


def sampling_times(steps: int, total: int) -> list[int]:
    """Return `steps` + 1 decreasing times from T to 0, evenly spaced.

    Raises:
        ValueError: If `steps` is not between 1 and T.
    """
    if not 1 <= steps <= total:
        raise ValueError(
            f"{steps} sampling steps with a model of {total} noise levels: give 1 to {total}"
        )
    return [round(total * (steps - n) / steps) for n in range(steps + 1)]

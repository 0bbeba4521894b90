"""Noise levels as tables over t = 0 … T, t = T the noisiest, and random numbers per crystal."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def linear_betas(first: float, last: float, steps: int) -> Float[Tensor, " steps"]:
    """Return variances of single noising steps that grow linearly (Table 1 of [Klipfel24]).

    Args:
        first: β_1.
        last: β_T, below 1.
        steps: T.

    Returns:
        β_1 … β_T in float64.
    """
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cumulative_alpha(betas: Float[Tensor, " steps"]) -> Float[Tensor, " levels"]:
    """Return ᾱ_t = Π_{s ≤ t} (1 - β_s), what is left of the signal's variance at each level.

    T steps q(x_t | x_{t-1}) = N(√(1 - β_t) x_{t-1}, β_t I), one after the other, are the one
    Gaussian x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε: its mean is multiplied by √(1 - β_s) in every step, its
    variance v obeys v_t = (1 - β_t) v_{t-1} + β_t, hence 1 - v_t = (1 - β_t)(1 - v_{t-1}).

    Args:
        betas: β_1 … β_T.

    Returns:
        ᾱ_0 = 1 and ᾱ_1 … ᾱ_T.

    Source: [Klipfel24] Eq. 3
    """
    return torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])


def geometric_levels(lowest: float, highest: float, steps: int) -> Float[Tensor, " levels"]:
    """Return standard deviations that grow by one factor per level.

    Args:
        lowest: σ_1, above 0.
        highest: σ_T, above `lowest`.
        steps: T, at least 1.

    Returns:
        σ_0 = 0 and σ_1 … σ_T in float64.

    Raises:
        ValueError: If the levels do not grow or there is no step.

    Source: [Song21], variance-exploding noise
    """
    if not 0 < lowest < highest or steps < 1:
        raise ValueError(
            f"noise levels must grow over at least one step, got {lowest} to {highest} "
            f"in {steps} steps: give 0 < lowest < highest"
        )
    ratio = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([ratio.new_zeros(1), lowest * (highest / lowest) ** ratio])


def sampling_times(steps: int, total: int) -> list[int]:
    """Return the levels at which the network is evaluated, evenly spaced.

    Args:
        steps: Network evaluations, 1 to T.
        total: T.

    Returns:
        `steps` + 1 strictly decreasing times from T to 0.

    Raises:
        ValueError: If `steps` is not between 1 and T.
    """
    if not 1 <= steps <= total:
        raise ValueError(
            f"{steps} sampling steps with a model of {total} noise levels: give 1 to {total}"
        )
    return [round(total * (steps - n) / steps) for n in range(steps + 1)]


class CrystalNoise:
    """Random numbers drawn from one generator per crystal.

    A crystal gets the same numbers whatever shares its batch, and on whatever device it is: they
    are drawn on the CPU in float32.

    Args:
        seeds: One seed per crystal.
        n_atoms: Number of atoms of each crystal; its device is where the numbers go.

    Raises:
        ValueError: If there is not one seed per crystal.
    """

    def __init__(self, seeds: Sequence[int], n_atoms: Int[Tensor, " crystals"]) -> None:
        if len(seeds) != len(n_atoms):
            raise ValueError(
                f"{len(seeds)} seeds for {len(n_atoms)} crystals: give one seed per crystal"
            )
        # 63 bits: torch seeds are signed.
        self._generators = [torch.Generator().manual_seed(int(s) % 2**63) for s in seeds]
        self._sizes = n_atoms.tolist()
        self._device = n_atoms.device

    def normal_atoms(self) -> Float[Tensor, "atoms 3"]:
        """Draw standard normal numbers for every atom."""
        return self._draw(torch.randn, [(n, 3) for n in self._sizes])

    def uniform_atoms(self) -> Float[Tensor, "atoms 3"]:
        """Draw uniform numbers in [0, 1) for every atom."""
        return self._draw(torch.rand, [(n, 3) for n in self._sizes])

    def normal_cells(self) -> Float[Tensor, "crystals 6"]:
        """Draw six standard normal numbers for every crystal."""
        return self._draw(torch.randn, [(1, 6)] * len(self._sizes))

    def _draw(self, law: Callable[..., Tensor], shapes: Sequence[tuple[int, int]]) -> Tensor:
        rows = [
            law(shape, generator=generator, dtype=torch.float32)
            for shape, generator in zip(shapes, self._generators, strict=True)
        ]
        return torch.cat(rows).to(self._device)

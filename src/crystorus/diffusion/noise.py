"""Random numbers that belong to a crystal: the same whatever shares its batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class CrystalNoise:
    """Normal and uniform numbers drawn from one generator per crystal.

    Args:
        seeds: One seed per crystal.
        n_atoms: Number of atoms of each crystal.
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
        rows = [
            torch.randn(n, 3, generator=g, dtype=torch.float32)
            for n, g in zip(self._sizes, self._generators, strict=True)
        ]
        return torch.cat(rows).to(self._device)

    def uniform_atoms(self) -> Float[Tensor, "atoms 3"]:
        """Draw uniform numbers in [0, 1) for every atom."""
        rows = [
            torch.rand(n, 3, generator=g, dtype=torch.float32)
            for n, g in zip(self._sizes, self._generators, strict=True)
        ]
        return torch.cat(rows).to(self._device)

    def normal_cells(self) -> Float[Tensor, "crystals 6"]:
        """Draw six standard normal numbers for every crystal."""
        rows = [torch.randn(1, 6, generator=g, dtype=torch.float32) for g in self._generators]
        return torch.cat(rows).to(self._device)

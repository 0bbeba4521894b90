"""Known crystals made of prototypes, for scorers to learn from."""

import torch
from prototypes import cscl, perovskite, rocksalt, zincblende

from crystorus.geometry import Crystals


def with_elements(crystal: Crystals, seed: int) -> Crystals:
    """The prototype with random elements, a little stretched."""
    generator = torch.Generator().manual_seed(seed)
    old, where = torch.unique(crystal.atomic_numbers, return_inverse=True)
    new = 3 + torch.randperm(80, generator=generator)[: len(old)]
    scale = 0.9 + 0.2 * torch.rand(1, generator=generator).double()
    return Crystals(crystal.lattice * scale, crystal.frac_coords, new[where], crystal.n_atoms)


def known(count: int) -> list[Crystals]:
    kinds = (rocksalt, cscl, zincblende, perovskite)
    return [with_elements(kinds[n % 4](), n).to(dtype=torch.float32) for n in range(count)]

"""Random members of the groups of Eq. 10, which the checks of both networks share."""

import torch


def orthogonal(seed: int, determinant: int) -> torch.Tensor:
    """A random rotation (determinant 1) or reflection (-1)."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return q * torch.linalg.det(q).sign() * determinant


def unimodular(seed: int) -> torch.Tensor:
    """A product of eight random elementary matrices."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.eye(3, dtype=torch.long)
    for _ in range(8):
        i, j = torch.randperm(3, generator=generator)[:2].tolist()
        step = torch.eye(3, dtype=torch.long)
        step[i, j] = 1 - 2 * int(torch.randint(2, (1,), generator=generator))
        change = change @ step
    return change

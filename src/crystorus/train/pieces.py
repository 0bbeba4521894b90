"""A batch in pieces: the loss and the gradients of the whole, the memory of one piece.

The gradients of a piece are taken as soon as its loss is known and added up; one backward pass
hands them on, so that whatever waits for it (clipping, averaging over devices) sees one batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from crystorus.diffusion.algorithms import (
    Diffusion,
    Losses,
    draw_normals,
    losses_at_noise,
    training_losses,
)
from crystorus.geometry import Crystals


def loss_by_pieces(
    denoiser: torch.nn.Module,
    diffusion: Diffusion,
    batch: Crystals,
    t: Int[Tensor, " crystals"],
    generator: torch.Generator,
    *,
    objective: Callable[[Losses], Tensor],
    piece_atoms: int,
) -> tuple[Tensor, Losses]:
    """Evaluate the mean objective of a batch, whose `backward` gives the gradients of the whole.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        batch: Clean crystals.
        t: Step of each crystal, 1 … T.
        generator: Source of the noise; it is drawn for the batch, whatever the pieces.
        objective: Sum over crystals of what is minimised.
        piece_atoms: Atoms worked on at a time; one crystal may have more. 0 means all.

    Returns:
        The mean over crystals of the objective, and the losses of every crystal.

    Source: Algorithm 1, lines 3 to 7.
    """
    if piece_atoms <= 0 or len(batch.atomic_numbers) <= piece_atoms:
        losses = training_losses(denoiser, diffusion, batch, t, generator)
        return objective(losses) / len(batch), losses
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    total, done = batch.lattice.new_zeros(()), []
    atoms, cells = draw_normals(batch, generator)
    for chosen, rows in _pieces(batch, piece_atoms):
        of_piece = batch.select(range(len(batch))[chosen]), t[chosen], atoms[rows], cells[chosen]
        losses = losses_at_noise(denoiser, diffusion, *of_piece)
        share = objective(losses) / len(batch)
        gradients = torch.autograd.grad(share, parameters, materialize_grads=True)
        for kept, gradient in zip(sums, gradients, strict=True):
            kept.add_(gradient)
        total += share.detach()
        done.append(Losses(losses.cell.detach(), losses.torus.detach()))
    of_all = Losses(torch.cat([x.cell for x in done]), torch.cat([x.torus for x in done]))
    whole: Tensor = _WithGradients.apply(total, sums, *parameters)
    return whole, of_all


def _pieces(batch: Crystals, piece_atoms: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of crystals of at most so many atoms, or of one crystal, and their atoms."""
    start = [0, *torch.cumsum(batch.n_atoms, 0).tolist()]
    first = 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or start[i + 1] - start[first] > piece_atoms:
            yield slice(first, i), slice(start[first], start[i])
            first = i


class _WithGradients(torch.autograd.Function):
    """A value whose gradients with respect to the parameters are known."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, sums: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.sums = sums  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad * total for total in ctx.sums)  # type: ignore[attr-defined]

"""The torus T = R³/Z³ on which fractional coordinates live (§4.2 of [Klipfel24])."""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry.crystals import Crystals, mean_per_crystal


def wrap(frac_coords: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
    """Bring fractional coordinates into [0, 1): the bracket [x] of Eq. 7.

    Args:
        frac_coords: Any real numbers.
    """
    wrapped = frac_coords - torch.floor(frac_coords)
    # 1 - 1e-9 rounds up to 1 in float32, and 1 is not in [0, 1).
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)


def wrap_displacement(displacement: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Bring fractional displacements into [-½, ½), component by component.

    Args:
        displacement: Any real numbers, fractional.
    """
    return displacement - torch.floor(displacement + 0.5)


def image_offsets(device: torch.device | None = None) -> Int[Tensor, "27 3"]:
    """Return the 27 integer vectors with entries in {-1, 0, 1}.

    Args:
        device: Where they are made; the CPU for None.
    """
    return torch.tensor(list(itertools.product((0, -1, 1), repeat=3)), device=device)


def shortest_displacement(
    start: Float[Tensor, "atoms 3"], end: Float[Tensor, "atoms 3"], crystals: Crystals
) -> Float[Tensor, "atoms 3"]:
    """Return end - start - k* with k* = arg min_k |ρ (end - start - k)|, the nearest image in Å.

    Exact for cells whose shortest vectors are near-reduced (27 images of the componentwise
    nearest one are compared), as Niggli-reduced cells are.

    Args:
        start: Fractional positions.
        end: Fractional positions.
        crystals: Gives the cell of every atom.

    Returns:
        Fractional displacements.

    Source: [Klipfel24] Eq. 20
    Deviation: the norm is cartesian and Euclidean, so that k* is invariant under rotations.
    """
    nearest = wrap_displacement(end - start)
    candidates = nearest[:, None] + image_offsets(start.device).to(nearest.dtype)
    lattice = crystals.lattice[crystals.crystal_of_atom]
    length = torch.einsum("aij,akj->aki", lattice, candidates).square().sum(-1)
    return candidates[torch.arange(len(start), device=start.device), length.argmin(1)]


def centre(displacement: Float[Tensor, "atoms 3"], crystals: Crystals) -> Float[Tensor, "atoms 3"]:
    """Remove each crystal's mean displacement: translations are a symmetry.

    Args:
        displacement: Fractional.
        crystals: Say which crystal an atom belongs to.
    """
    mean = mean_per_crystal(displacement, crystals)
    return displacement - mean[crystals.crystal_of_atom]

"""The space group of a crystal within a tolerance, through moyopy."""

from typing import NamedTuple

import moyopy
import numpy as np
import torch

from crystorus.data.io import least_distance
from crystorus.geometry import Crystals

_TRIES = 6
COLLIDING = 0.5
"""Å. Crystals with atoms nearer than this count as P1."""


class SpaceGroup(NamedTuple):
    """A space group and the crystal made exactly symmetric under it.

    Attributes:
        symbol: Short international symbol, such as Fm-3m or P6_3/mmc.
        number: International number, 1 to 230.
        standardized: Conventional cell in the standard setting, float64.
    """

    symbol: str
    number: int
    standardized: Crystals


def symmetry(crystal: Crystals, symprec: float = 0.1) -> SpaceGroup:
    """Find the space group of one crystal.

    Args:
        crystal: A batch of one.
        symprec: Tolerance in Å. Operations found within it may form no group; it is then
            halved, up to five times, and after that the crystal counts as P1.

    Raises:
        ValueError: If the batch does not hold exactly one crystal.
    """
    data = dataset(crystal, symprec)
    standard = crystal.to(dtype=torch.float64) if data is None else _to_crystals(data.std_cell)
    return SpaceGroup(*group_of(data), standard)


def group_of(data: moyopy.MoyoDataset | None) -> tuple[str, int]:
    """Return symbol and number of the group that `dataset` found, those of P1 for none."""
    if data is None:
        return "P1", 1
    return moyopy.HallSymbolEntry(data.hall_number).hm_short.replace(" ", ""), data.number


def dataset(crystal: Crystals, symprec: float) -> moyopy.MoyoDataset | None:
    """Return what moyopy finds, or None where no tolerance down to symprec/32 gives a group.

    Tolerances beyond half the least distance of two atoms are left out, and crystals with
    colliding atoms have none.
    """
    if len(crystal) != 1:
        raise ValueError(
            f"symmetry is asked of {len(crystal)} crystals: give one, with select([i])"
        )
    cell = moyopy.Cell(
        crystal.lattice[0].detach().double().cpu().T.tolist(),
        crystal.frac_coords.detach().double().cpu().tolist(),
        crystal.atomic_numbers.tolist(),
    )
    # In collapsed cells, and within tolerances that cannot tell atoms apart, moyo may never end.
    least = float(least_distance(crystal)[0])
    if not least >= COLLIDING:
        return None
    for halvings in range(_TRIES):
        tolerance = symprec / 2**halvings
        if tolerance > least / 2:
            continue
        try:
            return moyopy.MoyoDataset(cell, symprec=tolerance, setting=moyopy.Setting.standard())
        except (ValueError, RuntimeError):
            continue
    return None


def operations(hall_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rotations [n, 3, 3] and translations [n, 3] of a setting, centrings included."""
    entry = moyopy.HallSymbolEntry(hall_number)
    found = moyopy.operations_from_number(
        entry.number, setting=moyopy.Setting.hall_number(hall_number)
    )
    return np.array(found.rotations), np.array(found.translations)


def _to_crystals(cell: moyopy.Cell) -> Crystals:
    frac = torch.tensor(cell.positions, dtype=torch.float64)
    frac = frac - frac.floor()
    return Crystals(
        torch.tensor(cell.basis, dtype=torch.float64).T[None].contiguous(),
        torch.where(frac >= 1, 0.0, frac),
        torch.tensor(cell.numbers),
        torch.tensor([len(cell.numbers)]),
    )

"""What no potential must be asked: it would answer nonsense, or ask for 14 GB."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list

from crystorus.data.arrays import CrystalArrays, ReadingError, least_distance


@dataclass(frozen=True)
class ScreenLimits:
    """Which structures are worth a potential's time."""

    min_distance: float = 0.5
    """Å between two atoms, own images included."""
    min_volume: float = 2.0
    """Å³ per atom; the densest element at zero pressure has 5."""
    max_volume: float = 200.0
    """Å³ per atom."""
    min_height: float = 1.0
    """Å between opposite faces of the cell: thinner ones need more images than memory holds."""
    max_gap: float = 5.5
    """Å; every atom needs a neighbour or image this close, an isolated one has no graph."""


def screen(atoms: Atoms, limits: ScreenLimits) -> str:
    """Return why a structure is outside the limits, empty where it is inside."""
    cell = np.asarray(atoms.cell.array, dtype=float)
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        return "its cell or positions are not finite"
    volume = abs(float(np.linalg.det(cell))) / len(atoms)
    if not limits.min_volume <= volume <= limits.max_volume:
        return (
            f"{volume:.3g} Å³ per atom, outside {limits.min_volume:g} to {limits.max_volume:g} Å³"
        )
    height = least_height(cell)
    if height < limits.min_height:
        return f"the cell is {height:.2f} Å thin, below {limits.min_height:g} Å"
    distance = _least_distance(atoms)
    if not distance >= limits.min_distance:
        return f"atoms {distance:.3f} Å apart, below {limits.min_distance:g} Å"
    alone = _lonely_atom(atoms, limits.max_gap)
    if alone is not None:
        return f"atom {alone + 1} has no neighbour within {limits.max_gap:g} Å"
    return ""


def least_height(cell: np.ndarray) -> float:
    """Return the least distance in Å between opposite faces of a cell of row vectors."""
    return float(1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())


def _least_distance(atoms: Atoms) -> float:
    rows = np.asarray(atoms.cell.array, dtype=float)
    frac = atoms.get_scaled_positions(wrap=True)
    try:
        return least_distance(CrystalArrays(rows.T.copy(), frac, atoms.numbers.astype(np.int64)))
    except (ReadingError, np.linalg.LinAlgError):
        return float("nan")


def _lonely_atom(atoms: Atoms, cutoff: float) -> int | None:
    """Return the index of an atom without neighbour or image within `cutoff` Å, if any."""
    if atoms.cell.lengths().min() <= cutoff:
        return None
    centres = primitive_neighbor_list("i", (True,) * 3, atoms.cell.array, atoms.positions, cutoff)
    alone = np.setdiff1d(np.arange(len(atoms)), centres)
    return int(alone[0]) if len(alone) else None

"""What a neural network must not be asked: it would answer nonsense, or ask for 14 GB."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystal_fidelity.structures import Crystal, Entry, ReadFailure, element_symbol
from crystal_fidelity.validity import closest_contacts


@dataclass(frozen=True)
class Limits:
    """The domain of a network."""

    max_atomic_number: int
    min_distance: float = 0.5
    """Å; closer atoms give finite nonsense, coincident ones NaN."""
    max_atoms_per_volume: float = 1.0
    """Atoms per Å³ (diamond has 0.18); more would exhaust memory through the neighbour list."""
    max_nearest_neighbour: float = 5.5
    """Å; every atom needs a neighbour (or image) this close, isolated atoms have no graph."""


def screen(entries: Sequence[Entry], limits: Limits) -> list[str]:
    """Return why each structure is outside the limits, empty where it is inside."""
    reasons = [_cheap_reason(entry, limits) for entry in entries]
    open_ones = [i for i, reason in enumerate(reasons) if not reason]
    crystals = [entry for i in open_ones if isinstance(entry := entries[i], Crystal)]
    for index, crystal, contact in zip(
        open_ones, crystals, closest_contacts(crystals), strict=True
    ):
        if contact < limits.min_distance:
            reasons[index] = f"contact {contact:.3f} Å < {limits.min_distance} Å"
        elif (gap := loneliest_gap(crystal, limits.max_nearest_neighbour)) is not None:
            reasons[index] = f"atom {gap} has no neighbour within {limits.max_nearest_neighbour} Å"
    return reasons


def _cheap_reason(entry: Entry, limits: Limits) -> str:
    if isinstance(entry, ReadFailure):
        return f"unreadable: {entry.reason}"
    heaviest = int(entry.atomic_numbers.max())
    if heaviest > limits.max_atomic_number:
        symbol = element_symbol(heaviest)
        return f"element {symbol} (Z = {heaviest}) > {limits.max_atomic_number}"
    volume = entry.volume
    if volume < 1e-9 or len(entry) / volume > limits.max_atoms_per_volume:
        return f"{len(entry)} atoms in {volume:.3g} Å³ > {limits.max_atoms_per_volume} per Å³"
    return ""


def loneliest_gap(crystal: Crystal, cutoff: float) -> int | None:
    """Return the index of an atom without neighbour or image within `cutoff` Å, if any."""
    if np.linalg.norm(crystal.lattice, axis=1).min() <= cutoff:
        return None
    from ase.neighborlist import primitive_neighbor_list

    centres = primitive_neighbor_list(
        "i", (True, True, True), crystal.lattice, crystal.frac_coords @ crystal.lattice, cutoff
    )
    alone = np.setdiff1d(np.arange(len(crystal)), centres)
    return int(alone[0]) if len(alone) else None
